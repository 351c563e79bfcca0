//! The end of a program that cannot drop its scorers. A process of its own: no command starts afterwards.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::{Duration, Instant};

use temper_data::Message;
use temper_env::{RewardKind, RewardPart, Scorer, Task, Transcript, Verifier, kill_children};

/// Whether the process whose number is in the file still runs (a zombie does not).
fn alive(pid_file: &Path) -> bool {
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn scorer(script: &str) -> Scorer {
    let command = vec!["sh".into(), "-c".into(), script.into()];
    let kind = RewardKind::Command { command, timeout_s: 20.0 };
    Scorer::new(&[RewardPart { name: "mine".into(), weight: 1.0, kind }]).unwrap()
}

#[test]
fn all_commands_are_killed_with_their_groups_and_none_starts_again() {
    let task = Task {
        id: "t".into(),
        prompt: vec![Message::user("2+2=")],
        answer: "4".into(),
        verifier: Verifier::NUMERIC,
        tags: Vec::new(),
        demonstration: None,
    };
    let transcript = Transcript { task: &task, text: "4", n_tokens: 1, truncated: false };
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| folder.path().join(name));
    let mut scorers = files.each_ref().map(|file| {
        let script =
            format!("sleep 600 & echo $! > {}; while read -r x; do echo '{{\"reward\": 1}}'; done", file.display());
        scorer(&script)
    });
    for scorer in &mut scorers {
        scorer.score(&[transcript]).unwrap();
    }
    assert!(files.iter().all(|file| alive(file)));
    kill_children();
    let begun = Instant::now();
    while files.iter().any(|file| alive(file)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "a grandchild outlived its group");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The scorers notice, and dropping them signals nobody.
    let message = scorers[0].score(&[transcript]).unwrap_err().to_string();
    assert!(message.contains("signal: 9"), "{message}");
    let message = scorers[0].score(&[transcript]).unwrap_err().to_string();
    assert!(message.contains("the program is ending"), "{message}");
}
