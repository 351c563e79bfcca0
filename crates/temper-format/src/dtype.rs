//! What the elements of an array in a file are.

use std::fmt;

/// The element type of an array in a file.
///
/// [`DType::F32`], [`DType::F16`], [`DType::BF16`] and the three quantised block types convert to f32; the integer
/// types can be read and written as bytes; a [`DType::Other`] can be named and measured, no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// GGUF: blocks of 32 signed bytes with an f16 scale.
    Q8_0,
    /// GGUF: blocks of 32 signed nibbles with an f16 scale.
    Q4_0,
    /// GGUF: blocks of 32 unsigned nibbles with an f16 scale and an f16 minimum.
    Q4_1,
    /// A type that Temper does not convert.
    Other(Foreign),
}

/// A type of a file format that Temper can name and measure but not convert: `elements` of them take `bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Foreign {
    name: &'static str,
    elements: usize,
    bytes: usize,
}

impl Foreign {
    pub(crate) const fn new(name: &'static str, elements: usize, bytes: usize) -> Self {
        Self { name, elements, bytes }
    }
}

impl DType {
    /// The name that safetensors or GGUF gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Other(foreign) => foreign.name,
        }
    }

    /// The smallest unit of storage, as (elements, bytes).
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 | Self::I64 | Self::U64 => (1, 8),
            Self::F32 | Self::I32 | Self::U32 => (1, 4),
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => (1, 2),
            Self::I8 | Self::U8 | Self::Bool => (1, 1),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Other(foreign) => (foreign.elements, foreign.bytes),
        }
    }

    /// Bytes of an array of this type and `shape` (row-major, the last axis contiguous). `None` when the product
    /// is larger than memory can be or the last axis is not a whole number of blocks.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let (elements, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(elements) {
            return None;
        }
        let len = element_count(shape)?.checked_div(elements)?.checked_mul(bytes)?;
        isize::try_from(len).is_ok().then_some(len)
    }

    /// Whether [`crate::ArraySource::read_f32`] converts it.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::Q8_0 | Self::Q4_0 | Self::Q4_1)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The number of elements, 1 for a scalar; `None` on overflow (also of a product that a later zero would hide).
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_len_counts_blocks_and_refuses_overflow() {
        assert_eq!(DType::F32.byte_len(&[]), Some(4));
        assert_eq!(DType::BF16.byte_len(&[3, 5]), Some(30));
        assert_eq!(DType::F32.byte_len(&[0, 7]), Some(0));
        assert_eq!(DType::Q4_0.byte_len(&[2, 64]), Some(72));
        assert_eq!(DType::Q8_0.byte_len(&[64, 2]), None);
        assert_eq!(DType::U8.byte_len(&[usize::MAX, 2]), None);
        assert_eq!(DType::F64.byte_len(&[usize::MAX / 4]), None);
    }
}
