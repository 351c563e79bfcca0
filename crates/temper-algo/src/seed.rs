//! Seeds: all randomness flows from one seed, split by a path of numbers such as (stage, step, task, sample).

/// The golden-ratio increment of SplitMix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The seed of one place in a run: `h = mix(seed + GAMMA)`, then for every number `p` of the path
/// `h = mix((rotate_left(h, 23) ^ mix(p + GAMMA)) + GAMMA)`, with the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
///
/// Order and length of the path matter: `[1, 2]`, `[2, 1]`, `[1, 2, 0]` give unrelated seeds. The values are part of the format
/// of a run and never change.
///
/// ```
/// use temper_algo::split_seed;
/// assert_ne!(split_seed(7, &[1, 2]), split_seed(7, &[2, 1]));
/// ```
pub fn split_seed(seed: u64, path: &[u64]) -> u64 {
    // The rotation keeps a path element from cancelling an equal seed.
    let descend = |h: u64, p: &u64| mix((h.rotate_left(23) ^ mix(p.wrapping_add(GAMMA))).wrapping_add(GAMMA));
    path.iter().fold(mix(seed.wrapping_add(GAMMA)), descend)
}

/// SplitMix64's finaliser: a bijection of 64 bits that changes half the output bits for every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The SplitMix64 generator: small and value-stable, for resampling and shuffles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n by multiplication (0 when n is 0). The bias is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_sequence() {
        // The reference values of the generator for seed 1234567 (Vigna's splitmix64.c).
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(
            [(); 3].map(|()| rng.next_u64()),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn split_seeds_are_pinned() {
        assert_eq!(split_seed(0, &[]), PINNED[0]);
        assert_eq!(split_seed(42, &[1, 2, 3]), PINNED[1]);
        assert_eq!(split_seed(u64::MAX, &[u64::MAX]), PINNED[2]);
    }

    const PINNED: [u64; 3] = [16_294_208_416_658_607_535, 351_076_671_549_314_850, 17_684_854_495_413_002_091];

    #[test]
    fn paths_do_not_collide() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..4 {
            assert!(seen.insert(split_seed(seed, &[])));
            for a in 0..40 {
                assert!(seen.insert(split_seed(seed, &[a])));
                for b in 0..40 {
                    assert!(seen.insert(split_seed(seed, &[a, b])));
                }
            }
        }
    }

    #[test]
    fn below_stays_below_and_covers() {
        let mut rng = SplitMix64::new(3);
        let mut counts = [0; 7];
        for _ in 0..7000 {
            counts[rng.below(7)] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.next_f64())));
    }
}
