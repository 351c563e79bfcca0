//! `temper eval`: one model, one task, with intervals.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use temper_train::eval::{Subject, measure};
use temper_train::ledger::Cell;
use temper_train::models::Source;
use temper_train::recipe::{EvalSource, EvalTask, Mask, Severity, check_task};
use temper_train::watch::Watch as _;

use crate::args::{self, Eval};
use crate::failure::{Exit, user};
use crate::machine;
use crate::measured;
use crate::output::data;
use crate::progress::Progress;
use crate::table::{Side, Table};
use crate::tasks::{Defaults, source};

/// Longest completion and longest row, where nothing is said.
const COMPLETION: usize = 256;
const ROW: usize = 512;

/// Runs the command.
pub(crate) fn run(args: &Eval) -> anyhow::Result<Exit> {
    let task = task(args)?;
    if let Some(problem) = check_task(&task).into_iter().find(|p| p.severity == Severity::Error) {
        return Err(user(problem.what, problem.hint));
    }
    let device = machine::device(args.threads)?;
    let (model, tokenizer) =
        Source::find(&args.model, args.base.as_deref())?.load_to_read(&device, args.dtype.as_asked())?;
    let subject = Subject { ops: &device, model: &model, tokenizer: &tokenizer, seed: args.seed, stop: None };
    let mut progress = Progress::on_stderr();
    // As a run does: an operation then forks from inside the pool.
    let (metric, cell) = rayon::scope(|_| measure(subject, &task, "now", &mut |event| progress.event(event)))?;
    drop(progress);
    data(&if args.json { object(args, &task, metric, &cell) } else { shown(args, metric, &cell) })?;
    Ok(Exit::Done)
}

fn task(args: &Eval) -> anyhow::Result<EvalTask> {
    let samples = args.samples.unwrap_or(1);
    if samples > 1 && args.temperature == Some(0.0) {
        return Err(user(
            format!("{samples} samples at temperature 0 are all the same"),
            "set a --temperature, or one sample",
        ));
    }
    let source = match (&args.task, &args.data) {
        (Some(name), _) => EvalSource::Tasks { tasks: source(name, Defaults::default())? },
        (None, Some(path)) => EvalSource::Nll {
            path: path.clone(),
            mask: if args.mask == Some(args::Mask::All) { Mask::All } else { Mask::Response },
            max_row_tokens: args.max_tokens.unwrap_or(ROW),
        },
        (None, None) => return Err(user("there is nothing to measure", "give --task NAME or --data FILE")),
    };
    let mut task = EvalTask {
        id: args.task.as_ref().or(args.data.as_ref()).cloned().unwrap_or_default(),
        source,
        n: args.n,
        samples,
        temperature: args.temperature,
        max_tokens: args.max_tokens.unwrap_or(COMPLETION),
        stop: args.stop.clone(),
    };
    // Where nothing is sampled, only what was given can be refused.
    if task.source.likelihood() && (args.data.is_some() || args.max_tokens.is_none()) {
        task.max_tokens = EvalTask::MAX_TOKENS;
    }
    Ok(task)
}

/// Everything measured but the items, with what was asked for.
fn object(args: &Eval, task: &EvalTask, metric: &str, cell: &Cell) -> String {
    let mut object = Map::new();
    for (key, value) in
        [("model", json!(args.model)), ("task", json!(task.id)), ("metric", json!(metric)), ("seed", json!(args.seed))]
    {
        object.insert(key.into(), value);
    }
    if !task.source.likelihood() {
        object.insert("samples".into(), json!(task.samples));
        object.insert("max_tokens".into(), json!(task.max_tokens));
    }
    if let Ok(Value::Object(cell)) = serde_json::to_value(cell) {
        let measured =
            cell.into_iter().filter(|(key, _)| !matches!(key.as_str(), "stage" | "task" | "change" | "items"));
        object.extend(measured);
    }
    Value::Object(object).to_string() + "\n"
}

fn shown(args: &Eval, metric: &str, cell: &Cell) -> String {
    let mut table = Table::new([("measured", Side::Left), ("value", Side::Left)]);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let name = if metric == "nll" { "nll, nats per token" } else { "accuracy, %" };
    table.row([name.to_owned(), measured::with_interval(metric, cell)]);
    for (k, value) in cell.pass_at_k.iter().flatten() {
        table.row([format!("pass@{k}"), percent(*value)]);
    }
    let shares = [("no answer found", cell.unparsed), ("cut off", cell.truncated)];
    let of = cell.of.filter(|of| *of != cell.n).map(|of| format!(" of {of}"));
    table.row(["items".to_owned(), cell.n.to_string() + &of.unwrap_or_default()]);
    if let Some(tokens) = cell.tokens {
        table.row(["tokens".to_owned(), format!("{tokens}")]);
    }
    if let Some(length) = cell.mean_length {
        table.row(["mean length, tokens".to_owned(), format!("{length:.1}")]);
    }
    for (name, share) in shares {
        if let Some(share) = share {
            table.row([name.to_owned(), percent(share)]);
        }
    }
    for (cause, n) in &cell.dropped {
        table.row([format!("left out: {cause}"), n.to_string()]);
    }
    let mut text = format!("{} on {}\n\n{}", args.model, cell.task, table.text());
    let _ = writeln!(text, "\n95% intervals over the items");
    text
}
