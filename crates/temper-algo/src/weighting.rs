//! Weights: where all averaging lives. One vector for the whole optimiser step, computed before micro-batching.

use serde::{Deserialize, Serialize};

use crate::{Error, Problem};

/// How the per-token terms of an optimiser step are averaged. With `m` the mask of a token (0, 1 or a message's weight) and
/// `e` the example weight of its sequence (1 unless given), both at least 0:
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Weighting {
    /// `e m / sum(e m)`: every trained token of the step counts the same. DAPO (arXiv 2503.14476, equation 8), SFT's usual loss;
    /// TRL's `dapo`, verl's `token-mean`. TRL's `bnpo` is this formula over each micro-batch by itself, which makes the loss
    /// depend on how the step is cut (tokens next to short completions weigh more); there is no such variant here.
    Token {},
    /// `e / sum(e) * m / sum_in_sequence(m)`: every sequence counts the same, however long. GRPO (arXiv 2402.03300,
    /// equation 3); TRL's `grpo`, verl's `seq-mean-token-mean` (which leaves sequences without a trained token out of the average).
    Sequence {},
    /// `e / sum(e) * m`: the tokens of a sequence are summed, sequences averaged, so a long sequence counts more; verl's
    /// `seq-mean-token-sum`. With the ratio `sequence` it is LUSPO (arXiv 2602.05261): the sequence term times its length, which
    /// takes GSPO's preference for short answers away. The loss grows with the length: mind the learning rate.
    SequenceSum {},
    /// `e m`: the sum over all tokens of the step, not an average; verl's `token-sum`. The size of the update grows with the step.
    Sum {},
    /// `e / sum(e) * m / tokens`: a constant in place of the length, so that length is neither rewarded nor punished. Dr. GRPO
    /// (arXiv 2503.20783, section 3.2); TRL's `dr_grpo`, verl's `seq-mean-token-sum-norm`.
    Constant {
        /// The constant, as a rule the largest completion length (`max_tokens`).
        tokens: u32,
    },
    /// `1 / groups * e m / sum_in_group(e m)`: every group counts the same, and every token within it.
    Group {},
    /// `1 / groups * e m`: the tokens of a group are summed, groups averaged: log-probs of whole completions, a mean over prompts (TRICE,
    /// arXiv 2312.02179).
    GroupSum {},
}

impl Default for Weighting {
    fn default() -> Self {
        Self::Token {}
    }
}

/// One sequence of the optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceMask<'a> {
    /// Which group it belongs to; any number, equal for the sequences of one group.
    pub group: u64,
    /// Weight of the whole sequence (1 unless an example weight says otherwise).
    pub weight: f64,
    /// Weight of each of its scored tokens `[T]`: 0 = not trained on.
    pub mask: &'a [f32],
}

impl<'a> SequenceMask<'a> {
    /// A sequence of example weight 1.
    pub fn new(group: u64, mask: &'a [f32]) -> Self {
        Self { group, weight: 1.0, mask }
    }

    fn mass(&self) -> f64 {
        self.mask.iter().map(|m| f64::from(*m)).sum()
    }
}

impl Weighting {
    /// The weight of every token, one vector `[T]` a sequence, so that `loss = sum(weight * x)` over the whole step.
    ///
    /// Every sequence given counts in the averages, also one without a trained token (TRL does the same); leave out the
    /// groups that were dropped. When nothing is trained on, all weights are 0.
    ///
    /// ```
    /// use temper_algo::{SequenceMask, Weighting};
    /// let step = [SequenceMask::new(0, &[1.0, 1.0, 1.0]), SequenceMask::new(0, &[1.0])];
    /// assert_eq!(Weighting::Token {}.weights(&step).unwrap(), [vec![0.25; 3], vec![0.25]]);
    /// assert_eq!(Weighting::Constant { tokens: 2 }.weights(&step).unwrap(), [vec![0.25; 3], vec![0.25]]);
    /// assert_eq!(Weighting::Sequence {}.weights(&step).unwrap()[1], [0.5]);
    /// ```
    pub fn weights(&self, step: &[SequenceMask]) -> Result<Vec<Vec<f64>>, Error> {
        validate(step)?;
        let scales = self.scales(step);
        let scaled = |(s, scale): (&SequenceMask, f64)| s.mask.iter().map(|m| f64::from(*m) * scale).collect();
        Ok(step.iter().zip(scales).map(scaled).collect())
    }

    /// The factor of each sequence's mask.
    fn scales(self, step: &[SequenceMask]) -> Vec<f64> {
        let examples: f64 = step.iter().map(|s| s.weight).sum();
        match self {
            Self::Token {} => {
                let total: f64 = step.iter().map(|s| s.weight * s.mass()).sum();
                step.iter().map(|s| share(s.weight, total)).collect()
            }
            Self::Sequence {} => step.iter().map(|s| share(share(s.weight, s.mass()), examples)).collect(),
            Self::SequenceSum {} => step.iter().map(|s| share(s.weight, examples)).collect(),
            Self::Sum {} => step.iter().map(|s| s.weight).collect(),
            Self::Constant { tokens } => {
                step.iter().map(|s| share(share(s.weight, f64::from(tokens)), examples)).collect()
            }
            Self::Group {} => group_scales(step),
            Self::GroupSum {} => {
                let groups = step.iter().map(|s| s.group).collect::<std::collections::BTreeSet<_>>().len() as f64;
                step.iter().map(|s| share(s.weight, groups)).collect()
            }
        }
    }

    /// Settings that make no sense.
    pub fn check(&self) -> Vec<Problem> {
        match self {
            Self::Constant { tokens: 0 } => vec![Problem::new(
                "tokens",
                "tokens is 0, expected at least 1",
                "use the largest completion length of the sampler (max_tokens)",
            )],
            Self::Constant { .. }
            | Self::Token {}
            | Self::Sequence {}
            | Self::SequenceSum {}
            | Self::Sum {}
            | Self::Group {}
            | Self::GroupSum {} => vec![],
        }
    }
}

fn group_scales(step: &[SequenceMask]) -> Vec<f64> {
    let mut mass = std::collections::BTreeMap::<u64, f64>::new();
    for s in step {
        *mass.entry(s.group).or_default() += s.weight * s.mass();
    }
    let groups = mass.len() as f64;
    step.iter().map(|s| share(share(s.weight, mass[&s.group]), groups)).collect()
}

/// `part / whole`, and 0 of nothing.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn validate(step: &[SequenceMask]) -> Result<(), Error> {
    for (sequence, s) in step.iter().enumerate() {
        let values = std::iter::once(s.weight).chain(s.mask.iter().map(|m| f64::from(*m)));
        if let Some(value) = values.into_iter().find(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::BadWeight { sequence, value });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups 7 = {3 tokens of which 2 trained, 1 token}, 9 = {4 tokens, example weight 2}.
    fn step() -> [SequenceMask<'static>; 3] {
        [
            SequenceMask::new(7, &[1.0, 0.0, 1.0]),
            SequenceMask::new(7, &[1.0]),
            SequenceMask { group: 9, weight: 2.0, mask: &[1.0, 1.0, 1.0, 0.5] },
        ]
    }

    #[test]
    fn by_hand() {
        let close = |weighting: Weighting, expected: [&[f64]; 3]| {
            let got = weighting.weights(&step()).unwrap();
            for (a, b) in got.iter().flatten().zip(expected.concat()) {
                assert!((a - b).abs() < 1e-15, "{weighting:?}: {got:?}");
            }
        };
        // sum(e m) = 2 + 1 + 2 * 3.5 = 10.
        close(Weighting::Token {}, [&[0.1, 0.0, 0.1], &[0.1], &[0.2, 0.2, 0.2, 0.1]]);
        // sum(e) = 4: shares 1/4, 1/4, 1/2 over masses 2, 1, 3.5.
        close(Weighting::Sequence {}, [&[0.125, 0.0, 0.125], &[0.25], &[1.0 / 7.0, 1.0 / 7.0, 1.0 / 7.0, 0.5 / 7.0]]);
        close(Weighting::SequenceSum {}, [&[0.25, 0.0, 0.25], &[0.25], &[0.5, 0.5, 0.5, 0.25]]);
        close(Weighting::Sum {}, [&[1.0, 0.0, 1.0], &[1.0], &[2.0, 2.0, 2.0, 1.0]]);
        close(Weighting::Constant { tokens: 5 }, [&[0.05, 0.0, 0.05], &[0.05], &[0.1, 0.1, 0.1, 0.05]]);
        // Two groups, half each: masses 3 and 7.
        let third = 1.0 / 6.0;
        close(Weighting::Group {}, [&[third, 0.0, third], &[third], &[1.0 / 7.0, 1.0 / 7.0, 1.0 / 7.0, 0.5 / 7.0]]);
    }

    #[test]
    fn nothing_trained_on_gives_zeros_and_bad_weights_an_error() {
        for weighting in [Weighting::Token {}, Weighting::Sequence {}, Weighting::SequenceSum {}, Weighting::Group {}] {
            let zero = weighting.weights(&[SequenceMask::new(0, &[0.0, 0.0]), SequenceMask::new(0, &[])]).unwrap();
            assert_eq!(zero, [vec![0.0, 0.0], vec![]]);
        }
        let bad = Weighting::Token {}.weights(&[SequenceMask::new(0, &[1.0]), SequenceMask::new(0, &[-1.0])]);
        assert_eq!(bad, Err(Error::BadWeight { sequence: 1, value: -1.0 }));
    }
}
