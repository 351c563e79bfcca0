//! Training curves: one group of plots a stage.

use super::chart::{Axis, COLOURS, Chart, Series, window};
use super::html::{concat, count, duration, escape, number};
use super::run::{Run, Stage};

/// A plot of metrics that belong together.
struct Panel {
    title: &'static str,
    caption: &'static str,
    /// Metric and its name in the legend.
    keys: &'static [(&'static str, &'static str)],
    percent: bool,
    /// Vertical range to show at least.
    include: Option<(f64, f64)>,
}

const PANELS: &[Panel] = &[
    Panel {
        title: "Loss",
        caption: "What the optimiser minimises.",
        keys: &[("loss", "loss")],
        percent: false,
        include: None,
    },
    Panel {
        title: "Token accuracy",
        caption: "Share of trained tokens that the model ranks first.",
        keys: &[("mean_token_accuracy", "token accuracy")],
        percent: true,
        include: None,
    },
    Panel {
        title: "Completion length",
        caption: "Tokens of the sampled completions.",
        keys: &[
            ("completions/mean_length", "mean"),
            ("completions/min_length", "shortest"),
            ("completions/max_length", "longest"),
        ],
        percent: false,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "Entropy",
        caption: "Mean entropy of the next-token distribution, in nats. A collapse towards zero ends exploration.",
        keys: &[("entropy", "entropy")],
        percent: false,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "KL to the reference",
        caption: "Mean estimate per token, in nats: how far the policy has moved.",
        keys: &[("kl", "kl")],
        percent: false,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "Groups without signal",
        caption: "Share of groups whose rewards are all equal; they teach nothing.",
        keys: &[("frac_reward_zero_std", "all equal")],
        percent: true,
        include: Some((0.0, 1.0)),
    },
    Panel {
        title: "Reward spread",
        caption: "Standard deviation of the reward within a group, mean over groups.",
        keys: &[("reward_std", "reward std")],
        percent: false,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "Answers cut off or not found",
        caption: "Share of completions cut off by the token limit, and of those in which no answer was found.",
        keys: &[("completions/clipped_ratio", "cut off"), ("completions/unparsed_ratio", "no answer found")],
        percent: true,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "Clipped tokens",
        caption: "Share of tokens whose gradient a clip bound cut.",
        keys: &[
            ("clip_ratio/region_mean", "either bound"),
            ("clip_ratio/low_mean", "lower bound"),
            ("clip_ratio/high_mean", "upper bound"),
        ],
        percent: true,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "Gradient norm",
        caption: "L2 norm before clipping.",
        keys: &[("grad_norm", "gradient norm")],
        percent: false,
        include: Some((0.0, 0.0)),
    },
    Panel {
        title: "Learning rate",
        caption: "As scheduled.",
        keys: &[("learning_rate", "learning rate")],
        percent: false,
        include: Some((0.0, 0.0)),
    },
];

/// The section, or nothing when no stage has logged a step.
pub(super) fn section(run: &Run) -> String {
    let stages: String = run.stages.iter().filter(|s| !s.steps.is_empty() || !s.timing.is_empty()).map(stage).collect();
    if stages.is_empty() { stages } else { format!("<section>\n<h2>Training</h2>\n{stages}</section>\n") }
}

fn stage(stage: &Stage) -> String {
    let mut used = vec!["epoch"];
    let mut charts: Vec<String> = reward(stage, &mut used).into_iter().collect();
    let sampled = !charts.is_empty();
    for panel in PANELS {
        used.extend(panel.keys.iter().map(|(key, _)| *key));
        charts.extend(panel.chart(stage, sampled));
    }
    charts.extend(speed(stage));
    let rest: Vec<String> =
        stage.keys().into_iter().filter(|key| !used.contains(key)).filter_map(|key| other(stage, key)).collect();
    let more = if rest.is_empty() {
        String::new()
    } else {
        format!(
            "<details><summary>More metrics ({})</summary><div class=\"grid small\">\n{}</div></details>\n",
            rest.len(),
            rest.concat()
        )
    };
    format!(
        "<section class=\"stage\">\n<h3>{}</h3>\n<p class=\"facts\">{}</p>\n<div class=\"grid\">\n{}</div>\n{more}</section>\n",
        escape(&stage.name),
        concat(facts(stage).iter().map(|f| format!("<span>{}</span>", escape(f)))),
        charts.concat(),
    )
}

fn facts(stage: &Stage) -> Vec<String> {
    let mut facts = vec![count(stage.steps.len() as f64, "step")];
    if let Some((_, tokens)) = stage.series("num_tokens").last() {
        facts.push(count(*tokens, "token"));
    }
    facts.extend(stage.wall_s().map(duration));
    facts.extend(median(stage.timings("tokens_per_s")).map(|speed| format!("{} tokens/s (median)", number(speed))));
    facts.extend(window(stage.steps.len()).map(|w| format!("thin lines: each step; thick lines: mean over {w} steps")));
    facts
}

fn median(points: Vec<(f64, f64)>) -> Option<f64> {
    let mut values: Vec<f64> = points.into_iter().map(|p| p.1).filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Panel {
    fn chart(&self, stage: &Stage, sampled: bool) -> Option<String> {
        let lines = self.keys.iter().map(|(key, name)| Series::line(*name, stage.series(key)));
        let series: Vec<Series> = lines.filter(|s| !s.points.is_empty()).collect();
        let noisy = self.keys[0].0 != "learning_rate";
        // A policy-gradient loss is near zero by construction; say so where it would mislead.
        let hint = "What the optimiser minimises; near zero by construction when sampling. Look at the reward.";
        let caption = if sampled && self.keys[0].0 == "loss" { hint } else { self.caption };
        let chart = Chart { include: self.include, percent: self.percent, noisy, ..plain(self.title, caption, series) };
        drawn(chart)
    }
}

/// The reward with its parts, when there are several.
fn reward<'a>(stage: &'a Stage, used: &mut Vec<&'a str>) -> Option<String> {
    let part = |key: &'a str| Some((key, key.strip_prefix("rewards/")?.strip_suffix("/mean")?));
    let parts: Vec<_> = stage.keys().into_iter().filter_map(part).collect();
    let mut series = vec![Series::line("reward", stage.series("reward"))];
    used.push("reward");
    if parts.len() > 1 {
        let shown = &parts[..parts.len().min(COLOURS - 1)];
        series.extend(shown.iter().map(|(key, name)| Series::line(format!("part: {name}"), stage.series(key))));
        used.extend(shown.iter().map(|(key, _)| *key));
    }
    series.retain(|s| !s.points.is_empty());
    let caption = "Mean over the step's completions; parts as they are, before their weights.";
    let caption = if series.len() > 1 { caption } else { "Mean over the step's completions." };
    drawn(plain("Reward", caption, series))
}

fn speed(stage: &Stage) -> Option<String> {
    let series = vec![Series::line("tokens/s", stage.timings("tokens_per_s"))];
    drawn(Chart { include: Some((0.0, 0.0)), ..plain("Speed", "Tokens per second of each step.", series) })
}

fn other(stage: &Stage, key: &str) -> Option<String> {
    let noisy = key != "num_tokens";
    drawn(Chart { noisy, ..plain(key, "", vec![Series::line(key, stage.series(key))]) })
}

/// A plot of noisy numbers over the steps.
pub(super) fn plain(title: &str, caption: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.to_owned(),
        caption: caption.to_owned(),
        axis: Axis::Steps,
        series,
        include: None,
        percent: false,
        noisy: true,
    }
}

fn drawn(chart: Chart) -> Option<String> {
    Some(chart.figure()).filter(|figure| !figure.is_empty())
}
