//! Advantages that compare over the whole round.

use super::group::{centred, is_constant, mean, sample_std, sample_variance, z_score};
use super::round::{GroupRewards, Round, RoundAdvantages};
use super::{GpgCount, Whiten};

/// Added to the standard deviation over rollouts (TRL).
const ROLLOUT_EPS: f64 = 1e-4;
/// Added to the variance over tokens (verl's `masked_whiten`).
const TOKEN_EPS: f64 = 1e-8;

/// `(r - group mean) / (std of all rewards of the round + eps)`.
pub(super) fn z_scores(groups: &[GroupRewards], eps: f64) -> Vec<Vec<f64>> {
    let all: Vec<f64> = groups.iter().flat_map(|g| g.rewards).copied().collect();
    let scale = sample_std(&all) + eps;
    groups.iter().map(|g| centred(g.rewards).into_iter().map(|a| a / scale).collect()).collect()
}

/// `alpha (r - group mean)` with `alpha = rollouts / counted rollouts`.
pub(super) fn gpg(groups: &[GroupRewards], count: GpgCount) -> Vec<Vec<f64>> {
    let all: usize = groups.iter().map(|g| g.rewards.len()).sum();
    let counted = |g: &GroupRewards| match count {
        GpgCount::Informative => usize::from(!is_constant(g.rewards)) * g.rewards.len(),
        GpgCount::NonzeroReward => g.rewards.iter().filter(|r| **r != 0.0).count(),
    };
    let alpha = all as f64 / groups.iter().map(counted).sum::<usize>().max(1) as f64;
    groups.iter().map(|g| centred(g.rewards).into_iter().map(|a| alpha * a).collect()).collect()
}

/// `sum_k weight_k z_k` with each reward part standardised in its group; the caller whitens it.
pub(super) fn decoupled(round: &Round, eps: f64) -> Vec<Vec<f64>> {
    round.groups.iter().map(|g| decoupled_group(g, round.part_weights, eps)).collect()
}

fn decoupled_group(g: &GroupRewards, weights: &[f64], eps: f64) -> Vec<f64> {
    let mut sums = vec![0.0; g.rewards.len()];
    for (k, weight) in weights.iter().enumerate() {
        let part: Vec<f64> = g.parts.iter().map(|row| row[k]).collect();
        sums.iter_mut().zip(z_score(&part, eps)).for_each(|(sum, z)| *sum += weight * z);
    }
    sums
}

/// Standardises the advantages of rollouts over the round.
pub(super) fn whiten(adv: Vec<Vec<f64>>, unit: Whiten, groups: &[GroupRewards]) -> RoundAdvantages {
    match unit {
        Whiten::None => RoundAdvantages::Rollouts(adv),
        Whiten::Rollout => RoundAdvantages::Rollouts(standardise(adv, |all| sample_std(all) + ROLLOUT_EPS)),
        Whiten::Token => {
            let spread =
                |(adv, g): (&Vec<f64>, &GroupRewards)| adv.iter().zip(g.lengths).map(|(a, n)| vec![*a; *n]).collect();
            whiten_tokens(&adv.iter().zip(groups).map(spread).collect::<Vec<_>>())
        }
    }
}

/// Standardises the advantages of tokens over the round: mean and unbiased variance over all its tokens.
pub(super) fn whiten_tokens(adv: &[Vec<Vec<f64>>]) -> RoundAdvantages {
    let shape: Vec<usize> = adv.iter().map(Vec::len).collect();
    let flat = standardise(adv.concat(), |all| (sample_variance(all) + TOKEN_EPS).sqrt());
    let mut rollouts = flat.into_iter();
    RoundAdvantages::Tokens(shape.iter().map(|n| rollouts.by_ref().take(*n).collect()).collect())
}

/// `(a - mean) / scale` over all entries of all rows, exact zeros when they are all equal.
fn standardise(rows: Vec<Vec<f64>>, scale: impl Fn(&[f64]) -> f64) -> Vec<Vec<f64>> {
    let all = rows.concat();
    if is_constant(&all) {
        return rows.iter().map(|row| vec![0.0; row.len()]).collect();
    }
    let (mean, scale) = (mean(&all), scale(&all));
    rows.into_iter().map(|row| row.into_iter().map(|a| (a - mean) / scale).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let groups = [GroupRewards::new(&[1.0, 0.0]), GroupRewards::new(&[1.0, 1.0])];
        // All rewards 1, 0, 1, 1: mean 3/4, squares 3/16 * 4 = 3/4, variance 1/4, std 1/2; centred 1/2, -1/2, 0, 0.
        assert_eq!(z_scores(&groups, 0.0), [vec![1.0, -1.0], vec![0.0, 0.0]]);
        // Two of four rollouts are in a group with a signal: alpha 2. Three have a reward other than 0: alpha 4/3.
        assert_eq!(gpg(&groups, GpgCount::Informative), [vec![1.0, -1.0], vec![0.0, 0.0]]);
        assert!((gpg(&groups, GpgCount::NonzeroReward)[0][0] - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn whitening_by_hand() {
        let lengths: [&[usize]; 2] = [&[3, 1], &[0, 0]];
        let rewards = [[1.0, 0.0], [1.0, 1.0]];
        let groups: Vec<GroupRewards> =
            (0..2).map(|i| GroupRewards { lengths: lengths[i], ..GroupRewards::new(&rewards[i]) }).collect();
        // Over the tokens 1, 1, 1, 0 (the second group is empty): mean 3/4, unbiased variance 1/4.
        let adv = vec![vec![1.0, 0.0], vec![7.0, 7.0]];
        let RoundAdvantages::Tokens(got) = whiten(adv.clone(), Whiten::Token, &groups) else { panic!() };
        assert!((got[0][0][2] - 0.5).abs() < 1e-7 && (got[0][1][0] + 1.5).abs() < 1e-7 && got[1][0].is_empty());
        // Over the rollouts 1, 0, 1, 1: the same numbers.
        let adv = vec![vec![1.0, 0.0], vec![1.0, 1.0]];
        let RoundAdvantages::Rollouts(got) = whiten(adv, Whiten::Rollout, &groups) else { panic!() };
        assert!((got[0][1] + 0.75 / 0.5001).abs() < 1e-12 && (got[1][1] - 0.25 / 0.5001).abs() < 1e-12);
    }
}
