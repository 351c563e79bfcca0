//! Advantages within one group: a baseline from the other rollouts of the same prompt.

use super::round::GroupRewards;

/// Rewards of a group closer together than this count as equal (the tolerance of `torch.isclose` against zero).
const EQUAL: f64 = 1e-8;

/// Whether a group carries no signal: all rewards equal (within 1e-8). True for groups of none or one.
pub fn is_constant(rewards: &[f64]) -> bool {
    let Some(first) = rewards.first() else { return true };
    let (low, high) = rewards.iter().fold((*first, *first), |(low, high), r| (low.min(*r), high.max(*r)));
    rewards.iter().all(|r| r.is_finite()) && high - low <= EQUAL
}

/// Standard deviation with divisor n - 1 (as `torch.std`); 0 for fewer than two values.
pub fn sample_std(values: &[f64]) -> f64 {
    sample_variance(values).sqrt()
}

pub(super) fn sample_variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    squares / (values.len() - 1) as f64
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// `(r - baseline) / scale`, and exact zeros for a group whose rewards are all equal.
fn standardised(rewards: &[f64], baseline: f64, scale: f64) -> Vec<f64> {
    if is_constant(rewards) {
        return vec![0.0; rewards.len()];
    }
    rewards.iter().map(|r| (r - baseline) / scale).collect()
}

/// `r - r(greedy)`.
pub(super) fn over_greedy(g: &GroupRewards) -> Vec<f64> {
    g.rewards.iter().map(|r| r - g.greedy.unwrap_or(0.0)).collect()
}

pub(super) fn z_score(rewards: &[f64], eps: f64) -> Vec<f64> {
    standardised(rewards, mean(rewards), sample_std(rewards) + eps)
}

pub(super) fn centred(rewards: &[f64]) -> Vec<f64> {
    standardised(rewards, mean(rewards), 1.0)
}

/// `r_i - mean of the others`: G / (G - 1) times the mean-centred reward.
pub(super) fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let sum: f64 = rewards.iter().sum();
    if is_constant(rewards) {
        return vec![0.0; rewards.len()];
    }
    let others = (rewards.len() - 1) as f64;
    rewards.iter().map(|r| r - (sum - r) / others).collect()
}

/// `r_i - sum(length r) / sum(length)`; the plain mean where every completion is empty.
pub(super) fn length_weighted(rewards: &[f64], lengths: &[usize]) -> Vec<f64> {
    let tokens: f64 = lengths.iter().map(|n| *n as f64).sum();
    let weighted: f64 = rewards.iter().zip(lengths).map(|(r, n)| r * *n as f64).sum();
    standardised(rewards, if tokens > 0.0 { weighted / tokens } else { mean(rewards) }, 1.0)
}

/// `(r - mean) / mean`, zeros where the mean is not above 0.
pub(super) fn max_likelihood(rewards: &[f64]) -> Vec<f64> {
    let mean = mean(rewards);
    if mean <= 0.0 { vec![0.0; rewards.len()] } else { standardised(rewards, mean, mean) }
}

/// 1 for the `keep` best rollouts (of equals the earlier ones), 0 for the rest.
pub(super) fn best_of(rewards: &[f64], keep: usize) -> Vec<f64> {
    let mut adv = vec![0.0; rewards.len()];
    crate::group_shaper::by_reward(rewards).into_iter().take(keep).for_each(|i| adv[i] = 1.0);
    adv
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], expected: &[f64]) {
        assert!(got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{got:?}");
    }

    #[test]
    fn by_hand() {
        // Rewards 1, 0, 0, 1: mean 1/2, sample variance 1/3, so the z-score is sqrt(3) / 2.
        let rewards = [1.0, 0.0, 0.0, 1.0];
        let z = 0.5 * 3f64.sqrt();
        close(&z_score(&rewards, 0.0), &[z, -z, -z, z]);
        // With TRL's eps: 0.5 / (0.57735027 + 0.0001) = 0.86587543.
        assert!((z_score(&rewards, 1e-4)[0] - 0.865_875_43).abs() < 1e-8);
        // Others of the first: (0 + 0 + 1) / 3.
        close(&leave_one_out(&rewards), &[2.0 / 3.0, -2.0 / 3.0, -2.0 / 3.0, 2.0 / 3.0]);
        // Lengths 1, 1, 1, 5: baseline 6/8.
        close(&length_weighted(&rewards, &[1, 1, 1, 5]), &[0.25, -0.75, -0.75, 0.25]);
        close(&length_weighted(&rewards, &[0; 4]), &[0.5, -0.5, -0.5, 0.5]);
        // One success of four: mean 1/4, so 3 for it and -1 for the others.
        close(&max_likelihood(&[0.0, 1.0, 0.0, 0.0]), &[-1.0, 3.0, -1.0, -1.0]);
        close(&max_likelihood(&[0.0, -1.0]), &[0.0, 0.0]);
        close(&best_of(&[0.5, 2.0, 2.0, 1.0], 2), &[0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn constant_groups_give_exact_zeros() {
        for group in [&[][..], &[3.0], &[0.1, 0.1, 0.1], &[0.1 + 0.2, 0.3]] {
            assert!(is_constant(group));
            let lengths: Vec<usize> = (0..group.len()).map(|i| i + 1).collect();
            for adv in [
                z_score(group, 1e-4),
                centred(group),
                leave_one_out(group),
                length_weighted(group, &lengths),
                max_likelihood(group),
            ] {
                assert_eq!(adv, vec![0.0; group.len()]);
            }
        }
        assert!(!is_constant(&[0.0, 1e-6]));
        assert!(!is_constant(&[f64::NAN, f64::NAN]) && !is_constant(&[f64::INFINITY, f64::INFINITY]));
    }
}
