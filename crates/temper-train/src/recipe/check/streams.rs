//! Streams, and what they are weighed against.

use temper_algo::{Needs, SupervisedObjective, Weighting};

use super::Found;
use super::parts::{count, data_problems};
use crate::recipe::{Mask, OnlineStage, Recipe, Stream};

/// Of either loop; `online` is there where the stage draws tasks.
pub(super) fn problems(
    recipe: &Recipe,
    at: &str,
    streams: &[Stream],
    weight: f64,
    online: Option<&OnlineStage>,
    found: &mut Found,
) {
    if streams.is_empty() && weight != 1.0 {
        found.error(
            at,
            format!("`weight` is {weight} and there are no streams"),
            "remove it, or change `optimizer.lr`",
        );
    }
    if !(weight > 0.0 && weight.is_finite()) {
        found.error(at, format!("`weight` is {weight}"), "the stage's own loss has a factor above 0");
    }
    for (i, stream) in streams.iter().enumerate() {
        let at = &format!("{at}, stream `{}`", stream.id);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if stream.id.is_empty() || !stream.id.chars().all(plain) {
            found.error(at, "`id` is no plain name", "use letters, digits, `-`, `_` and `.`");
        }
        if streams[..i].iter().any(|before| before.id == stream.id) {
            found.error(at, "two streams have this id", "give each its own: metrics are logged under it");
        }
        if !(stream.weight != 0.0 && stream.weight.is_finite()) {
            found.error(at, format!("`weight` is {}", stream.weight), "give it a factor, or remove the stream");
        }
        rows(at, stream, online, found);
        supervised(recipe, at, &stream.loss(), stream.weighting, (stream.mask, stream.prompt_weight), found);
    }
}

/// What the stream trains on.
fn rows(at: &str, stream: &Stream, online: Option<&OnlineStage>, found: &mut Found) {
    found.exactly_one(
        at,
        "`data` and `demonstrations`",
        count(&[!stream.data.is_empty(), stream.demonstrations.is_some()]),
    );
    found.positive(at, "max_tokens", stream.max_tokens);
    if !stream.data.is_empty() {
        data_problems(at, &stream.data, found);
        let given = stream.batch.map(|b| count(&[b.examples.is_some(), b.tokens.is_some()]));
        found.exactly_one(at, "`batch.examples` and `batch.tokens`", given.unwrap_or(0));
        for (name, value) in
            stream.batch.iter().flat_map(|b| [("batch.examples", b.examples), ("batch.tokens", b.tokens)])
        {
            if let Some(value) = value {
                found.positive(at, name, value);
            }
        }
    }
    if let Some(shown) = &stream.demonstrations {
        if stream.batch.is_some() {
            found.error(at, "`batch` has no effect: there are as many rows as the round has such tasks", "remove it");
        }
        if !shown.threshold.is_finite() {
            found.error(at, "`threshold` is no number", "leave it out for 0.5");
        }
        match online {
            None => found.error(at, "`demonstrations` shows a round's tasks, and this stage draws none", "use `data`"),
            Some(s) if shown.most_right.is_some_and(|most| most >= s.samples_per_prompt) => found.error(
                at,
                "`most_right` has no effect: no task has more right rollouts than it has rollouts",
                "leave it out to show every task",
            ),
            Some(_) => {}
        }
    }
}

/// How given examples are trained on, those of a stage or of a stream.
pub(super) fn supervised(
    recipe: &Recipe,
    at: &str,
    loss: &SupervisedObjective,
    weighting: Weighting,
    (mask, prompt_weight): (Mask, f32),
    found: &mut Found,
) {
    if mask == Mask::All && prompt_weight != 0.0 {
        found.error(at, "`prompt_weight` has no effect with `mask = \"all\"`", "remove one of the two");
    }
    if !(0.0..=1.0).contains(&prompt_weight) {
        found.error(at, format!("`prompt_weight` is {prompt_weight}"), "`prompt_weight` is between 0 and 1");
    }
    found.parts(at, "weighting", weighting.check());
    if matches!(weighting, Weighting::Group {} | Weighting::GroupSum {}) {
        found.error(
            at,
            "`weighting` is by groups, and every example is a group of its own",
            "use `sequence` or `sequence_sum`, which are the same here",
        );
    }
    for p in loss.check() {
        found.error(&format!("{at}, `{}`", p.field), p.message, p.hint);
    }
    if loss.needs().contains(Needs::LOGP_REF) && recipe.model.reference.is_none() {
        found.error(
            at,
            "the objective compares with a reference model, and there is none",
            "add `[model.reference]` with `policy_at = \"stage_start\"` or a `path`",
        );
    }
}
