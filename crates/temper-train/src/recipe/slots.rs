//! What is done to gradients before a step, and to parameters after it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_algo::Problem;

/// What changes the gradient of an optimiser step, of all its streams together, before it is clipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum GradientTransform {
    /// `g += weight (w - w_start)`: the gradient of `weight / 2 |w - w_start|^2`, a pull to the parameters that the stage starts with.
    /// Source: L2-SP, Li et al., arXiv 1802.01483, equation 2. Under AdamW the pull is scaled as every gradient is.
    L2Sp {
        /// How strong, above 0.
        weight: f64,
        /// The parameters that it pulls, by their names with `*` for anything (default all).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parameters: Option<Vec<String>>,
    },
}

/// What changes the parameters, or another model, after an optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AfterUpdate {
    /// `average = decay average + (1 - decay) w` after every optimiser step, from the parameters that the stage starts with. The stage's
    /// model, measured and saved, is the average; training and sampling go on with the parameters themselves. Source: Polyak & Juditsky
    /// 1992, with exponential weights; for continued pretraining Elhady et al., arXiv 2506.00288 (B165).
    Ema {
        /// Share of the average that stays, in (0, 1).
        decay: f64,
    },
    /// Every `every` optimiser steps `slow += alpha (w - slow)` and `w = slow`. Source: Lookahead, Zhang et al., arXiv 1907.08610,
    /// algorithm 1. The optimiser's moments stay.
    LookAhead {
        /// Optimiser steps between two of them.
        every: u64,
        /// Share of the way that the slow parameters go, in (0, 1).
        alpha: f64,
    },
    /// Every `every` optimiser steps `reference += alpha (policy - reference)`: the KL is to where the policy was a while ago. Source:
    /// TR-DPO, Gorbatovski et al., arXiv 2404.09656, equations 8 and 9 (`alpha = 1` is the hard update); TRL's `sync_ref_model`,
    /// `ref_model_sync_steps` and `ref_model_mixup_alpha`. What the reference says of a round's completions is read once a round.
    ReferenceSync {
        /// Optimiser steps between two of them.
        every: u64,
        /// Share of the policy, in (0, 1].
        alpha: f64,
    },
}

/// Which parameters a stage leaves as they are: they have no gradient, no moments and no place in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Freeze {
    /// Those with one of these names; `*` stands for anything.
    Names {
        /// Such as `model.layers.0.*` or `*.mlp.*`.
        names: Vec<String>,
    },
    /// Half of every block, drawn anew for every stage: two of its four attention matrices, one or two of its three feed-forward
    /// matrices (each in half of the blocks), and one of its two norms; the rest of the model is trained. Where matrices have biases,
    /// these go with them, and of four norms (those of queries and keys) it is two. Source: HFT, Hui et al., arXiv 2404.18466 (A060),
    /// whose models have neither.
    Half {},
}

impl GradientTransform {
    /// The name of its kind, as recipes write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::L2Sp { .. } => "l2_sp",
        }
    }

    /// Whether it pulls a parameter.
    pub fn covers(&self, parameter: &str) -> bool {
        let Self::L2Sp { parameters, .. } = self;
        parameters.as_ref().is_none_or(|names| names.iter().any(|pattern| matches(pattern, parameter)))
    }
}

impl AfterUpdate {
    /// The name of its kind, as recipes write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ema { .. } => "ema",
            Self::LookAhead { .. } => "look_ahead",
            Self::ReferenceSync { .. } => "reference_sync",
        }
    }

    /// Optimiser steps between two times, where it does not follow every step.
    pub fn every(&self) -> Option<u64> {
        match *self {
            Self::Ema { .. } => None,
            Self::LookAhead { every, .. } | Self::ReferenceSync { every, .. } => Some(every),
        }
    }

    /// What is wrong with it in a stage of so many optimiser steps.
    pub fn never(&self, updates: usize) -> Option<Problem> {
        let every = self.every().filter(|every| *every > updates as u64)?;
        let message = format!("`every` is {every}, and the stage has {updates} optimiser steps");
        Some(Problem::new("every", message, "it would never happen: use fewer"))
    }

    /// Whether it changes the reference.
    pub fn moves_reference(&self) -> bool {
        matches!(self, Self::ReferenceSync { .. })
    }
}

/// Whether a name is what a pattern says, `*` standing for any characters or none.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|i| name.is_char_boundary(i) && matches(rest, &name[i..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn names_by_pattern() {
        let name = "model.layers.1.mlp.up_proj.weight";
        for yes in ["*", name, "model.layers.1.*", "*.mlp.*", "model.*.up_proj.*"] {
            assert!(matches(yes, name), "{yes}");
        }
        for no in ["", "model.layers.1", "model.layers.11.*", "*.attn.*", "layers.*"] {
            assert!(!matches(no, name), "{no}");
        }
    }
}
