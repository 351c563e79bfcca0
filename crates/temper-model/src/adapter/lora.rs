//! LoRA's settings and its first values.

use super::targets::{TARGETS, idle, matched};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{block_name, tensors};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;

/// Low-rank adaptation, `y = W x + s B A dropout(x)` (Hu et al., arXiv 2106.09685), with W frozen.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// R, the rank of the change.
    pub rank: usize,
    /// Strength of the change: `s = alpha / R`.
    pub alpha: f64,
    /// Probability of leaving out a value of the adapter's input in training.
    pub dropout: f64,
    /// Patterns of the linear layers that are adapted; see [`crate::matches_target`].
    pub targets: Vec<String>,
    /// `s = alpha / sqrt(R)` instead, so that the change does not shrink with the rank (rsLoRA, Kalajdzievski, arXiv 2312.03732).
    pub rslora: bool,
}

impl Lora {
    /// s.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Everything that is wrong with the settings, each with the way out; for a model with that many blocks, where it is known.
    pub fn problems(&self, blocks: Option<usize>) -> Vec<(String, &'static str)> {
        let mut found = vec![];
        let mut fail = |what: String, way_out| found.push((what, way_out));
        if !(1..=Self::MOST_RANK).contains(&self.rank) {
            fail(format!("`rank` is {}", self.rank), "use 1 to 4096; 8 and 16 are usual");
        }
        if !(self.alpha > 0.0 && (self.alpha as f32).is_finite()) {
            fail(format!("`alpha` is {}", self.alpha), "use a number above 0; the rank or twice the rank are usual");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            fail(format!("`dropout` is {}", self.dropout), "use 0 (off) to below 1");
        }
        if self.targets.is_empty() {
            fail("`targets` is empty".into(), TARGETS);
        }
        for pattern in idle(&self.targets, blocks) {
            let of = blocks.map_or(String::new(), |n| format!(" (it has {n} blocks)"));
            fail(format!("the target `{pattern}` matches none of the model's linear layers{of}"), TARGETS);
        }
        found
    }

    /// The first of [`Lora::problems`] as an error.
    pub(crate) fn validate(&self, blocks: Option<usize>) -> Result<()> {
        match self.problems(blocks).into_iter().next() {
            Some((what, way_out)) => Err(Error::adapter(what, way_out)),
            None => Ok(()),
        }
    }

    /// Values of all A and B for a model of this shape.
    pub fn parameter_count(&self, config: &Config) -> u64 {
        let pairs = matched(&self.targets, config.num_hidden_layers);
        let shapes: BTreeMap<String, Vec<usize>> = tensors(config).into_iter().map(|t| (t.name, t.shape)).collect();
        let size = |(layer, part): (usize, &str)| shapes[&block_name(layer, part)].iter().sum::<usize>();
        pairs.into_iter().map(|pair| (size(pair) * self.rank) as u64).sum()
    }

    /// Larger than any matrix that it could be of use for.
    const MOST_RANK: usize = 4096;
}

/// Row-major `[rank, k]`, uniform in `±1/sqrt(k)`: Kaiming with `a = sqrt(5)`, the gain of a leaky ReLU being
/// `sqrt(2 / (1 + 5))` and the bound `gain * sqrt(3 / k)`.
pub(super) fn kaiming_uniform(seed: u64, stream: u64, rank: usize, k: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    let bound = 1.0 / (k as f64).sqrt();
    let unit = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
    (0..rank * k).map(|_| ((2.0 * unit(random.next_u64()) - 1.0) * bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora() -> Lora {
        Lora { rank: 16, alpha: 8.0, dropout: 0.0, targets: vec!["q_proj".into()], rslora: false }
    }

    #[test]
    fn the_scaling_is_over_the_rank_or_its_root() {
        assert_eq!(lora().scaling(), 0.5);
        assert_eq!(Lora { rslora: true, ..lora() }.scaling(), 2.0);
    }

    #[test]
    fn a_is_uniform_within_its_bound() {
        let a = kaiming_uniform(3, 1, 32, 400);
        let bound = 0.05;
        let n = a.len() as f64;
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
        assert!(a.iter().all(|x| f64::from(x.abs()) <= bound) && a.iter().any(|x| f64::from(*x) > 0.99 * bound));
        assert!(mean.abs() < 0.001 && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.03, "{mean} {variance}");
        assert_eq!(a, kaiming_uniform(3, 1, 32, 400));
        assert!(a != kaiming_uniform(4, 1, 32, 400) && a != kaiming_uniform(3, 2, 32, 400));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert!(lora().problems(None).is_empty());
        for (lora, name) in [
            (Lora { rank: 0, ..lora() }, "`rank` is 0"),
            (Lora { rank: 5000, ..lora() }, "`rank` is 5000"),
            (Lora { alpha: 0.0, ..lora() }, "`alpha` is 0"),
            (Lora { alpha: f64::NAN, ..lora() }, "`alpha` is NaN"),
            (Lora { dropout: 1.0, ..lora() }, "`dropout` is 1"),
            (Lora { targets: vec![], ..lora() }, "`targets` is empty"),
            (Lora { targets: vec!["q_pro".into()], ..lora() }, "`q_pro`"),
        ] {
            let message = lora.validate(None).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        let bad = Lora { rank: 0, alpha: -1.0, targets: vec!["x".into(), "layers.2.*".into()], ..lora() };
        assert_eq!((bad.problems(None).len(), bad.problems(Some(2)).len()), (3, 4));
    }
}
