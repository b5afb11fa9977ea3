//! CRC-32C (Castagnoli), as ext4 sums its metadata: started with a seed, never complemented at the end.

/// The sum of `bytes` after what gave `seed`; a new sum starts with all ones.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    if cfg!(feature = "fuzzing") {
        return 0;
    }
    // The library takes and gives sums complemented, as network protocols have them.
    !::crc32c::crc32c_append(!seed, bytes)
}

/// The sums of one filesystem: each begins with its UUID, most go on with what the block belongs to.
// Documentation/filesystems/ext4/checksums.rst has the table of what goes into which.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checksums {
    seed: u32,
}

impl Checksums {
    pub(super) fn new(uuid: &[u8; 16]) -> Self {
        Self { seed: crc32c(u32::MAX, uuid) }
    }

    pub(super) fn of(self, bytes: &[u8]) -> u32 {
        crc32c(self.seed, bytes)
    }

    /// Where the sums of everything that belongs to an inode start. No inode of ours has a generation.
    pub(super) fn inode_seed(self, number: u32, generation: u32) -> u32 {
        crc32c(crc32c(self.seed, &number.to_le_bytes()), &generation.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_castagnolis() {
        // The check value that every description of the polynomial gives, complemented at the end.
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_sum_goes_on_where_it_stopped() {
        let bytes: Vec<u8> = (0..=255).collect();
        for cut in [0, 1, 7, 8, 9, 100, 256] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(crc32c(crc32c(1, head), tail), crc32c(1, &bytes));
        }
    }
}
