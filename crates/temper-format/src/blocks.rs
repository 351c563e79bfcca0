//! GGUF's three simple block formats: 32 values share an f16 scale (and, for Q4_1, an f16 minimum).
//!
//! Values are those of ggml's reference quantisers; the golden files hold gguf-py's bytes and values.

use crate::dtype::DType;
use half::f16;

/// Values in one block.
pub(crate) const BLOCK: usize = 32;

/// Blocks of bytes to values; `bytes` holds whole blocks of `dtype` and `out` 32 values for each.
/// Returns false for a type that has no blocks.
pub(crate) fn dequantise(dtype: DType, bytes: &[u8], out: &mut [f32]) -> bool {
    let one: fn(&[u8], &mut [f32]) = match dtype {
        DType::Q8_0 => dequantise_q8_0,
        DType::Q4_0 => dequantise_q4_0,
        DType::Q4_1 => dequantise_q4_1,
        _ => return false,
    };
    for (block, values) in bytes.chunks_exact(dtype.block().1).zip(out.chunks_exact_mut(BLOCK)) {
        one(block, values);
    }
    true
}

/// Values to blocks of bytes, the inverse of [`dequantise`]. Returns false when the type has no blocks, or when a
/// value is not finite or too large for an f16 scale.
pub(crate) fn quantise(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> bool {
    let one: fn(&[f32], &mut Vec<u8>) -> bool = match dtype {
        DType::Q8_0 => quantise_q8_0,
        DType::Q4_0 => quantise_q4_0,
        DType::Q4_1 => quantise_q4_1,
        _ => return false,
    };
    values.chunks_exact(BLOCK).all(|block| block.iter().all(|v| v.is_finite()) && one(block, out))
}

fn scale(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn dequantise_q8_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block);
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(q.cast_signed()) * d;
    }
}

// The low nibbles are the first 16 values of a block, the high ones the last 16.
fn dequantise_q4_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block);
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((l, h), &q) in low.iter_mut().zip(high).zip(&block[2..]) {
        *l = d * (f32::from(q & 15) - 8.0);
        *h = d * (f32::from(q >> 4) - 8.0);
    }
}

fn dequantise_q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block), scale(&block[2..]));
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((l, h), &q) in low.iter_mut().zip(high).zip(&block[4..]) {
        *l = d * f32::from(q & 15) + m;
        *h = d * f32::from(q >> 4) + m;
    }
}

/// The reciprocal that ggml uses: 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Appends an f16; false when it is not finite.
fn push_scale(d: f32, out: &mut Vec<u8>) -> bool {
    let d = f16::from_f32(d);
    out.extend_from_slice(&d.to_le_bytes());
    d.is_finite()
}

fn quantise_q8_0(block: &[f32], out: &mut Vec<u8>) -> bool {
    let largest = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let d = largest / 127.0;
    let inverse = inverse(d);
    let fits = push_scale(d, out);
    out.extend(block.iter().map(|v| ((v * inverse).round() as i8).cast_unsigned()));
    fits
}

fn quantise_q4_0(block: &[f32], out: &mut Vec<u8>) -> bool {
    // The value of largest magnitude, with its sign, becomes -8; the first one wins a tie.
    let extreme = block.iter().fold(0.0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    let d = extreme / -8.0;
    let inverse = inverse(d);
    let fits = push_scale(d, out);
    push_nibbles(block, |v| v * inverse + 8.5, out);
    fits
}

fn quantise_q4_1(block: &[f32], out: &mut Vec<u8>) -> bool {
    let least = block.iter().fold(f32::INFINITY, |least, &v| least.min(v));
    let most = block.iter().fold(f32::NEG_INFINITY, |most, &v| most.max(v));
    let d = (most - least) / 15.0;
    let inverse = inverse(d);
    let fits = push_scale(d, out) & push_scale(least, out);
    push_nibbles(block, |v| (v - least) * inverse + 0.5, out);
    fits
}

fn push_nibbles(block: &[f32], level: impl Fn(f32) -> f32, out: &mut Vec<u8>) {
    let nibble = |v: f32| (level(v) as u8).min(15);
    let (low, high) = block.split_at(BLOCK / 2);
    out.extend(low.iter().zip(high).map(|(&l, &h)| nibble(l) | nibble(h) << 4));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(dtype: DType, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        assert!(quantise(dtype, values, &mut bytes));
        assert_eq!(bytes.len(), values.len() / BLOCK * dtype.block().1);
        let mut out = vec![0.0; values.len()];
        assert!(dequantise(dtype, &bytes, &mut out));
        out
    }

    #[test]
    fn hand_numbers() {
        // A scale of 0.5 is exact in f16: Q4_0 maps -4 to level -8, Q4_1 maps 0..7.5 to levels 0..15.
        let q4_0: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.5 - 4.0).collect();
        assert_eq!(through(DType::Q4_0, &q4_0), q4_0);
        let q4_1: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.5).collect();
        assert_eq!(through(DType::Q4_1, &q4_1), q4_1);
        let q8_0: Vec<f32> = (0..32).map(|i| if i == 0 { -63.5 } else { i as f32 * 0.5 }).collect();
        assert_eq!(through(DType::Q8_0, &q8_0), q8_0);
    }

    #[test]
    fn zeros_stay_zero_and_non_finite_is_refused() {
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1] {
            assert_eq!(through(dtype, &[0.0; 32]), [0.0; 32]);
            for bad in [f32::NAN, f32::INFINITY, 1e30] {
                let mut values = [0.0; 32];
                values[7] = bad;
                assert!(!quantise(dtype, &values, &mut Vec::new()), "{dtype} {bad}");
            }
        }
    }
}
