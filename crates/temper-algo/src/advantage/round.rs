//! What an advantage reads and gives: the rewards of a round, and one number a rollout or a token.

use serde::{Deserialize, Serialize};

use crate::Error;

/// All groups of one round of sampling. Some advantages compare over the whole round, so they always see all of it.
#[derive(Clone, Debug, Default)]
pub struct Round<'a> {
    /// The groups `[P]`, in the order of the step.
    pub groups: &'a [GroupRewards<'a>],
    /// Weights of the reward parts `[K]`; read by the methods that look at parts.
    pub part_weights: &'a [f64],
    /// What the method remembers from earlier rounds.
    pub state: AdvantageState,
}

/// Rewards of the G rollouts of one prompt. What is empty or `None` was not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupRewards<'a> {
    /// Total rewards `[G]`, all parts weighted and summed.
    pub rewards: &'a [f64],
    /// Reward parts before weighting `[G][K]`.
    pub parts: &'a [Vec<f64>],
    /// Completion lengths in tokens `[G]`.
    pub lengths: &'a [usize],
    /// Total reward of a greedy rollout of the same prompt.
    pub greedy: Option<f64>,
    /// A critic's values `[G][T]`.
    pub values: &'a [Vec<f64>],
    /// Rewards of steps inside the rollouts `[G][..]`, beside the total reward, which belongs to the last token.
    pub steps: &'a [Vec<StepReward>],
}

/// A reward inside a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReward {
    /// Index of the last token of the step.
    pub end: usize,
    /// Its reward.
    pub reward: f64,
}

impl<'a> GroupRewards<'a> {
    /// A group of which only the total rewards are known.
    pub fn new(rewards: &'a [f64]) -> Self {
        Self { rewards, ..Self::default() }
    }

    /// The reward of every token `[G][T]`: the steps' rewards, and the total reward on the last token.
    pub(super) fn token_rewards(&self) -> Vec<Vec<f64>> {
        (0..self.rewards.len()).map(|i| self.rollout_token_rewards(i)).collect()
    }

    fn rollout_token_rewards(&self, i: usize) -> Vec<f64> {
        token_rewards(self.rewards[i], self.lengths[i], self.steps.get(i).map_or(&[], Vec::as_slice))
    }
}

/// The reward of every token of a rollout `[length]`: the steps' rewards, and the total reward on the last token.
pub fn token_rewards(reward: f64, length: usize, steps: &[StepReward]) -> Vec<f64> {
    let mut rewards = vec![0.0; length];
    for step in steps {
        rewards[step.end] += step.reward;
    }
    if let Some(last) = rewards.last_mut() {
        *last += reward;
    }
    rewards
}

/// What an advantage remembers between rounds; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvantageState {
    /// Tracked lower and upper quantile of the bundle scores; none before the first round.
    pub quantiles: Option<[f64; 2]>,
}

/// The advantages of a round, in the order of its groups.
#[derive(Clone, Debug, PartialEq)]
pub enum RoundAdvantages {
    /// One a rollout `[P][G]`; every token of the rollout has it.
    Rollouts(Vec<Vec<f64>>),
    /// One a token `[P][G][T]`.
    Tokens(Vec<Vec<Vec<f64>>>),
}

impl RoundAdvantages {
    /// The advantages of one rollout's tokens `[length]`.
    pub fn tokens(&self, group: usize, rollout: usize, length: usize) -> Vec<f64> {
        match self {
            Self::Rollouts(all) => vec![all[group][rollout]; length],
            Self::Tokens(all) => all[group][rollout].clone(),
        }
    }

    /// One number for a rollout: its advantage, or the mean over its tokens (0 of none).
    pub fn rollout(&self, group: usize, rollout: usize) -> f64 {
        match self {
            Self::Rollouts(all) => all[group][rollout],
            Self::Tokens(all) => {
                let tokens = &all[group][rollout];
                tokens.iter().sum::<f64>() / tokens.len().max(1) as f64
            }
        }
    }
}

/// Array lengths that do not fit, and rewards and values that are no numbers.
pub(super) fn validate(round: &Round) -> Result<(), Error> {
    let numbers = |g: &GroupRewards, i: usize| -> Vec<(&'static str, f64)> {
        let steps = g.steps.get(i).into_iter().flatten().map(|s| ("steps", s.reward));
        let parts = g.parts.get(i).into_iter().flatten().map(|v| ("parts", *v));
        let values = g.values.get(i).into_iter().flatten().map(|v| ("values", *v));
        let greedy = g.greedy.map(|v| ("greedy", v));
        [("rewards", g.rewards[i])].into_iter().chain(greedy).chain(parts).chain(values).chain(steps).collect()
    };
    for (group, g) in round.groups.iter().enumerate() {
        fits(group, g, round.part_weights.len())?;
        for rollout in 0..g.rewards.len() {
            if let Some((name, value)) = numbers(g, rollout).into_iter().find(|(_, v)| !v.is_finite()) {
                return Err(Error::BadReward { name, group, rollout, value });
            }
        }
    }
    Ok(())
}

fn fits(group: usize, g: &GroupRewards, parts: usize) -> Result<(), Error> {
    let expected = g.rewards.len();
    let arrays =
        [("parts", g.parts.len()), ("lengths", g.lengths.len()), ("values", g.values.len()), ("steps", g.steps.len())];
    for (name, got) in arrays {
        if got != 0 && got != expected {
            return Err(Error::GroupLength { name, group, got, expected });
        }
    }
    if let Some(row) = g.parts.iter().find(|row| row.len() != parts) {
        return Err(Error::GroupLength { name: "parts of a rollout", group, got: row.len(), expected: parts });
    }
    for (i, length) in g.lengths.iter().enumerate() {
        if g.values.get(i).is_some_and(|v| v.len() != *length) {
            let got = g.values[i].len();
            return Err(Error::GroupLength { name: "values of a rollout", group, got, expected: *length });
        }
        if let Some(step) = g.steps.get(i).into_iter().flatten().find(|s| s.end >= *length) {
            return Err(Error::GroupLength { name: "end of a step", group, got: step.end, expected: *length });
        }
    }
    Ok(())
}
