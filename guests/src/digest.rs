//! The two hashes of this crate: SHA-256, by which Debian names a package's bytes, and BLAKE3, by which the store names
//! an entry and a record names its inputs.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// A SHA-256 of a package or an index, as Debian's archive states it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
}

/// Text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256: 64 hexadecimal digits are needed")]
pub struct NotASha256(String);

impl FromStr for Sha256 {
    type Err = NotASha256;

    fn from_str(text: &str) -> Result<Self, NotASha256> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut hash = [0; 32];
        if text.len() != 64 {
            return Err(NotASha256(text.to_owned()));
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = (high * 16 + low) as u8,
                _ => return Err(NotASha256(text.to_owned())),
            }
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

/// The digest of everything that decides a build's outcome. Two builds with the same inputs give the same bytes, so the
/// store's records are found by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inputs(blake3::Hash);

impl Inputs {
    /// Starts the digest of one kind of build. `kind` keeps different kinds apart.
    pub(crate) fn of(kind: &str) -> InputsHasher {
        let mut hasher = InputsHasher(blake3::Hasher::new());
        hasher.field("kind", kind.as_bytes());
        hasher
    }
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.to_hex(), f)
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inputs({self})")
    }
}

/// Gathers named fields. Each is written with its lengths, so that no two lists of fields run into each other.
pub(crate) struct InputsHasher(blake3::Hasher);

impl InputsHasher {
    pub(crate) fn field(&mut self, name: &str, value: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    pub(crate) fn finish(&self) -> Inputs {
        Inputs(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sha256_reads_what_it_prints() {
        let hash = Sha256::of(b"abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.to_string().parse(), Ok(hash));
    }

    #[test]
    fn a_short_or_strange_hash_is_refused() {
        for text in ["", "ba78", &"x".repeat(64), &"é".repeat(32)] {
            assert_eq!(text.parse::<Sha256>(), Err(NotASha256(text.to_owned())));
        }
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let one = Inputs::of("t").field("ab", b"c").finish();
        let two = Inputs::of("t").field("a", b"bc").finish();
        assert_ne!(one, two);
    }
}
