//! `temper plan`: what a recipe will do, without doing it.

use std::fmt::Write as _;

use temper_train::memory::Memory;
use temper_train::plan::{self, StagePlan};

use super::inspect::{Inspected, tell};
use crate::args::Plan;
use crate::failure::{Exit, user};
use crate::output::{bytes, data, harmless};

/// Characters of the example that are shown.
const SHOWN: usize = 4000;

/// Runs the command.
pub(crate) fn run(args: &Plan) -> anyhow::Result<Exit> {
    let found = Inspected::read(&args.recipe, &args.overrides.sets)?;
    tell(&found.problems);
    if found.errors() > 0 {
        return Ok(Exit::User);
    }
    if !found.not_local.is_empty() {
        let names: Vec<String> = found.not_local.iter().map(|m| format!("{}: `{}`", m.at, m.name)).collect();
        return Err(user(
            format!("not on this machine: {}", names.join(", ")),
            "a plan reads data, tokenizer and configuration: name local copies with --set (`temper run` would download them)",
        ));
    }
    let stages = plan::plan(&found.recipe)?;
    let text = if args.json { serde_json::to_string_pretty(&stages)? + "\n" } else { described(&found, &stages) };
    data(&text)?;
    plan::check_memory(&found.recipe, temper_model::memory::available())?;
    Ok(Exit::Done)
}

fn described(found: &Inspected, stages: &[StagePlan]) -> String {
    let recipe = &found.recipe;
    let mut text = format!("{}: {} stages, seed {}\n", recipe.name, stages.len(), recipe.seed);
    if !recipe.about.is_empty() {
        let _ = writeln!(text, "{}", recipe.about);
    }
    for (index, stage) in stages.iter().enumerate() {
        let _ = writeln!(text, "\nstage {}/{} {} ({})", index + 1, stages.len(), stage.id, stage.kind);
        text.push_str(&figures(stage));
        text.extend(stage.notes.iter().map(|note| format!("  note: {}\n", harmless(note).replace('\n', "\n        "))));
        text.push_str(&stage.example.as_deref().map(example).unwrap_or_default());
    }
    let measured = recipe.eval_tasks().count();
    if measured > 0 {
        let _ = writeln!(text, "\nmeasured at the start and after every training stage: {measured} tasks");
        for (task, target) in recipe.eval_tasks() {
            let kind = if target { "target" } else { "retained" };
            let times = if task.samples > 1 { format!(" x {} samples", task.samples) } else { String::new() };
            let _ = writeln!(text, "  {kind} {}: at most {} items{times}", task.id, task.n);
        }
    }
    if let Some(most) = stages.iter().filter_map(|s| Some(s.memory?.total)).max() {
        let _ = writeln!(text, "\nexpected peak memory: about {}", bytes(most));
    }
    text
}

fn figures(stage: &StagePlan) -> String {
    let memory = stage.memory.map(|m| ("memory", memory(&m)));
    let figures: Vec<(&str, &str)> = stage
        .figures
        .iter()
        .map(|(k, v)| (*k, v.as_str()))
        .chain(memory.iter().map(|(k, v)| (*k, v.as_str())))
        .collect();
    let width = figures.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = figures.iter().map(|(name, value)| format!("  {name:width$}  {value}\n")).collect();
    lines.concat()
}

/// The sum and what it is made of; caches are gone when training begins.
fn memory(m: &Memory) -> String {
    let (largest, name) =
        if m.cache > m.activations { (m.cache, "caches in sampling") } else { (m.activations, "activations") };
    format!(
        "about {}: weights {}, gradients and moments {}, {name} {}",
        bytes(m.total),
        bytes(m.weights),
        bytes(m.optimizer),
        bytes(largest)
    )
}

/// The first example, a run of equal weight a line: what is trained on can be seen without colour.
fn example(runs: &[(String, f32)]) -> String {
    let mut text = "  first example, as the model reads it; `train` marks what carries loss\n".to_owned();
    let mut left = SHOWN;
    for (run, weight) in runs {
        let what = match *weight {
            0.0 => "read ".to_owned(),
            1.0 => "train".to_owned(),
            w => format!("x {w:<3}"),
        };
        let shown: String = run.chars().take(left).collect();
        left -= shown.chars().count();
        let cut = if shown.len() < run.len() { " ..." } else { "" };
        // The lines of the text stay lines; each break is visible as \n at the end of its line.
        let lines: Vec<&str> = shown.split_inclusive('\n').collect();
        for line in if lines.is_empty() { vec![""] } else { lines } {
            let _ = writeln!(text, "    {what} | {}", harmless(&line.replace('\n', "\\n")));
        }
        if !cut.is_empty() {
            text.push_str("    ... (the rest is left out)\n");
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_visible() {
        let runs = [("<user>\nhi\n<model>".to_owned(), 0.0), ("yes<end>".to_owned(), 1.0), ("\n".to_owned(), 0.5)];
        let text = example(&runs);
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim_start).collect();
        assert_eq!(lines, ["read  | <user>\\n", "read  | hi\\n", "read  | <model>", "train | yes<end>", "x 0.5 | \\n"]);
        assert!(example(&[("a".repeat(SHOWN + 1), 1.0), ("b".into(), 1.0)]).ends_with("left out)\n"));
    }
}
