//! The critic's side of an update.

use temper_algo::stats::Running;

use crate::context::Context;
use crate::critic::Critic;
use crate::error::Result;
use crate::learner::Update;
use crate::metrics::{self as names, Metrics};
use crate::offline::micro_batches;
use crate::recipe::{CriticStage, OnlineStage};
use crate::rollout::{self, Group};

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
    /// One optimiser step on the groups' values, every token with the same weight; `factor` is the learning rate's. Returns loss
    /// and gradient norm.
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
        let weight = 1.0 / scored.max(1) as f64;
        let mut loss = 0.0;
        for part in micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens) {
            let groups = &groups[part];
            let column = |of: fn(&Group) -> Vec<f64>| groups.iter().flat_map(|g| of(g)).collect::<Vec<f64>>();
            let old = column(|g| g.rollouts.iter().flat_map(|r| r.read.values.clone()).collect());
            let ret = column(|g| g.rollouts.iter().flat_map(|r| r.read.ret.clone()).collect());
            let batch = rollout::batch(groups)?;
            self.tokens += batch.ids.len() as u64;
            critic.accumulate(ctx.ops(), &batch, stage.recompute, &mut |values| {
                let terms =
                    values.iter().zip(&old).zip(&ret).map(|((v, old), ret)| settings.objective.term(*v, *old, *ret));
                let slope = |term: temper_algo::ValueTerm| {
                    loss += weight * term.x;
                    self.clipped += u64::from(term.clipped);
                    weight * term.d_value
                };
                terms.map(slope).collect()
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
