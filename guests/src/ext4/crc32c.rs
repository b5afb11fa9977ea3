//! CRC-32C (Castagnoli), as ext4 sums its metadata: started with a seed, never complemented at the end.

const POLYNOMIAL: u32 = 0x82f6_3b78;
const TABLES: [[u32; 256]; 8] = tables();

/// `TABLES[k][b]`: what byte `b` adds when `k` more bytes follow it.
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let shorter = tables[table - 1][byte];
            tables[table][byte] = (shorter >> 8) ^ tables[0][(shorter & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The sum of `bytes` after what gave `seed`; a new sum starts with all ones.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut sum = seed;
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        let word = u64::from_le_bytes(*eight) ^ u64::from(sum);
        sum = 0;
        for (index, byte) in word.to_le_bytes().into_iter().enumerate() {
            sum ^= TABLES[7 - index][usize::from(byte)];
        }
    }
    for byte in rest {
        sum = (sum >> 8) ^ TABLES[0][((sum ^ u32::from(*byte)) & 0xff) as usize];
    }
    sum
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
