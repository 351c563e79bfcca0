//! What training does to the model's input.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::Problem;

/// Changes of the input in training; targets, sampling and evaluation see none of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    /// Uniform noise on the embeddings, plus or minus `alpha / sqrt(tokens * width)`. NEFTune, arXiv 2310.05914; 5 to 15 there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neftune_alpha: Option<f64>,
    /// Trained tokens that are hidden where they are input, and stay targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<MaskInput>,
    /// Share of the model's own guess, in the embedding of every trained token where it is input: `(1 - share) e(token) +
    /// share e(guess)`, the guess being the most likely token there, from a forward pass of its own. The other half of
    /// intuitive fine-tuning (objective `ift`), arXiv 2405.11870; 0.2 in the released code. There the embeddings that are
    /// mixed are frozen; here the token's own embedding gets the gradient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_guess: Option<f64>,
}

/// Masked thought (arXiv 2403.02178): each trained token is hidden by itself, drawn anew every time the row is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaskInput {
    /// Share of the tokens.
    pub share: f64,
    /// The token in their place, as the vocabulary spells it (default: the tokenizer's padding token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Share of the stage over which the masked share grows in from 0 (default 0: none).
    #[serde(default)]
    pub ramp: f64,
}

impl Input {
    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        let share = |name: &str, value: f64, least: f64| {
            let message = format!("{name} is {value}, expected a number above {least} and at most 1");
            let ok = value > least && value <= 1.0;
            (!ok).then(|| Problem::new(name, message, "remove it to go without"))
        };
        let mut found: Vec<Option<Problem>> = vec![];
        if let Some(alpha) = self.neftune_alpha.filter(|a| !(*a > 0.0 && a.is_finite())) {
            let message = format!("neftune_alpha is {alpha}, expected a finite number above 0");
            found.push(Some(Problem::new("neftune_alpha", message, "5 is usual; remove it to go without")));
        }
        if let Some(mask) = &self.mask {
            found.push(share("mask.share", mask.share, 0.0));
            if mask.ramp != 0.0 {
                found.push(share("mask.ramp", mask.ramp, 0.0));
            }
        }
        found.extend(self.own_guess.map(|value| share("own_guess", value, 0.0)));
        if *self == Self::default() {
            let message = "`input` is empty, so it has no effect";
            found.push(Some(Problem::new("", message, "remove it, or give `neftune_alpha`, `mask` or `own_guess`")));
        }
        found.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_reported() {
        assert_eq!(Input::default().check().len(), 1);
        let mask = MaskInput { share: 2.0, token: None, ramp: -1.0 };
        let bad = Input { neftune_alpha: Some(f64::NAN), mask: Some(mask), own_guess: Some(0.0) };
        assert_eq!(bad.check().len(), 4);
        assert!(Input { neftune_alpha: Some(5.0), ..Input::default() }.check().is_empty());
    }
}
