//! A distribution's kernel as a VMM likes to start it: vmlinuz is a small program that unpacks an ELF file; here that
//! happens once, on the building machine, instead of at every boot of every guest.

mod error;

use object::Endianness;
use object::elf::NoteType;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};

use crate::packed::Packing;

pub use error::KernelError;

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

/// Reads a vmlinux or a bzImage that somebody points at. The error says what is wrong with it.
pub(crate) fn of_file(bytes: &[u8]) -> Result<Kernel, String> {
    let kernel = if bytes.starts_with(b"\x7fELF") {
        let release = release_of_banner(bytes).ok_or("it holds no text `Linux version …`")?;
        Kernel { elf: bytes.to_vec(), release }
    } else {
        unpack_vmlinuz(bytes)?
    };
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+~".contains(&byte);
    if !kernel.release.bytes().all(known) {
        return Err(format!("its release `{}` is not a plain word", kernel.release.escape_default()));
    }
    if !has_pvh_entry(&kernel.elf)? {
        return Err("it has no PVH entry".to_owned());
    }
    Ok(kernel)
}

/// `Linux version 6.1.0 (…`, which every kernel keeps for /proc/version.
fn release_of_banner(elf: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = elf;
    while let Some(at) = rest.iter().position(|byte| *byte == BANNER[0]) {
        rest = rest.get(at..)?;
        // Elsewhere the words are followed by a placeholder.
        if let Some(text) =
            rest.strip_prefix(BANNER).filter(|text| text.first().is_some_and(u8::is_ascii_digit))
        {
            let word = text.iter().take(200).take_while(|byte| **byte > b' ').copied().collect();
            return String::from_utf8(word).ok();
        }
        rest = rest.get(1..)?;
    }
    None
}

/// Whether a note says where a VMM may start it (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`).
fn has_pvh_entry(elf: &[u8]) -> Result<bool, String> {
    const PHYS32_ENTRY: NoteType = NoteType(18);
    let text = |error: object::Error| error.to_string();
    let file = ElfFile64::<Endianness>::parse(elf).map_err(text)?;
    let endian = file.endian();
    let header = file.elf_header();
    if header.e_machine(endian) != object::elf::EM_X86_64 {
        return Err("it is not for x86-64".to_owned());
    }
    for segment in header.program_headers(endian, elf).map_err(text)? {
        let Some(mut notes) = segment.notes(endian, elf).map_err(text)? else { continue };
        while let Some(note) = notes.next().map_err(text)? {
            if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                return Ok(true);
            }
        }
    }
    Ok(false)
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
        // Its own end says the size, and the kernel's build adds none.
        [0x1f, 0x8b, ..] => Packing::Gzip.unpack(payload)?,
        [0x5d, 0, 0, ..] => Packing::Lzma.unpack(packed)?,
        [0x89, b'L', b'Z', b'O', ..] => return Err("LZO".to_owned()),
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        other => match Packing::of_bytes(other) {
            Packing::None => {
                return Err(format!("unknown first bytes {:02x?}", &other[..other.len().min(4)]));
            }
            packing => packing.unpack(packed)?,
        },
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
    use std::io::Read as _;

    use super::*;
    use crate::testing;

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
        assert_eq!(unpack_vmlinuz(&image(b"\x89LZO123", 9)), Err("LZO".to_owned()));
        assert!(unpack_vmlinuz(b"MZ").is_err());
    }

    #[test]
    fn every_compressor_with_a_decoder_unpacks() {
        let elf = elf(50_000);
        let size = elf.len() as u32;
        let appended = |form: &str| image(&testing::pack(form, &elf), size);
        // gzip ends with the size by itself.
        let gzip = testing::pack(".gz", &elf);
        let mut gzip = image(&gzip[..gzip.len() - 4], 0);
        let end = gzip.len();
        gzip[end - 4..].copy_from_slice(&size.to_le_bytes());
        let bzip2 = {
            let mut out = Vec::new();
            bzip2::read::BzEncoder::new(&elf[..], bzip2::Compression::fast()).read_to_end(&mut out).unwrap();
            image(&out, size)
        };
        let lzma = {
            let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
            let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
            let mut out = Vec::new();
            liblzma::read::XzEncoder::new_stream(&elf[..], stream).read_to_end(&mut out).unwrap();
            image(&out, size)
        };
        for (name, image) in [
            ("gzip", gzip),
            ("xz", appended(".xz")),
            ("zstd", appended(".zst")),
            ("bzip2", bzip2),
            ("lzma", lzma),
        ] {
            let kernel = unpack_vmlinuz(&image).unwrap_or_else(|problem| panic!("{name}: {problem}"));
            assert!(kernel.elf == elf, "{name}");
        }
    }

    #[test]
    fn a_vmlinux_says_its_release_and_needs_a_pvh_entry() {
        let whole = testing::vmlinux("6.9.1-own+");
        let kernel = of_file(&whole).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.elf == whole), ("6.9.1-own+", true));
        let mut other = whole.clone();
        let note = other.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
        other[note] = b'Y';
        assert_eq!(of_file(&other), Err("it has no PVH entry".to_owned()));
        let arm = [&whole[..18], &[183, 0], &whole[20..]].concat();
        assert_eq!(of_file(&arm), Err("it is not for x86-64".to_owned()));
        assert!(of_file(&testing::vmlinux("")).unwrap_err().contains("Linux version"));
        assert!(of_file(&testing::vmlinux("6.1/x")).is_err());
        assert!(of_file(b"MZ").unwrap_err().contains("not a bzImage"));
        // The same in a bzImage.
        let packed = image(&testing::pack(".xz", &whole), whole.len() as u32);
        assert_eq!(of_file(&packed).unwrap().release, "6.1.0-9-test");
        let packed = image(&testing::pack(".xz", &other), other.len() as u32);
        assert_eq!(of_file(&packed), Err("it has no PVH entry".to_owned()));
    }

    proptest::proptest! {
        #[test]
        fn damaged_kernels_are_read_or_refused(at in 0_usize..600, byte: u8, cut in 0_usize..600) {
            let mut bytes = testing::vmlinux("6.1");
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = of_file(&bytes);
            let _ = of_file(&bytes[..cut % length]);
        }
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
