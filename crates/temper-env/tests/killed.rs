//! The end of a program that is killed: it can end nobody itself. A process of its own, which starts itself anew to be the victim.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use temper_data::Message;
use temper_env::{RewardKind, RewardPart, Scorer, Task, Transcript, Verifier};

/// Tells the victim where its reward command writes its process id.
const FILE: &str = "TEMPER_TEST_PID_FILE";

/// Whether a process runs (a zombie does not).
fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn soon(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a reward command that never reads its input.
fn victim(file: &str) {
    let command = vec!["sh".into(), "-c".into(), format!("sleep 600 & echo $! $$ > {file}; wait")];
    let kind = RewardKind::Command { command, timeout_s: 600.0 };
    let mut scorer = Scorer::new(&[RewardPart { name: "mine".into(), weight: 1.0, kind }]).unwrap();
    let task = Task {
        id: "t".into(),
        prompt: vec![Message::user("2+2=")],
        answer: "4".into(),
        verifier: Verifier::NUMERIC,
        tags: Vec::new(),
        demonstration: None,
    };
    let _ = scorer.score(&[Transcript { task: &task, text: "4", n_tokens: 1, truncated: false }]);
}

#[test]
fn a_command_ends_with_a_program_that_is_killed() {
    if let Ok(file) = std::env::var(FILE) {
        return victim(&file);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let read = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", "a_command_ends_with_a_program_that_is_killed"]).env(FILE, &file);
    let mut program = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    soon("the command never started", || read(&file).ends_with('\n'));
    let pids = read(&file);
    assert!(pids.split_whitespace().count() == 2 && pids.split_whitespace().all(alive), "{pids}");
    // SIGKILL: no destructor and no handler runs.
    program.kill().unwrap();
    program.wait().unwrap();
    soon("the command or its child outlived the program", || !pids.split_whitespace().any(alive));
}
