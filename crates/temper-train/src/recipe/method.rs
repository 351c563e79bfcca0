//! What a recipe says about the published method that it is an instance of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The published method behind a recipe: a row of METHODS.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// The name that people know it by.
    pub name: String,
    /// Its ids in the list of published systems, such as `A016` (default: none).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// What kind of method it is.
    pub family: Family,
    /// Where it was published, with section or equation.
    pub source: String,
    /// How the recipe differs from what was published (default: it does not).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub departs: String,
    /// What its numbers were checked against, one entry a check.
    pub evidence: Vec<String>,
}

/// Families of methods, in the order in which METHODS.md lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Supervised fine-tuning.
    Sft,
    /// Reinforcement learning.
    Rl,
    /// Preference optimisation.
    Preference,
    /// Supervised and reinforcement learning in one stage.
    Hybrid,
    /// The order and choice of what is trained on.
    Curriculum,
    /// Learning from another model's distributions.
    Distillation,
    /// Learning from the model's own outputs over several rounds.
    SelfImprovement,
    /// Learning new things without losing old ones.
    Continual,
    /// Training few parameters.
    Adapter,
    /// Combining trained weights.
    Merge,
    /// Fewer bits a weight.
    Quantisation,
}

impl Family {
    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Sft => "Supervised fine-tuning",
            Self::Rl => "Reinforcement learning",
            Self::Preference => "Preference optimisation",
            Self::Hybrid => "Supervised and reinforcement learning together",
            Self::Curriculum => "Curricula",
            Self::Distillation => "Distillation",
            Self::SelfImprovement => "Self-improvement",
            Self::Continual => "Continual training",
            Self::Adapter => "Adapters",
            Self::Merge => "Merging",
            Self::Quantisation => "Quantisation",
        }
    }
}

impl Method {
    /// What is wrong with the entry: (key, message, way out).
    pub(super) fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let is_id = |id: &String| {
            let mut chars = id.chars();
            chars.next().is_some_and(|c| c.is_ascii_uppercase()) && id.len() == 4 && chars.all(|c| c.is_ascii_digit())
        };
        let mut found = vec![];
        for id in self.ids.iter().filter(|id| !is_id(id)) {
            found.push(("ids", format!("`{id}` is not an id"), "write a capital letter and three digits, as in A016"));
        }
        if self.evidence.is_empty() || self.evidence.iter().any(|e| e.trim().is_empty()) {
            let why = "say what the numbers were checked against: a reference, a golden, an identity, a run";
            found.push(("evidence", "there is no evidence, or an empty entry".into(), why));
        }
        for (key, text) in [("name", &self.name), ("source", &self.source)] {
            if text.trim().is_empty() {
                found.push((key, format!("`{key}` is empty"), "fill it in, or remove the `method` table"));
            }
        }
        found
    }
}
