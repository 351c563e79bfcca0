//! Dropout whose masks follow from positions, so that neither micro-batches nor recomputation change them.

use std::sync::Arc;

use super::par;
use crate::sink::mix;

/// Inverted dropout (Srivastava et al., 2014, scaled in training): a value is left out with probability `p`, the others are divided by
/// `1 - p`. Whether a value stays is a function of the seed, the place in the model, its row's key and its column.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    /// Probability of leaving a value out, at least 0 and below 1.
    pub p: f32,
    /// Seed of the optimiser step.
    pub seed: u64,
    /// Key of each row of the batch, `[N]`: what identifies its token whatever the batch is cut into.
    pub rows: Arc<[u64]>,
}

/// `y = x` where the mask says so, scaled; else 0. Rows have `width` values.
pub(crate) fn dropout(x: &[f32], width: usize, rule: &Dropout, stream: u64, y: &mut [f32]) {
    // A value stays when its 32 bits are at least this.
    let least = (f64::from(rule.p) * 2f64.powi(32)) as u64;
    let scale = 1.0 / (1.0 - rule.p);
    let seed = mix(rule.seed, stream);
    par::rows1(rule.rows.len(), (y, width), |part, y| {
        let x = &x[part.start * width..part.end * width];
        for ((&key, x), y) in rule.rows[part].iter().zip(x.chunks_exact(width)).zip(y.chunks_exact_mut(width)) {
            let key = mix(seed, key);
            for (pair, (x, y)) in x.chunks(2).zip(y.chunks_mut(2)).enumerate() {
                let bits = mix(key, pair as u64);
                for ((x, y), bits) in x.iter().zip(y).zip([bits & 0xFFFF_FFFF, bits >> 32]) {
                    *y = if bits >= least { x * scale } else { 0.0 };
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(p: f32, seed: u64, stream: u64, rows: &[u64], width: usize) -> Vec<f32> {
        let mut y = vec![7.0; rows.len() * width];
        let ones = vec![1.0; rows.len() * width];
        dropout(&ones, width, &Dropout { p, seed, rows: rows.into() }, stream, &mut y);
        y
    }

    #[test]
    fn the_share_is_as_asked_and_the_mean_is_kept() {
        let rows: Vec<u64> = (0..400).collect();
        for p in [0.0, 0.1, 0.5, 0.9] {
            let y = masked(p, 3, 1, &rows, 501);
            let n = y.len() as f64;
            let dropped = y.iter().filter(|v| **v == 0.0).count() as f64 / n;
            let deviation = (f64::from(p) * (1.0 - f64::from(p)) / n).sqrt();
            assert!((dropped - f64::from(p)).abs() <= 4.0 * deviation, "{p}: {dropped}");
            let mean = y.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            assert!((mean - 1.0).abs() <= 4.0 * deviation / (1.0 - f64::from(p)) + 1e-6, "{p}: {mean}");
        }
    }

    #[test]
    fn a_mask_follows_its_row_and_nothing_else() {
        let all = masked(0.3, 5, 2, &[10, 11, 12, 13], 33);
        assert_eq!(masked(0.3, 5, 2, &[12, 10], 33), [&all[66..99], &all[..33]].concat());
        for other in [masked(0.3, 6, 2, &[10], 33), masked(0.3, 5, 3, &[10], 33), masked(0.3, 5, 2, &[14], 33)] {
            assert_ne!(other, all[..33]);
        }
    }
}
