use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::{Family, Split, TinyWorld, Verifier};
use temper_data::Message;

fn task(id: &str) -> Task {
    Task {
        id: id.into(),
        prompt: vec![Message::user("2+2=")],
        answer: "4".into(),
        verifier: Verifier::NUMERIC,
        tags: vec!["level=1".into()],
        demonstration: None,
    }
}

fn transcript<'a>(task: &'a Task, text: &'a str) -> Transcript<'a> {
    Transcript { task, text, n_tokens: text.len(), truncated: false }
}

fn part(text: &str) -> RewardPart {
    toml::from_str(text).unwrap()
}

fn shell(script: &str, timeout_s: f64) -> Scorer {
    let command = vec!["sh".into(), "-c".into(), script.into()];
    Scorer::new(&[RewardPart { name: "mine".into(), weight: 2.0, kind: RewardKind::Command { command, timeout_s } }])
        .unwrap()
}

/// The message of the fault that a script causes.
fn fault(script: &str) -> String {
    fault_within(script, 30.0)
}

fn fault_within(script: &str, timeout_s: f64) -> String {
    let task = task("t:7");
    let message = shell(script, timeout_s).score(&[transcript(&task, "4")]).unwrap_err().to_string();
    assert!(["sh -c", "`mine`", "t:7"].iter().all(|part| message.contains(part)), "{message}");
    message
}

fn one(kind: RewardKind, transcript: Transcript) -> f64 {
    let mut scorer = Scorer::new(&[RewardPart { name: "part".into(), weight: 1.0, kind }]).unwrap();
    scorer.score(&[transcript]).unwrap()[0].reward()
}

#[test]
fn parts_are_weighted_and_logged_apart() {
    let parts = [
        part("name = 'correct'\nkind = 'verifier'"),
        part("name = 'format'\nkind = 'format'\npattern = '^so '\nweight = 0.5"),
        part("name = 'short'\nkind = 'length'\nmax = 8\nbuffer = 4\nweight = 2.0"),
    ];
    let task = task("t");
    let verdicts = Scorer::new(&parts)
        .unwrap()
        .score(&[transcript(&task, "so 4"), transcript(&task, "so 55"), transcript(&task, "so what")])
        .unwrap();
    let named =
        |values: [f64; 3]| ["correct", "format", "short"].map(String::from).into_iter().zip(values).collect::<Vec<_>>();
    assert_eq!(verdicts[0], Verdict::Graded { reward: 1.5, parts: named([1.0, 1.0, 0.0]), said: Some("4".into()) });
    assert_eq!(verdicts[1], Verdict::Graded { reward: 0.0, parts: named([0.0, 1.0, -0.25]), said: Some("55".into()) });
    assert_eq!((verdicts[2].reward(), verdicts[2].parts()), (-1.0, named([0.0, 1.0, -0.75]).as_slice()));
    assert!(verdicts[2].failure().unwrap().contains("so what"));
}

#[test]
fn lengths() {
    let task = task("t");
    let tokens = |n_tokens| Transcript { task: &task, text: "4444", n_tokens, truncated: n_tokens >= 10 };
    let length = |max, buffer, n| one(RewardKind::Length { max, buffer, unit: LengthUnit::Tokens }, tokens(n));
    assert_eq!(
        [length(10, 4, 6), length(10, 4, 7), length(10, 4, 9), length(10, 4, 10), length(10, 4, 99)],
        [0.0, -0.25, -0.75, -1.0, -1.0]
    );
    assert_eq!([length(10, 0, 10), length(10, 0, 11), length(10, 10, 5)], [0.0, -1.0, -0.5]);
    let target = |target, n| one(RewardKind::TargetLength { target, unit: LengthUnit::Tokens }, tokens(n));
    assert_eq!([target(10, 10), target(10, 5), target(10, 15), target(10, 99)], [0.0, -0.5, -0.5, -1.0]);
    assert_eq!(one(RewardKind::TargetLength { target: 8, unit: LengthUnit::Chars }, tokens(0)), -0.5);
    assert_eq!([one(RewardKind::NotTruncated, tokens(9)), one(RewardKind::NotTruncated, tokens(10))], [1.0, 0.0]);
}

#[test]
fn settings_without_meaning_are_refused() {
    for text in [
        "name = 'a'\nkind = 'verifier'\npattern = 'x'",
        "name = 'a'\nkind = 'not_truncated'\nmax = 3",
        "name = 'a'\nkind = 'format'",
        "name = 'a'\nkind = 'format'\npattern = '('",
        "name = 'a'\nkind = 'format'\npattern = 'x'\nwieght = 2.0",
        "name = 'a'\nkind = 'judge'",
        "kind = 'verifier'",
    ] {
        assert!(toml::from_str::<RewardPart>(text).is_err(), "{text}");
    }
    for text in [
        "name = ' '\nkind = 'verifier'",
        "name = 'a'\nkind = 'verifier'\nweight = nan",
        "name = 'a'\nkind = 'verifier'\nweight = -1e308",
        "name = 'a'\nkind = 'length'\nmax = 4\nbuffer = 5",
        "name = 'a'\nkind = 'target_length'\ntarget = 0",
        "name = 'a'\nkind = 'command'\ncommand = []",
        "name = 'a'\nkind = 'command'\ncommand = ['x']\ntimeout_s = 0",
        "name = 'a'\nkind = 'command'\ncommand = ['x']\ntimeout_s = inf",
    ] {
        assert!(Scorer::new(&[part(text)]).is_err(), "{text}");
    }
    let twice = part("name = 'a'\nkind = 'verifier'");
    assert!(Scorer::new(&[twice.clone(), twice.clone()]).unwrap_err().to_string().contains("`a`"));
    assert!(Scorer::new(&[]).is_err());
    let text = toml::to_string(&twice).unwrap();
    assert_eq!(toml::from_str::<RewardPart>(&text).unwrap(), twice, "{text}");
}

#[test]
fn the_schema_knows_the_kinds() {
    let schema = serde_json::to_string(&schemars::schema_for!(RewardPart)).unwrap();
    for word in ["verifier", "not_truncated", "timeout_s", "weight", "name"] {
        assert!(schema.contains(word), "{schema}");
    }
}

/// Counts its requests, so an answer of 3 in the second batch shows that one process served both.
const COUNTING: &str = "n=0; while read -r line; do n=$((n+1)); echo \"{\\\"reward\\\": $n, \\\"index\\\": $((n-1)), \\\"note\\\": 1}\"; done";

#[test]
fn a_command_stays_alive_and_keeps_the_order() {
    let task = task("t");
    let mut scorer = shell(COUNTING, 20.0);
    assert!(scorer.score(&[]).unwrap().is_empty());
    let rewards = |scorer: &mut Scorer, n: usize| -> Vec<f64> {
        scorer.score(&vec![transcript(&task, "4"); n]).unwrap().iter().map(Verdict::reward).collect()
    };
    assert_eq!(rewards(&mut scorer, 2), [2.0, 4.0]);
    assert_eq!(rewards(&mut scorer, 1), [6.0]);
    // More than the pipes and the read-ahead hold, so both directions must flow at once.
    let many = rewards(&mut scorer, 3000);
    assert_eq!((many.len(), many[2999]), (3000, 6006.0));
}

#[test]
fn a_command_sees_the_task_and_may_report_failure() {
    let task = task("t");
    let script = r#"read -r line
        case "$line" in *'"answer":"4"'*'"level=1"'*) ;; *) exit 9;; esac
        case "$line" in *'"completion":"a\nb \"é\""'*'"truncated":false'*) ;; *) exit 8;; esac
        case "$line" in '{"index":0,"id":"t","prompt":"2+2="'*) ;; *) exit 7;; esac
        echo '{"failed": "did not compile"}'; read -r line"#;
    let verdicts = shell(script, 20.0).score(&[transcript(&task, "a\nb \"\u{e9}\"")]).unwrap();
    assert_eq!(verdicts[0].failure(), Some("did not compile"));
    assert_eq!(verdicts[0].parts(), [("mine".to_owned(), 0.0)]);
}

#[test]
fn faults_are_errors_that_name_the_cause() {
    assert!(fault("read -r x; echo 'no module named foo' >&2; exit 3").contains("exit status: 3"));
    assert!(fault("read -r x; echo 'no module named foo' >&2; exit 3").contains("no module named foo"));
    assert!(fault("kill -9 $$").contains("signal: 9"));
    assert!(fault("exec >&-; sleep 5").contains("closed its output"));
    assert!(fault_within("echo stuck >&2; sleep 60", 0.5).contains("within 0.5 s"));
    assert!(fault_within("echo stuck >&2; sleep 60", 0.5).contains("stuck"));
    assert!(fault("read -r x; echo loading").contains("`loading`"));
    assert!(fault("read -r x; echo '{\"reward\": NaN}'").contains("NaN"));
    assert!(fault("read -r x; echo '{\"reward\": 1e999}'").contains("1e999"));
    assert!(fault("read -r x; echo '{\"reward\": \"1\"}'").contains("string"));
    assert!(fault("read -r x; echo '{\"score\": 1}'").contains("`reward`"));
    assert!(fault("read -r x; echo '{\"reward\": 1, \"failed\": \"x\"}'").contains("either"));
    assert!(fault("read -r x; echo '{\"reward\": 1, \"index\": 5}'").contains("order"));
    assert!(fault("read -r x; head -c 3000000 /dev/zero | tr '\\0' a").contains("aaa..."));
    assert!(fault("printf '\\377\\n'; sleep 5").contains("not an answer"));
    let task = task("t:7");
    let absent = RewardKind::Command { command: vec!["no-such-program".into()], timeout_s: 1.0 };
    let mut scorer = Scorer::new(&[RewardPart { name: "mine".into(), weight: 1.0, kind: absent }]).unwrap();
    assert!(scorer.score(&[transcript(&task, "4")]).unwrap_err().to_string().contains("could not be started"));
}

#[test]
fn rewards_that_would_overflow_are_faults() {
    for reward in ["1e308", "-1e308", "1000000.1"] {
        let message = fault(&format!("read -r x; echo '{{\"reward\": {reward}}}'; read -r x"));
        assert!(message.contains("out of range") && message.contains("1e6"), "{message}");
    }
    let task = task("t");
    let most = shell("while read -r x; do echo '{\"reward\": -1e6}'; done", 20.0).score(&[transcript(&task, "4")]);
    assert_eq!(most.unwrap()[0].reward(), -2e6);
}

/// Two valid answers for each request.
const TWICE: &str = "while read -r line; do echo '{\"reward\": 1}'; echo '{\"reward\": 0.25}'; done";

#[test]
fn answers_beyond_the_requests_are_faults() {
    let task = task("t:7");
    for n in [1, 2, 5] {
        let message = shell(TWICE, 20.0).score(&vec![transcript(&task, "4"); n]).unwrap_err().to_string();
        assert!(message.contains("`{\"reward\": 0.25}` beyond its answers to the 1 requests"), "{message}");
        assert!(message.contains("`mine`") && message.contains("t:7") && message.contains("stderr"), "{message}");
    }
    // One line too many in the middle of a batch, by a program that takes its time.
    let third = "n=0; while read -r x; do n=$((n+1)); sleep 0.3; echo '{\"reward\": 1}'; if [ $n = 3 ]; then echo '{\"reward\": 7}'; fi; done";
    let message = shell(third, 20.0).score(&[transcript(&task, "4"); 5]).unwrap_err().to_string();
    assert!(message.contains("beyond its answers to the 5 requests"), "{message}");
    // Written before anything was asked, or long after the last answer.
    assert!(fault(&format!("echo '{{\"reward\": 3}}'; {COUNTING}")).contains("beyond"));
    assert!(fault("echo '{\"reward\": 3}'; read -r x; echo '{\"reward\": 4}'; read -r x").contains("beyond"));
    let mut late = shell(
        "read -r x; echo '{\"reward\": 1}'; read -r x; echo '{\"reward\": 1}'; sleep 0.5; echo '{\"reward\": 9}'; read -r x",
        20.0,
    );
    assert_eq!(late.score(&[transcript(&task, "4"); 2]).unwrap().len(), 2);
    std::thread::sleep(Duration::from_secs(2));
    let message = late.score(&[transcript(&task, "4")]).unwrap_err().to_string();
    assert!(message.contains("`{\"reward\": 9}` beyond its answers to the 2 requests"), "{message}");
}

#[test]
fn after_a_fault_the_command_starts_anew() {
    let task = task("t");
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("once").display().to_string();
    let mut scorer = shell(&format!("test -e {mark} || {{ touch {mark}; exit 1; }}; {COUNTING}"), 20.0);
    assert!(scorer.score(&[transcript(&task, "4")]).is_err());
    assert_eq!(scorer.score(&[transcript(&task, "4")]).unwrap()[0].reward(), 2.0);
}

/// Whether the process whose number is in the file still runs (a zombie does not).
fn alive(pid_file: &Path) -> bool {
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

#[cfg(target_os = "linux")]
#[test]
fn dropping_the_scorer_kills_the_whole_group() {
    let task = task("t");
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; {COUNTING}", pid_file.display());
    let mut scorer = shell(&script, 20.0);
    scorer.score(&[transcript(&task, "4")]).unwrap();
    assert!(alive(&pid_file));
    drop(scorer);
    let begun = Instant::now();
    while alive(&pid_file) {
        assert!(begun.elapsed() < Duration::from_secs(10), "the grandchild outlived its group");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_tiny_world_scores_its_own_demonstrations() {
    let world = TinyWorld::new(&Family::ALL, &[1, 2, 3], Split::Train, 0, true).unwrap();
    let tasks: Vec<Task> = (0..84).map(|index| world.task(index)).collect();
    let transcripts: Vec<Transcript> =
        tasks.iter().map(|task| transcript(task, task.demonstration.as_deref().unwrap())).collect();
    let mut scorer = Scorer::new(&[part("name = 'correct'\nkind = 'verifier'")]).unwrap();
    assert!(scorer.score(&transcripts).unwrap().iter().all(|verdict| verdict.reward() == 1.0));
}
