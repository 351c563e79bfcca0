//! Offline stages.

use temper_algo::{Needs, Weighting};

use super::parts::{count, data_problems, optimizer_problems, schedule_problems};
use super::{Found, slots, streams};
use crate::recipe::{Input, Mask, OfflineStage, Recipe};
use crate::transform::Transform;

/// What is wrong with the stage as it stands.
pub(super) fn problems(recipe: &Recipe, at: &str, s: &OfflineStage, found: &mut Found) {
    data_problems(at, &s.data, found);
    streams::problems(recipe, at, &s.streams, s.weight, None, found);
    let slots = slots::Slots {
        gradient: &s.gradient,
        after: &s.after_update,
        freeze: s.freeze.as_ref(),
        adapter: s.adapter.as_ref(),
        reference: streams::reference(s.loss().needs(), &s.streams),
        updates: s.steps,
    };
    slots::problems(at, &slots, found);
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
    if s.mask == Mask::All && s.prompt_weight != 0.0 {
        found.error(at, "`prompt_weight` has no effect with `mask = \"all\"`", "remove one of the two");
    }
    if !(0.0..=1.0).contains(&s.prompt_weight) {
        found.error(at, format!("`prompt_weight` is {}", s.prompt_weight), "`prompt_weight` is between 0 and 1");
    }
    optimizer_problems(at, &s.optimizer, s.clip_norm, found);
    schedule_problems(at, &s.schedule, s.steps, found);
    found.parts(at, "weighting", s.weighting.check());
    if matches!(s.weighting, Weighting::Group {} | Weighting::GroupSum {}) {
        found.error(
            at,
            "`weighting` is by groups, and every example is a group of its own",
            "use `sequence` or `sequence_sum`, which are the same here",
        );
    }
    for p in s.loss().check() {
        found.error(&format!("{at}, `{}`", p.field), p.message, p.hint);
    }
    if s.loss().needs().contains(Needs::LOGP_REF) && recipe.model.reference.is_none() {
        found.error(
            at,
            "the objective compares with a reference model, and there is none",
            "add `[model.reference]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
    for (i, transform) in s.transform.iter().enumerate() {
        found.parts(at, &format!("transform.{i}"), transform.check());
    }
    let copied = s.transform.iter().any(|t| matches!(t, Transform::CopiedSpans { .. }));
    if copied && s.prompt_weight != 0.0 {
        found.error(at, "`prompt_weight` would train on what `copied_spans` leaves out", "remove one of the two");
    }
    found.parts(at, "sensitivity", s.sensitivity.iter().flat_map(crate::recipe::Sensitivity::check).collect());
    if let (Some(sensitivity), Some(steps)) = (&s.sensitivity, s.steps)
        && sensitivity.every.saturating_mul(sensitivity.looks) >= steps
    {
        found.warn(
            at,
            format!("`sensitivity` chooses units after {} looks, and the stage ends before", sensitivity.looks),
            "look more often (`every`), or take more steps",
        );
    }
    found.parts(at, "input", s.input.iter().flat_map(Input::check).collect());
    found.parts(at, "constraint", s.constraint.iter().flat_map(temper_algo::SampleConstraint::check).collect());
}
