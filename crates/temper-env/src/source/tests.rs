use std::fs;
use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{Family, Split, validate};

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        fs::write(&path, contents).unwrap();
        path.display().to_string()
    }
}

fn source(text: &str) -> TaskSource {
    toml::from_str(text).unwrap()
}

fn open(text: &str) -> Result<TaskSet, Error> {
    source(text).open(0)
}

/// The message of a failure to open.
fn refusal(text: &str) -> String {
    open(text).unwrap_err().to_string()
}

fn tasks(set: &TaskSet) -> Vec<Task> {
    (0..set.len().unwrap() as u64).map(|index| set.get(index).unwrap()).collect()
}

fn sound(text: &str) {
    let found = validate(&source(text), 0, 1000).unwrap();
    assert!(found.ok() && found.cells.iter().all(|cell| cell.tasks > 0), "{found:#?}");
}

// The first two rows of GSM8K's training set (MIT, openai/grade-school-math).
const GSM8K: &str = r#"{"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did Natalia sell altogether in April and May?", "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"}

{"question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?", "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10"}
"#;

#[test]
fn tiny_world_sources() {
    let text = "kind = 'tiny_world'\nfamilies = ['chains', 'copying']\nlevels = [1, 2]\nsplit = 'test'\nn = 6\n";
    let set = open(text).unwrap();
    assert_eq!((set.name(), set.len(), set.pairs()), ("tiny_world", Some(6), None));
    assert_eq!(set.get(5).unwrap().id, "copying/L1/test/s0/1");
    assert!(set.get(6).unwrap_err().to_string().contains("6 tasks"));
    sound(text);
    let all = source("kind = 'tiny_world'\nfamilies = 'all'\nlevels = [1]\nsplit = 'train'\ncot = true\nseed = 9");
    let set = all.open(4).unwrap();
    assert_eq!(set.len(), None);
    assert!(set.get(u64::MAX / 2).unwrap().id.contains("/s9/"));
    let one = source("kind = 'tiny_world'\nfamilies = 'chains'\nlevels = [1]\nsplit = 'train'");
    let TaskSource::TinyWorld(one) = one else { panic!() };
    assert_eq!((one.families.list(), one.split), (&[Family::Chains][..], Split::Train));
}

#[test]
fn sources_round_trip_through_toml_with_their_defaults() {
    for text in [
        "kind = 'tiny_world'\nfamilies = 'all'\nlevels = [1]\nsplit = 'train'",
        "kind = 'gsm8k'\npath = 'a'",
        "kind = 'file'\npath = 'a'\nverifier = { kind = 'exact' }",
        "kind = 'multiple_choice'\npath = 'a'",
        "kind = 'bbh'\npath = 'a'",
        "kind = 'blimp'\npath = 'a'",
    ] {
        let read = source(text);
        let written = toml::to_string(&read).unwrap();
        assert_eq!(source(&written), read, "{written}");
        assert!(written.contains("start = 0") || written.contains("cot = false"), "{written}");
        let kind = TaskSource::KINDS.iter().find(|(kind, _)| text.contains(&format!("'{kind}'")));
        assert!(kind.is_some(), "{text}");
    }
    let schema = serde_json::to_string(&schemars::schema_for!(TaskSource)).unwrap();
    assert!(TaskSource::KINDS.iter().all(|(kind, _)| schema.contains(kind)), "{schema}");
}

#[test]
fn unknown_keys_and_values_are_named() {
    for (text, word) in [
        ("kind = 'tiny_world'\nfamilies = 'all'\nlevels = [1]\nsplit = 'train'\ncott = true", "cott"),
        ("kind = 'tiny_world'\nfamilies = ['sums']\nlevels = [1]\nsplit = 'train'", "addition"),
        ("kind = 'tiny_world'\nfamilies = 3\nlevels = [1]\nsplit = 'train'", "all"),
        ("kind = 'tiny_world'\nfamilies = 'all'\nlevels = [1]\nsplit = 'valid'", "ood"),
        ("kind = 'gsm8k'\npath = 'a'\nmax = 3", "max"),
        ("kind = 'file'\npath = 'a'\nverifier = { kind = 'exact', tolerance = 1.0 }", "tolerance"),
        ("kind = 'squad'\npath = 'a'", "tiny_world"),
    ] {
        let message = toml::from_str::<TaskSource>(text).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
    for (text, word) in [
        ("kind = 'tiny_world'\nfamilies = []\nlevels = [1]\nsplit = 'train'", "families"),
        ("kind = 'tiny_world'\nfamilies = 'all'\nlevels = [6]\nsplit = 'train'", "levels"),
        ("kind = 'tiny_world'\nfamilies = 'all'\nlevels = [1]\nsplit = 'train'\nn = 0", "`n`"),
        ("kind = 'gsm8k'\npath = 'hf:datasets/openai/gsm8k/main/train.jsonl'", "hf:"),
        ("kind = 'gsm8k'\npath = 'no/such/file.jsonl'", "no/such/file.jsonl"),
    ] {
        assert!(refusal(text).contains(word), "{}", refusal(text));
    }
}

#[test]
fn paths_can_be_listed_and_replaced() {
    let mut gsm8k = source("kind = 'gsm8k'\npath = 'hf:datasets/a/b/train.jsonl'");
    assert_eq!(gsm8k.paths(), ["hf:datasets/a/b/train.jsonl"]);
    assert_eq!(gsm8k.name(), "train");
    for path in gsm8k.paths_mut() {
        "b.jsonl".clone_into(path);
    }
    assert_eq!(gsm8k.paths(), ["b.jsonl"]);
    assert!(source("kind = 'tiny_world'\nfamilies = 'all'\nlevels = [1]\nsplit = 'train'").paths().is_empty());
}

#[test]
fn gsm8k_files() {
    let folder = Folder::new();
    let path = folder.write("train.jsonl", GSM8K);
    let set = open(&format!("kind = 'gsm8k'\npath = '{path}'\ninstruction = 'Think.'")).unwrap();
    let all = tasks(&set);
    assert_eq!(all.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["train:1", "train:3"]);
    assert!(all[0].prompt[0].content.ends_with("April and May?\nThink."));
    assert_eq!(all[0].answer, "72");
    assert_eq!(
        all[1].demonstration.as_deref().unwrap(),
        "Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $10.\n#### 10"
    );
    sound(&format!("kind = 'gsm8k'\npath = '{path}'\nstrict = true"));
    sound(&format!("kind = 'gsm8k'\npath = '{path}'\nkeep_calculator = true"));
    let n = |rest: &str| open(&format!("kind = 'gsm8k'\npath = '{path}'\n{rest}")).map(|set| set.len().unwrap());
    assert_eq!(n("max_calculations = 2").unwrap(), 2);
    assert!(n("max_calculations = 1").unwrap_err().to_string().contains("max_calculations"));
    assert_eq!(n("start = 1").unwrap(), 1);
    assert!(n("n = 3").unwrap_err().to_string().contains("2 rows"));
    assert!(n("start = 2").is_err());
    assert!(n("n = 0").is_err());
}

#[test]
fn compressed_and_json_files_read_the_same() {
    let folder = Folder::new();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(GSM8K.as_bytes()).unwrap();
    let rows: Vec<serde_json::Value> =
        GSM8K.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    let plain = folder.write("a.jsonl", GSM8K);
    let expected: Vec<String> = tasks(&open(&format!("kind = 'gsm8k'\npath = '{plain}'")).unwrap())
        .into_iter()
        .map(|task| task.answer)
        .collect();
    for path in [
        folder.write("b.jsonl.gz", gz.finish().unwrap()),
        folder.write("c.jsonl.zst", zstd::encode_all(GSM8K.as_bytes(), 1).unwrap()),
        folder.write("f.jsonl", format!("\u{feff}{GSM8K}")),
        folder.write("d.json", serde_json::to_vec(&rows).unwrap()),
        folder.write("e.json", serde_json::json!({"rows": rows}).to_string()),
    ] {
        let set = open(&format!("kind = 'gsm8k'\npath = '{path}'")).unwrap();
        assert_eq!(tasks(&set).into_iter().map(|task| task.answer).collect::<Vec<_>>(), expected, "{path}");
    }
}

#[test]
fn bad_rows_are_named() {
    let folder = Folder::new();
    let good = "{\"question\": \"q\", \"answer\": \"#### 1\"}\n";
    for (name, contents, words) in [
        ("a.jsonl", format!("{good}not json\n"), "line 2"),
        ("b.jsonl", format!("{good}\n[1]\n"), "line 3"),
        ("c.jsonl", format!("{good}{{\"question\": \"q\"}}\n"), "line 2: no column `answer`"),
        ("d.jsonl", "{\"question\": \"q\", \"answer\": \"1\"}".into(), "####"),
        ("e.jsonl", "{\"question\": \"q\", \"answer\": \"#### x\"}".into(), "line 1"),
        ("f.jsonl", "{\"question\": 3, \"answer\": \"#### 1\"}".into(), "expected text, found 3"),
        ("g.json", "[{\"question\": \"q\", \"answer\": \"#### 1\"}, 7]".into(), "item 2"),
        ("h.json", "{\"data\": []}".into(), "empty"),
        ("i.json", "{".into(), "not valid JSON"),
        ("j.jsonl", String::new(), "empty"),
        ("o.json", "{\n\"listed\": []}".into(), "without rows"),
        ("p.jsonl", format!("[1]\n{good}"), "line 1: expected an object, found an array"),
        ("q.txt", good.into(), "expected rows in a .jsonl or .json file"),
        ("k.jsonl", "{\"id\": 1, \"question\": \"q\", \"answer\": \"#### 1\"}\n".repeat(2), "two rows have the id `1`"),
        ("l.jsonl.gz", "not gzip".into(), "neither gzip nor zstd"),
    ] {
        let path = folder.write(name, contents);
        let message = refusal(&format!("kind = 'gsm8k'\npath = '{path}'"));
        assert!(message.contains(words) && message.contains(name), "{name}: {message}");
    }
    let mut cut = zstd::encode_all(GSM8K.as_bytes(), 1).unwrap();
    cut.truncate(cut.len() / 2);
    let path = folder.write("m.jsonl.zst", cut);
    assert!(refusal(&format!("kind = 'gsm8k'\npath = '{path}'")).contains("cannot read"));
    let path = folder.write("n.jsonl", [good.as_bytes(), b"\xff\n"].concat());
    assert!(refusal(&format!("kind = 'gsm8k'\npath = '{path}'")).contains("line 2: not UTF-8"));
}

#[test]
fn files_with_columns_of_their_own() {
    let folder = Folder::new();
    let rows = r#"{"id": "x", "q": "2+2?", "a": 4, "why": "two and two are 4"}
{"q": [{"role": "system", "content": "s"}, {"role": "user", "content": "3+3?"}], "a": "6", "why": "6"}"#;
    let path = folder.write("sums.jsonl", rows);
    let head = format!("kind = 'file'\npath = '{path}'\nprompt = 'q'\nanswer = 'a'\ninstruction = 'Be brief.'\n");
    let text = format!("{head}demonstration = 'why'\nverifier = {{ kind = 'numeric' }}");
    let all = tasks(&open(&text).unwrap());
    assert_eq!((all[0].id.as_str(), all[1].id.as_str()), ("x", "sums:2"));
    assert_eq!(all[0].answer, "4");
    assert_eq!(all[1].prompt, [Message::system("s"), Message::user("3+3?\nBe brief.")]);
    assert_eq!(all[0].demonstration.as_deref(), Some("two and two are 4"));
    assert_eq!(all[0].tag("source"), Some("sums"));
    sound(&text);
    assert_eq!(
        tasks(&open(&format!("{head}verifier = {{ kind = 'exact' }}")).unwrap())[1].demonstration.as_deref(),
        Some("6")
    );
    let bad = folder.write(
        "bad.jsonl",
        r#"{"q": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a": "6"}"#,
    );
    assert!(
        refusal(&format!("kind = 'file'\npath = '{bad}'\nprompt = 'q'\nanswer = 'a'\nverifier = {{ kind = 'exact' }}"))
            .contains("model's turn")
    );
    assert!(refusal(&format!("kind = 'file'\npath = '{path}'\nprompt = 'q'\nanswer = 'why'\nverifier = {{ kind = 'label', labels = ['6'] }}")).contains("line 1"));
}

#[test]
fn multiple_choice_files() {
    let folder = Folder::new();
    let rows = r#"{"question": "Sky?", "choices": ["red", "blue"], "answer": "B"}
{"question": "Grass?", "choices": ["red", "green"], "answer": 1}
{"question": "Blood?", "choices": ["red", "green"], "answer": "red"}
{"question": "Snow?", "choices": {"text": ["white", "black"], "label": ["1", "2"]}, "answer": "1"}"#;
    let path = folder.write("colours.jsonl", rows);
    let text = format!("kind = 'multiple_choice'\npath = '{path}'");
    let all = tasks(&open(&text).unwrap());
    assert_eq!(all.iter().map(|task| task.answer.as_str()).collect::<String>(), "BBAA");
    assert_eq!(all[0].prompt[0].content, "Sky?\n(A) red\n(B) blue");
    assert_eq!(all[0].demonstration.as_deref(), Some("(B)"));
    sound(&text);
    for row in [
        r#"{"question": "q", "choices": ["a", "b"], "answer": "C"}"#,
        r#"{"question": "q", "choices": ["a", "b"], "answer": 2}"#,
        r#"{"question": "q", "choices": ["a"], "answer": 0}"#,
        r#"{"question": "q", "choices": "ab", "answer": 0}"#,
    ] {
        let path = folder.write("bad.jsonl", row);
        assert!(refusal(&format!("kind = 'multiple_choice'\npath = '{path}'")).contains("line 1"), "{row}");
    }
}

#[test]
fn bbh_files_choose_their_verifier() {
    let folder = Folder::new();
    let kind = |name: &str, examples: serde_json::Value| {
        let path = folder.write(name, serde_json::json!({"canary": "x", "examples": examples}).to_string());
        let text = format!("kind = 'bbh'\npath = '{path}'");
        sound(&text);
        tasks(&open(&text).unwrap())[0].verifier.clone()
    };
    let example = |input: &str, target: &str| serde_json::json!({"input": input, "target": target});
    let options = "Who?\nOptions:\n(A) Ann\n(B) Bob";
    assert_eq!(
        kind("letters.json", [example(options, "(B)"), example(options, "(A)")].to_vec().into()),
        Verifier::MultipleChoice { choices: vec!["Ann".into(), "Bob".into()] }
    );
    assert_eq!(kind("numbers.json", [example("1-3 =", "-2")].to_vec().into()), Verifier::NUMERIC);
    let labels = Verifier::Label { labels: vec!["No".into(), "Yes".into()] };
    assert_eq!(kind("labels.json", [example("Is it?", "Yes"), example("Is she?", "No")].to_vec().into()), labels);
    assert_eq!(kind("words.json", [example("Sort: b a", "a b")].to_vec().into()).name(), "exact");
    let path = folder.write("bad.json", r#"{"examples": [{"input": "Who?\n(A) Ann", "target": "(B)"}]}"#);
    assert!(refusal(&format!("kind = 'bbh'\npath = '{path}'")).contains("item 1"));
}

#[test]
fn blimp_files_hold_pairs() {
    let folder = Folder::new();
    // From BLiMP's adjunct_island (CC BY, alexwarstadt/blimp).
    let row = r#"{"sentence_good": "Who should Derek hug after shocking Richard?", "sentence_bad": "Who should Derek hug Richard after shocking?", "pairID": "0"}"#;
    let path = folder.write("adjunct_island.jsonl", row);
    let text = format!("kind = 'blimp'\npath = '{path}'");
    let set = open(&text).unwrap();
    let pairs = set.pairs().unwrap();
    assert_eq!((pairs.len(), pairs[0].id.as_str()), (1, "adjunct_island:1"));
    assert!(pairs[0].good.ends_with("shocking Richard?"));
    assert!(set.get(0).unwrap_err().to_string().contains("1 pairs"));
    sound(&text);
    let same = folder.write("same.jsonl", r#"{"sentence_good": "a", "sentence_bad": "a"}"#);
    let found = validate(
        &source(&format!(
            "kind = 'blimp'
path = '{same}'"
        )),
        0,
        10,
    )
    .unwrap();
    assert!(!found.ok() && found.cells[0].failures[0].task == "same:1");
}

#[test]
fn gsm8k_chooses_rows_of_the_file_before_it_leaves_out_the_hard_ones() {
    let folder = Folder::new();
    // Row i works through i % 3 + 1 calculations.
    let row = |i: usize| {
        let worked = "1+1 = <<1+1=2>>2\n".repeat(i % 3 + 1);
        serde_json::json!({"id": i, "question": "q", "answer": format!("{worked}#### 2")}).to_string()
    };
    let path = folder.write("rows.jsonl", (0..12).map(|i| row(i) + "\n").collect::<String>());
    let ids = |rest: &str| -> Vec<String> {
        let set = open(&format!("kind = 'gsm8k'\npath = '{path}'\n{rest}")).unwrap();
        tasks(&set).into_iter().map(|task| task.id).collect()
    };
    assert_eq!(ids("start = 6\nmax_calculations = 1"), ["6", "9"]);
    assert_eq!(ids("n = 6\nmax_calculations = 2"), ["0", "1", "3", "4"]);
    for seed in ["", "\nshuffle_seed = 3"] {
        let (mut first, rest) = (ids(&format!("n = 5{seed}")), ids(&format!("start = 5\nmax_calculations = 2{seed}")));
        assert!(rest.iter().all(|id| !first.contains(id)), "{first:?} {rest:?}");
        first.extend(ids(&format!("start = 5{seed}")));
        first.sort();
        first.dedup();
        assert_eq!(first.len(), 12);
    }
    let none = refusal(&format!("kind = 'gsm8k'\npath = '{path}'\nstart = 1\nn = 2\nmax_calculations = 1"));
    assert!(none.contains("among the 2 that `start` and `n` choose") && none.contains("`max_calculations`"), "{none}");
    let beyond = refusal(&format!("kind = 'gsm8k'\npath = '{path}'\nstart = 12\nmax_calculations = 1"));
    assert!(beyond.contains("12 rows"), "{beyond}");
}

#[test]
fn options_that_change_demonstrations_only_are_listed() {
    let world = "kind = 'tiny_world'\nfamilies = 'chains'\nlevels = [1]\nsplit = 'train'";
    let file = "kind = 'file'\npath = 'a'\nverifier = { kind = 'exact' }";
    for (text, expected) in [
        (world.to_owned(), &[][..]),
        (format!("{world}\ncot = false"), &[]),
        (format!("{world}\ncot = true"), &["cot"]),
        ("kind = 'gsm8k'\npath = 'a'\nstrict = true".into(), &[]),
        ("kind = 'gsm8k'\npath = 'a'\nkeep_calculator = true".into(), &["keep_calculator"]),
        (file.to_owned(), &[]),
        (format!("{file}\ndemonstration = 'why'"), &["demonstration"]),
        ("kind = 'bbh'\npath = 'a'".into(), &[]),
    ] {
        assert_eq!(source(&text).demonstration_options(), expected, "{text}");
    }
    // What is listed changes nothing that is asked or scored.
    let bare = |text: &str| -> Vec<Task> {
        let set = open(&format!("{world}\nn = 20\n{text}")).unwrap();
        tasks(&set).into_iter().map(|task| Task { demonstration: None, ..task }).collect()
    };
    assert_eq!(bare("cot = true"), bare(""));
}

#[test]
fn subsets_are_deterministic_and_disjoint() {
    let items: Vec<usize> = (0..50).collect();
    let pick = |start, n, shuffle_seed| Subset { path: "x", n, start, shuffle_seed }.apply(items.clone()).unwrap();
    assert_eq!(pick(3, Some(4), None), [3, 4, 5, 6]);
    assert_eq!(pick(0, None, None), items);
    assert_eq!(pick(0, Some(20), Some(1)), pick(0, Some(20), Some(1)));
    assert_ne!(pick(0, Some(20), Some(1)), pick(0, Some(20), Some(2)));
    let (mut all, rest) = (pick(0, Some(20), Some(1)), pick(20, None, Some(1)));
    all.extend(rest);
    all.sort_unstable();
    assert_eq!(all, items);
    let huge = Subset { path: "x", n: Some(usize::MAX), start: 5, shuffle_seed: None }.apply(items).unwrap_err();
    assert!(huge.to_string().contains("50 rows"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a file holds, it is read or refused, and what was read can be validated.
    #[test]
    fn no_file_causes_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "\\PC{0,12}", answer in "\\PC{0,12}|[-0-9.,/$% ]{0,6}") {
        let folder = Folder::new();
        let row = serde_json::json!({"prompt": text, "answer": answer, "why": format!("{text}{answer}"), "choices": [text, answer]});
        let verifiers = ["exact'", "numeric'", "gsm8k'", "regex', pattern = '(.*)'", "label', labels = ['a', 'b']"];
        for contents in [bytes.clone(), row.to_string().into_bytes(), [&[0x1f, 0x8b], &bytes[..]].concat(), [&[0x28, 0xb5, 0x2f, 0xfd], &bytes[..]].concat()] {
            for name in ["a.jsonl", "a.json"] {
                let path = folder.write(name, &contents);
                for verifier in verifiers {
                    let text = format!("kind = 'file'\npath = '{path}'\ndemonstration = 'why'\nverifier = {{ kind = '{verifier} }}");
                    let _ = validate(&source(&text), 0, 9).map_err(|error| error.to_string());
                }
                let text = format!("kind = 'multiple_choice'\npath = '{path}'\nquestion = 'prompt'");
                let _ = validate(&source(&text), 0, 9).map_err(|error| error.to_string());
            }
        }
    }
}
