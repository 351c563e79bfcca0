//! A run that is killed or interrupted at any moment, and goes on to the same bits.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Place;

/// Longer stages than the other tests', so that kills meet all kinds of moments.
const LONGER: [&str; 6] =
    ["--set", "stage.sft.steps=12", "--set", "stage.grpo.steps=8", "--set", "stage.sft.checkpoint_every=2"];

/// What must be the same, bit for bit, however often the run was stopped.
const FILES: [&str; 8] = [
    "metrics.jsonl",
    "rollouts.jsonl",
    "ledger.json",
    "stages/init/model.safetensors",
    "stages/sft/model.safetensors",
    "stages/grpo/model.safetensors",
    "stages/tokenizer/tokenizer.json",
    "model/model.safetensors",
];

fn run_args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "small.toml", "--out", out], &LONGER[..], more].concat()
}

fn start(place: &Place, args: &[&str]) -> Child {
    place.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn assert_same(place: &Place, out: &str) {
    for file in FILES {
        let bytes =
            |dir: &str| std::fs::read(place.path(dir).join(file)).unwrap_or_else(|e| panic!("{dir}/{file}: {e}"));
        assert!(bytes("whole") == bytes(out), "{file} differs between the whole run and `{out}`");
    }
}

/// Pseudo-random shares in 0..1, the same on every run of the test; the moments they fall on are the machine's choice.
fn shares() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(0x9e37_79b9_u64), |x| {
        Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695))
    })
    .map(|x| (x >> 40) as f64 / (1 << 24) as f64)
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_bits() {
    let place = Place::with_recipe();
    let began = Instant::now();
    place.good(&run_args("whole", &[]));
    let whole = began.elapsed();
    let mut shares = shares();
    let (mut kills, mut span) = (0, whole);
    for round in 0..6 {
        let out = format!("killed-{round}");
        kills += killed_and_resumed(&place, &out, span, &mut shares);
        assert_same(&place, &out);
        span = span.mul_f64(0.7);
    }
    assert!(kills >= 6, "the runs were too fast to be killed: {kills} kills");
}

/// Runs until it ends by itself, killed up to eight times at moments within `span`; returns how often.
fn killed_and_resumed(place: &Place, out: &str, span: Duration, shares: &mut impl Iterator<Item = f64>) -> usize {
    let mut kills = 0;
    loop {
        // Every other attempt on another number of threads, which must not matter either.
        let threads = if kills % 2 == 0 { "1" } else { "2" };
        let mut child = start(place, &run_args(out, &["--resume", "--threads", threads]));
        let moment = if kills < 8 { span.mul_f64(0.5 * shares.next().unwrap_or(0.5)) } else { Duration::from_secs(60) };
        if ended_within(&mut child, moment) {
            return kills;
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("it ends");
        kills += 1;
    }
}

/// Waits at most `limit`; a run that ended must have ended well.
fn ended_within(child: &mut Child, limit: Duration) -> bool {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            let mut said = String::new();
            child.stderr.take().map(|mut err| std::io::Read::read_to_string(&mut err, &mut said));
            assert!(status.success(), "{status}: {said}");
            return true;
        }
        if began.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(unix)]
#[test]
fn interrupted_it_writes_a_checkpoint_exits_with_130_and_goes_on() {
    let place = Place::with_recipe();
    place.good(&run_args("whole", &[]));
    // Checkpoints of its own would come too late: only the one for the interrupt can save the work.
    let child = start(&place, &run_args("stopped", &[]));
    let id = child.id().to_string();
    wait_for(|| std::fs::metadata(place.path("stopped/metrics.jsonl")).is_ok_and(|m| m.len() > 0));
    Command::new("kill").args(["-INT", &id]).status().expect("kill runs");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopping after this round") && said.contains("--resume"), "{said}");
    assert!(place.path("stopped/report.html").is_file());
    let said = place.temper(&run_args("stopped", &["--resume"]));
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("resumed at"), "{}", said.err);
    assert_same(&place, "stopped");
}

#[cfg(unix)]
#[test]
fn interrupted_in_the_middle_of_a_measurement_it_ends_at_once() {
    let place = Place::with_recipe();
    let endless = ["--set", "target.0.n=200000", "--set", "target.0.max_tokens=60"];
    let mut child = start(&place, &[&["run", "small.toml"], &endless[..]].concat());
    // The tokenizer and a new model come first; with the first training step logged, measuring is next.
    wait_for(|| place.path("runs/small/stages/sft").is_dir());
    std::thread::sleep(Duration::from_millis(300));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    let began = Instant::now();
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[cfg(unix)]
#[test]
fn a_directory_belongs_to_one_run_at_a_time() {
    let place = Place::with_recipe();
    let endless = ["--set", "target.0.n=200000", "--set", "target.0.max_tokens=60"];
    let args = [&["run", "small.toml"], &endless[..]].concat();
    let mut child = start(&place, &args);
    wait_for(|| place.path("runs/small/stages/sft").is_dir());
    place.bad(&[&args[..], &["--resume"]].concat(), &["a run is going on in `runs/small`", "--out"]);
    child.kill().expect("killed");
    child.wait().expect("it ends");
}

#[cfg(unix)]
#[test]
fn a_second_interrupt_aborts_at_once() {
    let place = Place::with_recipe();
    // One round that takes much longer than the test, in a process that does not look at its input.
    place.write("slow.sh", "sleep 77 & echo $! > sleeping; wait\n");
    let slow = [
        "--set",
        "stage.grpo.rewards=[{ name = \"mine\", kind = \"command\", command = [\"sh\", \"slow.sh\"], timeout_s = 60 }]",
    ];
    let mut child = start(&place, &[&["run", "small.toml"], &slow[..]].concat());
    let id = child.id().to_string();
    let interrupt = || Command::new("kill").args(["-INT", &id]).status().expect("kill runs");
    let sleeping = || std::fs::read_to_string(place.path("sleeping")).unwrap_or_default().trim().to_owned();
    wait_for(|| !sleeping().is_empty());
    interrupt();
    std::thread::sleep(Duration::from_millis(300));
    interrupt();
    let began = Instant::now();
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(10));
    // The reward command's own child must not outlive the run (a zombie that nobody reaps is dead).
    wait_for(|| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleeping())).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
    });
}

#[test]
fn resuming_starts_afresh_when_there_is_nothing_and_ends_at_once_when_all_is_done() {
    let place = Place::with_recipe();
    place.good(&["run", "small.toml", "--resume"]);
    let metrics = place.read("runs/small/metrics.jsonl");
    let again = place.good(&["run", "small.toml", "--resume"]);
    assert!(again.ends_with("runs/small/report.html\n") && again.contains("retention"));
    assert_eq!(metrics, place.read("runs/small/metrics.jsonl"));
}

fn wait_for(done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}
