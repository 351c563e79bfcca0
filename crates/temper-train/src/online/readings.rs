//! What other models say of a round's completions before anything is trained, and what follows for the rewards: log-probabilities of
//! the reference and the cost of the KL, the critic's values and what it has to learn.

use temper_algo::{KlReward, StepReward, token_rewards};
use temper_env::Verdict;
use temper_model::{Batch, Model};
use temper_tensor::HeadSpec;

use crate::adapter::Reference;
use crate::context::Context;
use crate::critic::Critic;
use crate::error::{Error, Result};
use crate::offline::micro_batches;
use crate::recipe::OnlineStage;
use crate::rollout::{self, Group};

/// What was read of one completion of T scored tokens.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// Log-probabilities under the reference `[T]`; empty where they were not read.
    pub logp_ref: Vec<f64>,
    /// The critic's values of the states before each token `[T]`; empty without a critic.
    pub values: Vec<f64>,
    /// What the critic learns to predict there `[T]`; empty without a critic.
    pub ret: Vec<f64>,
    /// What the KL takes off the total reward.
    pub cost: f64,
    /// Rewards inside the completion, beside the total reward.
    pub steps: Vec<StepReward>,
}

/// Reads the log-probabilities under the reference, at the sampling temperature, of all groups that are trained on.
pub(super) fn reference(
    ctx: &Context,
    reference: &Reference,
    policy: &Model,
    stage: &OnlineStage,
    groups: &mut [Group],
) -> Result<()> {
    let spec = HeadSpec { temperature: stage.sampling.temperature, ..HeadSpec::default() };
    let read = |batch: &Batch| {
        let terms = reference.terms(ctx.ops(), policy, batch, &spec)?;
        Ok(terms.logp.into_iter().map(f64::from).collect())
    };
    each(stage, groups, &read, |readings, logp| readings.logp_ref = logp)
}

/// Reads the critic's values of all groups that are trained on.
pub(super) fn values(ctx: &Context, critic: &Critic, stage: &OnlineStage, groups: &mut [Group]) -> Result<()> {
    each(stage, groups, &|batch| critic.values(ctx.ops(), batch), |readings, values| readings.values = values)
}

/// One number a token of every completion of the groups that are not dropped, in batches of bounded size.
fn each(
    stage: &OnlineStage,
    groups: &mut [Group],
    read: &dyn Fn(&Batch) -> Result<Vec<f64>>,
    put: impl Fn(&mut Readings, Vec<f64>),
) -> Result<()> {
    let mut groups: Vec<&mut Group> = groups.iter_mut().filter(|g| !g.dropped()).collect();
    for part in micro_batches(groups.iter().map(|g| g.tokens()), stage.micro_tokens) {
        let batch = rollout::batch(&groups[part.clone()].iter().map(|g| &**g).collect::<Vec<_>>())?;
        let mut numbers = read(&batch)?.into_iter();
        for member in groups[part].iter_mut().flat_map(|g| &mut g.rollouts) {
            let scored = member.scored();
            put(&mut member.read, numbers.by_ref().take(scored).collect());
        }
    }
    Ok(())
}

/// Rewards that are numbers.
///
/// # Errors
/// The first that is none, by its task and its part.
pub(super) fn finite(groups: &[Group]) -> Result<()> {
    for group in groups {
        for (rollout, shaped) in group.rollouts.iter().zip(&group.shaped.rewards) {
            let parts = rollout.verdict.iter().flat_map(Verdict::parts).map(|(name, value)| (name.as_str(), *value));
            let after = [("after shaping", *shaped), ("less the KL to the reference", shaped - rollout.read.cost)];
            if let Some((name, value)) = parts.chain(after).find(|(_, value)| !value.is_finite()) {
                return Err(Error::user(
                    format!("the reward of task `{}` is {value}: `{name}`", group.task.id),
                    "look at this part of `rewards`, or at `shaping` and `kl_reward` where the parts are numbers",
                ));
            }
        }
    }
    Ok(())
}

/// Takes the KL to the reference off the rewards; returns its mean estimate over all tokens, nothing of none.
pub(super) fn charge(kl: &KlReward, groups: &mut [Group]) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for rollout in groups.iter_mut().filter(|g| !g.dropped()).flat_map(|g| &mut g.rollouts) {
        let logp: Vec<f64> = rollout.logp_old().iter().map(|&x| f64::from(x)).collect();
        let estimates = kl.estimates(&logp, &rollout.read.logp_ref);
        sum += estimates.iter().sum::<f64>();
        count += estimates.len();
        let (cost, tokens) = kl.costs(&estimates);
        rollout.read.cost = cost;
        rollout.read.steps.extend(tokens.iter().enumerate().map(|(end, cost)| StepReward { end, reward: -cost }));
    }
    (count > 0).then(|| sum / count as f64)
}

/// What the critic has to learn of every completion whose values were read.
pub(super) fn targets(stage: &OnlineStage, groups: &mut [Group]) {
    for group in groups.iter_mut().filter(|g| !g.dropped()) {
        for (rollout, shaped) in group.rollouts.iter_mut().zip(&group.shaped.rewards) {
            let (length, read) = (rollout.scored(), &mut rollout.read);
            if read.values.len() == length {
                let rewards = token_rewards(shaped - read.cost, length, &read.steps);
                read.ret = stage.objective.advantage.value_targets(&rewards, &read.values);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use temper_model::{Author, Stop};

    use super::*;
    use crate::rollout::{Origin, Rollout};

    /// One completion of two tokens.
    pub(in crate::online) fn group(reward: f64, shaped: f64, cost: f64) -> Group {
        let world = r#"{"kind":"tiny_world","families":["copying"],"levels":[1],"split":"train"}"#;
        let task = serde_json::from_str::<temper_env::TaskSource>(world).unwrap().open(0).unwrap().get(0).unwrap();
        let rollout = Rollout {
            tokens: vec![1, 2],
            authors: vec![Author::Model; 2],
            logp_gen: vec![-1.0, -2.0],
            logp_old: None,
            origin: Origin::Sampled,
            embedding: vec![],
            intrinsic: 0.0,
            weight: 1.0,
            earlier: vec![],
            last_reward: 0.0,
            stop: Stop::Eos,
            text: String::new(),
            lost_mass: 0.0,
            verdict: Some(Verdict::Graded { reward, parts: vec![("correct".into(), reward)], said: None }),
            read: Readings { cost, ..Readings::default() },
        };
        let shaped = temper_algo::Shaped { rewards: vec![shaped], parts: vec![vec![reward]] };
        let fates = vec![temper_algo::Fate::Kept];
        Group { rollouts: vec![rollout], shaped, fates, ..Group::new(task, vec![1]) }
    }

    #[test]
    fn a_reward_that_is_no_number_is_named() {
        finite(&[group(1.0, 0.5, 0.1)]).unwrap();
        for (bad, word) in [
            (group(f64::NAN, 0.0, 0.0), "`correct`"),
            (group(1.0, f64::INFINITY, 0.0), "after shaping"),
            (group(1.0, 1.0, f64::NAN), "KL"),
        ] {
            let text = finite(&[group(1.0, 1.0, 0.0), bad]).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains("copying/L1/train"), "{text}");
        }
    }

    /// Estimates 1 and -0.5 at beta 0.2, by sequence and by token.
    #[test]
    fn the_kl_is_charged_once() {
        let mut groups = [group(1.0, 1.0, 0.0)];
        groups[0].rollouts[0].read.logp_ref = vec![-2.0, -1.5];
        let kl =
            KlReward { estimator: temper_algo::KlEstimator::K1 {}, beta: 0.2, level: temper_algo::Level::Sequence };
        assert_eq!(charge(&kl, &mut groups), Some(0.25));
        assert!((groups[0].rollouts[0].read.cost - 0.1).abs() < 1e-15 && groups[0].rollouts[0].read.steps.is_empty());
        charge(&KlReward { level: temper_algo::Level::Token, ..kl }, &mut groups);
        let read = &groups[0].rollouts[0].read;
        let step = |end, reward| StepReward { end, reward };
        assert_eq!((read.cost, &read.steps), (0.0, &vec![step(0, -0.2), step(1, 0.1)]));
        assert_eq!(charge(&kl, &mut []), None);
    }
}
