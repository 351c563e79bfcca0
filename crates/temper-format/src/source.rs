//! Reading one array at a time from an open file.

use crate::convert::{self, CHUNK};
use crate::dtype::{DType, element_count};
use crate::error::{Error, shown};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The type and the row-major shape of an array; an empty shape is a scalar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayInfo {
    /// What the file holds.
    pub dtype: DType,
    /// Row-major, the last axis contiguous: a weight matrix is `[out, in]`, in GGUF files too.
    pub shape: Vec<usize>,
}

/// Anything that holds named arrays that can be read one by one as f32.
pub trait ArraySource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// Type and shape, `None` when there is no such array.
    fn info(&self, name: &str) -> Option<ArrayInfo>;

    /// One array as f32, row-major, converted or dequantised as it is read.
    ///
    /// # Errors
    /// No such array; a type without a conversion to f32 (named, with the array); the file could not be read.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error>;

    /// The file or directory, for messages.
    fn path(&self) -> &Path;
}

/// Where an array lies in its file. Checked against the length of the file before one of these is made.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) info: ArrayInfo,
    pub(crate) start: u64,
    pub(crate) len: usize,
}

/// An open regular file whose length was taken once.
#[derive(Debug)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) len: u64,
}

impl SourceFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        // Before opening: opening a named pipe would block until somebody writes.
        let kind = fs::metadata(path).map_err(Error::io("open", path))?;
        if !kind.is_file() {
            let found = if kind.is_dir() { "a directory" } else { "not a regular file" };
            return Err(Error::bad_path(path, found, "a file"));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let len = file.metadata().map_err(Error::io("open", path))?.len();
        Ok(Self { path: path.to_path_buf(), file, len })
    }

    pub(crate) fn read_at(&self, start: u64, out: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(out, start).map_err(Error::io("read", &self.path))
    }

    /// The bytes of a range that is known to lie within the file.
    pub(crate) fn read_bytes(&self, what: &str, start: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut out = self.reserve(what, len)?;
        out.resize(len, 0);
        self.read_at(start, &mut out)?;
        Ok(out)
    }

    /// One array as f32, read and converted chunk by chunk, so that the bytes of the file never lie in memory whole.
    pub(crate) fn read_f32(&self, name: &str, place: &Place) -> Result<Vec<f32>, Error> {
        let dtype = place.info.dtype;
        if !dtype.is_readable() {
            return Err(self.unsupported(name, dtype));
        }
        let count = element_count(&place.info.shape).unwrap_or(usize::MAX);
        let mut out: Vec<f32> = self.reserve(name, count)?;
        out.resize(count, 0.0);
        let (elements, bytes) = dtype.block();
        let mut raw = vec![0u8; count.min(CHUNK) / elements * bytes];
        let mut at = place.start;
        for chunk in out.chunks_mut(CHUNK) {
            let raw = &mut raw[..chunk.len() / elements * bytes];
            self.read_at(at, raw)?;
            convert::decode(dtype, raw, chunk);
            at += raw.len() as u64;
        }
        Ok(out)
    }

    fn reserve<T>(&self, name: &str, count: usize) -> Result<Vec<T>, Error> {
        let mut out = Vec::new();
        out.try_reserve_exact(count).map_err(|_| Error::OutOfMemory {
            path: self.path.clone(),
            name: shown(name),
            bytes: (count as u64).saturating_mul(size_of::<T>() as u64),
        })?;
        Ok(out)
    }

    fn unsupported(&self, name: &str, dtype: DType) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            what: format!("`{}`", shown(name)),
            found: dtype.to_string(),
            expected: "F32, F16, BF16, Q8_0, Q4_0 or Q4_1; convert the file to one of them".into(),
        }
    }
}
