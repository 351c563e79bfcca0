//! Rotary frequencies and the rules that stretch them to longer contexts.

use super::positive;
use crate::error::{Error, Result};

/// How the rotary frequencies `theta^(-2i/D)` are changed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All divided by `factor` (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Not up to `max_position_embeddings`, beyond which the base would grow with the sequence ("dynamic NTK"). Temper
    /// computes no sequence beyond it, so within it this is the default; kept for the file that is written.
    Dynamic {
        /// How fast the base would grow.
        factor: f64,
    },
    /// YaRN (Peng and others, 2023, arXiv 2309.00071, section 3.2 and 3.4): pairs that turn often within the original
    /// context stay, pairs that turn less than once are divided by `factor`, those between are blended linearly in the
    /// pair's index; cosine and sine are multiplied by `attention_factor`, so scores grow by its square.
    Yarn {
        /// The divisor of slow pairs.
        factor: f64,
        /// The context of pretraining.
        original_max_position_embeddings: usize,
        /// Pairs with more turns in the original context stay.
        beta_fast: f64,
        /// Pairs with fewer turns are divided.
        beta_slow: f64,
        /// Factor on cosine and sine, by default `0.1 ln(factor) + 1`.
        attention_factor: f64,
        /// Whether the blend's ends are rounded outwards to whole pairs.
        truncate: bool,
    },
    /// The rule of Llama 3.1: short wavelengths stay, long ones are divided by `factor`, those between are blended.
    Llama3 {
        /// The divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context of pretraining.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// `theta` is the base.
    pub(super) fn validate(&self, theta: f64) -> Result<()> {
        match *self {
            Self::Default => Ok(()),
            Self::Linear { factor } | Self::Dynamic { factor } => positive("rope_scaling.factor", factor),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.low_freq_factor", low)?;
                positive("rope_scaling.high_freq_factor", high)?;
                if high <= low {
                    let expected = format!("more than low_freq_factor ({low})");
                    return Err(Error::config("rope_scaling.high_freq_factor", high, expected));
                }
                original_context(original_max_position_embeddings)
            }
            Self::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor, .. } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.beta_fast", beta_fast)?;
                positive("rope_scaling.beta_slow", beta_slow)?;
                positive("rope_scaling.attention_factor", attention_factor)?;
                if beta_fast <= beta_slow {
                    let expected = format!("more than beta_slow ({beta_slow})");
                    return Err(Error::config("rope_scaling.beta_fast", beta_fast, expected));
                }
                if theta <= 1.0 {
                    return Err(Error::config("rope_theta", theta, "a number above 1 (YaRN divides by its logarithm)"));
                }
                original_context(original_max_position_embeddings)
            }
        }
    }

    /// The angle per position of each pair of the head, `[D/2]`.
    pub(crate) fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64));
        match *self {
            Self::Yarn { factor, .. } => {
                let (low, high) = self.yarn_range(theta, head_dim as f64);
                let divided = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain.enumerate().map(|(i, f)| f * (1.0 - divided(i)) + f / factor * divided(i)).collect()
            }
            _ => plain.map(|f| self.apply(f)).collect(),
        }
    }

    /// What cosine and sine are multiplied by.
    pub(crate) fn attention_factor(&self) -> f64 {
        if let Self::Yarn { attention_factor, .. } = *self { attention_factor } else { 1.0 }
    }

    /// The pairs between which YaRN blends: pair `i` makes `L theta^(-2i/D) / 2 pi` turns in the original context L, so
    /// one with `beta` turns has the index `D ln(L / (2 pi beta)) / (2 ln theta)`.
    fn yarn_range(&self, theta: f64, d: f64) -> (f64, f64) {
        let Self::Yarn { original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } = *self else {
            return (0.0, 1.0);
        };
        let context = original_max_position_embeddings as f64;
        let pair = |beta: f64| d * (context / (std::f64::consts::TAU * beta)).ln() / (2.0 * theta.ln());
        let (low, high) = (pair(beta_fast), pair(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(d - 1.0));
        // As in transformers: no division by zero where the two meet.
        (low, if low == high { high + 0.001 } else { high })
    }

    fn apply(&self, freq: f64) -> f64 {
        match *self {
            Self::Default | Self::Dynamic { .. } | Self::Yarn { .. } => freq,
            Self::Linear { factor } => freq / factor,
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings } => {
                let turns = original_max_position_embeddings as f64 * freq / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                keep * freq + (1.0 - keep) * freq / factor
            }
        }
    }

    /// The rule whose divisors GGUF files keep in `rope_freqs.weight`, one per frequency. Converters write such an array
    /// for Llama 3.1's rule alone, whose other constants are the same in all published models.
    pub(super) fn from_divisors(divisors: &[f32], theta: f64, head_dim: usize) -> Result<Self> {
        if divisors.iter().all(|&d| d == 1.0) {
            return Ok(Self::Default);
        }
        let rule = Self::Llama3 {
            factor: divisors.iter().fold(1.0f32, |a, &b| a.max(b)) as f64,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = Self::Default.frequencies(theta, head_dim);
        let ratios = plain.iter().zip(rule.frequencies(theta, head_dim)).map(|(p, s)| p / s);
        let fits =
            divisors.len() == plain.len() && ratios.zip(divisors).all(|(r, &d)| (r / d as f64 - 1.0).abs() < 1e-3);
        if fits {
            return Ok(rule);
        }
        Err(Error::unsupported(
            "the frequency table `rope_freqs.weight` (it does not follow the rule of Llama 3.1)",
            "use the model's Hugging Face directory",
        ))
    }
}

fn original_context(positions: usize) -> Result<()> {
    super::between("rope_scaling.original_max_position_embeddings", positions, super::MOST_POSITIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA32: RopeScaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    const YARN: RopeScaling = RopeScaling::Yarn {
        factor: 16.0,
        original_max_position_embeddings: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.277_258_872_223_978_2,
        truncate: true,
    };

    #[test]
    fn dynamic_is_the_default_within_the_context() {
        let dynamic = RopeScaling::Dynamic { factor: 4.0 };
        assert_eq!(dynamic.frequencies(1e4, 64), RopeScaling::Default.frequencies(1e4, 64));
        assert_eq!((dynamic.attention_factor(), YARN.attention_factor()), (1.0, 0.1 * 16f64.ln() + 1.0));
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        // YaRN-Llama-2 with 16 times the context: pairs 20 to 46 of 64 are blended.
        assert_eq!(YARN.yarn_range(1e4, 128.0), (20.0, 46.0));
        let (plain, scaled) = (RopeScaling::Default.frequencies(1e4, 128), YARN.frequencies(1e4, 128));
        assert_eq!(scaled[..21], plain[..21]);
        assert!(scaled[46..].iter().zip(&plain[46..]).all(|(s, p)| *s == p / 16.0));
        let middle = plain[33] * 0.5 + plain[33] / 16.0 * 0.5;
        assert!((scaled[33] / middle - 1.0).abs() < 1e-12);
        // Heads so short that both ends fall together still have finite frequencies.
        for head_dim in [2, 4] {
            for theta in [1.5, 1e4, 1e12] {
                assert!(YARN.frequencies(theta, head_dim).iter().all(|f| f.is_finite()));
            }
        }
    }

    #[test]
    fn default_and_linear_frequencies() {
        assert_eq!(RopeScaling::Default.frequencies(10_000.0, 4), [1.0, 0.01]);
        assert_eq!(RopeScaling::Linear { factor: 4.0 }.frequencies(10_000.0, 4), [0.25, 0.0025]);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let plain = RopeScaling::Default.frequencies(500_000.0, 64);
        let scaled = LLAMA32.frequencies(500_000.0, 64);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 32.0);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 32.0));
    }

    #[test]
    fn divisors_of_a_gguf_file_give_back_the_rule() {
        let (plain, scaled) = (RopeScaling::Default.frequencies(5e5, 64), LLAMA32.frequencies(5e5, 64));
        let mut divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| (p / s) as f32).collect();
        assert_eq!(RopeScaling::from_divisors(&divisors, 5e5, 64).unwrap(), LLAMA32);
        divisors[3] = 2.0;
        assert!(RopeScaling::from_divisors(&divisors, 5e5, 64).unwrap_err().to_string().contains("rope_freqs"));
        assert_eq!(RopeScaling::from_divisors(&[1.0; 32], 5e5, 64).unwrap(), RopeScaling::Default);
    }

    #[test]
    fn bad_constants_are_errors() {
        assert!(RopeScaling::Linear { factor: 0.0 }.validate(1e4).is_err());
        let bad = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 4.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert!(bad.validate(1e4).unwrap_err().to_string().contains("more than low_freq_factor (4)"));
        YARN.validate(1e4).unwrap();
        assert!(YARN.validate(1.0).unwrap_err().to_string().contains("rope_theta"));
    }
}
