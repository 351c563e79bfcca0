//! Writing safetensors files: header first, then the arrays in any order, each converted as it is written.

use super::{PREFIX, is_writable};
use crate::atomic::FileWriter;
use crate::error::{Error, shown};
use crate::source::ArrayInfo;
use crate::write::{ArrayData, ArrayRef, write_data};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes a safetensors file with these arrays; the old file stays until the new one is complete.
///
/// `"format": "pt"` is added to the metadata unless a format is given, because transformers asks for it. The same
/// arrays give the same bytes whatever their order: wide types first, then by name.
///
/// # Errors
/// Duplicate names, data that does not fit its shape, quantised types, and whatever the disk says.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    arrays: &[ArrayRef<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let infos = arrays.iter().map(|a| (a.name.to_string(), ArrayInfo { dtype: a.dtype, shape: a.shape.to_vec() }));
    let mut writer = SafetensorsWriter::create(path, infos, metadata)?;
    for array in arrays {
        writer.push(array.name, array.data)?;
    }
    writer.finish()
}

/// A safetensors file in the making, for arrays that should not all be in memory at once: all names, types and shapes
/// are given first, then the data of one array at a time, in any order.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: FileWriter,
    arrays: BTreeMap<String, Pending>,
}

#[derive(Debug)]
struct Pending {
    info: ArrayInfo,
    start: u64,
    written: bool,
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: (usize, usize),
}

impl SafetensorsWriter {
    /// Starts the file and writes its header. As for [`write_safetensors`], the order of `arrays` does not matter.
    pub fn create(
        path: impl AsRef<Path>,
        arrays: impl IntoIterator<Item = (String, ArrayInfo)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let file = FileWriter::create(path)?;
        let mut arrays: Vec<_> = arrays.into_iter().collect();
        // Wide types first, so that every array is aligned to its element; the format asks for this order.
        arrays.sort_by(|a, b| b.1.dtype.block().1.cmp(&a.1.dtype.block().1).then_with(|| a.0.cmp(&b.0)));
        let (header, offsets) = header(file.target(), &arrays, metadata)?;
        file.write_at(&(header.len() as u64).to_le_bytes(), 0)?;
        file.write_at(header.as_bytes(), PREFIX)?;
        let data_start = PREFIX + header.len() as u64;
        let arrays = arrays
            .into_iter()
            .zip(offsets)
            .map(|((name, info), offset)| (name, Pending { info, start: data_start + offset as u64, written: false }))
            .collect();
        Ok(Self { file, arrays })
    }

    /// Writes the values of one of the arrays.
    pub fn push(&mut self, name: &str, data: ArrayData<'_>) -> Result<(), Error> {
        let target = self.file.target();
        let Some(array) = self.arrays.get_mut(name) else {
            return Err(Error::bad_array(target, name, "an array that was not announced", "one of those given first"));
        };
        if array.written {
            return Err(Error::bad_array(target, name, "its data for the second time", "each array once"));
        }
        write_data(&self.file, array.start, name, array.info.dtype, &array.info.shape, data)?;
        array.written = true;
        Ok(())
    }

    /// Puts the complete file in place.
    pub fn finish(self) -> Result<(), Error> {
        match self.arrays.iter().find(|(_, array)| !array.written) {
            Some((name, _)) => Err(Error::bad_array(self.file.target(), name, "no data", "the data of every array")),
            None => self.file.commit(),
        }
    }
}

/// The JSON header, padded with spaces to 8 bytes, and the offset of every array.
fn header(
    path: &Path,
    arrays: &[(String, ArrayInfo)],
    metadata: &BTreeMap<String, String>,
) -> Result<(String, Vec<usize>), Error> {
    let mut metadata = metadata.clone();
    metadata.entry("format".into()).or_insert_with(|| "pt".into());
    let mut fields = vec![format!("\"__metadata__\":{}", json(path, &metadata)?)];
    let (mut offsets, mut at) = (Vec::new(), 0usize);
    let mut seen = std::collections::BTreeSet::from(["__metadata__"]);
    for (name, info) in arrays {
        if !seen.insert(name) {
            return Err(Error::bad_array(path, name, "a name that is already taken", "distinct names"));
        }
        let len = checked_len(path, name, info)?;
        let Some(end) = at.checked_add(len) else {
            return Err(Error::bad_array(path, name, "more bytes than can be addressed", "a smaller file"));
        };
        let entry = Entry { dtype: info.dtype.name(), shape: &info.shape, data_offsets: (at, end) };
        fields.push(format!("{}:{}", json(path, name)?, json(path, &entry)?));
        offsets.push(at);
        at = end;
    }
    let mut header = format!("{{{}}}", fields.join(","));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok((header, offsets))
}

fn checked_len(path: &Path, name: &str, info: &ArrayInfo) -> Result<usize, Error> {
    if !is_writable(info.dtype) {
        let expected = "a type that safetensors has, such as F32, F16 or BF16";
        return Err(Error::bad_array(path, name, format!("type {}", info.dtype), expected));
    }
    info.dtype
        .byte_len(&info.shape)
        .ok_or_else(|| Error::bad_array(path, name, format!("shape {:?}", info.shape), "a size that can be addressed"))
}

fn json(path: &Path, value: &(impl Serialize + ?Sized)) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::malformed(path, "the header", shown(&error.to_string()), "values that JSON can hold"))
}
