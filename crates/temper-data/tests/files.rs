//! Data files: every format that people have, and every way in which files are broken.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;
use temper_data::{Conversation, Example, Format, Kind, LoadReport, Message, Payload, SampleBy, load};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, name: &str, bytes: impl AsRef<[u8]>) -> (Vec<Example>, LoadReport) {
        load(self.file(name, bytes), &Format::default()).unwrap()
    }

    fn error(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        load(self.file(name, bytes), &Format::default()).unwrap_err().to_string()
    }
}

fn payload(row: &str) -> Payload {
    let (mut examples, _) = Folder::new().load("a.jsonl", row);
    examples.remove(0).payload
}

fn turns(pairs: &[(&str, &str)]) -> Vec<Message> {
    pairs.iter().map(|(role, text)| Message::new(*role, *text)).collect()
}

fn chat(pairs: &[(&str, &str)]) -> Payload {
    Payload::Chat(Conversation::new(turns(pairs)))
}

#[test]
fn conversations_are_recognised() {
    let expected = chat(&[("user", "a"), ("assistant", "b")]);
    for row in [
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
        r#"{"conversation":[{"human":"a","assistant":"b"}]}"#,
        r#"{"instruction":"a","input":"","output":"b"}"#,
    ] {
        assert_eq!(payload(row), expected, "{row}");
    }
    let row = r#"{"instruction":"c","input":"d","output":"e","system":"s","history":[["a","b"]]}"#;
    let long = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c\nd"), ("assistant", "e")];
    assert_eq!(payload(row), chat(&long));
    let row = r#"{"system":"s","conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#;
    assert_eq!(payload(row), chat(&[("system", "s"), ("user", "a"), ("assistant", "b")]));
}

#[test]
fn tool_calls_are_kept() {
    let row = json!({
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": "[{\"name\": \"f\"}]",
    });
    let Payload::Chat(conversation) = payload(&row.to_string()) else { panic!("not a chat") };
    let roles: Vec<&str> = conversation.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
    assert_eq!(conversation.messages[1].extra["tool_calls"][0]["function"]["arguments"]["x"], 1);
    assert_eq!(conversation.tools.unwrap()[0]["name"], "f");
}

#[test]
fn pairs_texts_and_tasks_are_recognised() {
    let pair = Payload::PromptCompletion { prompt: "a".into(), completion: "b".into() };
    assert_eq!(payload(r#"{"prompt":"a","completion":"b"}"#), pair);
    assert_eq!(payload(r#"{"query":"a","response":"b"}"#), pair);
    assert_eq!(payload(r#"{"text":"a"}"#), Payload::Text("a".into()));
    let task = |row: &str| match payload(row) {
        Payload::Task { prompt, answer, columns } => (prompt, answer, columns),
        other => panic!("{other:?}"),
    };
    let (prompt, answer, columns) = task(r#"{"question":"a","answer":"b","level":2}"#);
    assert_eq!((prompt, answer.as_str(), &columns["level"]), (turns(&[("user", "a")]), "b", &json!(2)));
    let verl = r#"{"prompt":[{"role":"user","content":"a"}],"reward_model":{"style":"rule","ground_truth":4}}"#;
    assert_eq!(task(verl).1, "4");
    let tulu = r#"{"messages":[{"role":"user","content":"a"}],"ground_truth":"4"}"#;
    assert_eq!(task(tulu).0, turns(&[("user", "a")]));
    assert_eq!(task(r#"{"input":"a","target":"Yes"}"#).1, "Yes");
}

#[test]
fn only_the_completion_of_message_lists_is_trained() {
    let row =
        r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],
        "completion":[{"role":"assistant","content":"d"}]}"#
            .replace('\n', "");
    let Payload::Chat(conversation) = payload(&row) else { panic!("not a chat") };
    let weights: Vec<f32> = conversation.messages.iter().map(Message::loss_weight).collect();
    assert_eq!(weights, [0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn columns_can_be_named() {
    let folder = Folder::new();
    let path = folder.file("a.jsonl", r#"{"q":"a","meta":{"gold":"b"},"text":"x"}"#);
    let format: Format = serde_json::from_value(
        json!({"kind": "task", "prompt_column": "q", "answer_column": "meta.gold", "system": "s"}),
    )
    .unwrap();
    let (examples, report) = load(&path, &format).unwrap();
    assert_eq!(report.kind, Kind::Task);
    let Payload::Task { prompt, answer, .. } = &examples[0].payload else { panic!("not a task") };
    assert_eq!((prompt, answer.as_str()), (&turns(&[("system", "s"), ("user", "a")]), "b"));
    let guessed = Format { kind: Kind::Auto, ..format.clone() };
    assert_eq!(load(&path, &guessed).unwrap().0, examples);
    let useless = Format { kind: Kind::Text, ..format };
    assert!(load(&path, &useless).unwrap_err().to_string().contains("no effect"));
    let missing = Format { text_column: Some("body".into()), ..Format::default() };
    assert!(load(&path, &missing).unwrap_err().to_string().contains(r#"no column "body""#));
    assert!(serde_json::from_value::<Format>(json!({"columns": 3})).is_err());
}

#[test]
fn containers_and_compression_do_not_matter() {
    let folder = Folder::new();
    let rows = [r#"{"text":"a"}"#, r#"{"text":"é\n"}"#];
    let lines = rows.join("\n");
    let array = format!("[{}]", rows.join(","));
    let expected = ["a", "é\n"].map(|text| Payload::Text(text.into()));
    for (name, bytes) in [
        ("a.jsonl", lines.clone()),
        ("b.jsonl", format!("\u{feff}{}\r\n\r\n{}\r\n", rows[0], rows[1])),
        ("c.json", array.clone()),
        ("d.json", format!("\u{feff} {array}\n")),
        ("e.json", format!(r#"{{"canary":"x","examples":{array}}}"#)),
        ("f.json", format!("{{\n \"data\": {array}\n}}")),
        ("g.json", lines.clone()),
    ] {
        let payloads = |name: &str, bytes: &[u8]| -> Vec<Payload> {
            folder.load(name, bytes).0.into_iter().map(|example| example.payload).collect()
        };
        assert_eq!(payloads(name, bytes.as_bytes()), expected, "{name}");
        assert_eq!(payloads(&format!("{name}.gz"), &gzip(bytes.as_bytes())), expected, "{name}.gz");
        assert_eq!(payloads(&format!("{name}.zst"), &zstd_of(bytes.as_bytes())), expected, "{name}.zst");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[test]
fn ids_are_stable() {
    let folder = Folder::new();
    let (examples, report) = folder
        .load("set.v1.jsonl.gz", gzip(b"{\"text\":\"a\"}\n\n{\"text\":\"b\",\"id\":7}\n{\"text\":\"c\",\"id\":7}\n"));
    let ids: Vec<&str> = examples.iter().map(|example| example.id.as_str()).collect();
    assert_eq!(ids, ["set.v1:1", "7", "7#2"]);
    assert_eq!(examples[0].tags, ["set.v1"]);
    assert_eq!((report.rows, report.blank_lines, report.repeated_ids), (3, 1, 1));
}

#[test]
fn plain_text_is_cut_as_asked() {
    let path = Folder::new();
    let path = (path.file("a.txt", "one\ntwo\n\n \nthree\r\n"), path);
    let texts = |sample_by: SampleBy| -> Vec<(String, Payload)> {
        let (examples, _) = load(&path.0, &Format { sample_by, ..Format::default() }).unwrap();
        examples.into_iter().map(|example| (example.id, example.payload)).collect()
    };
    let row = |id: &str, text: &str| (id.to_owned(), Payload::Text(text.into()));
    assert_eq!(texts(SampleBy::Line), [row("a:1", "one"), row("a:2", "two"), row("a:5", "three")]);
    assert_eq!(texts(SampleBy::Paragraph), [row("a:1", "one\ntwo"), row("a:5", "three")]);
    assert_eq!(texts(SampleBy::Document).len(), 1);
}

#[test]
fn bad_lines_are_named_and_none_is_skipped() {
    let folder = Folder::new();
    let mut bytes = b"{\"text\":\"a\"}\n{\"text\":\n[1]\n{\"text\":3}\n{}\n\"caf\xe9\"\n".to_vec();
    let error = folder.error("a.jsonl", &bytes);
    for part in [
        "a.jsonl: 5 bad rows of 6",
        "row 2: not valid JSON",
        "row 3: expected an object, found an array",
        "row 4: \"text\" must be a string, found a number",
        "row 5: no column \"text\"",
        "row 6: not UTF-8 after byte 4",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    bytes.extend(b"x\n".repeat(20));
    let error = folder.error("a.jsonl", &bytes);
    assert!(error.contains("25 bad rows of 26") && error.contains("... and 15 more"), "{error}");
    let rows = r#"{"messages":[{"role":"user","content":"a"},{"content":"b"}]}"#;
    assert!(folder.error("b.jsonl", rows).contains("messages[1]: neither `role` nor `from`"));
    let rows = r#"{"messages":[{"role":"assistant","content":"a","weight":-1}]}"#;
    assert!(folder.error("c.jsonl", rows).contains("messages[0]: weight must be 0 or more"));
    assert!(folder.error("d.jsonl", r#"{"messages":[]}"#).contains("empty"));
}

#[test]
fn bad_lines_are_named_whatever_stands_around_them() {
    let folder = Folder::new();
    for (bytes, parts) in [
        (&b"{\"mess\n{x\n"[..], ["2 bad rows of 2", "row 1: not valid JSON", "row 2: not valid JSON"]),
        (b"\x93\xfe\x00 \x01\n\xff", ["2 bad rows of 2", "row 1: not UTF-8", "row 2: not UTF-8"]),
        (b"{\"text\": \"\\ud800\"}\n", ["1 bad row of 1", "row 1: not valid JSON", "hex escape"]),
        (b"[1]\n{\"text\": \"a\"}\n", ["1 bad row of 2", "row 1: expected an object, found an array", ".json"]),
        (b"7\nnull", ["2 bad rows of 2", "row 1: expected an object, found a number", "found null"]),
        // The first object tells no format, but the lines that cannot be read are named all the same.
        (b"{\"text\n{\"x\": 1}\n", ["1 bad row of 2", "row 1: not valid JSON", "a.jsonl"]),
        (b"\n{\"x\": 1}\n", ["row 2: cannot tell the format", "[\"x\"]", "set kind"]),
    ] {
        for (name, bytes) in [("a.jsonl", bytes.to_vec()), ("a.jsonl.gz", gzip(bytes)), ("a.jsonl.zst", zstd_of(bytes))]
        {
            let error = folder.error(name, bytes);
            for part in parts {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
    // The shape is that of the first object, not of the first line.
    let error = folder.error("a.jsonl", "7\n{\"text\": \"a\"}\n{\"text\": 1}\n");
    assert!(error.contains("2 bad rows of 3") && error.contains("row 3: \"text\" must be a string"), "{error}");
    // An array is a document under the name of one only.
    let error = folder.error("h.jsonl", r#"[{"text":"a"},{"text":"b"}]"#);
    assert!(error.contains("row 1: expected an object, found an array"), "{error}");
    // Settings are wrong whatever the rows are.
    let path = folder.file("i.jsonl", "{x");
    let format = Format { kind: Kind::Text, system: Some("s".into()), ..Format::default() };
    assert!(load(path, &format).unwrap_err().to_string().contains("no effect"));
}

#[test]
fn weights_that_no_f32_holds_are_named_with_their_row() {
    let folder = Folder::new();
    let row = |weight: &str| {
        let turn = format!(r#"{{"role":"assistant","content":"a","weight":{weight}}}"#);
        format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"q\"}},{turn}]}}\n")
    };
    for weight in ["1e300", "1e-300", "1e39", "2e6"] {
        let error = folder.error("a.jsonl", [row("1"), row(weight)].concat());
        assert!(error.contains("row 2: messages[1]: weight must be 0 or more, and at most"), "{error}");
    }
    assert_eq!(folder.load("b.jsonl", [row("0"), row("1e6"), row("0.5")].concat()).0.len(), 3);
}

#[test]
fn broken_files_say_what_is_wrong() {
    let folder = Folder::new();
    let long: Vec<String> = (0..2000).map(|i| format!("{{\"text\":\"row {i}\"}}\n")).collect();
    let long = long.concat();
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    for (name, bytes, part) in [
        ("a.jsonl.gz", half(gzip(long.as_bytes())), "truncated or corrupt gzip"),
        ("a.jsonl.zst", half(zstd_of(long.as_bytes())), "truncated or corrupt zstd"),
        ("b.jsonl.gz", long.clone().into_bytes(), "neither gzip nor zstd"),
        ("a.jsonl", Vec::new(), "empty"),
        ("b.jsonl", b"\n \n".to_vec(), "empty"),
        ("a.json", b"[]".to_vec(), "empty"),
        ("a.txt", b" \n".to_vec(), "empty"),
        ("a.jsonl.gz", gzip(b""), "empty"),
        ("b.json", b"[{\"text\":\"a\"},".to_vec(), "not valid JSON"),
        ("c.json", b"{\n\"text\": \"a\"\n}".to_vec(), "without rows"),
        ("a.parquet", b"PAR1".to_vec(), "unknown extension \"parquet\""),
        ("b.txt", b"ok\ncaf\xe9".to_vec(), "line 2 is not UTF-8"),
        ("d.jsonl", br#"{"prompt":"a","chosen":"b","rejected":"c"}"#.to_vec(), "compare or judge"),
        ("e.jsonl", br#"{"messages":[{"role":"user","content":"a"}],"label":true}"#.to_vec(), "compare or judge"),
        ("c.jsonl", br#"{"premise":"a","label":1}"#.to_vec(), "cannot tell the format from the columns"),
    ] {
        let error = folder.error(name, bytes);
        assert!(error.contains(part) && error.contains(name), "{part}: {error}");
    }
    let error = load(folder.0.path(), &Format::default()).unwrap_err();
    assert!(error.to_string().contains("a directory"), "{error}");
    let error = load(folder.0.path().join("none.jsonl"), &Format::default()).unwrap_err();
    assert!(error.to_string().contains("none.jsonl"), "{error}");
}
