//! The header's fields, each compared with what is left of the file before it is read.

use super::MOST_DEPTH;
use super::value::{ARRAY, GgufValue, least_bytes};
use crate::error::{Error, shown};
use crate::source::SourceFile;
use std::fs::File;
use std::io::{BufReader, Read};

/// Bytes of header that are read at most; a vocabulary of a million tokens fits.
const MOST_HEADER: u64 = 1 << 28;
/// Metadata values at most: one may be a single byte in the file but takes 24 in memory.
const MOST_VALUES: u64 = 1 << 24;

/// Reads a header from front to back.
pub(super) struct Reader<'a> {
    source: &'a SourceFile,
    input: BufReader<&'a File>,
    pos: u64,
    values_left: u64,
    /// What is being read, for messages.
    pub(super) at: String,
}

impl<'a> Reader<'a> {
    /// A reader at the start of a file that has just been opened.
    pub(super) fn new(source: &'a SourceFile) -> Self {
        let input = BufReader::with_capacity(1 << 16, &source.file);
        Self { source, input, pos: 0, values_left: MOST_VALUES, at: "the header".into() }
    }

    /// Bytes read so far.
    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    pub(super) fn malformed(&self, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::malformed(&self.source.path, self.at.clone(), found, expected)
    }

    /// A count of things that take at least `least` bytes each, refused when they cannot fit.
    pub(super) fn count(&mut self, least: u64) -> Result<u64, Error> {
        let count = self.u64()?;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.left()) {
            let expected = format!("at most {}, for which the rest of the header has room", self.left() / least);
            return Err(self.malformed(format!("a count of {count}"), expected));
        }
        Ok(count)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.room(N as u64)?;
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self) -> Result<String, Error> {
        let len = self.u64()?;
        self.room(len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| {
            let start = String::from_utf8_lossy(error.as_bytes());
            self.malformed(format!("the text `{}`, which is not UTF-8", shown(&start)), "UTF-8")
        })
    }

    /// A value with its kind before it.
    pub(super) fn value(&mut self) -> Result<GgufValue, Error> {
        let kind = self.u32()?;
        self.value_of(kind, 0)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<GgufValue, Error> {
        Ok(match kind {
            0 => GgufValue::U8(u8::from_le_bytes(self.array()?)),
            1 => GgufValue::I8(i8::from_le_bytes(self.array()?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array()?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array()?)),
            4 => GgufValue::U32(self.u32()?),
            5 => GgufValue::I32(i32::from_le_bytes(self.array()?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array()?)),
            7 => GgufValue::Bool(self.bool()?),
            8 => GgufValue::String(self.string()?),
            ARRAY => GgufValue::Array(self.values(depth + 1)?),
            10 => GgufValue::U64(self.u64()?),
            11 => GgufValue::I64(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.unknown_kind(kind)),
        })
    }

    fn bool(&mut self) -> Result<bool, Error> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(format!("a Boolean of {other}"), "0 or 1")),
        }
    }

    fn values(&mut self, depth: usize) -> Result<Vec<GgufValue>, Error> {
        if depth > MOST_DEPTH {
            return Err(self.malformed("arrays in arrays too deep", format!("at most {MOST_DEPTH} levels")));
        }
        let kind = self.u32()?;
        let least = least_bytes(kind).ok_or_else(|| self.unknown_kind(kind))?;
        let count = self.count(least)?;
        let Some(left) = self.values_left.checked_sub(count) else {
            return Err(self.malformed(format!("{count} more values"), format!("at most {MOST_VALUES} in a file")));
        };
        self.values_left = left;
        (0..count).map(|_| self.value_of(kind, depth)).collect()
    }

    fn unknown_kind(&self, kind: u32) -> Error {
        self.malformed(format!("a value of kind {kind}"), "a kind from 0 to 12")
    }

    fn left(&self) -> u64 {
        self.source.len.min(MOST_HEADER).saturating_sub(self.pos)
    }

    fn room(&self, bytes: u64) -> Result<(), Error> {
        if bytes <= self.left() {
            return Ok(());
        }
        let limit = if self.source.len > MOST_HEADER { "the largest header" } else { "the file" };
        Err(self.malformed(
            format!("{bytes} bytes long at byte {}", self.pos),
            format!("at most {}, where {limit} ends", self.left()),
        ))
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(out).map_err(Error::io("read", &self.source.path))?;
        self.pos += out.len() as u64;
        Ok(())
    }
}
