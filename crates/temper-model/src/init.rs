//! Random weights.

use crate::config::Config;
use crate::error::Result;
use crate::memory;
use crate::model::Model;
use crate::weights::{TensorSpec, tensors};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use temper_tensor::{Ops, Params};

/// Values drawn together; a multiple of 2. Any thread can draw any chunk, because a chunk's place in the stream follows
/// from its index.
const CHUNK: usize = 1 << 14;
/// A pair of normals takes two 64-bit draws, which is this many 32-bit words per value.
const WORDS_PER_VALUE: u128 = 2;

impl Model {
    /// A model with random weights: normal with standard deviation `initializer_range`, divided by `sqrt(2 L)` for the
    /// two projections of each block that add to the residual stream (as in GPT-2), norms 1, biases 0. The same seed
    /// gives the same weights, whatever the number of threads.
    pub fn init(ops: &dyn Ops, config: &Config, seed: u64) -> Result<Self> {
        config.validate()?;
        memory::check(config, config.parameter_count().saturating_mul(4))?;
        let mut params = Params::new();
        for (stream, spec) in tensors(config).iter().enumerate() {
            if let [n, k] = *spec.shape.as_slice() {
                let values = normal(seed, stream as u64, n * k, deviation(config, spec));
                params.add_matrix(&spec.name, n, k, &values)?;
            } else {
                let value = if spec.bias { 0.0 } else { 1.0 };
                params.add_vector(ops, &spec.name, &vec![value; spec.shape[0]])?;
            }
        }
        Self::new(config.clone(), params)
    }
}

fn deviation(config: &Config, spec: &TensorSpec) -> f64 {
    let shrink = if spec.residual { (2.0 * config.num_hidden_layers as f64).sqrt() } else { 1.0 };
    config.initializer_range / shrink
}

fn normal(seed: u64, stream: u64, len: usize, deviation: f64) -> Vec<f32> {
    let mut values = vec![0.0f32; len];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        random.set_word_pos(i as u128 * CHUNK as u128 * WORDS_PER_VALUE);
        for pair in chunk.chunks_mut(2) {
            let (a, b) = normal_pair(&mut random);
            pair.iter_mut().zip([a, b]).for_each(|(value, x)| *value = (x * deviation) as f32);
        }
    });
    values
}

/// Two independent standard normals (Box and Muller 1958).
fn normal_pair(random: &mut ChaCha8Rng) -> (f64, f64) {
    // Away from 0, where the logarithm has its pole.
    let radius = (-2.0 * (1.0 - unit(random)).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(random);
    (radius * angle.cos(), radius * angle.sin())
}

/// Uniform on `[0, 1)`, 53 bits.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_asked_moments_and_streams_differ() {
        let n = 40_001;
        let x = normal(7, 3, n, 0.5);
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (variance.sqrt() - 0.5).abs() < 0.01, "{mean} {variance}");
        assert_eq!(x, normal(7, 3, n, 0.5));
        assert_eq!(x[..100], normal(7, 3, 100, 0.5));
        assert_ne!(x[..100], normal(7, 4, 100, 0.5));
        assert_ne!(x[..100], normal(8, 3, 100, 0.5));
    }
}
