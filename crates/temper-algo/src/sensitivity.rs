//! Which hidden units change most from checkpoint to checkpoint.

use crate::Error;

/// The most sensitive units of a layer: those whose total absolute change over consecutive checkpoints times their variance over
/// them, `sum over c of |a_c - a_(c-1)| * var(a)`, is among the largest `share` of all, ascending. Equal ones go by their index,
/// and a share above 0 picks one unit at least.
///
/// `activations` is `[checkpoints][units]`, each entry a mean over a fixed probe set. The selection rule of sensitivity dropout
/// (SenD, Mohammadzadeh et al., arXiv 2410.15460, B092) in the released code; it drops these units until the next choice.
///
/// # Errors
/// Fewer than two checkpoints, checkpoints of different widths, values that are not finite, or a share outside 0..=1.
///
/// ```
/// let probe = [vec![0.0, 1.0, 5.0], vec![3.0, 1.0, 5.5], vec![0.0, 1.0, 5.0]];
/// assert_eq!(temper_algo::sensitive(&probe, 0.5).unwrap(), [0, 2]);
/// ```
pub fn sensitive(activations: &[Vec<f64>], share: f64) -> Result<Vec<usize>, Error> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::Argument { name: "share", value: share, expected: "between 0 and 1" });
    }
    if activations.len() < 2 {
        let value = activations.len() as f64;
        return Err(Error::Argument { name: "checkpoints", value, expected: "at least 2" });
    }
    let change = sensitivities(activations)?;
    let count = (share * change.len() as f64).ceil() as usize;
    let mut order: Vec<usize> = (0..change.len()).collect();
    order.sort_by(|a, b| change[*b].total_cmp(&change[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    Ok(order)
}

fn sensitivities(activations: &[Vec<f64>]) -> Result<Vec<f64>, Error> {
    let expected = activations[0].len();
    for units in activations {
        if units.len() != expected {
            return Err(Error::Length { name: "activations", got: units.len(), expected });
        }
        if let Some(row) = units.iter().position(|a| !a.is_finite()) {
            return Err(Error::NotFinite { name: "activations", row, value: units[row] });
        }
    }
    let n = activations.len() as f64;
    let of = |unit: usize| {
        let values = || activations.iter().map(|units| units[unit]);
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|a| (a - mean).powi(2)).sum::<f64>() / n;
        variance * activations.windows(2).map(|pair| (pair[1][unit] - pair[0][unit]).abs()).sum::<f64>()
    };
    Ok((0..expected).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_rounded_up_and_ties_go_by_index() {
        let probe = [vec![0.0; 4], vec![1.0, 2.0, 1.0, 0.0]];
        let pick = |share| sensitive(&probe, share).unwrap();
        assert_eq!((pick(0.0), pick(0.1), pick(0.5), pick(1.0)), (vec![], vec![1], vec![0, 1], vec![0, 1, 2, 3]));
    }

    #[test]
    fn movement_there_and_back_counts() {
        let probe = [vec![0.0, 0.0], vec![5.0, 1.0], vec![0.0, 2.0]];
        assert_eq!(sensitive(&probe, 0.5).unwrap(), [0]);
    }

    /// 0, 3, 0: change 6, variance 2, so 12; 0, 4, 4: change 4, variance 32 / 9, so 14.2; 0, 2, 4: 4 * 8 / 3 = 10.7.
    #[test]
    fn by_hand() {
        let probe = [vec![0.0, 0.0, 0.0], vec![3.0, 4.0, 2.0], vec![0.0, 4.0, 4.0]];
        let expected = [12.0, 4.0 * 32.0 / 9.0, 4.0 * 8.0 / 3.0];
        let got = sensitivities(&probe).unwrap();
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
        assert_eq!(sensitive(&probe, 0.3).unwrap(), [1]);
    }

    #[test]
    fn bad_input_is_named() {
        assert!(matches!(sensitive(&[vec![1.0]], 0.5), Err(Error::Argument { name: "checkpoints", .. })));
        assert!(matches!(sensitive(&[vec![1.0], vec![]], 0.5), Err(Error::Length { got: 0, .. })));
        assert!(matches!(sensitive(&[vec![f64::NAN], vec![0.0]], 0.5), Err(Error::NotFinite { .. })));
        assert!(sensitive(&[vec![1.0], vec![0.0]], 1.5).is_err());
    }
}
