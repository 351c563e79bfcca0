//! What a run shows while it goes on: a live bar on a terminal, a plain line every few seconds elsewhere.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use temper_train::metrics::{self, Metrics};
use temper_train::watch::{Event, Watch};

use crate::measured;
use crate::output::{duration, label, stderr_is_live};

/// Seconds between two plain lines.
const EVERY: Duration = Duration::from_secs(5);
/// Rounds that speed and time left are averaged over.
const WINDOW: usize = 20;

/// The person's view of a run. Everything goes to stderr.
pub(crate) struct Progress<W = io::Stderr> {
    out: W,
    live: bool,
    bar: Option<ProgressBar>,
    /// Of the stage that is trained at the moment.
    pace: Pace,
    last_line: Option<Instant>,
    measuring: String,
}

/// Seconds and tokens of the last rounds.
#[derive(Default)]
struct Pace {
    rounds: VecDeque<(f64, u64)>,
    seconds: f64,
}

impl Pace {
    fn add(&mut self, seconds: f64, tokens: u64) {
        self.seconds += seconds;
        self.rounds.push_back((seconds, tokens));
        if self.rounds.len() > WINDOW {
            self.rounds.pop_front();
        }
    }
    fn recent_seconds(&self) -> f64 {
        self.rounds.iter().map(|(s, _)| s).sum::<f64>().max(1e-9)
    }
    fn tokens_per_s(&self) -> f64 {
        self.rounds.iter().map(|(_, t)| *t as f64).sum::<f64>() / self.recent_seconds()
    }
    fn left(&self, rounds: usize) -> f64 {
        rounds as f64 * self.recent_seconds() / self.rounds.len().max(1) as f64
    }
}

impl Progress {
    /// Live where stderr is a terminal.
    pub(crate) fn on_stderr() -> Self {
        Self::new(io::stderr(), stderr_is_live())
    }
}

impl<W: Write> Progress<W> {
    fn new(out: W, live: bool) -> Self {
        Self { out, live, bar: None, pace: Pace::default(), last_line: None, measuring: String::new() }
    }

    fn line(&mut self, text: &str) {
        let out = &mut self.out;
        // Nobody may be there to read it, which is no reason to stop.
        let mut write = || drop(writeln!(out, "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Whether it is time for another plain line.
    fn due(&mut self) -> bool {
        let due = self.last_line.is_none_or(|at| at.elapsed() >= EVERY);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }

    fn begin_bar(&mut self, name: String, done: usize, of: usize) {
        self.end_bar();
        if self.live && of > 0 {
            let bar = ProgressBar::with_draw_target(Some(of as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} [{bar:16}] {pos}/{len}  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(name);
            bar.set_position(done as u64);
            self.bar = Some(bar);
        }
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, stage: &str, step: usize, of: usize, metrics: &Metrics) {
        let left = self.pace.left(of.saturating_sub(step));
        let speed = format!("{} tokens/s", temper_train::plan::grouped(self.pace.tokens_per_s().round() as u64));
        let numbers = format!("{}  {speed}{}", shown(metrics, &FIRST), shown(metrics, &MORE));
        if let Some(bar) = &self.bar {
            bar.set_position(step as u64);
            // The most wanted first: a narrow terminal shows the beginning.
            bar.set_message(format!("{} left{numbers}", duration(left)));
        }
        let last = step == of;
        if last {
            self.end_bar();
            self.line(&format!("  {stage} {step}/{of}{numbers}  in {}", duration(self.pace.seconds)));
        } else if !self.live && (self.due() || step == 1) {
            self.line(&format!("  {stage} {step}/{of}{numbers}  {} left", duration(left)));
        }
    }

    fn measured(&mut self, done: usize, of: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if !self.live && done < of && self.due() {
            self.line(&format!("  {} {done}/{of}", self.measuring.clone()));
        }
    }
}

impl<W: Write + Send> Watch for Progress<W> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::StageBegin { id, kind, index, of, steps, done } => {
                let rounds = if *steps == 0 { String::new() } else { format!(", {steps} steps") };
                let from = if *done == 0 { String::new() } else { format!(", {done} of them done") };
                self.begin_bar((*id).to_owned(), *done, *steps);
                self.pace = Pace::default();
                self.last_line = None;
                self.line(&format!("stage {}/{of} {id} ({kind}{rounds}{from})", index + 1));
            }
            Event::Step { stage, step, of, metrics, seconds, tokens } => {
                self.pace.add(*seconds, *tokens);
                self.step(stage, *step, *of, metrics);
            }
            Event::EvalBegin { task, n, .. } => {
                self.measuring = format!("measuring {task}");
                self.last_line = Some(Instant::now());
                self.begin_bar(self.measuring.clone(), 0, *n);
            }
            Event::EvalProgress { done, of } => self.measured(*done, *of),
            Event::EvalEnd { cell, target } => {
                self.end_bar();
                let kind = if *target { "target" } else { "retained" };
                self.line(&format!("  {kind} {}", measured::line(measured::metric(cell), cell)));
            }
            Event::Checkpoint { step, .. } => {
                if !self.live {
                    self.line(&format!("  checkpoint at step {step}"));
                }
            }
            Event::Note(text) => self.line(&format!("{} {}", label("note"), crate::output::harmless(text))),
        }
    }
}

impl<W> Drop for Progress<W> {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// The numbers that a person follows, of those that the stage has: before the speed and behind it.
const FIRST: [(&str, &str); 2] = [(metrics::LOSS, "loss"), (metrics::REWARD, "reward")];
const MORE: [(&str, &str); 2] = [(metrics::MEAN_TOKEN_ACCURACY, "token accuracy"), (metrics::LENGTH_MEAN, "length")];

/// Each number with two spaces before it.
fn shown(metrics: &Metrics, wanted: &[(&str, &str)]) -> String {
    let part = |(key, name): &(&str, &str)| metrics.get(key).map(|v| format!("  {name} {}", significant(v)));
    wanted.iter().filter_map(part).collect()
}

/// Three or four digits that matter.
fn significant(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 0.0995 || a == 0.0 => format!("{v:.3}"),
        a if a >= 0.000_95 => format!("{v:.4}"),
        // What is left of a sum that cancels.
        a if a < 1e-12 => "0.000".into(),
        _ => format!("{v:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measured::tests::cell;

    fn text(events: &[Event]) -> String {
        let mut progress = Progress::new(vec![], false);
        for event in events {
            progress.event(event);
        }
        String::from_utf8(std::mem::take(&mut progress.out)).unwrap()
    }

    #[test]
    fn plain_lines_come_at_the_first_and_last_step_and_not_at_each() {
        let mut metrics = Metrics::default();
        metrics.set(metrics::LOSS, 1.25);
        metrics.set(metrics::REWARD, 0.5);
        let begin = Event::StageBegin { id: "grpo", kind: "online", index: 1, of: 3, steps: 40, done: 0 };
        let step = |step| Event::Step { stage: "grpo", step, of: 40, metrics: &metrics, seconds: 0.5, tokens: 1000 };
        let events: Vec<Event> = std::iter::once(begin).chain((1..=40).map(step)).collect();
        assert_eq!(
            text(&events),
            "stage 2/3 grpo (online, 40 steps)\n\
             \x20 grpo 1/40  loss 1.250  reward 0.500  2,000 tokens/s  20 s left\n\
             \x20 grpo 40/40  loss 1.250  reward 0.500  2,000 tokens/s  in 20 s\n"
        );
    }

    #[test]
    fn measurements_and_notes_are_lines() {
        let cell = cell("sft", "chains", 0.45, Some((0.1, 0.05, 0.15)));
        let events = [
            Event::EvalBegin { stage: "sft", task: "chains", n: 200 },
            Event::EvalEnd { cell: &cell, target: true },
            Event::Note("2 rows dropped\x1b[2J"),
        ];
        let shown = text(&events);
        assert_eq!(
            shown,
            "  target chains: 45.0 [40.0, 50.0] %, n = 200, +10.0 [+5.0, +15.0] against start\nnote: 2 rows dropped\u{FFFD}[2J\n"
        );
    }

    #[test]
    fn digits_that_matter() {
        let shown = [1234.5, 12.34, 1.2345, 0.012_345, 1e-7, 0.0, f64::NAN].map(significant);
        assert_eq!(shown, ["1234", "12.3", "1.234", "0.0123", "1.00e-7", "0.000", "NaN"]);
    }
}
