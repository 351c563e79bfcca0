//! Which examples come next: epochs without replacement, and mixtures of sources. Every sampler is its own checkpoint:
//! what serde writes and reads again continues with the same examples.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Goes through `len` examples, each once per epoch, in an order that depends on the seed and the epoch alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochSampler {
    seed: u64,
    #[serde(deserialize_with = "at_least_one")]
    len: usize,
    shuffle: bool,
    epoch: u64,
    cursor: usize,
    /// The current epoch's order, made when it is needed.
    #[serde(skip)]
    order: Vec<usize>,
}

impl PartialEq for EpochSampler {
    fn eq(&self, other: &Self) -> bool {
        let key = |s: &Self| (s.seed, s.len, s.shuffle, s.epoch, s.cursor);
        key(self) == key(other)
    }
}

impl EpochSampler {
    /// A new order in each epoch.
    pub fn new(seed: u64, len: usize) -> Result<Self, Error> {
        Self::with_order(seed, len, true)
    }

    /// The given order in each epoch, as for data that is sorted from easy to hard.
    pub fn in_order(len: usize) -> Result<Self, Error> {
        Self::with_order(0, len, false)
    }

    fn with_order(seed: u64, len: usize, shuffle: bool) -> Result<Self, Error> {
        if len == 0 {
            return Err(Error::Sampler("there are no examples to choose from".into()));
        }
        Ok(Self { seed, len, shuffle, epoch: 0, cursor: 0, order: Vec::new() })
    }

    /// The next `n` indices; an epoch that ends goes over into the next one.
    pub fn next(&mut self, n: usize) -> Vec<usize> {
        (0..n).map(|_| self.draw()).collect()
    }

    /// Epochs finished so far. Right after an epoch's last example it counts as finished.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Examples given so far, with the fraction of the running epoch.
    pub fn epochs(&self) -> f64 {
        self.epoch as f64 + self.cursor as f64 / self.len as f64
    }

    /// Examples of one epoch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a sampler has at least one example.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn draw(&mut self) -> usize {
        // A cursor from outside may be anything; it is read modulo the epoch.
        if self.cursor >= self.len {
            self.cursor = 0;
        }
        if self.order.len() != self.len {
            self.order = self.permutation();
        }
        let index = self.order[self.cursor];
        self.cursor += 1;
        if self.cursor == self.len {
            (self.epoch, self.cursor) = (self.epoch + 1, 0);
            self.order.clear();
        }
        index
    }

    fn permutation(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len).collect();
        if self.shuffle {
            shuffle(&mut order, &mut stream(self.seed, self.epoch));
        }
        order
    }
}

fn at_least_one<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let len = usize::deserialize(deserializer)?;
    if len == 0 { Err(serde::de::Error::custom("a sampler needs at least one example")) } else { Ok(len) }
}

/// The random stream of one epoch.
fn stream(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(b"epochord");
    ChaCha8Rng::from_seed(key)
}

/// Fisher and Yates, written out so that no library version changes the order of a run.
fn shuffle(items: &mut [usize], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last as u64 + 1) as usize);
    }
}

/// A number below `bound`, each equally likely: values of the incomplete last round are drawn again.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let rounds = u64::MAX - u64::MAX % bound;
    loop {
        let value = rng.next_u64();
        if value < rounds {
            return value % bound;
        }
    }
}

/// Draws from several sources in fixed proportions, each source in epochs of its own.
///
/// After every draw each source's count is within one of its share: the next one is the source that lags furthest
/// behind, the first of equals. So a replay mix of 10 % has its example in every ten, in small batches too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSampler {
    sources: Vec<Source>,
    drawn: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// Share of all draws.
    share: f64,
    drawn: u64,
    examples: EpochSampler,
}

impl MixtureSampler {
    /// Sources as (weight, number of examples). Weights are relative; a source of weight 0 is never drawn.
    pub fn new(seed: u64, sources: &[(f64, usize)]) -> Result<Self, Error> {
        let total: f64 = sources.iter().map(|(weight, _)| weight).sum();
        let bad = sources.iter().find(|(weight, _)| !weight.is_finite() || *weight < 0.0);
        if let Some((weight, _)) = bad {
            return Err(Error::Sampler(format!("a source has weight {weight}; expected 0 or more")));
        }
        if total <= 0.0 || !total.is_finite() {
            return Err(Error::Sampler("no source has a weight above 0".into()));
        }
        let made: Result<Vec<_>, Error> = (0u64..)
            .zip(sources)
            .map(|(i, &(weight, len))| {
                let examples = EpochSampler::new(seed ^ (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15), len)?;
                Ok(Source { share: weight / total, drawn: 0, examples })
            })
            .collect();
        Ok(Self { sources: made?, drawn: 0 })
    }

    /// The next `n` draws as (source, index in it).
    pub fn next(&mut self, n: usize) -> Vec<(usize, usize)> {
        (0..n).filter_map(|_| self.draw()).collect()
    }

    /// How often each source was drawn.
    pub fn counts(&self) -> Vec<u64> {
        self.sources.iter().map(|source| source.drawn).collect()
    }

    /// How many epochs of each source were drawn.
    pub fn epochs(&self) -> Vec<f64> {
        self.sources.iter().map(|source| source.examples.epochs()).collect()
    }

    fn draw(&mut self) -> Option<(usize, usize)> {
        let due = (self.drawn + 1) as f64;
        let lag = |source: &Source| source.share * due - source.drawn as f64;
        let willing = self.sources.iter().enumerate().filter(|(_, source)| source.share > 0.0);
        let (index, _) = willing.rev().max_by(|a, b| lag(a.1).total_cmp(&lag(b.1)))?;
        let source = &mut self.sources[index];
        source.drawn += 1;
        self.drawn += 1;
        Some((index, source.examples.draw()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn restored<T: Serialize + for<'de> Deserialize<'de>>(sampler: &T) -> T {
        serde_json::from_str(&serde_json::to_string(sampler).unwrap()).unwrap()
    }

    #[test]
    fn the_order_of_a_seed_is_fixed() {
        let mut sampler = EpochSampler::new(7, 8).unwrap();
        assert_eq!(sampler.next(8), [2, 4, 3, 6, 7, 1, 5, 0]);
        assert_ne!(sampler.next(8), [2, 4, 3, 6, 7, 1, 5, 0]);
        assert_eq!(sampler.epoch(), 2);
    }

    #[test]
    fn in_order_stays_in_order() {
        assert_eq!(EpochSampler::in_order(3).unwrap().next(5), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn nothing_to_choose_from_is_an_error() {
        assert!(EpochSampler::new(0, 0).is_err());
        assert!(MixtureSampler::new(0, &[]).is_err());
        assert!(MixtureSampler::new(0, &[(0.0, 3)]).is_err());
        assert!(MixtureSampler::new(0, &[(f64::NAN, 3), (1.0, 3)]).is_err());
        assert!(MixtureSampler::new(0, &[(-1.0, 3), (2.0, 3)]).is_err());
        assert!(MixtureSampler::new(0, &[(1.0, 0)]).is_err());
        let empty = r#"{"seed":0,"len":0,"shuffle":true,"epoch":0,"cursor":0}"#;
        assert!(serde_json::from_str::<EpochSampler>(empty).is_err());
    }

    proptest! {
        #[test]
        fn every_epoch_is_a_permutation(seed: u64, len in 1usize..80, epochs in 1usize..4) {
            let mut sampler = EpochSampler::new(seed, len).unwrap();
            for _ in 0..epochs {
                let mut epoch = sampler.next(len);
                epoch.sort_unstable();
                prop_assert_eq!(epoch, (0..len).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_restored_sampler_continues(seed: u64, len in 1usize..50, before in 0usize..150, after in 0usize..150) {
            let mut sampler = EpochSampler::new(seed, len).unwrap();
            let mut whole = sampler.clone();
            sampler.next(before);
            let rest = restored(&sampler).next(after);
            prop_assert_eq!(&whole.next(before + after)[before..], &rest[..]);
        }

        #[test]
        fn mixtures_keep_their_shares(seed: u64, weights in prop::collection::vec(0.0f64..5.0, 1..5), draws in 0usize..200) {
            prop_assume!(weights.iter().sum::<f64>() > 0.1);
            let total: f64 = weights.iter().sum();
            let sources: Vec<_> = weights.iter().map(|weight| (*weight, 7)).collect();
            let mut sampler = MixtureSampler::new(seed, &sources).unwrap();
            let mut whole = sampler.clone();
            sampler.next(draws);
            for (count, weight) in sampler.counts().iter().zip(&weights) {
                let share = weight / total * draws as f64;
                prop_assert!((*count as f64 - share).abs() < weights.len() as f64);
            }
            let rest = restored(&sampler).next(20);
            prop_assert_eq!(&whole.next(draws + 20)[draws..], &rest[..]);
        }
    }
}
