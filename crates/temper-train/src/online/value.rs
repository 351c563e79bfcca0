//! The critic's side of an update.

use temper_algo::stats::Running;
use temper_algo::{SequenceMask, ValueTerm, Weighting};

use crate::context::Context;
use crate::critic::Critic;
use crate::error::Result;
use crate::learner::Update;
use crate::metrics::{self as names, Metrics};
use crate::offline::micro_batches;
use crate::recipe::{CriticStage, OnlineStage};
use crate::rollout::{self, Group, Rollout};

/// What the critic's optimiser steps of a round added up to.
#[derive(Debug, Default)]
pub(super) struct ValueUpdate {
    loss: f64,
    norm: f64,
    clipped: u64,
    scored: u64,
    updates: usize,
    /// Tokens computed.
    pub(super) tokens: u64,
}

impl ValueUpdate {
    /// One optimiser step on the groups' values, every token with its rollout's example weight; `factor` is the learning rate's.
    /// Returns loss and gradient norm.
    pub(super) fn step(
        &mut self,
        ctx: &Context,
        critic: &mut Critic,
        stage: &OnlineStage,
        settings: &CriticStage,
        groups: &[&Group],
        factor: f64,
    ) -> Result<(f64, f64)> {
        let scored: usize = groups.iter().map(|g| g.scored()).sum();
        let mut weights = token_weights(groups)?.into_iter();
        let mut loss = 0.0;
        for part in micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens) {
            let groups = &groups[part];
            let column = |of: fn(&Group) -> Vec<f64>| groups.iter().flat_map(|g| of(g)).collect::<Vec<f64>>();
            let old = column(|g| g.rollouts.iter().flat_map(|r| r.read.values.clone()).collect());
            let ret = column(|g| g.rollouts.iter().flat_map(|r| r.read.ret.clone()).collect());
            let batch = rollout::batch(groups)?;
            self.tokens += batch.ids.len() as u64;
            let weights: Vec<f64> = weights.by_ref().take(old.len()).collect();
            critic.accumulate(ctx.ops(), &batch, stage.recompute, &mut |values| {
                let terms =
                    values.iter().zip(&old).zip(&ret).map(|((v, old), ret)| settings.objective.term(*v, *old, *ret));
                let slope = |(term, weight): (ValueTerm, &f64)| {
                    loss += weight * term.x;
                    self.clipped += u64::from(term.clipped);
                    weight * term.d_value
                };
                terms.zip(&weights).map(slope).collect()
            })?;
        }
        let CriticStage { optimizer, clip_norm, .. } = settings;
        let update = Update { optimizer, lr_factor: factor, clip_norm: *clip_norm, gradient: &[], after: &[] };
        let norm = critic.learner.update(ctx.ops(), &update)?.norm;
        self.loss += loss;
        self.norm += norm;
        self.scored += scored as u64;
        self.updates += 1;
        Ok((loss, norm))
    }

    /// The round's numbers, with how well the values that made its advantages told the returns.
    pub(super) fn write(&self, groups: &[Group], metrics: &mut Metrics) {
        if self.updates == 0 {
            return;
        }
        let steps = self.updates as f64;
        metrics.set(names::VALUE_LOSS, self.loss / steps);
        metrics.set(names::VALUE_GRAD_NORM, self.norm / steps);
        metrics.set(names::VALUE_CLIP_RATIO, self.clipped as f64 / self.scored.max(1) as f64);
        let read = || groups.iter().flat_map(|g| &g.rollouts).map(|r| &r.read);
        let values: Running = read().flat_map(|r| r.values.iter().copied()).collect();
        metrics.set(names::VALUE_MEAN, values.mean().unwrap_or(0.0));
        let ret: Running = read().flat_map(|r| r.ret.iter().copied()).collect();
        let rest: Running = read().flat_map(|r| r.ret.iter().zip(&r.values).map(|(ret, v)| ret - v)).collect();
        // Equal returns differ by rounding.
        let differs = |std: &f64| *std > 1e-9 * ret.mean().unwrap_or(0.0).abs().max(1.0);
        if let (Some(of), Some(rest)) = (ret.std().filter(differs), rest.std()) {
            metrics.set(names::EXPLAINED_VARIANCE, 1.0 - (rest / of).powi(2));
        }
    }
}

/// The weight of every scored token of the step: a mean over tokens, in which a rollout that was drawn twice counts twice.
fn token_weights(groups: &[&Group]) -> Result<Vec<f64>> {
    let rollouts = || groups.iter().flat_map(|g| &g.rollouts);
    let masks: Vec<Vec<f32>> = rollouts().map(|r| vec![1.0; r.scored()]).collect();
    let of = |(r, mask): (&Rollout, _)| SequenceMask { weight: r.weight, ..SequenceMask::new(0, mask) };
    let step: Vec<SequenceMask> = rollouts().zip(masks.iter().map(Vec::as_slice)).map(of).collect();
    Ok(Weighting::Token {}.weights(&step)?.concat())
}

#[cfg(test)]
mod tests {
    use temper_model::Author;

    use super::*;
    use crate::online::readings::tests::group;

    /// One token drawn twice and two drawn once: 2 / 4, 1 / 4, 1 / 4.
    #[test]
    fn what_was_drawn_twice_counts_twice() {
        let [mut twice, once] = [group(1.0, 1.0, 0.0), group(0.0, 0.0, 0.0)];
        let rollout = &mut twice.rollouts[0];
        (rollout.tokens, rollout.authors, rollout.weight) = (vec![1], vec![Author::Model], 2.0);
        assert_eq!(token_weights(&[&twice, &once]).unwrap(), [0.5, 0.25, 0.25]);
        assert!(token_weights(&[]).unwrap().is_empty());
    }
}
