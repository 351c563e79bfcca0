//! A digest of what a run reads, so that a resume notices when it has changed.

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

    /// The digest so far.
    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Digest;

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

    const FOOBAR: u64 = 0x74c8_e7eb_4f24_5c28;
}
