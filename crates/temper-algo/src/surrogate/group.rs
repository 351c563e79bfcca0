//! The surrogate that is a function of a group's sequences: GVPO.

use std::ops::Range;

use crate::Rows;

/// What a group-coupled surrogate adds up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GroupTerms {
    /// The term of the row's sequence, one a row; 0 on rows of weight 0.
    pub x: Vec<f64>,
    /// d(sum(weight * x))/d(logp): weights included, as a row's log-prob enters the terms of the whole group.
    pub d_logp: Vec<f64>,
}

/// One sequence with a trained token: its rows, `beta L - adv`, and the sum of its weights.
struct Member {
    rows: Range<usize>,
    error: f64,
    mass: f64,
}

/// `x_i = (e_i - mean e)^2 / 2` with `e_i = beta L_i - adv_i`, `L_i = sum_t(logp - logp_ref)`, for every sequence of a group
/// that has a trained token; the advantage of a sequence is the mean over its trained tokens. With `W_i` the sum of the
/// sequence's weights, `d/d(L_j) sum_i W_i x_i = beta (W_j c_j - mean(W c))`, where `c_i = e_i - mean e`.
pub(crate) fn gvpo(beta: f64, rows: &Rows, logp_ref: &[f64]) -> GroupTerms {
    let zeros = || vec![0.0; rows.logp.len()];
    let mut terms = GroupTerms { x: zeros(), d_logp: zeros() };
    for group in rows.group_ranges() {
        let members: Vec<Member> = group.into_iter().filter_map(|range| member(beta, rows, logp_ref, range)).collect();
        let n = members.len().max(1) as f64;
        let mean: f64 = members.iter().map(|m| m.error).sum::<f64>() / n;
        let pull: f64 = members.iter().map(|m| m.mass * (m.error - mean)).sum::<f64>() / n;
        for m in &members {
            let centred = m.error - mean;
            for row in m.rows.clone().filter(|row| rows.weight[*row] != 0.0) {
                terms.x[row] = 0.5 * centred * centred;
                terms.d_logp[row] = beta * (m.mass * centred - pull);
            }
        }
    }
    terms
}

fn member(beta: f64, rows: &Rows, logp_ref: &[f64], range: Range<usize>) -> Option<Member> {
    let live: Vec<usize> = range.clone().filter(|row| rows.weight[*row] != 0.0).collect();
    if live.is_empty() {
        return None;
    }
    let log_ratio: f64 = live.iter().map(|row| rows.logp[*row] - logp_ref[*row]).sum();
    let adv: f64 = live.iter().map(|row| rows.adv[*row]).sum::<f64>() / live.len() as f64;
    let mass = live.iter().map(|row| rows.weight[*row]).sum();
    Some(Member { rows: range, error: beta * log_ratio - adv, mass })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Two sequences of 2 and 1 tokens and a masked one: L = 0.3 + 0.5 and -0.2; beta 0.5: e = 0.4 - 1, -0.1 + 1 = -0.6, 0.9;
        // mean 0.15, centred -0.75 and 0.75; x = 0.28125 each. Masses 0.5 and 0.5: W c = -+0.375, their mean 0.
        let rows = Rows {
            logp: &[-1.0, -1.0, -1.0, -9.0],
            adv: &[1.0, 1.0, -1.0, 7.0],
            weight: &[0.25, 0.25, 0.5, 0.0],
            sequences: &[2, 1, 1],
            groups: &[3],
            ..Rows::EMPTY
        };
        let terms = gvpo(0.5, &rows, &[-1.3, -1.5, -0.8, 0.0]);
        for (got, expected) in terms.x.iter().zip([0.28125, 0.28125, 0.28125, 0.0]) {
            assert!((got - expected).abs() < 1e-15, "{terms:?}");
        }
        for (got, expected) in terms.d_logp.iter().zip([-0.1875, -0.1875, 0.1875, 0.0]) {
            assert!((got - expected).abs() < 1e-15, "{terms:?}");
        }
    }

    #[test]
    fn a_sequence_alone_has_nothing_to_compare_with() {
        let rows = Rows { logp: &[-1.0], adv: &[1.0], weight: &[1.0], sequences: &[1], groups: &[1], ..Rows::EMPTY };
        assert_eq!(gvpo(0.5, &rows, &[-2.0]), GroupTerms { x: vec![0.0], d_logp: vec![0.0] });
    }
}
