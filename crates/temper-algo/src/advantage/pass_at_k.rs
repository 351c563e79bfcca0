//! Advantages for pass@k: what matters is whether one of k samples is right.

use super::group::{is_constant, sample_std};

/// Expected reward of a sample over all sets of k that hold it, standardised by the mean and standard deviation of the
/// reward "at least one of k is right" over all sets of k.
///
/// With n rollouts of which c are right, `rho = 1 - C(n-c, k) / C(n, k)` and `sigma = sqrt(rho (1 - rho))`:
/// right ones get `(1 - rho) / (sigma + eps)`, wrong ones `(1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / (sigma + eps)`.
pub(super) fn analytical(rewards: &[f64], k: usize, threshold: f64, eps: f64) -> Vec<f64> {
    let n = rewards.len();
    let right = rewards.iter().filter(|r| **r > threshold).count();
    let wrong = n - right;
    if right == 0 || wrong == 0 || k > n {
        return vec![0.0; n];
    }
    let fail = none_of(wrong, n, k);
    let sigma = (fail * (1.0 - fail)).sqrt() + eps;
    let conditional = none_of(wrong - 1, n - 1, k - 1);
    rewards.iter().map(|r| if *r > threshold { fail / sigma } else { (fail - conditional) / sigma }).collect()
}

/// `C(bad, k) / C(all, k)`: the chance that k drawn without replacement are all bad.
fn none_of(bad: usize, all: usize, k: usize) -> f64 {
    (0..k).map(|i| if i < bad { (bad - i) as f64 / (all - i) as f64 } else { 0.0 }).product()
}

/// `best - second` for the best rollout, 0 for the rest; over `std + eps` when scaled.
pub(super) fn best_minus_second(rewards: &[f64], scale: bool, eps: f64) -> Vec<f64> {
    let mut adv = vec![0.0; rewards.len()];
    if is_constant(rewards) {
        return adv;
    }
    let order = crate::group_shaper::by_reward(rewards);
    let gap = rewards[order[0]] - rewards[order[1]];
    adv[order[0]] = gap / if scale { sample_std(rewards) + eps } else { 1.0 };
    adv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn analytical_by_hand() {
        // n = 4, c = 1, k = 2: C(3,2)/C(4,2) = 1/2, sigma 1/2; right 1; wrong (1/2 - C(2,1)/C(3,1)) / (1/2) = -1/3.
        let adv = analytical(&[0.0, 1.0, 0.0, 0.0], 2, 0.5, 0.0);
        for (a, b) in adv.iter().zip([-1.0 / 3.0, 1.0, -1.0 / 3.0, -1.0 / 3.0]) {
            assert!((a - b).abs() < 1e-15, "{adv:?}");
        }
        // With 3 of 4 right no pair is all wrong: nothing to learn for pass@2.
        assert_eq!(analytical(&[1.0, 1.0, 0.0, 1.0], 2, 0.5, 1e-6), [0.0; 4]);
    }

    #[test]
    fn pass_at_one_is_the_z_score_with_the_population_deviation() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 0.0];
        let (p, std) = (0.4f64, (0.4f64 * 0.6).sqrt());
        for (a, r) in analytical(&rewards, 1, 0.5, 0.0).iter().zip(rewards) {
            assert!((a - (r - p) / std).abs() < 1e-14);
        }
    }

    #[test]
    fn the_gap_by_hand() {
        assert_eq!(best_minus_second(&[0.2, 1.0, 0.7], false, 0.0), [0.0, 1.0 - 0.7, 0.0]);
        assert_eq!(best_minus_second(&[1.0, 1.0, 0.0], true, 1e-6), [0.0; 3]);
        // Rewards 0, 2: sample std sqrt(2).
        assert!((best_minus_second(&[0.0, 2.0], true, 0.0)[1] - 2f64.sqrt()).abs() < 1e-15);
    }
}
