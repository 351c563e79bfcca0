//! What concerns every stage: where it starts, what may move in it; and the stages that do not train.

use temper_algo::Signal;

use super::parts::{count, data_problems, eval_problems};
use super::{Found, offline, online};
use crate::recipe::knobs::{self, Knobs};
use crate::recipe::{InitStage, Recipe, Stage, TokenizerStage};

/// Stage number `index` of the recipe.
pub(super) fn problems(recipe: &Recipe, index: usize, stage: &Stage, found: &mut Found) {
    let at = &format!("stage `{}`", stage.id());
    start(recipe, index, stage, at, found);
    if let Some(adapter) = stage.adapter() {
        crate::recipe::adapter::problems(at, adapter, blocks(recipe, index), found);
    }
    match stage {
        Stage::Tokenizer(s) => tokenizer(recipe, index, at, s, found),
        Stage::Init(s) => init(recipe, index, at, s, found),
        Stage::Offline(s) => {
            knob_problems(at, &s.knobs, &knobs::OFFLINE, false, found);
            s.knobs.extremes(s).iter().for_each(|s| offline::problems(recipe, at, s, found));
        }
        Stage::Online(s) => {
            let kl = s.objective.kl.is_some() || s.objective.kl_reward.is_some();
            knob_problems(at, &s.knobs, &knobs::ONLINE, kl, found);
            s.knobs.extremes(s).iter().for_each(|s| online::problems(recipe, at, s, found));
        }
        Stage::Evaluate(s) => {
            if s.tasks.is_empty() && recipe.eval_tasks().next().is_none() {
                found.error(
                    at,
                    "there is nothing to measure",
                    "give the stage `tasks`, or the recipe `[[target]]` or `[[retain]]`",
                );
            }
            s.tasks.iter().for_each(|t| eval_problems(&format!("{at}, task `{}`", t.id), t, found));
        }
    }
}

/// Where the stage starts from.
fn start(recipe: &Recipe, index: usize, stage: &Stage, at: &str, found: &mut Found) {
    let before = || recipe.stage[..index].iter();
    if let Some(from) = stage.from() {
        match before().find(|s| s.id() == from) {
            None => found.error(
                at,
                format!("`from` names `{from}`, which is no stage before this one"),
                "name an earlier stage",
            ),
            Some(s) if !s.makes_model() => {
                found.error(
                    at,
                    format!("`from` names `{from}`, which makes no model"),
                    "name a stage that trains or makes a model",
                );
            }
            Some(_) => {}
        }
    } else if !matches!(stage, Stage::Tokenizer(_) | Stage::Init(_))
        && recipe.model.policy.is_none()
        && !before().any(Stage::makes_model)
    {
        found.error(
            at,
            "there is no model to start from",
            "put a stage of kind `init` before it, or add `[model.policy]`",
        );
    }
}

fn tokenizer(recipe: &Recipe, index: usize, at: &str, s: &TokenizerStage, found: &mut Found) {
    data_problems(at, &s.data, found);
    if s.data.iter().any(|d| d.share().is_some()) {
        found.error(at, "`share` has no effect: all texts of all sources are used", "remove it");
    }
    let after = &recipe.stage[index + 1..];
    let used = after.iter().find(|s| matches!(s, Stage::Init(_) | Stage::Tokenizer(_)));
    if !matches!(used, Some(Stage::Init(s)) if s.tokenizer.is_none()) {
        found.error(at, "no `init` stage after it uses the tokenizer", "put a stage of kind `init` behind it");
    }
    found.positive(at, "vocab_size", s.vocab_size);
    let least = 256 + s.special_tokens.as_ref().map_or(3, Vec::len);
    if s.vocab_size < least {
        found.error(
            at,
            format!("`vocab_size` is {}", s.vocab_size),
            format!("256 bytes and the special tokens need at least {least}"),
        );
    }
    let own = [s.special_tokens.is_some(), s.eos_token.is_some(), s.chat_template.is_some()];
    if !count(&own).is_multiple_of(3) {
        found.error(
            at,
            "only some of `special_tokens`, `eos_token` and `chat_template` are given",
            "they belong together: give all three, or none",
        );
    }
}

fn init(recipe: &Recipe, index: usize, at: &str, s: &InitStage, found: &mut Found) {
    let tokenizer = s.tokenizer.is_some() || recipe.stage[..index].iter().any(|s| matches!(s, Stage::Tokenizer(_)));
    if !tokenizer {
        found.error(
            at,
            "there is no tokenizer",
            "set `tokenizer` to a directory, or put a stage of kind `tokenizer` before it",
        );
    }
    let (hidden, heads) = (s.shape.hidden_size, s.shape.heads);
    if heads > 0 && !hidden.is_multiple_of(heads) {
        found.error(
            at,
            format!("shape: `hidden_size` is {hidden} and `heads` is {heads}"),
            "every head has the same size: use a multiple of `heads` as `hidden_size`",
        );
    } else if let Err(e) = s.shape.plain(1024).validate() {
        found.error(at, format!("shape: {e}"), "see `temper recipe schema`");
    }
}

/// `movable`: the settings that are read anew in every step; `kl`: whether the stage measures one to the reference.
fn knob_problems(at: &str, knobs: &Knobs, movable: &[&str], kl: bool, found: &mut Found) {
    for (path, knob) in knobs.iter() {
        found.parts(at, path, knob.check());
        if !knobs::moves(path, movable) {
            found.error(
                at,
                format!("`{path}` cannot move: it is read once"),
                format!("give a number; what can move is {}", movable.join(", ")),
            );
        }
        if knob.watches() == Some(Signal::Kl) && !kl {
            found.error(
                at,
                format!("`{path}` follows the KL to the reference, which this stage does not measure"),
                "add `objective.kl` or `objective.kl_reward` to an online stage, or use a schedule",
            );
        }
    }
}

/// Blocks of the model that a stage starts from, where the recipe makes it.
fn blocks(recipe: &Recipe, index: usize) -> Option<usize> {
    match &recipe.stage[recipe.parent(index).filter(|parent| *parent < index)?] {
        Stage::Init(s) => Some(s.shape.layers),
        Stage::Tokenizer(_) => None,
        Stage::Offline(_) | Stage::Online(_) | Stage::Evaluate(_) => blocks(recipe, recipe.parent(index)?),
    }
}
