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
    pub(super) fn validate(&self) -> Result<()> {
        match *self {
            Self::Default => Ok(()),
            Self::Linear { factor } => positive("rope_scaling.factor", factor),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings } => {
                positive("rope_scaling.factor", factor)?;
                positive("rope_scaling.low_freq_factor", low)?;
                positive("rope_scaling.high_freq_factor", high)?;
                if high <= low {
                    let expected = format!("more than low_freq_factor ({low})");
                    return Err(Error::config("rope_scaling.high_freq_factor", high, expected));
                }
                super::between(
                    "rope_scaling.original_max_position_embeddings",
                    original_max_position_embeddings,
                    super::MOST_POSITIONS,
                )
            }
        }
    }

    /// The angle per position of each pair of the head, `[D/2]`.
    pub(crate) fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2).map(|i| self.apply(theta.powf(-((2 * i) as f64) / head_dim as f64))).collect()
    }

    fn apply(&self, freq: f64) -> f64 {
        match *self {
            Self::Default => freq,
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

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA32: RopeScaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

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
        assert!(RopeScaling::Linear { factor: 0.0 }.validate().is_err());
        let bad = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 4.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert!(bad.validate().unwrap_err().to_string().contains("more than low_freq_factor (4)"));
    }
}
