//! What makes one filesystem another than the next: UUIDs and the key of directory hashes, all derived from the content.

use super::crc32c::Checksums;
use super::hash::HashSeed;

#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) uuid: [u8; 16],
    pub(super) journal_uuid: [u8; 16],
    pub(super) hash_seed: [u8; 16],
}

impl Identity {
    pub(super) fn of(manifest: &blake3::Hash) -> Self {
        let derive = |what: &str| {
            let key = blake3::derive_key(&format!("vmprof ext4 image, {what}"), manifest.as_bytes());
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&key[..16]);
            // RFC 9562, 5.8: version 8 is for UUIDs made in a way of one's own.
            bytes[6] = bytes[6] & 0x0f | 0x80;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            bytes
        };
        Self {
            uuid: derive("filesystem UUID"),
            journal_uuid: derive("journal UUID"),
            hash_seed: derive("directory hash seed"),
        }
    }

    pub(super) fn sums(&self) -> Checksums {
        Checksums::new(&self.uuid)
    }

    pub(super) fn directory_seed(&self) -> HashSeed {
        let (words, _) = self.hash_seed.as_chunks::<4>();
        let mut seed = [0; 4];
        for (seed, word) in seed.iter_mut().zip(words) {
            *seed = u32::from_le_bytes(*word);
        }
        HashSeed(seed)
    }
}
