//! Writing GGUF version 3.

use super::value::GgufValue;
use super::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, MOST_AXES, MOST_DEPTH, to_ggml};
use crate::atomic::FileWriter;
use crate::error::{Error, shown};
use crate::write::{ArrayRef, write_data};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Writes a GGUF file, version 3: metadata by key, arrays in the order given. The old file stays until the new one is
/// complete.
///
/// f32 data is converted to the array's type: F32, F16, BF16, or quantised to Q8_0, Q4_0 or Q4_1 as ggml does it. An
/// empty metadata array is written as one of 32-bit unsigned integers. `general.alignment` is obeyed.
///
/// # Errors
/// Duplicate names, data that does not fit its shape, values that cannot be quantised, metadata arrays of mixed kinds,
/// and whatever the disk says.
pub fn write_gguf(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, GgufValue>,
    arrays: &[ArrayRef<'_>],
) -> Result<(), Error> {
    let file = FileWriter::create(path)?;
    let alignment = alignment(file.target(), metadata)?;
    let mut out = Header { path: file.target(), bytes: Vec::new() };
    out.bytes.extend_from_slice(&MAGIC);
    out.u32(3);
    out.u64(arrays.len() as u64);
    out.u64(metadata.len() as u64);
    for (key, value) in metadata {
        out.string(key);
        out.u32(value.kind());
        out.value(key, value, 0)?;
    }
    let (offsets, data_len) = out.descriptions(arrays, alignment)?;
    let header = out.bytes;
    file.write_at(&header, 0)?;
    let data_start = (header.len() as u64).next_multiple_of(alignment);
    for (array, offset) in arrays.iter().zip(offsets) {
        write_data(&file, data_start + offset, array.name, array.dtype, array.shape, array.data)?;
    }
    // llama.cpp expects the last array to be padded as the others are.
    file.set_len(data_start + data_len)?;
    file.commit()
}

fn alignment(path: &Path, metadata: &BTreeMap<String, GgufValue>) -> Result<u64, Error> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(&GgufValue::U32(bytes)) if bytes.is_power_of_two() && bytes <= 1 << 20 => Ok(bytes.into()),
        Some(other) => {
            Err(Error::bad_array(path, ALIGNMENT_KEY, format!("{other:?}"), "a U32, a power of two up to 2^20"))
        }
    }
}

struct Header<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl Header<'_> {
    fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn value(&mut self, key: &str, value: &GgufValue, depth: usize) -> Result<(), Error> {
        match value {
            GgufValue::U8(v) => self.bytes.push(*v),
            GgufValue::I8(v) => self.bytes.push(v.cast_unsigned()),
            GgufValue::U16(v) => self.bytes.extend(v.to_le_bytes()),
            GgufValue::I16(v) => self.bytes.extend(v.to_le_bytes()),
            GgufValue::U32(v) => self.u32(*v),
            GgufValue::I32(v) => self.u32(v.cast_unsigned()),
            GgufValue::F32(v) => self.u32(v.to_bits()),
            GgufValue::Bool(v) => self.bytes.push(u8::from(*v)),
            GgufValue::String(v) => self.string(v),
            GgufValue::U64(v) => self.u64(*v),
            GgufValue::I64(v) => self.u64(v.cast_unsigned()),
            GgufValue::F64(v) => self.u64(v.to_bits()),
            GgufValue::Array(values) => return self.values(key, values, depth + 1),
        }
        Ok(())
    }

    fn values(&mut self, key: &str, values: &[GgufValue], depth: usize) -> Result<(), Error> {
        let kind = values.first().map_or(4, GgufValue::kind);
        if depth > MOST_DEPTH || values.iter().any(|v| v.kind() != kind) {
            let expected = format!("values of one kind, at most {MOST_DEPTH} levels deep");
            let what = format!("metadata `{}`", shown(key));
            return Err(Error::malformed(self.path, what, "an array of mixed kinds or too deep", expected));
        }
        self.u32(kind);
        self.u64(values.len() as u64);
        values.iter().try_for_each(|v| self.value(key, v, depth))
    }

    /// Describes all arrays and gives their offsets from the start of the data, and its length.
    fn descriptions(&mut self, arrays: &[ArrayRef<'_>], alignment: u64) -> Result<(Vec<u64>, u64), Error> {
        let (mut seen, mut offsets, mut at) = (BTreeSet::new(), Vec::new(), 0u64);
        for array in arrays {
            let bad = |found: String, expected: &str| Error::bad_array(self.path, array.name, found, expected);
            if !seen.insert(array.name) {
                return Err(bad("a name that is already taken".into(), "distinct names"));
            }
            let Some(number) = to_ggml(array.dtype) else {
                return Err(bad(format!("type {}", array.dtype), "a type that GGUF has and Temper writes"));
            };
            if array.shape.len() > MOST_AXES as usize {
                return Err(bad(format!("{} axes", array.shape.len()), "at most 4 axes"));
            }
            let end = array.dtype.byte_len(array.shape).and_then(|len| at.checked_add(len as u64));
            let Some(next) = end.and_then(|end| end.checked_next_multiple_of(alignment)) else {
                let found = format!("{} {:?}", array.dtype, array.shape);
                return Err(bad(found, "a size that can be addressed, rows of whole blocks"));
            };
            self.string(array.name);
            self.u32(array.shape.len() as u32);
            array.shape.iter().rev().for_each(|&axis| self.u64(axis as u64));
            self.u32(number);
            self.u64(at);
            offsets.push(at);
            at = next;
        }
        Ok((offsets, at))
    }
}
