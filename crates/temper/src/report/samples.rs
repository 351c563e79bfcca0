//! Sample rollouts: what the model wrote at the first and at the last step of each stage.

use serde_json::{Map, Value};

use super::html::{escape, number, scalar, shorten};
use super::run::{Run, Stage};

/// Rollouts shown for each end of a stage.
const SHOWN: usize = 4;
/// Characters shown of a prompt or a completion.
const LIMIT: usize = 4000;

type Rollout = Map<String, Value>;

/// The section, or nothing when nothing was sampled.
pub(super) fn section(run: &Run) -> String {
    let stages: String = run.stages.iter().filter(|s| !s.first.is_empty()).map(stage).collect();
    if stages.is_empty() { stages } else { format!("<section>\n<h2>Sample rollouts</h2>\n{stages}</section>\n") }
}

fn stage(stage: &Stage) -> String {
    let first = block("first", &stage.first);
    let last = if stage.last.is_empty() { String::new() } else { block("last", &stage.last) };
    format!("<section class=\"stage\">\n<h3>{}</h3>\n{first}{last}</section>\n", escape(&stage.name))
}

fn block(title: &str, rollouts: &[Rollout]) -> String {
    let step = rollouts.first().and_then(|r| scalar(r.get("step")?)).unwrap_or_default();
    let place = escape(&format!("Step {step}, the {title} that was recorded"));
    let chosen = choose(rollouts);
    let note = if rollouts.len() > chosen.len() {
        format!(": {} of {} completions, the best and the worst among them", chosen.len(), rollouts.len())
    } else {
        String::new()
    };
    let rows: String = chosen.into_iter().map(row).collect();
    format!(
        "<p class=\"about\">{place}{note}</p>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Rollouts of the {title} step\"><table class=\"rollouts\">\n\
         <thead><tr><th scope=\"col\">Reward</th><th scope=\"col\">Prompt</th><th scope=\"col\">Completion</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// The best, the worst, and the first of the rest, in the order in which they were written.
fn choose(rollouts: &[Rollout]) -> Vec<&Rollout> {
    let reward = |i: &usize| rollouts[*i].get("reward").and_then(Value::as_f64).unwrap_or(f64::NAN);
    let all = || 0..rollouts.len();
    let best = all().max_by(|a, b| reward(a).total_cmp(&reward(b)).then(b.cmp(a)));
    let worst = all().min_by(|a, b| reward(a).total_cmp(&reward(b)).then(a.cmp(b)));
    let mut chosen: Vec<usize> = best.into_iter().chain(worst).chain(all()).fold(vec![], |mut chosen, i| {
        if chosen.len() < SHOWN && !chosen.contains(&i) {
            chosen.push(i);
        }
        chosen
    });
    chosen.sort_unstable();
    chosen.into_iter().map(|i| &rollouts[i]).collect()
}

fn row(rollout: &Rollout) -> String {
    let reward = rollout.get("reward").and_then(Value::as_f64);
    let tint = match reward {
        Some(r) if r > 0.0 => "better",
        Some(_) => "worse",
        None => "",
    };
    let reward = reward.map_or_else(|| "\u{2013}".to_owned(), number);
    format!(
        "<tr><td><b class=\"reward {tint}\">{}</b>{}</td><td>{}<small>{}</small></td><td>{}<small>{}</small></td></tr>\n",
        escape(&reward),
        parts(rollout),
        text(rollout, "prompt"),
        escape(&rollout.get("task").and_then(scalar).unwrap_or_default()),
        text(rollout, "completion"),
        escape(&ending(rollout)),
    )
}

fn parts(rollout: &Rollout) -> String {
    let Some(Value::Object(parts)) = rollout.get("parts") else { return String::new() };
    let one = |(name, value): (&String, &Value)| {
        let value = value.as_f64().map_or_else(|| value.to_string(), number);
        format!("<small>{} {}</small>", escape(name), escape(&value))
    };
    parts.iter().map(one).collect()
}

/// How long it is and why it ended.
fn ending(rollout: &Rollout) -> String {
    let tokens = rollout.get("n_tokens").and_then(Value::as_f64).map(|n| super::html::count(n, "token"));
    let stop = rollout.get("stop").and_then(scalar).map(|stop| format!("ended by {stop}"));
    tokens.into_iter().chain(stop).collect::<Vec<_>>().join(" \u{00B7} ")
}

fn text(rollout: &Rollout, key: &str) -> String {
    let full = match rollout.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(messages)) => messages.iter().map(message).collect::<Vec<_>>().join("\n\n"),
        Some(Value::Null) | None => return "<em class=\"none\">not recorded</em>".to_owned(),
        Some(other) => other.to_string(),
    };
    if full.is_empty() {
        return "<em class=\"none\">empty</em>".to_owned();
    }
    let (shown, left) = shorten(&full, LIMIT);
    let more =
        if left > 0 { format!("\n[{} more]", super::html::count(left as f64, "character")) } else { String::new() };
    format!("<pre tabindex=\"0\">{}{}</pre>", escape(shown), escape(&more))
}

fn message(message: &Value) -> String {
    let field = |key: &str| message.get(key).and_then(Value::as_str);
    match (field("role"), field("content")) {
        (Some(role), Some(content)) => format!("{role}: {content}"),
        _ => message.to_string(),
    }
}
