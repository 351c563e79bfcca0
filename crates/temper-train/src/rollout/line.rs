//! What `rollouts.jsonl` holds.

use serde::Serialize;
use temper_env::Verdict;

use super::{Group, Origin, Rollout};
use crate::recipe::OnlineStage;

/// One line of `rollouts.jsonl`.
#[derive(Debug, Serialize)]
pub struct RolloutLine<'a> {
    stage: &'a str,
    step: usize,
    task: &'a str,
    prompt: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<&'a str>,
    completion: &'a str,
    answer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<&'a str>,
    reward: f64,
    parts: serde_json::Map<String, serde_json::Value>,
    failed: Option<&'a str>,
    stop: &'static str,
    n_tokens: usize,
    origin: Origin,
}

impl<'a> RolloutLine<'a> {
    /// The line of one completion.
    pub fn new(stage: &'a OnlineStage, step: usize, group: &'a Group, rollout: &'a Rollout) -> Self {
        let parts = rollout.verdict.iter().flat_map(Verdict::parts).map(|(k, v)| (k.clone(), (*v).into())).collect();
        Self {
            stage: &stage.id,
            step,
            task: &group.task.id,
            prompt: group.task.prompt_text(),
            earlier: rollout.earlier.iter().map(|turn| turn.text.as_str()).collect(),
            completion: &rollout.text,
            answer: &group.task.answer,
            said: rollout.said(),
            reward: rollout.reward(),
            parts,
            failed: rollout.verdict.as_ref().and_then(Verdict::failure),
            stop: rollout.stop.name(),
            n_tokens: rollout.scored(),
            origin: rollout.origin,
        }
    }
}
