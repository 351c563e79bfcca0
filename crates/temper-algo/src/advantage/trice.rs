//! TRICE's coefficients: the rationale in memory against a fresh proposal.

use super::round::GroupRewards;

/// One coefficient a rollout; the first of a group is the fresh proposal, what follows comes from the memory.
pub(super) fn coefficients(groups: &[GroupRewards], threshold: f64) -> Vec<Vec<f64>> {
    let right = |r: &f64| *r > threshold;
    let accepted = |g: &GroupRewards| g.rewards.first().is_some_and(right);
    let counts = |g: &&GroupRewards| g.rewards.iter().any(right);
    let all = groups.iter().filter(counts).count();
    let good = groups.iter().filter(|g| accepted(g)).count();
    let of_group = |g: &GroupRewards| {
        let others = all.saturating_sub(1).max(1) as f64;
        let beta = (good - usize::from(accepted(g))) as f64 / others;
        let kept = g.rewards.iter().position(right);
        let of = |i: usize| match kept {
            None => 0.0,
            Some(kept) => f64::from(u8::from(i == kept)) - if i == 0 { beta } else { 0.0 },
        };
        (0..g.rewards.len()).map(of).collect()
    };
    groups.iter().map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rewards: &[&[f64]]) -> Vec<Vec<f64>> {
        coefficients(&rewards.iter().map(|r| GroupRewards::new(r)).collect::<Vec<_>>(), 0.5)
    }

    /// Accepted; rejected with a memory; rejected without one. Two count: beta is 0 of one other, then 1 of one other.
    #[test]
    fn by_hand() {
        assert_eq!(of(&[&[1.0], &[0.0, 1.0], &[0.0]]), [vec![1.0], vec![-1.0, 1.0], vec![0.0]]);
        assert_eq!(of(&[&[1.0], &[1.0], &[0.0, 1.0]]), [vec![0.5], vec![0.5], vec![-1.0, 1.0]]);
        // Alone, or where everything is accepted: the plain likelihood, and nothing.
        assert_eq!((of(&[&[1.0]]), of(&[&[1.0], &[1.0]])), (vec![vec![1.0]], vec![vec![0.0], vec![0.0]]));
        assert!(of(&[]).is_empty() && of(&[&[]])[0].is_empty());
    }

    /// The lines of the released notebook that make the weights, on every outcome of four examples.
    #[test]
    fn agrees_with_the_released_weights() {
        for code in 0..81u32 {
            let outcome: Vec<u32> = (0..4).map(|i| code / 3u32.pow(i) % 3).collect();
            let rewards: Vec<&[f64]> = outcome.iter().map(|o| [&[0.0][..], &[0.0, 1.0], &[1.0]][*o as usize]).collect();
            let got = of(&rewards);
            let accepted: Vec<f64> = outcome.iter().map(|o| f64::from(u8::from(*o == 2))).collect();
            let mask: Vec<f64> = outcome.iter().map(|o| f64::from(u8::from(*o > 0))).collect();
            for (m, got) in got.iter().enumerate() {
                let others = mask.iter().sum::<f64>() - 1.0 + 1e-10;
                let estimate = (accepted.iter().sum::<f64>() - accepted[m]) / others;
                let memory = mask[m] * (1.0 - estimate * accepted[m]);
                let proposal = -mask[m] * estimate * (1.0 - accepted[m]);
                let (first, second) = if outcome[m] == 2 { (memory, 0.0) } else { (proposal, memory) };
                assert!((got[0] - first).abs() < 1e-9, "{outcome:?} {m}: {got:?} {first}");
                assert!((got.get(1).unwrap_or(&0.0) - second).abs() < 1e-9, "{outcome:?} {m}: {got:?} {second}");
            }
        }
    }
}
