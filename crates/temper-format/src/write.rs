//! What writers are given, and the check and conversion that they share.

use crate::atomic::FileWriter;
use crate::convert::{self, CHUNK};
use crate::dtype::{DType, element_count};
use crate::error::Error;

/// One array to be written.
#[derive(Debug, Clone, Copy)]
pub struct ArrayRef<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// What the file will hold.
    pub dtype: DType,
    /// Row-major, the last axis contiguous.
    pub shape: &'a [usize],
    /// The values.
    pub data: ArrayData<'a>,
}

/// The values of an array to be written.
#[derive(Debug, Clone, Copy)]
pub enum ArrayData<'a> {
    /// Converted to the array's type, to the nearest with ties to even (blocks: as ggml quantises).
    F32(&'a [f32]),
    /// Already the little-endian bytes of the array's type.
    Bytes(&'a [u8]),
}

/// Writes the values of one array at `start`, converted chunk by chunk.
pub(crate) fn write_data(
    file: &FileWriter,
    start: u64,
    name: &str,
    dtype: DType,
    shape: &[usize],
    data: ArrayData<'_>,
) -> Result<(), Error> {
    check_len(file, name, dtype, shape, data)?;
    let values = match data {
        ArrayData::Bytes(bytes) => return file.write_at(bytes, start),
        ArrayData::F32(values) => values,
    };
    let (mut at, mut raw) = (start, Vec::new());
    for chunk in values.chunks(CHUNK) {
        raw.clear();
        if !convert::encode(dtype, chunk, &mut raw) {
            let expected = "finite values within the range of f16 and one of F32, F16, BF16, Q8_0, Q4_0, Q4_1";
            return Err(Error::bad_array(file.target(), name, format!("f32 values as {dtype}"), expected));
        }
        file.write_at(&raw, at)?;
        at += raw.len() as u64;
    }
    Ok(())
}

fn check_len(file: &FileWriter, name: &str, dtype: DType, shape: &[usize], data: ArrayData<'_>) -> Result<(), Error> {
    let (found, expected, unit) = match data {
        ArrayData::F32(values) => (values.len(), element_count(shape), "values"),
        ArrayData::Bytes(bytes) => (bytes.len(), dtype.byte_len(shape), "bytes"),
    };
    if Some(found) == expected {
        return Ok(());
    }
    let expected = expected.map_or("a shape that fits in memory".to_string(), |n| format!("{n} for {dtype} {shape:?}"));
    Err(Error::bad_array(file.target(), name, format!("{found} {unit}"), expected))
}
