//! Between f32 and the bytes of a file, all little-endian.

use crate::blocks;
use crate::dtype::DType;
use half::{bf16, f16};

/// Elements converted at a time: a whole number of every block, 256 KiB of f32.
pub(crate) const CHUNK: usize = 1 << 16;

/// Bytes of whole blocks to f32; `out` has as many elements as `bytes` holds. False for types without a conversion.
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> bool {
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, out, |b: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        _ => blocks::dequantise(dtype, bytes, out),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) -> bool {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*bytes);
    }
    true
}

/// f32 to the bytes of `dtype`, appended to `out`, to the nearest with ties to even; values beyond the range of F16
/// become infinite, as in PyTorch. False for types without a conversion, and for values that a block cannot hold.
pub(crate) fn encode(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> bool {
    match dtype {
        DType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        DType::BF16 => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        _ => return blocks::quantise(dtype, values, out),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(dtype: DType, value: f32) -> u16 {
        let mut out = Vec::new();
        assert!(encode(dtype, &[value], &mut out));
        u16::from_le_bytes([out[0], out[1]])
    }

    #[test]
    fn rounds_to_nearest_even() {
        // bf16 keeps 8 significant bits: near 1 its step is 2^-7, so 1 + 2^-8 is a tie.
        let ulp = 2.0f32.powi(-7);
        assert_eq!(bits(DType::BF16, 1.0 + ulp / 2.0), 0x3f80);
        assert_eq!(bits(DType::BF16, 1.0 + 1.5 * ulp), 0x3f82);
        assert_eq!(bits(DType::BF16, 1.0 + 0.51 * ulp), 0x3f81);
        assert_eq!(bits(DType::BF16, f32::MAX), 0x7f80);
        let ulp = 2.0f32.powi(-10);
        assert_eq!(bits(DType::F16, 1.0 + ulp / 2.0), 0x3c00);
        assert_eq!(bits(DType::F16, 1.0 + 1.5 * ulp), 0x3c02);
        assert_eq!(bits(DType::F16, 65504.0), 0x7bff);
        assert_eq!(bits(DType::F16, 1e6), 0x7c00);
        assert_eq!(bits(DType::F16, 2.0f32.powi(-24)), 1);
    }

    #[test]
    fn nan_stays_nan() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (mut bytes, mut out) = (Vec::new(), [0.0]);
            // A NaN whose payload lies wholly in the bits that are cut off must not become infinite.
            assert!(encode(dtype, &[f32::from_bits(0x7f80_0001)], &mut bytes));
            assert!(decode(dtype, &bytes, &mut out));
            assert!(out[0].is_nan(), "{dtype}");
        }
    }
}
