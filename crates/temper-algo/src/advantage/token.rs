//! Advantages per token: returns, generalised advantage estimation, process rewards.

use super::group::{is_constant, mean, sample_std};
use super::round::{GroupRewards, RoundAdvantages, StepReward};
use super::{batch, group};

/// Discounted sum of the rewards from each token on: `R_t = r_t + gamma R_{t+1}`.
pub fn returns_to_go(rewards: &[f64], gamma: f64) -> Vec<f64> {
    let mut returns = rewards.to_vec();
    for t in (1..returns.len()).rev() {
        returns[t - 1] += gamma * returns[t];
    }
    returns
}

/// Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equation 16) over one rollout that ends after its last
/// token: `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lambda A_{t+1}`. Returns the advantages and the targets
/// of the value function, `A_t + V_t`, both `[T]` and not whitened.
///
/// ```
/// use temper_algo::gae;
/// let (adv, ret) = gae(&[0.0, 1.0], &[0.5, 0.25], 1.0, 1.0);
/// assert_eq!((adv, ret), (vec![0.5, 0.75], vec![1.0, 1.0]));
/// ```
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> (Vec<f64>, Vec<f64>) {
    let mut adv = vec![0.0; rewards.len()];
    let (mut next_value, mut next_adv) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        next_adv = rewards[t] + gamma * next_value - values[t] + gamma * lambda * next_adv;
        (adv[t], next_value) = (next_adv, values[t]);
    }
    let ret = adv.iter().zip(values).map(|(a, v)| a + v).collect();
    (adv, ret)
}

/// The rewards of all steps of the group standardised together, then summed over the steps that end at or after each token.
pub(super) fn process(g: &GroupRewards, outcome: bool, eps: f64) -> Vec<Vec<f64>> {
    let steps: Vec<Vec<StepReward>> = (0..g.rewards.len()).map(|i| steps_of(g, i, outcome)).collect();
    let all: Vec<f64> = steps.iter().flatten().map(|s| s.reward).collect();
    let (mean, scale) = (mean(&all), sample_std(&all) + eps);
    let signal = if is_constant(&all) { 0.0 } else { 1.0 };
    let tokens = steps.iter().zip(g.lengths).map(|(steps, length)| {
        let mut rewards = vec![0.0; *length];
        for step in steps {
            rewards[step.end] += signal * (step.reward - mean) / scale;
        }
        returns_to_go(&rewards, 1.0)
    });
    tokens.collect()
}

fn steps_of(g: &GroupRewards, i: usize, outcome: bool) -> Vec<StepReward> {
    let last = g.lengths[i].checked_sub(1).filter(|_| outcome);
    let outcome = last.map(|end| StepReward { end, reward: g.rewards[i] });
    g.steps.get(i).into_iter().flatten().copied().chain(outcome).collect()
}

/// Returns of every token with `baseline` taken off the total reward.
pub(super) fn returns(
    groups: &[GroupRewards],
    gamma: f64,
    baseline: impl Fn(&GroupRewards) -> f64,
) -> Vec<Vec<Vec<f64>>> {
    let of_group = |g: &GroupRewards| {
        let less: Vec<f64> = g.rewards.iter().map(|r| r - baseline(g)).collect();
        let moved = GroupRewards { rewards: &less, ..*g };
        moved.token_rewards().iter().map(|r| returns_to_go(r, gamma)).collect()
    };
    groups.iter().map(of_group).collect()
}

/// One number a rollout where nothing is discounted and there are no steps, else one a token.
pub(super) fn plain_returns(groups: &[GroupRewards], baseline: f64, gamma: f64) -> RoundAdvantages {
    if gamma == 1.0 && groups.iter().all(|g| g.steps.is_empty()) {
        return RoundAdvantages::Rollouts(
            groups.iter().map(|g| g.rewards.iter().map(|r| r - baseline).collect()).collect(),
        );
    }
    let mut all = returns(groups, gamma, |_| 0.0);
    all.iter_mut().flatten().flatten().for_each(|a| *a -= baseline);
    RoundAdvantages::Tokens(all)
}

pub(super) fn weighed_by_values(groups: &[GroupRewards]) -> RoundAdvantages {
    let of_group = |g: &GroupRewards| {
        group::over_greedy(g).iter().zip(g.values).map(|(a, values)| values.iter().map(|v| a * v).collect()).collect()
    };
    RoundAdvantages::Tokens(groups.iter().map(of_group).collect())
}

pub(super) fn estimated(groups: &[GroupRewards], gamma: f64, lambda: f64, whiten: bool) -> RoundAdvantages {
    let of_group = |g: &GroupRewards| {
        g.token_rewards().iter().zip(g.values).map(|(r, v)| gae(r, v, gamma, lambda).0).collect::<Vec<_>>()
    };
    let all: Vec<Vec<Vec<f64>>> = groups.iter().map(of_group).collect();
    if whiten { batch::whiten_tokens(&all) } else { RoundAdvantages::Tokens(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_and_gae_by_hand() {
        assert_eq!(returns_to_go(&[1.0, 0.0, 4.0], 0.5), [2.0, 2.0, 4.0]);
        assert!(returns_to_go(&[], 0.5).is_empty());
        // delta = 0 + 0.5 * 2 - 1 = 0, 1 + 0 - 2 = -1; A = 0 + 0.5 * 0.5 * -1, -1.
        assert_eq!(gae(&[0.0, 1.0], &[1.0, 2.0], 0.5, 0.5), (vec![-0.25, -1.0], vec![0.75, 1.0]));
    }

    /// COACH's eligibility traces, run forwards: the coefficient of grad logp_t is what every later feedback found of it in the trace.
    #[test]
    fn late_feedback_is_what_forward_traces_give() {
        let (feedback, decay) = ([0.5, -1.0, 0.0, 2.0, 0.25], 0.7);
        let (mut trace, mut coefficient) = ([0.0f64; 5], [0.0f64; 5]);
        for s in 0..5 {
            for e in &mut trace {
                *e *= decay;
            }
            trace[s] += 1.0;
            coefficient.iter_mut().zip(trace).for_each(|(c, e)| *c += feedback[s] * e);
        }
        for (got, expected) in returns_to_go(&feedback, decay).iter().zip(coefficient) {
            assert!((got - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn process_rewards_by_hand() {
        // Step rewards 1, 0 | 1 -> mean 2/3, squares 2/3, variance 1/3, std 0.57735: z = 0.57735, -1.1547 | 0.57735.
        let steps = [
            vec![StepReward { end: 0, reward: 1.0 }, StepReward { end: 2, reward: 0.0 }],
            vec![StepReward { end: 1, reward: 1.0 }],
        ];
        let g = GroupRewards { lengths: &[4, 2], steps: &steps, ..GroupRewards::new(&[9.0, 9.0]) };
        let got = process(&g, false, 0.0);
        let z = 1.0 / 3f64.sqrt();
        for (a, b) in got.concat().into_iter().zip([z - 2.0 * z, -2.0 * z, -2.0 * z, 0.0, z, z]) {
            assert!((a - b).abs() < 1e-14, "{got:?}");
        }
        // With the outcome counted as one more step of each rollout.
        assert!(process(&g, true, 0.0)[0][3] > 0.0);
    }
}
