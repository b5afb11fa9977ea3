//! A distribution's kernel as a VMM likes to start it: vmlinuz is a small program that unpacks an ELF file; here that
//! happens once, on the building machine, instead of at every boot of every guest.

use std::io::Read as _;

use crate::deb::unpack;

/// Offsets in the boot protocol's setup header (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const VERSION_TEXT: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The blocks of an LZ4 legacy frame unpack to this at most.
const LZ4_BLOCK_BYTES: usize = 8 << 20;
/// Far more than any kernel; what a damaged file may ask for at most.
const LARGEST_KERNEL_BYTES: usize = 1 << 30;

/// An unpacked kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) elf: Vec<u8>,
    /// `6.1.0-50-cloud-amd64`, from the setup header.
    pub(crate) release: String,
}

/// Unpacks a bzImage. The error says what was found.
pub(crate) fn unpack_vmlinuz(image: &[u8]) -> Result<Kernel, String> {
    let (at, magic) = MAGIC;
    if image.get(at..at + magic.len()) != Some(magic) {
        return Err("not a bzImage: it has no setup header".to_owned());
    }
    let short = || "the setup header points behind the file's end".to_owned();
    // Zero means four, from the days of the boot sector.
    let setup_sectors = match image[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let protected = (setup_sectors + 1) * 512;
    let start = protected.checked_add(word(image, PAYLOAD_OFFSET).ok_or_else(short)?).ok_or_else(short)?;
    let end = start.checked_add(word(image, PAYLOAD_LENGTH).ok_or_else(short)?).ok_or_else(short)?;
    let payload = image.get(start..end).ok_or_else(short)?;
    // The kernel's build appends the unpacked size to every compressor's output (gzip ends with it by itself).
    let (packed, size) = payload.split_last_chunk::<4>().ok_or_else(short)?;
    let size = u32::from_le_bytes(*size) as usize;
    let elf = match payload {
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => {
            unpack_lz4_legacy(&blocks[..blocks.len().saturating_sub(4)], size)?
        }
        [0x1f, 0x8b, ..] => unpack_gzip(payload)?,
        [0xfd, b'7', b'z', b'X', b'Z', ..] => unpack(".xz", packed)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => unpack(".zst", packed)?,
        [b'B', b'Z', b'h', ..] => return Err("bzip2".to_owned()),
        [0x5d, 0, 0, ..] => return Err("lzma".to_owned()),
        [0x89, b'L', b'Z', b'O', ..] => return Err("lzo".to_owned()),
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        other => return Err(format!("unknown first bytes {:02x?}", &other[..other.len().min(4)])),
    };
    if !elf.starts_with(b"\x7fELF") {
        return Err("what is packed in it is not an ELF file".to_owned());
    }
    if !payload.starts_with(b"\x7fELF") && elf.len() != size {
        return Err(format!("it unpacks to {} bytes and should to {size}", elf.len()));
    }
    Ok(Kernel { elf, release: release(image)? })
}

fn word(image: &[u8], at: usize) -> Option<usize> {
    let bytes = image.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

/// The first word of the version text.
fn release(image: &[u8]) -> Result<String, String> {
    let none = || "the setup header has no kernel version".to_owned();
    let offset = image.get(VERSION_TEXT..VERSION_TEXT + 2).ok_or_else(none)?;
    let at = usize::from(u16::from_le_bytes([offset[0], offset[1]])) + 0x200;
    let text: Vec<u8> =
        image.get(at..).ok_or_else(none)?.iter().copied().take(200).take_while(|&b| b > b' ').collect();
    let text = String::from_utf8(text).map_err(|_| none())?;
    if text.is_empty() { Err(none()) } else { Ok(text) }
}

fn unpack_gzip(payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(payload).read_to_end(&mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

/// Blocks with a length in front of each, until the data ends.
fn unpack_lz4_legacy(mut blocks: &[u8], size: usize) -> Result<Vec<u8>, String> {
    if size > LARGEST_KERNEL_BYTES {
        return Err(format!("it claims to unpack to {size} bytes"));
    }
    let mut out = vec![0; size];
    let mut filled = 0;
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or("a block of its LZ4 data is cut off")?;
        let room = (size - filled).min(LZ4_BLOCK_BYTES);
        let space = &mut out[filled..filled + room];
        filled += lz4_flex::block::decompress_into(block, space).map_err(|error| error.to_string())?;
        blocks = &rest[length..];
    }
    out.truncate(filled);
    Ok(out)
}

/// Kernels made up on the spot.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod made {
    use super::*;

    /// A bzImage with this payload and the appended size.
    pub(crate) fn image(payload: &[u8], size: u32) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[VERSION_TEXT..VERSION_TEXT + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x316].copy_from_slice(b"6.1.0-9-test (a@b) #1\0");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(&size.to_le_bytes());
        image
    }

    pub(crate) fn lz4(elf: &[u8]) -> Vec<u8> {
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        for part in elf.chunks(LZ4_BLOCK_BYTES) {
            let block = lz4_flex::block::compress(part);
            payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
            payload.extend_from_slice(&block);
        }
        payload
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) use made::{image, lz4};

    fn elf(bytes: usize) -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..bytes).map(|n| (n / 1000) as u8));
        elf
    }

    #[test]
    fn an_lz4_kernel_of_several_blocks_unpacks_to_its_elf() {
        let elf = elf(LZ4_BLOCK_BYTES + 12_345);
        let kernel = unpack_vmlinuz(&image(&lz4(&elf), elf.len() as u32)).unwrap();
        assert_eq!(kernel.release, "6.1.0-9-test");
        assert!(kernel.elf == elf);
    }

    #[test]
    fn a_kernel_of_another_size_than_it_says_is_refused() {
        let elf = elf(5000);
        let error = unpack_vmlinuz(&image(&lz4(&elf), 6000)).unwrap_err();
        assert!(error.contains("5004 bytes and should to 6000"), "{error}");
    }

    #[test]
    fn compressions_without_a_decoder_are_refused_by_name() {
        assert_eq!(unpack_vmlinuz(&image(b"BZh9123", 9)), Err("bzip2".to_owned()));
        assert!(unpack_vmlinuz(b"MZ").is_err());
    }

    #[test]
    fn lengths_that_lead_out_of_the_file_are_refused() {
        let mut far = image(&lz4(&elf(100)), 104);
        far[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpack_vmlinuz(&far).unwrap_err().contains("behind the file's end"));
        let mut torn = lz4(&elf(100));
        torn[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(unpack_vmlinuz(&image(&torn, 104)).unwrap_err().contains("cut off"));
    }
}
