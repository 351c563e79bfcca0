//! Coefficients of `-coef * logp` (the surrogate `reinforce`) that are neither a group's statistic nor a critic's: TRICE's
//! control variate and feedback with eligibility traces.

/// What TRICE multiplies the log-probs of one example's two rationales with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TriceCoefficients {
    /// Of the rationale kept in memory (the proposal itself, where it was accepted).
    pub kept: f64,
    /// Of the fresh proposal: the control variate, at most 0.
    pub proposal: f64,
}

/// TRICE over a batch of examples, each with one fresh proposal: `accepted[m]` says whether it led to the right answer (and so
/// replaced the memory). The kept rationale gets 1, the proposal `-beta_m`, with `beta_m` the share of accepted proposals among the
/// *other* examples (0 for a batch of one): the proposal's score has mean zero, so the sum stays unbiased, and once
/// everything is accepted it vanishes. Average over the examples by weights.
///
/// Source: arXiv 2312.02179, section 2 (A073). The scale is derived from the published property (leave-one-out, variance to
/// zero at full accuracy); examples without a right rationale yet have no memory: give them no kept row.
///
/// ```
/// use temper_algo::trice_coefficients;
/// let c = trice_coefficients(&[true, false, true]);
/// assert_eq!((c[0].kept, c[0].proposal, c[1].proposal), (1.0, -0.5, -1.0));
/// ```
pub fn trice_coefficients(accepted: &[bool]) -> Vec<TriceCoefficients> {
    let total = accepted.iter().filter(|a| **a).count();
    let others = accepted.len().saturating_sub(1).max(1) as f64;
    let share = |own: bool| (total - usize::from(own)) as f64 / others;
    accepted.iter().map(|own| TriceCoefficients { kept: 1.0, proposal: 0.0 - share(*own) }).collect()
}

/// Feedback of a person on some of a sequence's tokens or turns as advantages: `adv_t = sum_{s >= t} decay^(s - t) f_s`. Feedback that
/// is relative to the present policy is an advantage already, so no baseline is taken; the decay is the eligibility trace
/// that reaches back over a delay. Source: COACH, arXiv 1701.06049, section 4 (B274), its traces `e_t = decay e_{t-1} + grad logp_t`
/// summed the other way round.
///
/// ```
/// use temper_algo::feedback_advantages;
/// assert_eq!(feedback_advantages(&[0.0, 0.0, 1.0, -2.0], 0.5), [0.0, 0.0, 0.0, -2.0]);
/// ```
pub fn feedback_advantages(feedback: &[f64], decay: f64) -> Vec<f64> {
    let mut adv = feedback.to_vec();
    for t in (1..adv.len()).rev() {
        adv[t - 1] += decay * adv[t];
    }
    adv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trice_vanishes_when_everything_is_accepted() {
        // An accepted proposal is the memory: its two coefficients add up to 0.
        assert!(trice_coefficients(&[true; 4]).iter().all(|c| c.kept + c.proposal == 0.0));
        assert_eq!(trice_coefficients(&[true]), [TriceCoefficients { kept: 1.0, proposal: 0.0 }]);
        assert!(trice_coefficients(&[]).is_empty());
    }

    /// The traces of the paper, run forwards: the coefficient of grad logp_t is what every later feedback found of it in the trace.
    #[test]
    fn feedback_is_what_forward_traces_give() {
        let (feedback, decay) = ([0.5, -1.0, 0.0, 2.0, 0.25], 0.7);
        let (mut trace, mut coefficient) = ([0.0f64; 5], [0.0f64; 5]);
        for s in 0..5 {
            for e in &mut trace {
                *e *= decay;
            }
            trace[s] += 1.0;
            coefficient.iter_mut().zip(trace).for_each(|(c, e)| *c += feedback[s] * e);
        }
        for (got, expected) in feedback_advantages(&feedback, decay).iter().zip(coefficient) {
            assert!((got - expected).abs() < 1e-15);
        }
    }
}
