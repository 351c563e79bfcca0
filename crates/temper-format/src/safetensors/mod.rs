//! The safetensors format: 8 bytes of header length, a JSON header, the arrays' bytes.

mod dir;
mod header;
mod read;
mod write;

pub use dir::SafetensorsDir;
pub use read::SafetensorsFile;
pub use write::{SafetensorsWriter, write_safetensors};

use crate::dtype::{DType, Foreign};
use safetensors::Dtype;

/// The largest header that is read, as in the safetensors crate.
const MOST_HEADER: u64 = 100_000_000;
/// Bytes before the header.
const PREFIX: u64 = 8;

fn from_safetensors(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        Dtype::F4 => DType::Other(Foreign::new("F4", 2, 1)),
        Dtype::F6_E2M3 => DType::Other(Foreign::new("F6_E2M3", 4, 3)),
        Dtype::F6_E3M2 => DType::Other(Foreign::new("F6_E3M2", 4, 3)),
        Dtype::F8_E4M3 => DType::Other(Foreign::new("F8_E4M3", 1, 1)),
        Dtype::F8_E5M2 => DType::Other(Foreign::new("F8_E5M2", 1, 1)),
        Dtype::F8_E8M0 => DType::Other(Foreign::new("F8_E8M0", 1, 1)),
        // The crate's enum is open; its own deserialisation has already measured the array.
        _ => DType::Other(Foreign::new("of a newer safetensors version", 1, 1)),
    }
}

fn is_writable(dtype: DType) -> bool {
    !matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Other(_))
}
