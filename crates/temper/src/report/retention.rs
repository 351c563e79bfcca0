//! What was gained and what was lost: the ledger as cards, a matrix and plots.

use serde_json::Value;

use super::chart::{Axis, COLOURS, Chart, Series};
use super::html::{concat, escape, number, percent, signed, thousands};
use super::run::Run;

/// One task of the ledger.
struct Task<'a> {
    id: &'a str,
    target: bool,
    /// Whether the metric is the negative log-likelihood, where lower is better.
    nll: bool,
}

/// One measurement.
#[derive(Clone, Copy)]
struct Cell<'a> {
    value: f64,
    low: Option<f64>,
    high: Option<f64>,
    raw: &'a Value,
}

/// Change of a measurement against the first stage.
#[derive(Clone, Copy)]
struct Change {
    mean: f64,
    interval: Option<(f64, f64)>,
}

/// Which way a change goes, as far as its interval can tell.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Better,
    Worse,
    Noise,
}

/// Stages, tasks and measurements of `ledger.json`.
struct Matrix<'a> {
    stages: Vec<&'a str>,
    tasks: Vec<Task<'a>>,
    cells: Vec<&'a Value>,
}

/// The section, or nothing without a ledger.
pub(super) fn section(run: &Run) -> String {
    let Some(matrix) = run.ledger.as_ref().map(Matrix::read) else { return String::new() };
    if matrix.tasks.is_empty() || matrix.stages.is_empty() {
        return "<section>\n<h2>Gained and lost</h2>\n<p>The ledger holds no measurement yet.</p>\n</section>\n"
            .to_owned();
    }
    let notes = run.ledger.as_ref().map(notes).unwrap_or_default();
    format!(
        "<section>\n<h2>Gained and lost</h2>\n{}{}{}</section>\n{notes}",
        matrix.cards(),
        matrix.table(),
        matrix.plots()
    )
}

/// What was left out or cut of the stages' data.
fn notes(ledger: &Value) -> String {
    let notes = ledger.get("notes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let items = concat(notes.iter().filter_map(Value::as_str).map(|note| format!("<li>{}</li>\n", escape(note))));
    if items.is_empty() { items } else { format!("<section>\n<h2>Data</h2>\n<ul>\n{items}</ul>\n</section>\n") }
}

impl<'a> Matrix<'a> {
    fn read(ledger: &'a Value) -> Self {
        let list = |key: &str| ledger.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let cells: Vec<&Value> = list("cells").iter().collect();
        let mut stages: Vec<&str> = list("stages").iter().filter_map(Value::as_str).collect();
        for stage in cells.iter().filter_map(|c| c.get("stage")?.as_str()) {
            if !stages.contains(&stage) {
                stages.push(stage);
            }
        }
        let task = |t: &'a Value| {
            Some(Task {
                id: t.get("id")?.as_str()?,
                target: t.get("target").and_then(Value::as_bool).unwrap_or(false),
                nll: t.get("metric").and_then(Value::as_str) == Some("nll"),
            })
        };
        let mut tasks: Vec<Task> = list("tasks").iter().filter_map(task).collect();
        tasks.sort_by_key(|t| !t.target);
        Self { stages, tasks, cells }
    }

    fn cell(&self, stage: &str, task: &Task) -> Option<Cell<'a>> {
        let is = |c: &Value, key: &str, value: &str| c.get(key).and_then(Value::as_str) == Some(value);
        // A task measured twice after one stage: the later measurement counts.
        let raw = *self.cells.iter().rfind(|c| is(c, "stage", stage) && is(c, "task", task.id))?;
        let value = float(raw, if task.nll { "nll" } else { "accuracy" })?;
        Some(Cell { value, low: float(raw, "low"), high: float(raw, "high"), raw })
    }

    /// Change against the first stage in which the task was measured; `None` for that stage itself.
    fn change(&self, stage: &str, task: &Task) -> Option<Change> {
        let first = self.stages.iter().find(|s| self.cell(s, task).is_some())?;
        if *first == stage {
            return None;
        }
        let (before, now) = (self.cell(first, task)?, self.cell(stage, task)?);
        Some(paired(&now).unwrap_or_else(|| unpaired(&before, &now)))
    }

    fn cards(&self) -> String {
        let last = self.stages.last().copied().unwrap_or_default();
        let cards: String = self.tasks.iter().filter(|t| t.target).filter_map(|t| self.card(t)).collect();
        let summary = self.kept(last);
        format!("<div class=\"cards\">\n{cards}{summary}</div>\n")
    }

    fn card(&self, task: &Task) -> Option<String> {
        let measured: Vec<(&str, Cell)> = self.stages.iter().filter_map(|s| Some((*s, self.cell(s, task)?))).collect();
        let ((_, first), (stage, last)) = (measured.first()?, measured.last()?);
        let change = self.change(stage, task);
        let (direction, verdict) = match change {
            Some(c) => (c.direction(task), format!("{} {}", c.arrow(), c.text(task))),
            None => (Direction::Noise, "measured once".to_owned()),
        };
        let before = if measured.len() > 1 { format!("{} \u{2192} ", shown(first.value, task)) } else { String::new() };
        Some(format!(
            "<div class=\"card {}\"><p class=\"label\">{} <em>target</em></p><p class=\"value\">{}<strong>{}</strong></p><p>{}</p></div>\n",
            direction.class(),
            escape(task.id),
            escape(&before),
            escape(&shown(last.value, task)),
            escape(&verdict),
        ))
    }

    /// How the tasks that were to be kept came out after the last stage.
    fn kept(&self, last: &str) -> String {
        let changes: Vec<(&Task, Change)> =
            self.tasks.iter().filter(|t| !t.target).filter_map(|t| Some((t, self.change(last, t)?))).collect();
        if changes.is_empty() {
            return String::new();
        }
        let of = |direction| changes.iter().filter(|(t, c)| c.direction(t) == direction).count();
        let (worse, better) = (of(Direction::Worse), of(Direction::Better));
        let losers: Vec<String> = changes
            .iter()
            .filter(|(t, c)| c.direction(t) == Direction::Worse)
            .map(|(t, c)| format!("{} {}", t.id, c.text(t)))
            .collect();
        let detail = if losers.is_empty() { "none is clearly worse than before".to_owned() } else { losers.join("; ") };
        let class = if worse > 0 { Direction::Worse } else { Direction::Noise }.class();
        format!(
            "<div class=\"card {class}\"><p class=\"label\">other tasks <em>to keep</em></p>\
             <p class=\"value\"><strong>{} of {}</strong> kept{}</p><p>{}</p></div>\n",
            changes.len() - worse,
            changes.len(),
            if better > 0 { format!(", {better} better") } else { String::new() },
            escape(&detail),
        )
    }

    fn table(&self) -> String {
        let head = concat(self.stages.iter().map(|s| format!("<th scope=\"col\">{}</th>", escape(s))));
        let rows: String = self.tasks.iter().map(|t| self.row(t)).collect();
        format!(
            "<p class=\"about\">Each task after each stage, with its 95% interval, and its change against the first measurement. \
             <span class=\"key better\">\u{25B2} better</span> <span class=\"key worse\">\u{25BC} worse</span>: the interval of the change \
             excludes zero. <span class=\"key\">\u{25CF} within noise</span>: it does not.</p>\n\
             <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Retention matrix\">\n<table class=\"matrix\">\n\
             <thead><tr><th scope=\"col\">Task</th>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
        )
    }

    fn row(&self, task: &Task) -> String {
        let role = if task.target { "target" } else { "keep" };
        let unit = if task.nll { "nll per token, lower is better" } else { "accuracy" };
        let cells: String = self.stages.iter().map(|stage| self.entry(stage, task)).collect();
        format!(
            "<tr><th scope=\"row\">{} <em class=\"{role}\">{role}</em><small>{unit}</small></th>{cells}</tr>\n",
            escape(task.id)
        )
    }

    fn entry(&self, stage: &str, task: &Task) -> String {
        let Some(cell) = self.cell(stage, task) else {
            return "<td class=\"none\" title=\"not measured\">\u{2013}</td>".to_owned();
        };
        let interval = match (cell.low, cell.high) {
            (Some(low), Some(high)) => format!("<small>{}</small>", escape(&range(low, high, task))),
            _ => String::new(),
        };
        let (class, style, change) = match self.change(stage, task) {
            Some(c) => {
                let text = format!("<span class=\"change\">{} {}</span>", c.arrow_for(task), escape(&c.text(task)));
                (c.direction(task).class(), format!(" style=\"--strength:{:.2}\"", c.strength(task)), text)
            }
            None => ("", String::new(), "<span class=\"change\">first measurement</span>".to_owned()),
        };
        format!(
            "<td class=\"{class}\"{style}><b>{}</b>{interval}{change}<small>{}</small></td>",
            escape(&shown(cell.value, task)),
            escape(&extras(cell.raw, task).join(" \u{00B7} ")),
        )
    }

    fn plots(&self) -> String {
        let (likelihoods, accuracies): (Vec<&Task>, Vec<&Task>) = self.tasks.iter().partition(|t| t.nll);
        if self.stages.len() < 2 {
            return String::new();
        }
        let mut figures = String::new();
        for tasks in accuracies.chunks(COLOURS) {
            figures += &self.plot("Accuracy by stage", "With 95% intervals.", tasks, true);
        }
        for tasks in likelihoods.chunks(COLOURS) {
            figures += &self.plot("Negative log-likelihood by stage", "Nats per token; lower is better.", tasks, false);
        }
        format!("<div class=\"grid\">\n{figures}</div>\n")
    }

    fn plot(&self, title: &str, caption: &str, tasks: &[&Task], percent: bool) -> String {
        let series = tasks.iter().map(|task| {
            let cells: Vec<Option<Cell>> = self.stages.iter().map(|s| self.cell(s, task)).collect();
            let point = |(i, c): (usize, &Option<Cell>)| (i as f64, c.map_or(f64::NAN, |c| c.value));
            let whisker = |c: &Option<Cell>| c.and_then(|c| c.low.zip(c.high)).unwrap_or((f64::NAN, f64::NAN));
            Series {
                name: format!("{}{}", task.id, if task.target { " (target)" } else { "" }),
                points: cells.iter().enumerate().map(point).collect(),
                whiskers: cells.iter().map(whisker).collect(),
            }
        });
        Chart {
            title: title.to_owned(),
            caption: caption.to_owned(),
            axis: Axis::Names(self.stages.iter().map(|s| (*s).to_owned()).collect()),
            series: series.collect(),
            include: percent.then_some((0.0, 1.0)),
            percent,
            noisy: false,
        }
        .figure()
    }
}

impl Change {
    fn direction(&self, task: &Task) -> Direction {
        let sign = match self.interval {
            Some((low, _)) if low > 0.0 => 1.0,
            Some((_, high)) if high < 0.0 => -1.0,
            _ => return Direction::Noise,
        };
        if (sign > 0.0) == task.nll { Direction::Worse } else { Direction::Better }
    }

    fn arrow(&self) -> &'static str {
        match self.mean {
            m if m > 0.0 => "\u{25B2}",
            m if m < 0.0 => "\u{25BC}",
            _ => "\u{25CF}",
        }
    }

    /// In the matrix the sign stands for better or worse, and a dot for noise.
    fn arrow_for(&self, task: &Task) -> &'static str {
        match self.direction(task) {
            Direction::Better => "\u{25B2}",
            Direction::Worse => "\u{25BC}",
            Direction::Noise => "\u{25CF}",
        }
    }

    fn text(&self, task: &Task) -> String {
        let (scale, decimals, unit) = if task.nll { (1.0, 3, "") } else { (100.0, 1, " points") };
        let one = |v: f64| signed(v * scale, decimals);
        match self.interval {
            Some((low, high)) => format!("{}{unit} [{}, {}]", one(self.mean), one(low), one(high)),
            None => format!("{}{unit}", one(self.mean)),
        }
    }

    /// How strongly the cell is tinted: full at 20 points, or at 0.5 nats.
    fn strength(&self, task: &Task) -> f64 {
        (self.mean.abs() / if task.nll { 0.5 } else { 0.2 }).clamp(0.25, 1.0)
    }
}

impl Direction {
    fn class(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Noise => "",
        }
    }
}

/// The change that the run itself measured, item by item.
fn paired(now: &Cell) -> Option<Change> {
    let change = now.raw.get("change")?;
    Some(Change { mean: float(change, "mean")?, interval: float(change, "low").zip(float(change, "high")) })
}

/// Without pairs: Newcombe's interval for a difference (1998, method 10), from the two intervals. Wider than the paired one.
fn unpaired(before: &Cell, now: &Cell) -> Change {
    let mean = now.value - before.value;
    let ends = before.low.zip(before.high).zip(now.low.zip(now.high));
    let interval = ends.map(|((before_low, before_high), (now_low, now_high))| {
        (
            mean - (now.value - now_low).hypot(before_high - before.value),
            mean + (now_high - now.value).hypot(before.value - before_low),
        )
    });
    Change { mean, interval }
}

fn shown(value: f64, task: &Task) -> String {
    if task.nll { format!("{value:.3}") } else { percent(value) }
}

fn range(low: f64, high: f64, task: &Task) -> String {
    if task.nll { format!("{low:.3} to {high:.3}") } else { format!("{:.1} to {:.1}", low * 100.0, high * 100.0) }
}

/// What was measured beside the metric.
fn extras(cell: &Value, task: &Task) -> Vec<String> {
    let mut extras = vec![];
    extras.extend(cell.get("n").and_then(Value::as_u64).map(|n| format!("n = {}", thousands(n as f64))));
    if let Some(Value::Object(pass)) = cell.get("pass_at_k") {
        let mut pass: Vec<(u64, f64)> = pass.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v.as_f64()?))).collect();
        pass.sort_by_key(|p| p.0);
        extras.extend(pass.into_iter().filter(|p| p.0 > 1).map(|(k, v)| format!("pass@{k} {}", percent(v))));
    }
    if !task.nll {
        extras.extend(float(cell, "nll").map(|nll| format!("nll {nll:.3}")));
    }
    extras.extend(float(cell, "mean_length").map(|length| format!("mean length {}", number(length))));
    let share =
        |key: &str, label: &str| float(cell, key).filter(|v| *v > 0.0).map(|v| format!("{} {label}", percent(v)));
    extras.extend(share("truncated", "cut off"));
    extras.extend(share("unparsed", "without an answer"));
    extras
}

fn float(value: &Value, key: &str) -> Option<f64> {
    value.get(key)?.as_f64()
}
