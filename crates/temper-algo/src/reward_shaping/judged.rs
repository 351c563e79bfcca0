//! Rewards by what named parts say: constraints, trust, noise.

use super::{Shaped, ShapingInput};
use crate::Error;

/// Violating rollouts get `violated`, the others keep their reward or its calibration.
pub(super) fn constrain(
    group: &mut Shaped,
    input: &ShapingInput,
    parts: &[String],
    violated: f64,
    calibrate: bool,
) -> Result<(), Error> {
    let columns = parts.iter().map(|p| input.column(group, p)).collect::<Result<Vec<_>, _>>()?;
    let baseline = match (calibrate, input.greedy) {
        (true, None) => return Err(Error::Missing { name: "greedy", part: "shaping" }),
        (true, greedy) => greedy,
        (false, _) => None,
    };
    for (i, r) in group.rewards.iter_mut().enumerate() {
        if columns.iter().any(|c| c[i] <= 0.5) {
            *r = violated;
        } else if let Some(b) = baseline {
            *r = 1.0 / (1.0 + (b - *r).exp());
        }
    }
    Ok(())
}

/// `v` becomes `1 - v`, in the part and in the total.
pub(super) fn flip(
    group: &mut Shaped,
    input: &ShapingInput,
    part: &str,
    flipped: impl Fn(usize) -> bool,
) -> Result<(), Error> {
    let k = input.index(part)?;
    for i in (0..group.rewards.len()).filter(|i| flipped(*i)) {
        let v = group.parts[i][k];
        group.parts[i][k] = 1.0 - v;
        group.rewards[i] += input.weights[k] * (1.0 - 2.0 * v);
    }
    Ok(())
}

/// `gamma` of Trust-GRPO, 0 where a group is all right or all wrong.
pub(super) fn trust_weight(outcome: &[f64], process: &[f64]) -> f64 {
    let mean_where = |right: bool| {
        let of: Vec<f64> = outcome.iter().zip(process).filter(|(o, _)| (**o > 0.5) == right).map(|(_, p)| *p).collect();
        (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64)
    };
    match (mean_where(true), mean_where(false)) {
        (Some(right), Some(wrong)) => (right - wrong).min(0.0).exp(),
        _ => 0.0,
    }
}
