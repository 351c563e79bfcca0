//! `temper env`: task families looked at without a model.

use std::fmt::Write as _;

use serde_json::json;
use temper_env::{Cell, Family, FamilyInfo, LEVELS, Split, Task, TaskSource, validate, validate_tiny_world};

use crate::args::{self, Env, EnvCell, EnvList, EnvSample, EnvValidate};
use crate::failure::{Exit, user};
use crate::output::{data, harmless, say};
use crate::table::{Side, Table};
use crate::tasks::{Defaults, source};

/// Runs the command.
pub(crate) fn run(args: &Env) -> anyhow::Result<Exit> {
    match args {
        Env::List(args) => list(args),
        Env::Sample(args) => sample(args),
        Env::Validate(args) => validated(args),
    }
}

fn list(args: &EnvList) -> anyhow::Result<Exit> {
    let rows = Family::ALL.map(Family::info);
    data(&if args.json { serde_json::to_string_pretty(&rows)? + "\n" } else { families(&rows) })?;
    Ok(Exit::Done)
}

fn families(rows: &[&FamilyInfo]) -> String {
    let mut table = Table::new(["family", "asks for", "grows with the level"].map(|name| (name, Side::Left)));
    for row in rows {
        let axes = [Some(row.size), row.extra].into_iter().flatten();
        let grows: Vec<String> = axes.map(|axis| format!("{} {}", axis.what, ends(&axis.by_level))).collect();
        table.row([row.family.name().to_owned(), row.about.to_owned(), grows.join("; ")]);
    }
    let mut kinds = Table::new([("kind of source", Side::Left), ("holds", Side::Left)]);
    for (name, about) in TaskSource::KINDS {
        kinds.row([name, about]);
    }
    let split = "Levels 1 to 5; splits train, test and ood (the two levels above the highest one named).";
    format!("{}\n{split}\n\n{}", table.text(), kinds.text())
}

/// What an axis is at the lowest and at the highest level that a recipe can name.
fn ends(by_level: &[(u64, u64); 7]) -> String {
    let range = |(low, high): (u64, u64)| if low == high { low.to_string() } else { format!("{low}-{high}") };
    let at = |level: u8| range(by_level[usize::from(level) - 1]);
    format!("{} to {}", at(*LEVELS.start()), at(*LEVELS.end()))
}

fn defaults(cell: EnvCell, cot: bool) -> Defaults {
    let split = cell.split.map_or(Split::Test, |split| match split {
        args::Split::Train => Split::Train,
        args::Split::Test => Split::Test,
        args::Split::Ood => Split::Ood,
    });
    Defaults { level: cell.level.unwrap_or(1), split, cot }
}

/// The named sources; without a name every family, one after the other.
fn sources(names: &[String], defaults: Defaults) -> anyhow::Result<Vec<TaskSource>> {
    if names.is_empty() {
        return Family::ALL.iter().map(|family| source(family.name(), defaults)).collect();
    }
    let local = |name: &String| Ok(temper_train::hub::local_tasks(&source(name, defaults)?)?);
    names.iter().map(local).collect()
}

fn sample(args: &EnvSample) -> anyhow::Result<Exit> {
    for source in sources(&args.names, defaults(args.cell, !args.no_cot))? {
        let set = source.open(args.cell.seed)?;
        if let Some(pairs) = set.pairs() {
            for pair in pairs.iter().take(args.n) {
                let text = format!("== {}\ngood  {}\nbad   {}\n\n", pair.id, harmless(&pair.good), harmless(&pair.bad));
                data(&if args.cell.json { serde_json::to_string(pair)? + "\n" } else { text })?;
            }
            continue;
        }
        for index in 0..set.len().map_or(args.n, |len| len.min(args.n)) {
            let task = set.get(index as u64)?;
            data(&if args.cell.json { serde_json::to_string(&task)? + "\n" } else { shown(&task) })?;
        }
    }
    Ok(Exit::Done)
}

fn shown(task: &Task) -> String {
    let mut text = format!("== {}\n", task.id);
    for message in &task.prompt {
        let _ = writeln!(text, "{}", labelled(&message.role, &message.content));
    }
    let _ = writeln!(text, "{}", labelled("answer", &task.answer));
    if let Some(shown) = &task.demonstration {
        let _ = writeln!(text, "{}", labelled("shown", shown));
    }
    text + "\n"
}

/// Text beside a label of fixed width, further lines below each other.
fn labelled(label: &str, text: &str) -> String {
    format!("{label:9} {}", harmless(text).replace('\n', &format!("\n{:10}", "")))
}

fn validated(args: &EnvValidate) -> anyhow::Result<Exit> {
    let cells = cells(args)?;
    if cells.iter().all(|cell| cell.tasks == 0) {
        return Err(user("there is no task to validate", "name a source that holds tasks"));
    }
    if args.cell.json {
        cells.iter().try_for_each(|cell| data(&format!("{}\n", json!(cell))))?;
    } else {
        data(&counts(&cells))?;
    }
    let failed: usize = cells.iter().map(|cell| cell.failed).sum();
    cells.iter().flat_map(|cell| &cell.failures).take(20).for_each(|failure| {
        say(&harmless(&format!(
            "{}: {}: `{}` (answer `{}`)",
            failure.task, failure.what, failure.text, failure.answer
        )));
    });
    if failed > 0 {
        return Err(user(
            format!("{failed} texts were judged wrongly"),
            "mend the rows or the verifier that are named above",
        ));
    }
    Ok(Exit::Done)
}

fn cells(args: &EnvValidate) -> anyhow::Result<Vec<Cell>> {
    let EnvCell { level, split, seed, .. } = args.cell;
    if args.names.is_empty() && level.is_none() && split.is_none() {
        return Ok(validate_tiny_world(seed, args.n)?.cells);
    }
    let mut all = vec![];
    for source in sources(&args.names, defaults(args.cell, true))? {
        all.extend(validate(&source, seed, args.n.saturating_mul(cells_of(&source)))?.cells);
    }
    Ok(all)
}

/// The cells of a source take turns; every one gets its share.
fn cells_of(source: &TaskSource) -> usize {
    match source {
        TaskSource::TinyWorld(world) => {
            let levels = if world.split == Split::Ood { 2 } else { world.levels.len() };
            world.families.list().len() * levels
        }
        _ => 1,
    }
}

fn counts(cells: &[Cell]) -> String {
    let columns = [
        ("tasks of", Side::Left),
        ("tasks", Side::Right),
        ("gold accepted", Side::Right),
        ("changed rejected", Side::Right),
        ("", Side::Left),
    ];
    let mut table = Table::new(columns);
    for cell in cells {
        table.row([
            cell.name.clone(),
            cell.tasks.to_string(),
            format!("{}/{}", cell.golds_accepted, cell.golds),
            format!("{}/{}", cell.mutants_rejected, cell.mutants_total()),
            if cell.failed == 0 { "ok".into() } else { format!("{} wrong", cell.failed) },
        ]);
    }
    table.text()
}
