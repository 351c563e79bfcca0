//! What a stage trains beside frozen weights.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_model::Lora;

use super::check::Found;

/// A few trained parameters beside the model's own, which are frozen. The stage's result is the adapter, in PEFT's format; later
/// stages and measurements use the model with the adapter merged into it. The reference model of a stage that trains an adapter is the
/// model with the adapter off, where `policy_at = "stage_start"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Adapter {
    /// Low-rank adaptation (arXiv 2106.09685). Defaults and first values are PEFT's.
    Lora {
        /// R, the rank of the change (default 8).
        #[serde(default = "rank")]
        rank: usize,
        /// Strength: the change is multiplied by `alpha / rank` (default 8).
        #[serde(default = "alpha")]
        alpha: f64,
        /// Probability of leaving out a value of the adapter's input in training (default 0).
        #[serde(default)]
        dropout: f64,
        /// Linear layers, by the end of their name: `q_proj`, `mlp.up_proj`, `layers.3.*` with `*` for any characters, or `all_linear`
        /// (default `["q_proj", "v_proj"]`).
        #[serde(default = "targets")]
        targets: Vec<String>,
        /// Multiply by `alpha / sqrt(rank)` instead (rsLoRA, arXiv 2312.03732; default false).
        #[serde(default)]
        rslora: bool,
    },
}

fn rank() -> usize {
    8
}
fn alpha() -> f64 {
    8.0
}
fn targets() -> Vec<String> {
    ["q_proj", "v_proj"].map(String::from).into()
}

impl Adapter {
    /// The model crate's settings.
    pub fn lora(&self) -> Lora {
        let Self::Lora { rank, alpha, dropout, targets, rslora } = self.clone();
        Lora { rank, alpha, dropout, targets, rslora }
    }

    /// Probability of leaving out a value in training.
    pub fn dropout(&self) -> f64 {
        let Self::Lora { dropout, .. } = self;
        *dropout
    }
}

/// `blocks` of the model, where they are known.
pub(super) fn problems(at: &str, adapter: &Adapter, blocks: Option<usize>, found: &mut Found) {
    let at = format!("{at}, `adapter`");
    for (what, hint) in adapter.lora().problems(blocks) {
        found.error(&at, what, hint);
    }
}
