//! A digest of what a run reads, so that a resume notices when it has changed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::models::Source;

/// A digest of the files that a model and its tokenizer are read from: the file itself, or a directory's; an adapter's with its
/// base's.
pub(crate) fn of_model(source: &Source) -> Result<u64> {
    let mut digest = Digest::default();
    let mut next = Some(source);
    while let Some(source) = next {
        for file in model_files(source.path())? {
            digest.bytes(file.file_name().unwrap_or_default().as_encoded_bytes());
            digest.file(&file)?;
        }
        next = source.base();
    }
    Ok(digest.value())
}

/// The files of a model directory that a run reads, by name.
fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let read = |p: &PathBuf| {
        let ends = |ends| p.extension().is_some_and(|e| e == ends);
        p.is_file() && (ends("json") || ends("safetensors") || ends("jinja"))
    };
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(read).collect();
    files.sort();
    Ok(files)
}

/// FNV-1a over 64 bits: quick, the same everywhere, and no protection against somebody who wants to deceive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds a number.
    pub(crate) fn word(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds a text with its length, so that neighbours cannot trade characters.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds a file's contents, eight bytes at a time.
    pub(crate) fn file(&mut self, path: &Path) -> Result<()> {
        let io = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(io)?;
        let mut chunk = vec![0; 1 << 20];
        loop {
            let mut filled = 0;
            while filled < chunk.len() {
                match file.read(&mut chunk[filled..]).map_err(io)? {
                    0 => break,
                    n => filled += n,
                }
            }
            self.word(filled as u64);
            for eight in chunk[..filled].chunks(8) {
                let mut word = [0; 8];
                word[..eight.len()].copy_from_slice(eight);
                self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            if filled < chunk.len() {
                return Ok(());
            }
        }
    }

    /// The digest so far.
    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_test_vector_and_borders_between_texts() {
        let of = |texts: &[&str]| {
            let mut digest = Digest::default();
            for text in texts {
                digest.bytes(text.as_bytes());
            }
            digest.value()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        // FNV-1a of the eight bytes "foobar\0\0", from an independent implementation.
        let mut digest = Digest::default();
        digest.word(u64::from_le_bytes(*b"foobar\0\0"));
        assert_eq!(digest.value(), FOOBAR);
    }

    #[test]
    fn any_byte_of_a_model_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let long = vec![7; (1 << 20) + 13];
        write("model.safetensors", &long);
        let of_model = |path: &Path| super::of_model(&Source::Whole(path.into()));
        let first = of_model(dir.path()).unwrap();
        write("notes.txt", b"not read by a run");
        assert_eq!(of_model(dir.path()).unwrap(), first);
        let mut other = long.clone();
        *other.last_mut().unwrap() = 8;
        write("model.safetensors", &other);
        assert_ne!(of_model(dir.path()).unwrap(), first);
        write("model.safetensors", &long);
        assert_eq!(of_model(dir.path()).unwrap(), first);
        write("tokenizer.json", b"{}");
        assert_ne!(of_model(dir.path()).unwrap(), first);
        assert_eq!(of_model(&dir.path().join("model.safetensors")).unwrap(), first);
    }

    const FOOBAR: u64 = 0x74c8_e7eb_4f24_5c28;
}
