//! Weight matrices in the quantised blocks of GGUF files, laid out for products on integers.

use half::f16;

use crate::buf::Buf;
use crate::error::{Error, Result};
use crate::panels::LANES;

/// Inputs of one block.
pub(crate) const BLOCK: usize = 32;

/// ggml's simple block formats: 32 neighbouring inputs of an output share a scale d and, in one of them, a minimum m.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Nibbles q from 0 to 15: `d (q - 8)`.
    Q4_0,
    /// Nibbles q from 0 to 15: `d q + m`.
    Q4_1,
    /// Signed bytes q: `d q`.
    Q8_0,
}

impl Blocks {
    /// Bytes of a block in a file: d and m as f16, then the codes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// What is taken off a code, which is stored without sign, to give its value.
    pub(crate) fn zero(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
            Self::Q8_0 => 128,
        }
    }

    pub(crate) fn has_minimum(self) -> bool {
        self == Self::Q4_1
    }

    /// Words that hold the scales, and where there are any the minima, of a block of 16 outputs.
    pub(crate) fn scale_words(self) -> usize {
        if self.has_minimum() { LANES } else { LANES / 2 }
    }

    /// Words of codes of one output's block.
    pub(crate) fn code_words(self) -> usize {
        if self == Self::Q8_0 { 8 } else { 4 }
    }

    /// Words of a block of 16 outputs.
    pub(crate) fn words(self) -> usize {
        self.scale_words() + self.code_words() * LANES
    }

    /// Whether a code is half a byte.
    pub(crate) fn nibbles(self) -> bool {
        self != Self::Q8_0
    }

    /// The first scale or minimum of blocks from a file that is no finite number. Where there is none, no value is.
    pub fn not_finite(self, bytes: &[u8]) -> Option<f32> {
        let (per_block, scales) = (self.bytes(), if self.has_minimum() { 4 } else { 2 });
        let scales = bytes.chunks_exact(per_block).flat_map(|block| block[..scales].as_chunks::<2>().0);
        scales.map(|s| f16::from_le_bytes(*s).to_f32()).find(|s| !s.is_finite())
    }
}

/// A matrix `[n, k]` (n outputs, k inputs, whole blocks) in panels of 16 outputs, `[ceil(n / 16)][k / 32][words of a block]`. A block of
/// a panel lies in the order in which a product reads it: 16 scales (f16), 16 minima where the type has them, then vectors
/// of 16 words, lane l that of output l. A word is four codes of neighbouring inputs; of nibbles, the low ones are the codes of inputs
/// 4t to 4t + 3 in word t, the high ones those of inputs 16 later. Signed codes are stored with 128 added. Lanes past n have scales of
/// zero.
#[derive(Debug, Clone)]
pub struct QuantPanels {
    blocks: Blocks,
    n: usize,
    k: usize,
    words: Buf,
}

impl QuantPanels {
    /// From blocks as a GGUF file has them, output by output.
    ///
    /// # Errors
    /// A width that is no multiple of 32, another number of bytes, a scale or minimum that is not finite.
    pub fn from_bytes(blocks: Blocks, n: usize, k: usize, bytes: &[u8]) -> Result<Self> {
        let op = "QuantPanels::from_bytes";
        if !k.is_multiple_of(BLOCK) {
            let got = k.to_string();
            return Err(Error::Value { op, what: "the width", got, expected: "a multiple of 32" });
        }
        let (row, expected) = (k / BLOCK * blocks.bytes(), n * (k / BLOCK) * blocks.bytes());
        if bytes.len() != expected {
            return Err(Error::Count { op, what: "bytes of blocks", got: bytes.len(), expected });
        }
        if let Some(bad) = blocks.not_finite(bytes) {
            let got = bad.to_string();
            return Err(Error::Value { op, what: "a block's scale or minimum", got, expected: "a finite number" });
        }
        let panel = k / BLOCK * blocks.words();
        let mut words = Buf::zeros(n.div_ceil(LANES) * panel);
        if k > 0 {
            for (i, row) in bytes.chunks_exact(row).enumerate() {
                let panel = &mut words.words_mut()[i / LANES * panel..][..panel];
                let places = panel.chunks_exact_mut(blocks.words());
                places.zip(row.chunks_exact(blocks.bytes())).for_each(|(to, from)| place(blocks, from, i % LANES, to));
            }
        }
        Ok(Self { blocks, n, k, words })
    }

    /// The type of its blocks.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// n, the number of rows (outputs).
    pub fn n(&self) -> usize {
        self.n
    }

    /// k, the number of columns (inputs).
    pub fn k(&self) -> usize {
        self.k
    }

    /// All panels.
    pub(crate) fn words(&self) -> &[u32] {
        self.words.words()
    }

    /// Words of one panel.
    pub(crate) fn panel_words(&self) -> usize {
        self.k / BLOCK * self.blocks.words()
    }

    /// Copies row `i` to `out`: the values that the blocks stand for, as reading the file in f32 gives them.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n, "row {i} of a matrix with {} rows", self.n);
        let (lane, panel, blocks) = (i % LANES, self.panel_words(), self.blocks);
        let panel = &self.words()[i / LANES * panel..][..panel];
        for (out, block) in out.chunks_exact_mut(BLOCK).zip(panel.chunks_exact(blocks.words())) {
            let (scales, words) = block.split_at(blocks.scale_words());
            let d = f16_at(scales, lane);
            let m = blocks.has_minimum().then(|| f16_at(scales, LANES + lane));
            for (i, out) in out.iter_mut().enumerate() {
                let (word, shift) = if blocks.nibbles() { (i % 16 / 4, i / 16 * 4) } else { (i / 4, 0) };
                let byte = words[word * LANES + lane].to_le_bytes()[i % 4];
                let code = i32::from(if blocks.nibbles() { byte >> shift & 15 } else { byte });
                let value = d * (code - blocks.zero()) as f32;
                *out = m.map_or(value, |m| value + m);
            }
        }
    }

    /// Row-major `[n, k]` values.
    pub fn to_rows(&self) -> Vec<f32> {
        let mut rows = vec![0.0; self.n * self.k];
        rows.chunks_exact_mut(self.k.max(1)).enumerate().for_each(|(i, row)| self.row(i, row));
        rows
    }
}

/// The f16 at `index` of words that hold two each.
fn f16_at(words: &[u32], index: usize) -> f32 {
    f16::from_bits((words[index / 2] >> (index % 2 * 16)) as u16).to_f32()
}

/// Puts a block of one output into its lane.
fn place(blocks: Blocks, from: &[u8], lane: usize, to: &mut [u32]) {
    let (scales, codes) = from.split_at(if blocks.has_minimum() { 4 } else { 2 });
    for (i, scale) in scales.as_chunks::<2>().0.iter().enumerate() {
        let at = i * LANES + lane;
        to[at / 2] |= u32::from(u16::from_le_bytes(*scale)) << (at % 2 * 16);
    }
    let signed = if blocks == Blocks::Q8_0 { 0x8080_8080 } else { 0 };
    for (t, code) in codes.as_chunks::<4>().0.iter().enumerate() {
        to[blocks.scale_words() + t * LANES + lane] = u32::from_le_bytes(*code) ^ signed;
    }
}
