//! What a run directory holds, read leniently: files may be missing, and a kill may have cut the last line of a log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

/// Everything that the report shows.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Name of the directory.
    pub(super) name: String,
    /// The resolved recipe.
    pub(super) recipe: Option<String>,
    /// `env.json`.
    pub(super) env: Option<Value>,
    /// `ledger.json`.
    pub(super) ledger: Option<Value>,
    /// Stages in order of appearance in the logs.
    pub(super) stages: Vec<Stage>,
    /// What is missing or broken, for the reader.
    pub(super) notices: Vec<String>,
}

/// The logs of one stage.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// Its id in the recipe.
    pub(super) name: String,
    /// Metrics by optimiser step.
    pub(super) steps: BTreeMap<u64, Map<String, Value>>,
    /// Timings by optimiser step.
    pub(super) timing: BTreeMap<u64, Map<String, Value>>,
    /// Rollouts of the first step that has any.
    pub(super) first: Vec<Map<String, Value>>,
    /// Rollouts of the last step, when it is another one.
    pub(super) last: Vec<Map<String, Value>>,
}

impl Stage {
    /// The numbers of one key over the steps; steps without it are left out, and null (a number that was not finite) is NaN.
    pub(super) fn series(&self, key: &str) -> Vec<(f64, f64)> {
        numbers(&self.steps, key)
    }

    /// The same over the timings.
    pub(super) fn timings(&self, key: &str) -> Vec<(f64, f64)> {
        numbers(&self.timing, key)
    }

    /// Wall time of all its steps.
    pub(super) fn wall_s(&self) -> Option<f64> {
        let times = self.timings("wall_s");
        (!times.is_empty()).then(|| times.iter().map(|(_, s)| s).filter(|s| s.is_finite()).sum())
    }

    /// Its keys, each once, in order of first appearance.
    pub(super) fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = vec![];
        for key in self.steps.values().flat_map(Map::keys) {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        keys.retain(|key| !matches!(*key, "stage" | "step"));
        keys
    }
}

fn numbers(steps: &BTreeMap<u64, Map<String, Value>>, key: &str) -> Vec<(f64, f64)> {
    let value = |v: &Value| if v.is_null() { Some(f64::NAN) } else { v.as_f64() };
    steps.iter().filter_map(|(step, line)| Some((*step as f64, value(line.get(key)?)?))).collect()
}

/// Rollouts of one step that are kept; the report shows a few of them.
const KEPT_ROLLOUTS: usize = 64;

impl Run {
    /// Read what is there.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        const FILES: [&str; 6] =
            ["recipe.toml", "env.json", "metrics.jsonl", "timing.jsonl", "ledger.json", "rollouts.jsonl"];
        if !FILES.iter().any(|file| dir.join(file).is_file()) {
            anyhow::bail!(
                "`{}` is not a run directory: it has none of {} (name the directory that `temper run` wrote)",
                dir.display(),
                FILES.join(", ")
            );
        }
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name = full.file_name().map_or_else(|| full.display().to_string(), |n| n.to_string_lossy().into_owned());
        let mut run = Self { name, ..Self::default() };
        run.recipe = run.text(dir, "recipe.toml");
        run.env = run.json(dir, "env.json");
        run.lines(dir, "metrics.jsonl", |stage, step, line| drop(stage.steps.insert(step, line)));
        run.lines(dir, "timing.jsonl", |stage, step, line| drop(stage.timing.insert(step, line)));
        run.ledger = run.json(dir, "ledger.json");
        run.lines(dir, "rollouts.jsonl", keep_rollout);
        Ok(run)
    }

    fn text(&mut self, dir: &Path, file: &str) -> Option<String> {
        match std::fs::read(dir.join(file)) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                self.absent(file, &error);
                None
            }
        }
    }

    fn json(&mut self, dir: &Path, file: &str) -> Option<Value> {
        let text = self.text(dir, file)?;
        serde_json::from_str(&text)
            .map_err(|error| self.notices.push(format!("{file} is not valid JSON ({error})")))
            .ok()
    }

    fn absent(&mut self, file: &str, error: &std::io::Error) {
        let what = match file {
            "recipe.toml" => "the recipe is not shown",
            "env.json" => "version, machine and seed are not known",
            "ledger.json" => "nothing was measured before and after (no evaluation yet, or no tasks in the recipe)",
            "rollouts.jsonl" => "no sample completions (none of the stages sampled, or not yet)",
            "timing.jsonl" => "wall times and speed are not known",
            _ => "no training curves",
        };
        self.notices.push(match error.kind() {
            std::io::ErrorKind::NotFound => format!("{file} is missing: {what}"),
            _ => format!("{file} cannot be read ({error}): {what}"),
        });
    }

    /// Hand every line of a log to `take`, with its stage and step. Broken lines are counted and left out.
    fn lines(&mut self, dir: &Path, file: &str, take: impl Fn(&mut Stage, u64, Map<String, Value>)) {
        let opened = match File::open(dir.join(file)) {
            Ok(opened) => opened,
            Err(error) => return self.absent(file, &error),
        };
        let (mut broken, mut total) = (vec![], 0);
        for (index, line) in BufReader::new(opened).split(b'\n').enumerate() {
            let Ok(line) = line else {
                self.notices.push(format!("{file} cannot be read beyond line {index}"));
                break;
            };
            total = index + 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match placed(&line) {
                Some((stage, step, record)) => take(self.stage(&stage), step, record),
                None => broken.push(total),
            }
        }
        self.notices.extend(broken_lines(file, &broken, total));
    }

    fn stage(&mut self, name: &str) -> &mut Stage {
        let at = self.stages.iter().position(|s| s.name == name).unwrap_or_else(|| {
            self.stages.push(Stage { name: name.to_owned(), ..Stage::default() });
            self.stages.len() - 1
        });
        &mut self.stages[at]
    }
}

/// A record with its stage and step; `None` for what is not a record.
fn placed(line: &[u8]) -> Option<(String, u64, Map<String, Value>)> {
    let Ok(Value::Object(record)) = serde_json::from_slice(line) else { return None };
    let step = record.get("step")?.as_u64()?;
    let stage = record.get("stage").and_then(Value::as_str).unwrap_or("run").to_owned();
    Some((stage, step, record))
}

fn broken_lines(file: &str, broken: &[usize], total: usize) -> Option<String> {
    let first = broken.first()?;
    Some(if *first == total && broken.len() == 1 {
        format!("the last line of {file} (line {first}) is cut short, as a kill leaves it; it is left out")
    } else {
        let few: Vec<String> = broken.iter().take(5).map(usize::to_string).collect();
        let more = if broken.len() > 5 { ", ..." } else { "" };
        format!(
            "{file}: {} of {total} lines are no records and are left out (lines {}{more})",
            broken.len(),
            few.join(", ")
        )
    })
}

/// Keep the rollouts of the first step and those of the latest one.
fn keep_rollout(stage: &mut Stage, step: u64, record: Map<String, Value>) {
    let step_of = |kept: &[Map<String, Value>]| kept.first().and_then(|r| r.get("step")?.as_u64());
    let kept = match step_of(&stage.first) {
        None => &mut stage.first,
        Some(first) if first == step => &mut stage.first,
        Some(_) => {
            if step_of(&stage.last) != Some(step) {
                stage.last.clear();
            }
            &mut stage.last
        }
    };
    if kept.len() < KEPT_ROLLOUTS {
        kept.push(record);
    }
}
