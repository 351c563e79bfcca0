//! One GGUF file, opened and checked.

use super::reader::Reader;
use super::{ALIGNMENT, ALIGNMENT_KEY, GgufValue, MAGIC, MOST_AXES, from_ggml};
use crate::error::{Error, shown};
use crate::source::{ArrayInfo, ArraySource, Place, SourceFile};
use std::collections::BTreeMap;
use std::path::Path;

/// One open GGUF file, version 2 or 3, little-endian. The header is read and checked on opening, the arrays when they
/// are asked for.
///
/// Names are GGUF's own (`blk.0.attn_q.weight`); shapes are turned from ggml's order, fastest axis first, into
/// row-major order, so a weight matrix is `[out, in]`. F32, F16, BF16, Q8_0, Q4_0 and Q4_1 can be read.
#[derive(Debug)]
pub struct Gguf {
    source: SourceFile,
    version: u32,
    metadata: BTreeMap<String, GgufValue>,
    arrays: BTreeMap<String, Place>,
}

impl Gguf {
    /// Opens a file and checks its header: every array lies within the file, aligned, and overlaps no other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let source = SourceFile::open(path.as_ref())?;
        let mut reader = Reader::new(&source);
        let version = read_version(&mut reader, &source.path)?;
        reader.at = "the number of arrays".into();
        // A name's length, an axis count, a type and an offset are the least that describes an array.
        let n_arrays = reader.count(8 + 4 + 4 + 8)?;
        reader.at = "the number of metadata entries".into();
        let n_metadata = reader.count(8 + 4 + 1)?;
        let metadata = read_metadata(&mut reader, n_metadata)?;
        check_whole(&source.path, &metadata)?;
        let alignment = alignment(&source.path, &metadata)?;
        let mut arrays = read_arrays(&mut reader, n_arrays)?;
        let data_start = reader.pos().next_multiple_of(alignment);
        place_all(&source, data_start, alignment, &mut arrays)?;
        Ok(Self { source, version, metadata, arrays })
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// One metadata value, such as that of `general.architecture`.
    pub fn metadata(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// All metadata, by key.
    pub fn all_metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// One array as the file has it: the little-endian bytes of the type and shape that [`ArraySource::info`] gives,
    /// blocks of quantised types row by row.
    ///
    /// # Errors
    /// No such array; the file could not be read.
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

impl ArraySource for Gguf {
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

fn read_version(reader: &mut Reader<'_>, path: &Path) -> Result<u32, Error> {
    let magic: [u8; 4] = reader.array()?;
    if magic != MAGIC {
        let found = format!("a first word of {}", magic.escape_ascii());
        return Err(reader.malformed(found, "`GGUF`"));
    }
    let version = reader.u32()?;
    let found = match version {
        2 | 3 => return Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => format!("big-endian GGUF version {}", version.swap_bytes()),
        _ => format!("GGUF version {version}"),
    };
    let expected = "little-endian version 2 or 3; convert the file anew with llama.cpp".into();
    Err(Error::Unsupported { path: path.to_path_buf(), what: "the header".into(), found, expected })
}

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, GgufValue>, Error> {
    let mut metadata = BTreeMap::new();
    for number in 0..count {
        reader.at = format!("the key of metadata entry {number}");
        let key = reader.string()?;
        reader.at = format!("metadata `{}`", shown(&key));
        let value = reader.value()?;
        if metadata.insert(key, value).is_some() {
            return Err(reader.malformed("given twice", "distinct keys"));
        }
    }
    Ok(metadata)
}

/// A model in several files has only a part of its arrays in each.
fn check_whole(path: &Path, metadata: &BTreeMap<String, GgufValue>) -> Result<(), Error> {
    match metadata.get("split.count").and_then(GgufValue::as_u64) {
        None | Some(0 | 1) => Ok(()),
        Some(count) => Err(Error::Unsupported {
            path: path.to_path_buf(),
            what: "the model".into(),
            found: format!("split over {count} files"),
            expected: "one file; join them with `llama-gguf-split --merge`".into(),
        }),
    }
}

fn alignment(path: &Path, metadata: &BTreeMap<String, GgufValue>) -> Result<u64, Error> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    match value.as_u64() {
        Some(bytes) if bytes.is_power_of_two() && bytes <= 1 << 30 => Ok(bytes),
        _ => {
            let found = shown(&format!("{value:?}"));
            Err(Error::malformed(path, format!("metadata `{ALIGNMENT_KEY}`"), found, "a power of two up to 2^30"))
        }
    }
}

/// The descriptions; each `start` is still relative to the start of the data.
fn read_arrays(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, Place>, Error> {
    let mut arrays = BTreeMap::new();
    for number in 0..count {
        reader.at = format!("the name of array {number}");
        let name = reader.string()?;
        reader.at = format!("`{}`", shown(&name));
        let place = read_place(reader)?;
        if arrays.insert(name, place).is_some() {
            return Err(reader.malformed("described twice", "distinct names"));
        }
    }
    Ok(arrays)
}

fn read_place(reader: &mut Reader<'_>) -> Result<Place, Error> {
    let axes = reader.u32()?;
    if axes > MOST_AXES {
        return Err(reader.malformed(format!("an array of {axes} axes"), format!("at most {MOST_AXES}")));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let axis = reader.u64()?;
        shape.push(usize::try_from(axis).map_err(|_| reader.malformed(format!("{axis} long"), "a size in memory"))?);
    }
    shape.reverse();
    let number = reader.u32()?;
    let Some(dtype) = from_ggml(number) else {
        return Err(reader.malformed(format!("of ggml type {number}"), "a type that this version of Temper knows"));
    };
    let Some(len) = dtype.byte_len(&shape) else {
        let expected = format!("a size that can be addressed, rows of a multiple of {} values", dtype.block().0);
        return Err(reader.malformed(format!("{dtype} {shape:?}"), expected));
    };
    Ok(Place { info: ArrayInfo { dtype, shape }, start: reader.u64()?, len })
}

/// Makes every `start` a position in the file, after checking that the arrays lie within it and apart.
fn place_all(
    source: &SourceFile,
    data_start: u64,
    alignment: u64,
    arrays: &mut BTreeMap<String, Place>,
) -> Result<(), Error> {
    let mut in_order: Vec<(&String, &mut Place)> = arrays.iter_mut().collect();
    in_order.sort_by_key(|(_, place)| (place.start, place.len));
    let room = source.len.saturating_sub(data_start);
    let mut end = 0;
    for (name, place) in in_order {
        let malformed = |found: String, expected: String| {
            Error::malformed(&source.path, format!("the place of `{}`", shown(name)), found, expected)
        };
        if !place.start.is_multiple_of(alignment) {
            let found = format!("offset {}", place.start);
            return Err(malformed(found, format!("a multiple of {alignment}")));
        }
        let found = || format!("{} bytes at offset {}", place.len, place.start);
        if place.start < end {
            return Err(malformed(found(), format!("an offset from {end} on, where the array before it ends")));
        }
        end = match place.start.checked_add(place.len as u64) {
            Some(end) if end <= room => end,
            _ => {
                return Err(malformed(
                    found(),
                    format!("an end within the {room} bytes of data; the file is truncated"),
                ));
            }
        };
        place.start += data_start;
    }
    Ok(())
}
