//! The passes of an optimiser step through the model, micro-batch by micro-batch.

use std::ops::Range;

use temper_algo::{Coupling, PolicyTerms, Rows};
use temper_model::Batch;
use temper_tensor::{HeadCoef, HeadSpec, HeadTerms, Hooks, Ops};

use super::update::Update;
use crate::error::Result;
use crate::learner::{Asked, Learner};
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group};

/// A micro-batch: the tokens, and the columns of those that are scored.
pub(super) struct Micro {
    pub batch: Batch,
    pub hooks: Hooks,
    scored: Scored,
}

/// Columns of scored tokens in batch order, `[M]` each, with the lengths of their sequences and groups.
#[derive(Default)]
struct Scored {
    logp_old: Vec<f64>,
    logp_gen: Vec<f64>,
    logp_ref: Option<Vec<f64>>,
    adv: Vec<f64>,
    success: Vec<f64>,
    kl_factor: Option<Vec<f64>>,
    weight: Vec<f64>,
    sequences: Vec<usize>,
    groups: Vec<usize>,
}

impl Micro {
    /// `kl_turns`: factors of the KL by turn, where they differ.
    pub(super) fn new(groups: &[&Group], weights: &[Vec<f64>], kl_turns: Option<&[f64]>) -> Result<Self> {
        let rollouts = || groups.iter().flat_map(|g| g.rollouts.iter().zip(&g.adv));
        let adv: Vec<f64> = rollouts().flat_map(|(_, adv)| adv.iter().copied()).collect();
        let logp_ref: Vec<f64> = rollouts().flat_map(|(r, _)| r.read.logp_ref.iter().copied()).collect();
        let scored = Scored {
            logp_old: rollouts().flat_map(|(r, _)| r.logp_old().iter().map(|&x| f64::from(x))).collect(),
            logp_gen: rollouts().flat_map(|(r, _)| r.logp_gen.iter().map(|&x| f64::from(x))).collect(),
            logp_ref: Some(logp_ref).filter(|l| l.len() == adv.len()),
            adv,
            success: groups.iter().flat_map(|g| std::iter::repeat_n(g.success, g.scored())).collect(),
            kl_factor: kl_turns
                .map(|factors| rollouts().flat_map(|(r, _)| r.turns()).map(|turn| factors[turn]).collect()),
            weight: weights.concat(),
            sequences: rollouts().map(|(r, _)| r.scored()).collect(),
            groups: groups.iter().map(|g| g.rollouts.len()).collect(),
        };
        Ok(Self { batch: rollout::batch(groups)?, hooks: Hooks::new(), scored })
    }
}

impl Scored {
    fn len(&self) -> usize {
        self.adv.len()
    }

    /// The columns of all micro-batches of a step, one after the other.
    fn of_step(micros: &[Micro]) -> Self {
        let mut all = Self::default();
        for Micro { scored, .. } in micros {
            all.logp_old.extend(&scored.logp_old);
            all.logp_gen.extend(&scored.logp_gen);
            if let Some(logp_ref) = &scored.logp_ref {
                all.logp_ref.get_or_insert_default().extend(logp_ref);
            }
            all.adv.extend(&scored.adv);
            all.success.extend(&scored.success);
            if let Some(factor) = &scored.kl_factor {
                all.kl_factor.get_or_insert_default().extend(factor);
            }
            all.weight.extend(&scored.weight);
            all.sequences.extend(&scored.sequences);
            all.groups.extend(&scored.groups);
        }
        all
    }

    /// The objective's terms for the scored tokens `at`.
    fn terms(
        &self,
        stage: &OnlineStage,
        at: Range<usize>,
        head: &HeadTerms,
    ) -> Result<PolicyTerms, temper_algo::Error> {
        let logp: Vec<f64> = head.logp.iter().map(|&x| f64::from(x)).collect();
        let entropy: Option<Vec<f64>> = head.entropy.as_ref().map(|e| e.iter().map(|&x| f64::from(x)).collect());
        let whole = at.len() == self.len();
        stage.objective.token_terms(&Rows {
            logp: &logp,
            logp_old: Some(&self.logp_old[at.clone()]),
            logp_gen: Some(&self.logp_gen[at.clone()]),
            logp_ref: self.logp_ref.as_ref().map(|l| &l[at.clone()]),
            entropy: entropy.as_deref(),
            success: Some(&self.success[at.clone()]),
            kl_factor: self.kl_factor.as_ref().map(|f| &f[at.clone()]),
            adv: &self.adv[at.clone()],
            weight: &self.weight[at],
            sequences: if whole { &self.sequences } else { &[] },
            groups: if whole { &self.groups } else { &[] },
        })
    }
}

/// The passes of an optimiser step through the model: one where every token's coefficient follows from its own terms, and one
/// more, forward only, where it takes those of its sequence, its group or the whole step.
pub(super) struct Pass<'a> {
    pub ops: &'a dyn Ops,
    pub stage: &'a OnlineStage,
    pub spec: HeadSpec,
}

impl Pass<'_> {
    /// Adds the gradients of all micro-batches; returns the step's loss.
    pub(super) fn gradients(&self, learner: &mut Learner, micros: &[Micro], done: &mut Update) -> Result<f64> {
        let (mut loss, mut from) = (0.0, 0);
        let whole = match self.stage.objective.coupling() {
            Coupling::Step => Some(self.whole_step(learner, micros)?),
            _ => None,
        };
        for micro in micros {
            let at = from..from + micro.scored.len();
            from = at.end;
            let known = match (&whole, self.stage.objective.coupling()) {
                (Some(whole), _) => Some(slice(whole, at)),
                (None, Coupling::Token) => None,
                (None, _) => Some(micro.scored.terms(self.stage, 0..at.len(), &self.forward(learner, micro)?)?),
            };
            loss += self.backward(learner, micro, known.as_ref(), done)?;
        }
        if let Some(whole) = whole {
            loss += whole.loss;
            done.policy = done.policy.merge(whole.metrics);
        }
        Ok(loss)
    }

    fn asked<'a>(&'a self, micro: &'a Micro) -> Asked<'a> {
        Asked { spec: &self.spec, hooks: &micro.hooks, other: None }
    }

    fn forward(&self, learner: &Learner, micro: &Micro) -> Result<HeadTerms> {
        learner.terms_with(self.ops, &micro.batch, &self.asked(micro))
    }

    /// The terms of every scored token of the step, for objectives that compare them all.
    fn whole_step(&self, learner: &Learner, micros: &[Micro]) -> Result<PolicyTerms> {
        let mut head = HeadTerms { entropy: Some(vec![]), ..HeadTerms::default() };
        for micro in micros {
            let terms = self.forward(learner, micro)?;
            head.logp.extend(terms.logp);
            head.entropy.get_or_insert_default().extend(terms.entropy.unwrap_or_default());
        }
        let scored = Scored::of_step(micros);
        Ok(scored.terms(self.stage, 0..scored.len(), &head)?)
    }

    /// Forward, coefficients (`known` ones, or those of each chunk's own terms) and backward; returns the micro-batch's share of
    /// the loss.
    fn backward(
        &self,
        learner: &mut Learner,
        micro: &Micro,
        known: Option<&PolicyTerms>,
        done: &mut Update,
    ) -> Result<f64> {
        let (mut loss, mut failed) = (0.0, None);
        let mut count = |terms: &PolicyTerms| {
            loss += terms.loss;
            done.policy = done.policy.merge(terms.metrics);
        };
        if let Some(known) = known {
            count(known);
        }
        let mut coef = |at: Range<usize>, head: &HeadTerms| match known {
            Some(known) => coefficients(&slice(known, at)),
            None => match micro.scored.terms(self.stage, at.clone(), head) {
                Ok(terms) => {
                    count(&terms);
                    coefficients(&terms)
                }
                Err(error) => {
                    failed = Some(error);
                    HeadCoef { d_logp: vec![0.0; at.len()], ..HeadCoef::default() }
                }
            },
        };
        let recompute = self.stage.recompute;
        let head = learner.accumulate_with(self.ops, &micro.batch, &self.asked(micro), recompute, &mut coef)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        head.entropy.iter().flatten().for_each(|&e| done.entropy.push(f64::from(e)));
        Ok(loss)
    }
}

/// The coefficients of some tokens; loss and metrics stay with the whole.
fn slice(terms: &PolicyTerms, at: Range<usize>) -> PolicyTerms {
    PolicyTerms {
        d_logp: terms.d_logp[at.clone()].to_vec(),
        d_entropy: terms.d_entropy.as_ref().map(|d| d[at].to_vec()),
        ..PolicyTerms::default()
    }
}

fn coefficients(terms: &PolicyTerms) -> HeadCoef {
    let narrow = |d: &Vec<f64>| d.iter().map(|&x| x as f32).collect();
    HeadCoef { d_logp: narrow(&terms.d_logp), d_entropy: terms.d_entropy.as_ref().map(narrow), ..HeadCoef::default() }
}
