//! What the tests of reward commands' ends share.
#![allow(unreachable_pub)] // a module of each test

use std::path::Path;
use std::time::{Duration, Instant};

use temper_data::Message;
use temper_env::{RewardKind, RewardPart, Scorer, Task, Verifier};

/// The process ids that a command wrote to a file.
pub fn pids(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Whether a process runs (a zombie does not).
pub fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Waits until `done`.
pub fn soon(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn scorer(script: &str, timeout_s: f64) -> Scorer {
    let command = vec!["sh".into(), "-c".into(), script.into()];
    let kind = RewardKind::Command { command, timeout_s };
    Scorer::new(&[RewardPart { name: "mine".into(), weight: 1.0, kind }]).unwrap()
}

pub fn task() -> Task {
    Task {
        id: "t".into(),
        prompt: vec![Message::user("2+2=")],
        answer: "4".into(),
        verifier: Verifier::NUMERIC,
        tags: Vec::new(),
        demonstration: None,
    }
}
