//! `hf:` names against a local server that speaks the Hub's protocol: the real client downloads, caches and reads.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const MAKE: &str = r#"
name = "make"
[[stage]]
id = "tokenizer"
kind = "tokenizer"
vocab_size = 259
data = [{ kind = "tasks", tasks = { kind = "tiny_world", families = "all", levels = [1], split = "train" }, n = 10 }]
[[stage]]
id = "init"
kind = "init"
shape = { hidden_size = 32, layers = 1, heads = 2, intermediate_size = 32, max_positions = 128 }
"#;

const TRAIN: &str = r#"
name = "train"
[model.policy]
path = "hf:toys/tiny"
[[stage]]
id = "sft"
kind = "offline"
data = [{ kind = "file", path = "hf:datasets/toys/sums/data/train.jsonl", prompt = "question", answer = "answer" }]
max_tokens = 64
batch = { examples = 2 }
steps = 2
optimizer = { kind = "adamw", lr = 1e-3 }
"#;

/// Serves `files` by URL path until the process ends; unknown paths are 404.
fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = Arc::new(files);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            thread::spawn(move || answer(&stream, &files));
        }
    });
    address
}

/// One request on its own connection: whole files, or the range asked for.
fn answer(stream: &TcpStream, files: &BTreeMap<String, Vec<u8>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next().and_then(|l| l.split(' ').nth(1).map(String::from)).unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).map(|l| l.to_ascii_lowercase()).collect();
    let mut stream = stream;
    let Some(body) = files.get(&path) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    };
    let range = headers.iter().find_map(|h| h.strip_prefix("range: bytes=")?.split_once('-'));
    let (status, from, to) = match range {
        Some((from, to)) => {
            let to = to.parse().unwrap_or(body.len() - 1).min(body.len() - 1);
            ("206 Partial Content", from.parse().unwrap_or(0), to + 1)
        }
        None => ("200 OK", 0, body.len()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\netag: \"{:x}\"\r\n\
         x-repo-commit: {COMMIT}\r\naccept-ranges: bytes\r\nconnection: close\r\n\r\n",
        to - from,
        to - 1,
        body.len(),
        path.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())),
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[from..to]);
}

fn temper(dir: &Path, endpoint: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_temper"))
        .args(args)
        .current_dir(dir)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", dir.join("hub"))
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn models_and_data_come_from_the_hub_once() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path();
    fs::write(dir.join("make.toml"), MAKE).unwrap();
    fs::write(dir.join("train.toml"), TRAIN).unwrap();
    let made = temper(dir, "http://127.0.0.1:1", &["run", "make.toml"]);
    assert!(made.status.success(), "{}", text(&made));

    let mut files = BTreeMap::new();
    let mut siblings = vec![];
    for entry in fs::read_dir(dir.join("runs/make/model")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        siblings.push(serde_json::json!({ "rfilename": name }));
        files.insert(format!("/toys/tiny/resolve/main/{name}"), fs::read(entry.path()).unwrap());
    }
    let info = serde_json::json!({ "siblings": siblings, "sha": COMMIT });
    files.insert("/api/models/toys/tiny/revision/main".into(), serde_json::to_vec(&info).unwrap());
    let rows = "{\"question\":\"1+1=\",\"answer\":\"2\"}\n{\"question\":\"2+2=\",\"answer\":\"4\"}\n";
    files.insert("/datasets/toys/sums/resolve/main/data/train.jsonl".into(), rows.into());
    let endpoint = serve(files);

    let check = temper(dir, &endpoint, &["check", "train.toml"]);
    assert!(check.status.success() && text(&check).contains("not local"), "{}", text(&check));
    let run = temper(dir, &endpoint, &["run", "train.toml"]);
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(fs::read_to_string(dir.join("runs/train/metrics.jsonl")).unwrap().lines().count(), 2);

    // Everything is in the cache now: no server is needed any more, and `check` says so.
    let check = temper(dir, "http://127.0.0.1:1", &["check", "train.toml"]);
    assert!(check.status.success() && !text(&check).contains("not local"), "{}", text(&check));
    let again = temper(dir, "http://127.0.0.1:1", &["run", "train.toml", "--out", "runs/again"]);
    assert!(again.status.success(), "{}", text(&again));

    let absent =
        temper(dir, &endpoint, &["run", "train.toml", "--set", "model.policy.path=hf:toys/none", "--out", "x"]);
    assert_eq!(absent.status.code(), Some(1), "{}", text(&absent));
    assert!(text(&absent).contains("toys/none") && text(&absent).contains("hint:"), "{}", text(&absent));
}
