//! What the stages that train have in common.

use temper_algo::Needs;

use super::adapter::Adapter;
use super::knobs::Knobs;
use super::parts::{Clip, Optimizer};
use super::slots::{AfterUpdate, Freeze, GradientTransform};
use super::stages::{OfflineStage, OnlineStage, Stage};
use super::stream::Stream;

/// The settings of a training stage that are there whatever it trains on.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// Name of the stage.
    pub id: &'a str,
    /// What its own loss reads.
    pub own_needs: Needs,
    /// Its further losses.
    pub streams: &'a [Stream],
    /// The adapter that it trains.
    pub adapter: Option<&'a Adapter>,
    /// What it does to gradients.
    pub gradient: &'a [GradientTransform],
    /// What it does to parameters, or to the reference, after a step.
    pub after_update: &'a [AfterUpdate],
    /// What it leaves as it is.
    pub freeze: Option<&'a Freeze>,
    /// The optimiser.
    pub optimizer: &'a Optimizer,
    /// Largest gradient norm; 0 for none.
    pub clip_norm: Clip,
    /// Most tokens of a micro-batch.
    pub micro_tokens: usize,
    /// Whether blocks are run again in backward.
    pub recompute: bool,
    /// Its optimiser steps, where the recipe says.
    pub updates: Option<usize>,
    /// Its moving settings.
    pub knobs: &'a Knobs,
}

impl Training<'_> {
    /// What all its losses read.
    pub fn needs(&self) -> Needs {
        self.streams.iter().map(|s| s.loss().needs()).chain([self.own_needs]).collect()
    }

    /// Whether a loss compares with the reference model.
    pub fn needs_reference(&self) -> bool {
        self.needs().contains(Needs::LOGP_REF)
    }

    /// Whether its reference follows the policy.
    pub fn syncs_reference(&self) -> bool {
        self.after_update.iter().any(AfterUpdate::moves_reference)
    }
}

impl OfflineStage {
    /// What it has in common with other stages that train.
    pub fn training(&self) -> Training<'_> {
        Training {
            id: &self.id,
            own_needs: self.loss().needs(),
            streams: &self.streams,
            adapter: self.adapter.as_ref(),
            gradient: &self.gradient,
            after_update: &self.after_update,
            freeze: self.freeze.as_ref(),
            optimizer: &self.optimizer,
            clip_norm: self.clip_norm,
            micro_tokens: self.micro_tokens,
            recompute: self.recompute,
            updates: self.steps,
            knobs: &self.knobs,
        }
    }
}

impl OnlineStage {
    /// What it has in common with other stages that train.
    pub fn training(&self) -> Training<'_> {
        Training {
            id: &self.id,
            own_needs: self.objective.needs(),
            streams: &self.streams,
            adapter: self.adapter.as_ref(),
            gradient: &self.gradient,
            after_update: &self.after_update,
            freeze: self.freeze.as_ref(),
            optimizer: &self.optimizer,
            clip_norm: self.clip_norm,
            micro_tokens: self.micro_tokens,
            recompute: self.recompute,
            updates: self.steps.checked_mul(self.inner_epochs).and_then(|n| n.checked_mul(self.minibatches)),
            knobs: &self.knobs,
        }
    }
}

impl Stage {
    /// What the stages that train have in common.
    pub fn training(&self) -> Option<Training<'_>> {
        match self {
            Self::Offline(s) => Some(s.training()),
            Self::Online(s) => Some(s.training()),
            Self::Tokenizer(_) | Self::Init(_) | Self::Evaluate(_) => None,
        }
    }

    /// Whether the stage trains, so that the evaluation tasks are measured after it.
    pub fn trains(&self) -> bool {
        self.training().is_some()
    }

    /// Whether a loss of it compares with the reference model.
    pub fn needs_reference(&self) -> bool {
        self.training().is_some_and(|t| t.needs_reference())
    }

    /// The adapter that it trains.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.training()?.adapter
    }
}
