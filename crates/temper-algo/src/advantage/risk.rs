//! Risk-sensitive advantages over bundles of prompts.

use super::round::GroupRewards;

/// Levels and weights of the mixed value at risk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Risk {
    pub(super) bundle: usize,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) tail_weight: f64,
}

impl Risk {
    /// Advantages `[P][G]`: rollout i of every prompt of a bundle has the advantage of the bundle's i-th score.
    pub(super) fn advantages(self, groups: &[GroupRewards], quantiles: Option<[f64; 2]>) -> Vec<Vec<f64>> {
        let scores = self.scores(groups);
        let quantiles = quantiles.unwrap_or_else(|| self.quantiles(&scores.concat()));
        let mut adv = vec![];
        for (bundle, scores) in groups.chunks(self.bundle).zip(&scores) {
            let per_score: Vec<f64> = scores.iter().map(|s| self.of_score(*s, quantiles)).collect();
            let of =
                |g: &GroupRewards| (0..g.rewards.len()).map(|i| per_score.get(i).copied().unwrap_or(0.0)).collect();
            adv.extend(bundle.iter().map(of));
        }
        adv
    }

    /// `[clamp(s, q_low, q_high) - q_high] / (high - low)`, mixed with the lower tail `-max(q_low - s, 0) / low`.
    fn of_score(self, s: f64, [q_low, q_high]: [f64; 2]) -> f64 {
        let middle = ((s - q_low).max(0.0) - (s - q_high).max(0.0) + q_low - q_high) / (self.high - self.low);
        let tail = -(q_low - s).max(0.0) / self.low;
        (middle + self.tail_weight * tail) / (1.0 + self.tail_weight)
    }

    /// Scores `[bundles][smallest G]`: the i-th rollouts' rewards summed over the bundle's prompts. A last bundle with fewer
    /// prompts is scaled up to the size of the others.
    fn scores(self, groups: &[GroupRewards]) -> Vec<Vec<f64>> {
        let bundle_scores = |bundle: &[GroupRewards]| {
            let rollouts = bundle.iter().map(|g| g.rewards.len()).min().unwrap_or(0);
            let scale = self.bundle as f64 / bundle.len() as f64;
            (0..rollouts).map(|i| scale * bundle.iter().map(|g| g.rewards[i]).sum::<f64>()).collect()
        };
        groups.chunks(self.bundle).map(bundle_scores).collect()
    }

    fn quantiles(self, scores: &[f64]) -> [f64; 2] {
        [self.low, self.high].map(|level| quantile(scores, level))
    }

    /// The tracked quantiles after this round: `q += rate (level - share of scores below q)`.
    pub(super) fn track(self, groups: &[GroupRewards], tracked: Option<[f64; 2]>, rate: f64) -> Option<[f64; 2]> {
        let scores = self.scores(groups).concat();
        if scores.is_empty() {
            return tracked;
        }
        let Some(q) = tracked else { return Some(self.quantiles(&scores)) };
        let below = |q: f64| scores.iter().filter(|s| **s < q).count() as f64 / scores.len() as f64;
        Some([q[0] + rate * (self.low - below(q[0])), q[1] + rate * (self.high - below(q[1]))])
    }
}

/// The quantile at `level` with linear interpolation between order statistics (as `torch.quantile`); 0 of nothing.
fn quantile(values: &[f64], level: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = level * last as f64;
    let (low, share) = (at.floor() as usize, at.fract());
    sorted[low] + share * (sorted[(low + 1).min(last)] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    const RISK: Risk = Risk { bundle: 2, low: 0.2, high: 0.8, tail_weight: 1.5 };

    #[test]
    fn by_hand() {
        // Quantiles 1 and 3. Score 0: middle -2/0.6, tail -1/0.2; score 2: middle -1/0.6; score 4: nothing left to gain.
        let adv = [0.0, 2.0, 4.0].map(|s| RISK.of_score(s, [1.0, 3.0]));
        let expected = [(-2.0 / 0.6 - 1.5 * 5.0) / 2.5, -1.0 / 0.6 / 2.5, 0.0];
        assert!(adv.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{adv:?}");
    }

    #[test]
    fn bundles_and_quantiles_by_hand() {
        assert_eq!([0.0, 0.5, 1.0].map(|l| quantile(&[3.0, 1.0, 2.0, 4.0], l)), [1.0, 2.5, 4.0]);
        let rewards = [[1.0, 0.0], [1.0, 1.0], [0.5, 0.0]];
        let groups: Vec<GroupRewards> = rewards.iter().map(|r| GroupRewards::new(r)).collect();
        assert_eq!(RISK.scores(&groups), [vec![2.0, 1.0], vec![1.0, 0.0]]);
        let adv = RISK.advantages(&groups, Some([0.5, 1.5]));
        assert_eq!((adv[0].clone(), adv[0][0]), (adv[1].clone(), 0.0));
        assert!(adv[2][1] < adv[2][0] && adv[2][0] < 0.0);
    }

    #[test]
    fn tracking_by_hand() {
        let rewards = [[0.0, 1.0, 2.0, 3.0]];
        let groups = [GroupRewards::new(&rewards[0])];
        let risk = Risk { bundle: 1, ..RISK };
        // The first round gives its own quantiles: 0.2 * 3 = 0.6 and 0.8 * 3 = 2.4.
        let first = risk.track(&groups, None, 0.1).unwrap();
        assert!((first[0] - 0.6).abs() < 1e-15 && (first[1] - 2.4).abs() < 1e-14);
        // Below 0.6: 1/4, below 2.4: 3/4.
        let next = risk.track(&groups, Some([0.6, 2.4]), 0.1).unwrap();
        assert!((next[0] - 0.595).abs() < 1e-15 && (next[1] - 2.405).abs() < 1e-14);
        assert_eq!(risk.track(&[], None, 0.1), None);
    }
}
