//! The end of a program that cannot drop its scorers. A process of its own: no command starts afterwards.
#![cfg(target_os = "linux")]

mod commands;

use commands::{alive, pids, scorer, soon, task};
use temper_env::{Transcript, kill_children};

#[test]
fn all_commands_are_killed_with_their_groups_and_none_starts_again() {
    let task = task();
    let transcript = Transcript { task: &task, text: "4", n_tokens: 1, truncated: false };
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| folder.path().join(name));
    let mut scorers = files.each_ref().map(|file| {
        let script =
            format!("sleep 600 & echo $! > {}; while read -r x; do echo '{{\"reward\": 1}}'; done", file.display());
        scorer(&script, 20.0)
    });
    for scorer in &mut scorers {
        scorer.score(&[transcript]).unwrap();
    }
    let running = || files.iter().flat_map(|file| pids(file)).filter(|pid| alive(pid)).count();
    assert_eq!(running(), 2);
    kill_children();
    soon("a grandchild outlived its group", || running() == 0);
    // The scorers notice, and dropping them signals nobody.
    let message = scorers[0].score(&[transcript]).unwrap_err().to_string();
    assert!(message.contains("signal: 9"), "{message}");
    let message = scorers[0].score(&[transcript]).unwrap_err().to_string();
    assert!(message.contains("the program is ending"), "{message}");
}
