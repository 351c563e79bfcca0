//! Weight matrices rounded to bf16, in blocks of pairs: the one layout that forward, backward to the input and decoding read.

use crate::buf::Buf;
use crate::gemm::bf16::{WORDS, blocks, level, refresh, widen};
use crate::panels::{LANES, Panels};

/// A matrix `[n, k]` (n outputs, k inputs) in bf16: panels of 16 rows, `[ceil(n / 16)][ceil(k / 32)][16 pairs of columns][16 rows]`,
/// where a pair lies in one 32-bit word, its even column below. What lies past n and k is zero.
#[derive(Debug, Clone)]
pub struct Bf16Panels {
    n: usize,
    k: usize,
    words: Buf,
}

impl Bf16Panels {
    /// `w`, each value rounded to the nearest bf16, ties to even.
    pub fn round(w: &Panels) -> Self {
        let (n, k) = (w.n(), w.k());
        let mut rounded = Self { n, k, words: Buf::dirty(w.count() * blocks(k) * WORDS) };
        rounded.refresh(w);
        rounded
    }

    /// Rounds `w`, of the same shape, anew.
    pub fn refresh(&mut self, w: &Panels) {
        assert_eq!((w.n(), w.k()), (self.n, self.k), "the shape of the master values");
        refresh(level(), w, self.words.words_mut());
    }

    /// n, the number of rows (outputs).
    pub fn n(&self) -> usize {
        self.n
    }

    /// k, the number of columns (inputs).
    pub fn k(&self) -> usize {
        self.k
    }

    /// All blocks, padding included.
    pub(crate) fn words(&self) -> &[u32] {
        self.words.words()
    }

    /// Copies row `i` to `out`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n, "row {i} of a matrix with {} rows", self.n);
        let size = blocks(self.k) * WORDS;
        let lines = self.words()[i / LANES * size..][..size].as_chunks::<LANES>().0;
        for (out, line) in out.chunks_mut(2).zip(lines) {
            out.copy_from_slice(&widen(line[i % LANES])[..out.len()]);
        }
    }

    /// Row-major `[n, k]` values.
    pub fn to_rows(&self) -> Vec<f32> {
        let mut rows = vec![0.0; self.n * self.k];
        rows.chunks_exact_mut(self.k.max(1)).enumerate().for_each(|(i, row)| self.row(i, row));
        rows
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::bf16::STEPS;
    use crate::gemm::tests::random;

    #[test]
    fn rows_are_the_rounded_ones_and_padding_is_zero() {
        for (n, k) in [(1, 1), (16, 3), (17, 33), (40, 70), (0, 4), (3, 0)] {
            let rows = random(n * k, 3);
            let panels = Bf16Panels::round(&Panels::from_rows(&rows, n, k));
            let want: Vec<f32> = rows.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            assert_eq!(panels.to_rows(), want);
            assert_eq!(panels.words().len(), n.div_ceil(LANES) * LANES * k.div_ceil(STEPS) * STEPS / 2);
            let zeros: usize = panels.words().iter().map(|w| widen(*w).iter().filter(|x| **x == 0.0).count()).sum();
            assert_eq!(zeros, 2 * panels.words().len() - n * k);
        }
    }
}
