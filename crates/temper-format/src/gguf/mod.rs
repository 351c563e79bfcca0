//! The GGUF format of llama.cpp, versions 2 and 3: metadata, then array descriptions, then aligned data.

mod file;
mod reader;
mod value;
mod write;

pub use file::Gguf;
pub use value::GgufValue;
pub use write::write_gguf;

use crate::dtype::{DType, Foreign};

const MAGIC: [u8; 4] = *b"GGUF";
/// Where the data and every array in it start, unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// As many axes as ggml has.
const MOST_AXES: u32 = 4;
/// Arrays of metadata may lie in arrays, this deep. ggml itself has none.
const MOST_DEPTH: usize = 4;

/// ggml's number of each type that is not foreign.
const TYPES: [(u32, DType); 11] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (8, DType::Q8_0),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (30, DType::BF16),
];

/// The types that can be named and measured only: ggml's number, name, elements and bytes of a block.
const FOREIGN: [(u32, &str, usize, usize); 23] = [
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

fn from_ggml(number: u32) -> Option<DType> {
    let known = TYPES.iter().find(|(n, _)| *n == number).map(|(_, dtype)| *dtype);
    let foreign = || FOREIGN.iter().find(|(n, ..)| *n == number);
    known.or_else(|| foreign().map(|&(_, name, elements, bytes)| DType::Other(Foreign::new(name, elements, bytes))))
}

fn to_ggml(dtype: DType) -> Option<u32> {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|(number, _)| *number)
}
