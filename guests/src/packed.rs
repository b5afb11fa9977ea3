//! Bytes that are packed: gzip, xz, zstd and what else kernels come in, unpacked by decoders that are compiled in. Says nothing
//! about what is inside.

use std::io::{Cursor, Read};

/// What anything may unpack to: several times the largest kernel package, and less than would take a builder's memory.
pub(crate) const MOST_BYTES: u64 = if cfg!(feature = "fuzzing") { 8 << 20 } else { 4 << 30 };

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Lzma,
}

impl Packing {
    /// By the ending of a file's name: `.xz`, `.zst`, `.gz` or none.
    pub(crate) fn of_ending(ending: &str) -> Result<Self, String> {
        match ending {
            "" => Ok(Self::None),
            ".gz" => Ok(Self::Gzip),
            ".xz" => Ok(Self::Xz),
            ".zst" => Ok(Self::Zstd),
            other => Err(format!("compression `{other}` is not known")),
        }
    }

    /// By the first bytes; what begins like none of the others is taken as not packed.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
        }
    }

    pub(crate) fn unpack(self, packed: &[u8]) -> Result<Vec<u8>, String> {
        self.unpack_at_most(MOST_BYTES, packed)
    }

    pub(crate) fn unpack_at_most(self, most: u64, packed: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        let limit = most + 1;
        let read = match self {
            Self::None => packed.take(limit).read_to_end(&mut out),
            Self::Xz => liblzma::read::XzDecoder::new_multi_decoder(packed).take(limit).read_to_end(&mut out),
            Self::Gzip => flate2::read::MultiGzDecoder::new(packed).take(limit).read_to_end(&mut out),
            Self::Zstd => unpack_zstd(limit, packed, &mut out),
            Self::Bzip2 => bzip2::read::MultiBzDecoder::new(packed).take(limit).read_to_end(&mut out),
            Self::Lzma => {
                let stream =
                    liblzma::stream::Stream::new_lzma_decoder(u64::MAX).map_err(|error| error.to_string())?;
                liblzma::read::XzDecoder::new_stream(packed, stream).take(limit).read_to_end(&mut out)
            }
        };
        read.map_err(|error| error.to_string())?;
        if out.len() as u64 > most {
            return Err(format!("it unpacks to more than {most} bytes"));
        }
        Ok(out)
    }
}

/// Decompresses by the ending of a file's name, as [`Packing::of_ending`] knows it.
pub(crate) fn unpack(ending: &str, packed: &[u8]) -> Result<Vec<u8>, String> {
    Packing::of_ending(ending)?.unpack(packed)
}

/// All frames of a zstd stream, one after another. Skippable frames (RFC 8878, 3.1.2) hold an index in some images' layers.
fn unpack_zstd(limit: u64, packed: &[u8], out: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut rest = packed;
    while !rest.is_empty() && (out.len() as u64) < limit {
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, frame @ ..] = rest {
            let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            rest = frame.get(length..).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            continue;
        }
        let mut reader = Cursor::new(rest);
        let frame = ruzstd::decoding::StreamingDecoder::new(&mut reader).map_err(std::io::Error::other)?;
        frame.take(limit - out.len() as u64).read_to_end(out)?;
        rest = rest.get(reader.position() as usize..).unwrap_or_default();
    }
    Ok(out.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pack;

    #[test]
    fn what_unpacks_without_end_is_refused() {
        let zeros = vec![0_u8; 1 << 20];
        for ending in ["", ".xz", ".gz", ".zst"] {
            let packed = pack(ending, &zeros);
            let packing = Packing::of_ending(ending).unwrap();
            assert_eq!(
                packing.unpack_at_most(1 << 20, &packed).map(|out| out.len()),
                Ok(1 << 20),
                "{ending}"
            );
            let error = packing.unpack_at_most((1 << 20) - 1, &packed).unwrap_err();
            assert_eq!(error, "it unpacks to more than 1048575 bytes", "{ending}");
        }
    }

    #[test]
    fn the_first_bytes_tell_how_something_is_packed() {
        for (ending, packing) in
            [("", Packing::None), (".gz", Packing::Gzip), (".xz", Packing::Xz), (".zst", Packing::Zstd)]
        {
            assert_eq!(Packing::of_bytes(&pack(ending, b"content")), packing);
            assert_eq!(Packing::of_ending(ending), Ok(packing));
        }
        assert_eq!(Packing::of_ending(".lz"), Err("compression `.lz` is not known".to_owned()));
    }

    #[test]
    fn frames_of_zstd_that_hold_no_data_are_passed_over() {
        let skippable = b"\x5a\x2a\x4d\x18\x03\0\0\0abc";
        let one = pack(".zst", b"one");
        let stream = [&skippable[..], &one, skippable, &pack(".zst", b"two")].concat();
        assert_eq!(Packing::of_bytes(&stream), Packing::Zstd);
        assert_eq!(Packing::Zstd.unpack(&stream), Ok(b"onetwo".to_vec()));
        let cut = [&one[..], &skippable[..9]].concat();
        assert!(Packing::Zstd.unpack(&cut).is_err());
    }
}
