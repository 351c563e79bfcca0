//! The parts that stages share.

use temper_algo::{Schedule, Warmup};

use super::{Found, MOST_MEASURED};
use crate::recipe::{DataSource, EvalSource, EvalTask, Generation, Optimizer};

pub(super) fn data_problems(at: &str, data: &[DataSource], found: &mut Found) {
    if data.is_empty() {
        found.error(at, "`data` is empty", "give at least one source");
    }
    let shared = data.iter().filter(|d| d.share().is_some()).count();
    if shared != 0 && shared != data.len() {
        found.error(at, "some sources have a `share` and some have none", "give every source a `share`, or none");
    }
    for source in data {
        if source.share().is_some_and(|s| !(s > 0.0 && s.is_finite())) {
            found.error(at, format!("a `share` is {}", source.share().unwrap_or(0.0)), "shares are above 0");
        }
        if let DataSource::Tasks { n, tasks, .. } = source {
            found.positive(at, "n", *n);
            found.tasks(at, tasks);
        }
        if let DataSource::File { prompt, answer, .. } = source
            && prompt.is_some() != answer.is_some()
        {
            found.error(at, "only one of `prompt` and `answer` is given", "name both columns, or none");
        }
    }
}

pub(super) fn optimizer_problems(at: &str, optimizer: &Optimizer, clip_norm: f64, found: &mut Found) {
    let Optimizer::Adamw { lr, beta1, beta2, eps, weight_decay } = *optimizer;
    let range = |name: &str, value: f64, ok: bool, expected: &str, found: &mut Found| {
        if !ok {
            found.error(at, format!("`{name}` is {value:?}"), format!("`{name}` is {expected}"));
        }
    };
    range("lr", lr, lr > 0.0 && lr.is_finite(), "above 0", found);
    range("beta1", beta1, (0.0..1.0).contains(&beta1), "in 0..1", found);
    range("beta2", beta2, (0.0..1.0).contains(&beta2), "in 0..1", found);
    let finite = |x: f64| x.is_finite() && (x as f32).is_finite();
    range("eps", eps, eps > 0.0 && finite(eps), "above 0", found);
    range("weight_decay", weight_decay, weight_decay >= 0.0 && finite(weight_decay), "0 or more", found);
    range("clip_norm", clip_norm, clip_norm >= 0.0 && finite(clip_norm), "0 (off) or more", found);
    if lr > 0.1 {
        found.warn(at, format!("`lr` is {lr}"), "AdamW usually works between 1e-7 and 1e-2");
    }
}

/// `steps`: optimiser steps, where the recipe says.
pub(super) fn schedule_problems(at: &str, schedule: &Schedule, steps: Option<usize>, found: &mut Found) {
    found.parts(at, "schedule", schedule.check());
    if let (Some(steps), Warmup::Steps(warmup)) = (steps, schedule.warmup())
        && warmup >= steps as u64
        && warmup > 0
    {
        found.warn(
            at,
            format!("the warm-up of {warmup} steps is not over after the stage's {steps}"),
            "warm up for fewer steps: the learning rate never reaches its peak",
        );
    }
}

pub(super) fn generation_problems(at: &str, g: &Generation, found: &mut Found) {
    found.positive(at, "max_tokens", g.max_tokens);
    temperature_problem(at, g.temperature, found);
    if g.top_k == Some(0) {
        found.error(at, "`top_k` is 0", "leave it out to sample from the whole vocabulary");
    }
    for (name, value) in [("top_p", g.top_p), ("min_p", g.min_p)] {
        if value.is_some_and(|v| !(v > 0.0 && v <= 1.0)) {
            found.error(
                at,
                format!("`{name}` is {}", value.unwrap_or(0.0)),
                format!("`{name}` is above 0 and at most 1"),
            );
        }
    }
    let truncates = g.top_k.is_some() || g.top_p.is_some() || g.min_p.is_some();
    if g.temperature == 0.0 && truncates {
        found.error(
            at,
            "`top_k`, `top_p` and `min_p` have no effect at temperature 0",
            "remove them, or set a temperature",
        );
    }
    if g.stop.iter().any(String::is_empty) {
        found.error(at, "a `stop` string is empty", "remove it");
    }
}

pub(super) fn eval_problems(at: &str, task: &EvalTask, found: &mut Found) {
    found.positive(at, "n", task.n);
    found.positive(at, "samples", task.samples);
    let completions = task.n.saturating_mul(task.samples);
    if completions > MOST_MEASURED {
        found.error(at, format!("{completions} completions are to be measured"), format!("at most {MOST_MEASURED}"));
    }
    found.positive(at, "max_tokens", task.max_tokens);
    if task.samples > 1 && task.temperature == Some(0.0) {
        found.error(
            at,
            format!("{} samples at temperature 0 are all the same", task.samples),
            "set a temperature, or `samples = 1`",
        );
    }
    if let Some(temperature) = task.temperature {
        temperature_problem(at, temperature, found);
    }
    if task.stop.iter().any(String::is_empty) {
        found.error(at, "a `stop` string is empty", "remove it");
    }
    if let EvalSource::Tasks { tasks } = &task.source {
        found.tasks(at, tasks);
        found.no_demonstrations(at, tasks);
    }
    let given = task.samples != 1 || task.temperature.is_some() || task.max_tokens != EvalTask::MAX_TOKENS;
    if task.source.likelihood() && (given || !task.stop.is_empty()) {
        found.error(
            at,
            "`samples`, `temperature`, `max_tokens` and `stop` have no effect: nothing is sampled, likelihoods are compared",
            "remove them",
        );
    }
}

pub(super) fn temperature_problem(at: &str, temperature: f32, found: &mut Found) {
    if temperature != 0.0 && !(temperature >= 1e-3 && temperature.is_finite()) {
        found.error(at, format!("`temperature` is {temperature}"), "use 0 for greedy decoding, or 0.001 and more");
    }
}

pub(super) fn count(given: &[bool]) -> usize {
    given.iter().filter(|g| **g).count()
}
