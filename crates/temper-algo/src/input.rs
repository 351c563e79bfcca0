//! What training does to a model's input: noise on embeddings and tokens that are hidden, as pure functions of a seed.

use crate::seed::SplitMix64;

/// Noise for the embeddings of one sequence, `[tokens, width]` row-major: uniform in plus or minus
/// `alpha / sqrt(tokens * width)`. NEFTune, Jain et al., arXiv 2310.05914, algorithm 1. TRL takes the length of the padded batch
/// for `tokens`; nothing is padded here, so each sequence has its own, as in the paper.
///
/// ```
/// let noise = temper_algo::input::neftune(5.0, 4, 25, 7);
/// assert!(noise.len() == 100 && noise.iter().all(|x| x.abs() <= 0.5));
/// ```
pub fn neftune(alpha: f64, tokens: usize, width: usize, seed: u64) -> Vec<f32> {
    let size = tokens * width;
    let bound = alpha / (size.max(1) as f64).sqrt();
    let mut random = SplitMix64::new(seed);
    (0..size).map(|_| (bound * (2.0 * random.next_f64() - 1.0)) as f32).collect()
}

/// Which of `n` places are hidden: each by itself with probability `share`. Masked thought, Chen et al., arXiv 2403.02178.
pub fn hidden(n: usize, share: f64, seed: u64) -> Vec<bool> {
    let mut random = SplitMix64::new(seed);
    (0..n).map(|_| random.next_f64() < share).collect()
}

/// `share` grown in linearly over the first `ramp` (0 to 1) of `total` steps.
pub fn ramped(share: f64, ramp: f64, step: usize, total: usize) -> f64 {
    let over = ramp * total as f64;
    if over > 0.0 { share * ((step as f64 + 1.0) / over).min(1.0) } else { share }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_centred_and_has_the_norm_of_the_paper() {
        // Uniform in +-b has variance b^2 / 3: the expected squared norm is alpha^2 / 3 whatever the shape.
        for (tokens, width) in [(10, 64), (200, 128)] {
            let noise = neftune(6.0, tokens, width, 3);
            let sum: f64 = noise.iter().map(|x| f64::from(*x)).sum();
            let square: f64 = noise.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((square - 12.0).abs() < 1.0 && sum.abs() < 12.0, "{square} {sum}");
        }
        assert_eq!(neftune(5.0, 3, 2, 1), neftune(5.0, 3, 2, 1));
        assert_ne!(neftune(5.0, 3, 2, 1), neftune(5.0, 3, 2, 2));
        assert!(neftune(5.0, 0, 8, 1).is_empty());
    }

    #[test]
    fn the_share_is_hidden() {
        let count = hidden(10_000, 0.3, 5).iter().filter(|h| **h).count();
        assert!((2850..3150).contains(&count), "{count}");
        assert!(hidden(100, 0.0, 1).iter().all(|h| !h) && hidden(100, 1.0, 1).iter().all(|h| *h));
    }

    #[test]
    fn the_ramp_ends_at_the_share() {
        let at = |step| ramped(0.4, 0.5, step, 8);
        assert_eq!((at(0), at(1), at(3), at(7)), (0.1, 0.2, 0.4, 0.4));
        assert_eq!(ramped(0.4, 0.0, 0, 8), 0.4);
    }
}
