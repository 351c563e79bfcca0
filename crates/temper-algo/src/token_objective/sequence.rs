//! Terms whose coefficient is a property of the whole sequence.

use super::TokenTerm;
use super::reference::minor;

/// The trained tokens of one sequence, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) logp: &'a [f64],
    pub(crate) logp_ref: Option<&'a [f64]>,
    pub(crate) weight: &'a [f64],
}

/// Where a sequence's coefficients come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sequence {
    /// `2 sigmoid(-beta sum(u))`, one for all tokens.
    Reference { beta: f64 },
    /// Discounted sums of the losses from each token on.
    Propagated { gamma: f64, detach: bool },
}

impl Sequence {
    /// Every token's x and d(sum of weight * x)/d(logp): the weights are in the second already.
    pub(crate) fn terms(self, tokens: &Tokens) -> (Vec<f64>, Vec<f64>) {
        match self {
            Self::Reference { beta } => weighted(&vec![minor(beta, log_ratio(tokens)); tokens.logp.len()], tokens),
            Self::Propagated { gamma, detach } => propagated(gamma, detach, tokens),
        }
    }
}

fn log_ratio(tokens: &Tokens) -> f64 {
    let reference = tokens.logp_ref.unwrap_or(tokens.logp);
    tokens.logp.iter().zip(reference).map(|(a, b)| a - b).sum()
}

/// Detached coefficients times NLL.
fn weighted(coefficients: &[f64], tokens: &Tokens) -> (Vec<f64>, Vec<f64>) {
    let rows = coefficients.iter().zip(tokens.logp).zip(tokens.weight);
    rows.map(|((c, logp), w)| (TokenTerm::nll(*c, *logp).x, -w * c)).unzip()
}

/// `m c_t / C * l_t` with C the sum of c. With `n = sum(w c l)`, the slope of the sum in `l_k` is
/// `m (w_k c_k + a_k - n / C g_k) / C`, where `a_k` and `g_k` are the discounted sums up to k of `w l` and of 1.
fn propagated(gamma: f64, detach: bool, tokens: &Tokens) -> (Vec<f64>, Vec<f64>) {
    let loss: Vec<f64> = tokens.logp.iter().map(|l| -l).collect();
    let charge = reversed(discounted(gamma, loss.iter().rev().copied()));
    let total: f64 = charge.iter().sum();
    if total == 0.0 {
        return weighted(&vec![1.0; loss.len()], tokens); // nothing to share out
    }
    let scale = loss.len() as f64 / total;
    let share: Vec<f64> = charge.iter().map(|c| c * scale).collect();
    let (x, mut d) = weighted(&share, tokens);
    if !detach {
        let sum: f64 = tokens.weight.iter().zip(&x).map(|(w, x)| w * x).sum();
        let losses = discounted(gamma, tokens.weight.iter().zip(&loss).map(|(w, l)| w * l));
        let ones = discounted(gamma, loss.iter().map(|_| 1.0));
        for ((d, a), g) in d.iter_mut().zip(losses).zip(ones) {
            *d -= scale * a - sum / total * g;
        }
    }
    (x, d)
}

/// `y_k = x_k + gamma y_(k-1)`.
fn discounted(gamma: f64, values: impl Iterator<Item = f64>) -> Vec<f64> {
    let step = |sum: &mut f64, x: f64| {
        *sum = x + gamma * *sum;
        Some(*sum)
    };
    values.scan(0.0, step).collect()
}

fn reversed(mut values: Vec<f64>) -> Vec<f64> {
    values.reverse();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses 1, 2, 3 with gamma 1/2: c = 1 + 1 + 3/4, 2 + 3/2, 3 = 2.75, 3.5, 3; C = 9.25, m = 3.
    #[test]
    fn propagation_by_hand() {
        let tokens = Tokens { logp: &[-1.0, -2.0, -3.0], logp_ref: None, weight: &[1.0; 3] };
        let (x, d) = propagated(0.5, true, &tokens);
        let share = [2.75, 3.5, 3.0].map(|c| 3.0 * c / 9.25);
        for t in 0..3 {
            assert!((x[t] - share[t] * (t + 1) as f64).abs() < 1e-12 && (d[t] + share[t]).abs() < 1e-12);
        }
        // Through the coefficients: a = 1, 2.5, 4.25; g = 1, 1.5, 1.75; n = 2.75 + 7 + 9 = 18.75.
        let (_, d) = propagated(0.5, false, &tokens);
        let (a, g) = ([1.0, 2.5, 4.25], [1.0, 1.5, 1.75]);
        for t in 0..3 {
            let slope = 3.0 / 9.25 * ([2.75, 3.5, 3.0][t] + a[t] - 18.75 / 9.25 * g[t]);
            assert!((d[t] + slope).abs() < 1e-12, "{t}: {} {slope}", d[t]);
        }
    }

    #[test]
    fn a_sequence_without_loss_is_nll() {
        let tokens = Tokens { logp: &[0.0, 0.0], logp_ref: None, weight: &[0.5, 0.25] };
        assert_eq!(propagated(0.9, false, &tokens), (vec![-0.0, -0.0], vec![-0.5, -0.25]));
    }

    #[test]
    fn one_coefficient_for_the_whole_sequence() {
        // sum(u) = 1/2 + 1/2 = 1, beta = ln 3: 2 sigmoid(-ln 3) = 1/2.
        let tokens = Tokens { logp: &[-1.0, -2.0], logp_ref: Some(&[-1.5, -2.5]), weight: &[0.5, 0.25] };
        let (x, d) = Sequence::Reference { beta: 3f64.ln() }.terms(&tokens);
        assert!((x[0] - 0.5).abs() < 1e-12 && (x[1] - 1.0).abs() < 1e-12);
        assert!((d[0] + 0.25).abs() < 1e-12 && (d[1] + 0.125).abs() < 1e-12);
    }
}
