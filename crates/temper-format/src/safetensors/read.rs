//! One safetensors file.

use super::header::Header;
use super::{MOST_HEADER, PREFIX, from_safetensors};
use crate::error::{Error, shown};
use crate::source::{ArrayInfo, ArraySource, Place, SourceFile};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::path::Path;

/// One open safetensors file. The header is read and checked on opening, the arrays when they are asked for.
#[derive(Debug)]
pub struct SafetensorsFile {
    source: SourceFile,
    arrays: BTreeMap<String, Place>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header against its length: no gaps, no overlaps, nothing beyond the end.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let source = SourceFile::open(path.as_ref())?;
        let (header, data_start) = read_header(&source)?;
        let Header { metadata, mut arrays } = header;
        arrays.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
        check_layout(&source, data_start, &arrays)?;
        let arrays = arrays.into_iter().map(|(name, info)| (name, place(&info, data_start))).collect();
        Ok(Self { source, arrays, metadata })
    }

    /// The free-form strings of the header (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of one array as they stand in the file, little-endian.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, Error> {
        let place = self.place(name)?;
        self.source.read_bytes(name, place.start, place.len)
    }

    fn place(&self, name: &str) -> Result<&Place, Error> {
        self.arrays.get(name).ok_or_else(|| Error::NoSuchArray {
            path: self.source.path.clone(),
            name: shown(name),
            count: self.arrays.len(),
        })
    }
}

impl ArraySource for SafetensorsFile {
    fn names(&self) -> Vec<String> {
        self.arrays.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<ArrayInfo> {
        self.arrays.get(name).map(|place| place.info.clone())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.source.read_f32(name, self.place(name)?)
    }

    fn path(&self) -> &Path {
        &self.source.path
    }
}

/// The header and the position of the first array's first byte.
fn read_header(source: &SourceFile) -> Result<(Header, u64), Error> {
    let malformed = |what: &str, found: String, expected: String| Error::malformed(&source.path, what, found, expected);
    let Some(room) = source.len.checked_sub(PREFIX) else {
        let found = format!("{} bytes", source.len);
        return Err(malformed("the file", found, "a safetensors file, at least 8 bytes".into()));
    };
    let mut prefix = [0u8; PREFIX as usize];
    source.read_at(0, &mut prefix)?;
    let len = u64::from_le_bytes(prefix);
    if len > room.min(MOST_HEADER) {
        let expected = format!("at most {} in a safetensors file of {} bytes", room.min(MOST_HEADER), source.len);
        return Err(malformed("the header length", format!("{len} bytes"), expected));
    }
    let bytes = source.read_bytes("the header", PREFIX, len as usize)?;
    let header = serde_json::from_slice(&bytes)
        .map_err(|error| malformed("the header", format!("not valid ({error})"), "safetensors JSON".into()))?;
    Ok((header, PREFIX + len))
}

/// Arrays, sorted by offset, must fill the rest of the file exactly.
fn check_layout(source: &SourceFile, data_start: u64, arrays: &[(String, TensorInfo)]) -> Result<(), Error> {
    let malformed =
        |what: String, found: String, expected: String| Error::malformed(&source.path, what, found, expected);
    let room = source.len - data_start;
    let mut at = 0;
    for (name, info) in arrays {
        let (start, end) = info.data_offsets;
        let what = || format!("the place of `{}`", shown(name));
        if start != at || end < start {
            return Err(malformed(what(), format!("{start}..{end}"), format!("a range that starts at {at}")));
        }
        if end as u64 > room {
            let found = format!("{start}..{end}");
            return Err(malformed(what(), found, format!("at most {room} bytes of data; the file is truncated")));
        }
        let expected = byte_len(info).map_or("a size that fits in memory".into(), |n| format!("{n} bytes"));
        if byte_len(info) != Some(end - start) {
            let found = format!("{} bytes for {} {:?}", end - start, info.dtype, info.shape);
            return Err(malformed(format!("`{}`", shown(name)), found, expected));
        }
        at = end;
    }
    if at as u64 != room {
        return Err(malformed("the data".into(), format!("{room} bytes"), format!("{at} bytes, as the header says")));
    }
    // The format's own crate has the last word.
    Metadata::new(None, arrays.to_vec())
        .map(drop)
        .map_err(|error| malformed("the header".into(), format!("not valid ({error})"), "safetensors JSON".into()))
}

/// Bytes of an array, `None` on overflow or when it does not end on a byte.
fn byte_len(info: &TensorInfo) -> Option<usize> {
    let bits = crate::dtype::element_count(&info.shape)?.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn place(info: &TensorInfo, data_start: u64) -> Place {
    let (start, end) = info.data_offsets;
    Place {
        info: ArrayInfo { dtype: from_safetensors(info.dtype), shape: info.shape.clone() },
        start: data_start + start as u64,
        len: end - start,
    }
}
