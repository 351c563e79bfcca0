//! Choices over the step by the covariance of advantage and log-prob (Clip-Cov and KL-Cov, arXiv 2505.22617).
//!
//! `cov_t = (adv_t - mean adv) (logp_t - mean logp)`, means over the trained tokens of the step: tokens of high covariance are
//! the few that drive entropy down.

use super::{ClipSide, Surrogate, SurrogateInput};
use crate::{Rows, split_seed};

impl Surrogate {
    /// Which tokens the choice over the step falls on `[M]`; `None` for surrogates that choose none.
    pub(crate) fn choose(&self, rows: &Rows, log_ratio: &[f64]) -> Option<Vec<bool>> {
        let live: Vec<usize> = rows.live().collect();
        let picked = match *self {
            Self::ClipCov { share, cov_low, cov_high, .. } => {
                let cov = covariances(rows, &live);
                let inside = |row: usize| {
                    let at =
                        SurrogateInput { log_ratio: log_ratio[row], adv: rows.adv[row], ..SurrogateInput::default() };
                    self.term(&at).clip == ClipSide::Inside
                };
                let candidates =
                    live.iter().zip(&cov).filter(|(row, c)| **c > cov_low && **c < cov_high && inside(**row));
                let key = |row: usize| split_seed(0, &[rows.logp[row].to_bits(), rows.adv[row].to_bits()]);
                let mut drawn: Vec<(u64, usize)> = candidates.map(|(row, _)| (key(*row), *row)).collect();
                drawn.sort_unstable();
                drawn.into_iter().take(count(share, live.len())).map(|(_, row)| row).collect()
            }
            Self::KlCov { share, .. } => {
                let mut ranked: Vec<(f64, usize)> = covariances(rows, &live).into_iter().zip(live.clone()).collect();
                ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                ranked.into_iter().take(count(share, live.len())).map(|(_, row)| row).collect::<Vec<_>>()
            }
            _ => return None,
        };
        let mut chosen = vec![false; rows.logp.len()];
        for row in picked {
            chosen[row] = true;
        }
        Some(chosen)
    }
}

/// `max(floor(share * n), 1)`.
fn count(share: f64, n: usize) -> usize {
    ((share * n as f64) as usize).max(1)
}

fn covariances(rows: &Rows, live: &[usize]) -> Vec<f64> {
    let mean = |values: &[f64]| live.iter().map(|row| values[*row]).sum::<f64>() / live.len().max(1) as f64;
    let (adv, logp) = (mean(rows.adv), mean(rows.logp));
    live.iter().map(|row| (rows.adv[*row] - adv) * (rows.logp[*row] - logp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means over the four trained tokens: adv 0, logp -2; covariances 3, -1, 2, (masked), 0.
    const ROWS: Rows = Rows {
        logp: &[-0.5, -2.5, -3.0, -9.0, -2.0],
        adv: &[2.0, 2.0, -2.0, 50.0, -2.0],
        weight: &[1.0, 1.0, 1.0, 0.0, 1.0],
        ..Rows::EMPTY
    };

    #[test]
    fn kl_cov_takes_the_largest() {
        let choose = |share| Surrogate::KlCov { share, coef: 1.0 }.choose(&ROWS, &[0.0; 5]).unwrap();
        assert_eq!(choose(0.1), [true, false, false, false, false]);
        assert_eq!(choose(0.5), [true, false, true, false, false]);
    }

    #[test]
    fn clip_cov_draws_from_the_range_that_the_clip_left() {
        let cov = |share| Surrogate::ClipCov { clip_low: 0.2, clip_high: 0.2, share, cov_low: 1.0, cov_high: 5.0 };
        assert_eq!(cov(1.0).choose(&ROWS, &[0.0; 5]).unwrap(), [true, false, true, false, false]);
        assert_eq!(cov(0.1).choose(&ROWS, &[0.0; 5]).unwrap().iter().filter(|c| **c).count(), 1);
        // The first token's ratio is above the clip, so the clip has it already.
        assert_eq!(cov(1.0).choose(&ROWS, &[0.5, 0.0, 0.0, 0.0, 0.0]).unwrap(), [false, false, true, false, false]);
        assert_eq!(Surrogate::default().choose(&ROWS, &[0.0; 5]), None);
    }

    #[test]
    fn nothing_is_chosen_of_nothing() {
        assert_eq!(Surrogate::KlCov { share: 0.5, coef: 1.0 }.choose(&Rows::EMPTY, &[]), Some(vec![]));
    }
}
