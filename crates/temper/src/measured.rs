//! Measurements in words and tables: values with their intervals, changes, before and after, the retention matrix.

use temper_train::ledger::{Cell, Change, Ledger, TaskRow};

use crate::table::{Side, Table};

/// What the tables leave unsaid.
const LEGEND: &str = "Accuracy in percent, nll in nats per token (lower is better), with 95% intervals. A change is paired over the\n\
    items; `better` and `worse` are said where its interval leaves out 0, else there is no clear change.\n";
const MARKS: &str = "Against the start: + better, - worse, unmarked where there is no clear change.\n";

/// Whether lower is better.
fn falls(metric: &str) -> bool {
    metric == "nll"
}

fn number(metric: &str, value: f64) -> String {
    if falls(metric) { format!("{value:.3}") } else { format!("{:.1}", 100.0 * value) }
}

/// The measured value, without its interval.
fn value(metric: &str, cell: &Cell) -> Option<String> {
    let value = if falls(metric) { cell.nll } else { cell.accuracy };
    value.map(|v| number(metric, v))
}

/// `45.0 [38.3, 51.9]`.
pub(crate) fn with_interval(metric: &str, cell: &Cell) -> String {
    let number = |x: f64| number(metric, x);
    let interval = cell.low.zip(cell.high).map(|(low, high)| format!(" [{}, {}]", number(low), number(high)));
    value(metric, cell).map_or_else(|| "-".into(), |value| value + &interval.unwrap_or_default())
}

/// Which way a task went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Unclear,
}

fn verdict(metric: &str, change: &Change) -> Verdict {
    let (up, down) = (change.low > 0.0, change.high < 0.0);
    match (up, down, falls(metric)) {
        (true, _, false) | (_, true, true) => Verdict::Better,
        (_, true, false) | (true, _, true) => Verdict::Worse,
        _ => Verdict::Unclear,
    }
}

/// `+32.5 [+25.0, +40.0]`.
fn signed(metric: &str, change: &Change) -> String {
    let number = |x: f64| if falls(metric) { format!("{x:+.3}") } else { format!("{:+.1}", 100.0 * x) };
    format!("{} [{}, {}]", number(change.mean), number(change.low), number(change.high))
}

/// One measurement as a line: for progress.
pub(crate) fn line(metric: &str, cell: &Cell) -> String {
    let unit = if falls(metric) { "nats per token" } else { "%" };
    let change = cell.change.as_ref().map(|c| format!(", {} against {}", signed(metric, c), c.against));
    format!("{}: {} {unit}, n = {}{}", cell.task, with_interval(metric, cell), cell.n, change.unwrap_or_default())
}

/// The metric of a cell: a likelihood task has no accuracy.
pub(crate) fn metric(cell: &Cell) -> &'static str {
    if cell.accuracy.is_none() && cell.nll.is_some() { "nll" } else { "accuracy" }
}

/// Targets and retained tasks, first against last measurement; empty when nothing was measured.
pub(crate) fn before_and_after(ledger: &Ledger) -> String {
    if ledger.tasks.is_empty() {
        return String::new();
    }
    let last = ledger.stages.last().map_or("", String::as_str);
    let mut table = Table::new([
        ("task".to_owned(), Side::Left),
        (String::new(), Side::Left),
        ("metric".to_owned(), Side::Left),
        (first_column(ledger), Side::Right),
        (format!("after {last}"), Side::Right),
        ("change".to_owned(), Side::Right),
        (String::new(), Side::Left),
    ]);
    for task in ordered(ledger) {
        table.row(compared(ledger, task));
    }
    format!("{}\n{LEGEND}", table.text())
}

/// A run that makes its own model has nothing to measure before its first training stage.
fn first_column(ledger: &Ledger) -> String {
    match ledger.stages.first().map_or("start", String::as_str) {
        "start" => "before".into(),
        stage => format!("after {stage}"),
    }
}

/// Targets first.
fn ordered(ledger: &Ledger) -> impl Iterator<Item = &TaskRow> {
    let of = |target: bool| ledger.tasks.iter().filter(move |t| t.target == target);
    of(true).chain(of(false))
}

fn compared(ledger: &Ledger, task: &TaskRow) -> Vec<String> {
    let mut cells = ledger.cells.iter().filter(|c| c.task == task.id);
    let first = cells.next();
    let last = cells.next_back();
    let shown = |cell: Option<&Cell>| cell.map_or_else(|| "-".into(), |c| with_interval(&task.metric, c));
    let change = last.and_then(|c| c.change.as_ref());
    let word = change.map(|c| match verdict(&task.metric, c) {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Unclear => "no clear change",
    });
    vec![
        task.id.clone(),
        kind(task).into(),
        task.metric.clone(),
        shown(first),
        shown(last),
        change.map_or_else(|| "-".into(), |c| signed(&task.metric, c)),
        word.unwrap_or_default().into(),
    ]
}

fn kind(task: &TaskRow) -> &'static str {
    if task.target { "target" } else { "retained" }
}

/// Every task after every stage; empty when nothing was measured.
pub(crate) fn retention_matrix(ledger: &Ledger) -> String {
    if ledger.tasks.is_empty() {
        return String::new();
    }
    let stages = ledger.stages.iter().map(|stage| (stage.clone(), Side::Left));
    let mut table =
        Table::new([("retention".to_owned(), Side::Left), (String::new(), Side::Left)].into_iter().chain(stages));
    for task in ordered(ledger) {
        let cells = ledger
            .stages
            .iter()
            .map(|stage| ledger.cell(stage, &task.id).map_or_else(|| "-".into(), |c| marked(task, c)));
        table.row([task.id.clone(), kind(task).to_owned()].into_iter().chain(cells));
    }
    format!("{}\n{MARKS}", table.text())
}

fn marked(task: &TaskRow, cell: &Cell) -> String {
    let mark = match cell.change.as_ref().map(|c| verdict(&task.metric, c)) {
        Some(Verdict::Better) => " +",
        Some(Verdict::Worse) => " -",
        _ => "",
    };
    format!("{}{mark}", with_interval(&task.metric, cell))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn cell(stage: &str, task: &str, accuracy: f64, change: Option<(f64, f64, f64)>) -> Cell {
        let change = change.map(|(mean, low, high)| Change {
            against: "start".into(),
            mean,
            low,
            high,
            gained: 0,
            lost: 0,
            p_value: 1.0,
        });
        Cell {
            stage: stage.into(),
            task: task.into(),
            n: 200,
            accuracy: Some(accuracy),
            low: Some(accuracy - 0.05),
            high: Some(accuracy + 0.05),
            tokens: None,
            of: None,
            pass_at_k: None,
            nll: None,
            mean_length: None,
            unparsed: None,
            truncated: None,
            dropped: std::collections::BTreeMap::new(),
            change,
            items: vec![],
        }
    }

    fn ledger() -> Ledger {
        let row = |id: &str, target, metric: &str| TaskRow { id: id.into(), target, metric: metric.into() };
        let nll = |stage: &str, nll, change| Cell {
            accuracy: None,
            nll: Some(nll),
            low: Some(nll),
            high: Some(nll),
            ..cell(stage, "text", 0.0, change)
        };
        Ledger {
            stages: vec!["start".into(), "sft".into()],
            tasks: vec![row("text", false, "nll"), row("sums", true, "accuracy"), row("old", false, "accuracy")],
            cells: vec![
                cell("start", "sums", 0.1, None),
                cell("start", "old", 0.8, None),
                nll("start", 2.0, None),
                cell("sft", "sums", 0.5, Some((0.4, 0.3, 0.5))),
                cell("sft", "old", 0.7, Some((-0.1, -0.2, 0.0))),
                nll("sft", 2.5, Some((0.5, 0.25, 0.75))),
            ],
            notes: vec![],
        }
    }

    #[test]
    fn before_and_after_says_in_words_which_way_it_went() {
        let text = before_and_after(&ledger());
        let expected = "\
task            metric                 before            after sft                   change
sums  target    accuracy    10.0 [5.0, 15.0]    50.0 [45.0, 55.0]     +40.0 [+30.0, +50.0]  better
text  retained  nll       2.000 [2.000, 2.000]  2.500 [2.500, 2.500]  +0.500 [+0.250, +0.750]  worse
";
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        for line in expected.lines() {
            assert!(lines.contains(&line.split_whitespace().collect()), "{line}\nnot in\n{text}");
        }
        assert!(text.lines().any(|l| l.starts_with("old") && l.ends_with("no clear change")), "{text}");
        let at = |task: &str| text.find(&format!("\n{task} ")).unwrap();
        assert!(at("sums") < at("text"), "targets come first:\n{text}");
    }

    #[test]
    fn the_matrix_marks_changes_without_colour() {
        let text = retention_matrix(&ledger());
        let row = |task: &str| text.lines().find(|l| l.starts_with(task)).unwrap();
        assert!(
            row("sums").ends_with("50.0 [45.0, 55.0] +") && row("text").ends_with(" -") && row("old").ends_with(']'),
            "{text}"
        );
        assert_eq!(before_and_after(&Ledger::default()) + &retention_matrix(&Ledger::default()), "");
    }
}
