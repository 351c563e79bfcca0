//! The end of a program that is killed: it can end nobody itself. A process of its own, which starts itself anew to be the victim.
#![cfg(target_os = "linux")]

mod commands;

use std::process::{Command, Stdio};

use commands::{alive, pids, scorer, soon, task};
use temper_env::Transcript;

/// Tells the victim where its reward command writes its process id.
const FILE: &str = "TEMPER_TEST_PID_FILE";

/// Waits for a reward command that never reads its input.
fn victim(file: &str) {
    let task = task();
    let mut scorer = scorer(&format!("sleep 600 & echo $! $$ > {file}; wait"), 600.0);
    let _ = scorer.score(&[Transcript { task: &task, text: "4", n_tokens: 1, truncated: false }]);
}

#[test]
fn a_command_ends_with_a_program_that_is_killed() {
    if let Ok(file) = std::env::var(FILE) {
        return victim(&file);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", "a_command_ends_with_a_program_that_is_killed"]).env(FILE, &file);
    let mut program = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    soon("the command never started", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
    let pids = pids(&file);
    assert!(pids.len() == 2 && pids.iter().all(|pid| alive(pid)), "{pids:?}");
    // SIGKILL: no destructor and no handler runs.
    program.kill().unwrap();
    program.wait().unwrap();
    soon("the command or its child outlived the program", || !pids.iter().any(|pid| alive(pid)));
}
