//! Random draws that are a pure function of a path of numbers, the same in every build and version.

/// SplitMix64 (Steele, Lea and Flood 2014) started from a hashed path. Our own, because a task's text must never change
/// with the version of a random number crate.
pub(crate) struct Draw {
    state: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of SplitMix64: a bijection that scatters every bit.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a over the bytes, then scattered, so that the low bits may be used alone.
pub(crate) fn hash_text(text: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    mix(text.bytes().fold(0xCBF2_9CE4_8422_2325, fnv))
}

impl Draw {
    /// A stream for this path; paths that differ anywhere give unrelated streams.
    pub(crate) fn new(path: &[u64]) -> Self {
        let step = |state: u64, part: &u64| mix(state.wrapping_add(GOLDEN) ^ mix(part.wrapping_add(GOLDEN)));
        Self { state: path.iter().fold(path.len() as u64, step) }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `0..n` (by rejection, so without bias); `n` must not be 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        let fair = u64::MAX - u64::MAX % n;
        loop {
            let value = self.next();
            if value < fair {
                return value % n;
            }
        }
    }

    /// Uniform in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` draws.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of the items, which must not be empty.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned() {
        // SplitMix64 from state 0: the first output of the reference implementation.
        assert_eq!(Draw { state: 0 }.next(), 0xE220_A839_7B1D_CDAF);
        assert_ne!(Draw::new(&[1, 2]).next(), Draw::new(&[2, 1]).next());
        assert_ne!(Draw::new(&[0]).next(), Draw::new(&[0, 0]).next());
    }

    #[test]
    fn draws_are_fair_enough() {
        let mut draw = Draw::new(&[7]);
        let mut counts = [0_u32; 6];
        for _ in 0..6000 {
            counts[draw.below(6) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (880..1120).contains(&count)), "{counts:?}");
        let mut items: Vec<u32> = (0..20).collect();
        draw.shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }
}
