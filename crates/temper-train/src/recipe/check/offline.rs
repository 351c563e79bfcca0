//! Offline stages.

use super::parts::{count, data_problems, optimizer_problems, schedule_problems};
use super::{Found, slots, streams};
use crate::recipe::{Input, OfflineStage, Recipe};
use crate::transform::Transform;

/// What is wrong with the stage as it stands.
pub(super) fn problems(recipe: &Recipe, at: &str, s: &OfflineStage, found: &mut Found) {
    data_problems(at, &s.data, found);
    streams::problems(recipe, at, &s.streams, s.weight, None, found);
    slots::problems(at, &s.training(), found);
    found.exactly_one(
        at,
        "`batch.examples` and `batch.tokens`",
        count(&[s.batch.examples.is_some(), s.batch.tokens.is_some()]),
    );
    found.exactly_one(at, "`steps` and `epochs`", count(&[s.steps.is_some(), s.epochs.is_some()]));
    for (name, value) in [("batch.examples", s.batch.examples), ("batch.tokens", s.batch.tokens), ("steps", s.steps)] {
        if let Some(value) = value {
            found.positive(at, name, value);
        }
    }
    for (name, value) in
        [("max_tokens", s.max_tokens), ("micro_tokens", s.micro_tokens), ("checkpoint_every", s.checkpoint_every)]
    {
        found.positive(at, name, value);
    }
    if s.epochs.is_some_and(|e| !(e > 0.0 && e.is_finite())) {
        found.error(at, format!("`epochs` is {}", s.epochs.unwrap_or(0.0)), "`epochs` is above 0");
    }
    optimizer_problems(at, &s.optimizer, s.clip_norm, found);
    schedule_problems(at, &s.schedule, s.steps, found);
    streams::supervised(recipe, at, &s.loss(), s.weighting, (s.mask, s.prompt_weight), found);
    for (i, transform) in s.transform.iter().enumerate() {
        found.parts(at, &format!("transform.{i}"), transform.check());
    }
    let copied = s.transform.iter().any(|t| matches!(t, Transform::CopiedSpans { .. }));
    if copied && s.prompt_weight != 0.0 {
        found.error(at, "`prompt_weight` would train on what `copied_spans` leaves out", "remove one of the two");
    }
    found.parts(at, "sensitivity", s.sensitivity.iter().flat_map(crate::recipe::Sensitivity::check).collect());
    let never = s.sensitivity.iter().zip(s.steps).filter_map(|(sensitivity, steps)| sensitivity.never(steps));
    found.parts(at, "sensitivity", never.collect());
    found.parts(at, "input", s.input.iter().flat_map(Input::check).collect());
    found.parts(at, "constraint", s.constraint.iter().flat_map(temper_algo::SampleConstraint::check).collect());
}
