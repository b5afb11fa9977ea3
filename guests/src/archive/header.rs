//! The block of 512 bytes before each member: fixed fields, numbers in octal or, in GNU's way, in base 256.

pub(super) const BLOCK_BYTES: usize = 512;

/// Of a file with holes: where each part lies, and how long it is.
pub(super) type Parts = Vec<(u64, u64)>;

/// A block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK_BYTES]);

impl<'a> Header<'a> {
    pub(super) fn new(block: &'a [u8; BLOCK_BYTES]) -> Result<Self, String> {
        let header = Self(block);
        let counted = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
        let bytes = || block.iter().enumerate().map(|(at, byte)| counted(at, *byte));
        let sum: u64 = bytes().map(u64::from).sum();
        // Some old programs summed signed bytes.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        let stated = number(header.field(148, 8)).map_err(|_| "a header has no checksum".to_owned())?;
        if stated != sum && i64::try_from(stated) != Ok(signed) {
            return Err("the checksum of a header is wrong".to_owned());
        }
        Ok(header)
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// With ustar's prefix, where there is one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = text(self.field(345, 155));
        // GNU's magic ends with a blank and has other fields where ustar's prefix is.
        if self.field(257, 6) == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u64, String> {
        number(self.field(100, 8)).map_err(|found| format!("the mode {found} is not a number"))
    }

    pub(super) fn uid(&self) -> Result<u64, String> {
        number(self.field(108, 8)).map_err(|found| format!("the owner {found} is not a number"))
    }

    pub(super) fn gid(&self) -> Result<u64, String> {
        number(self.field(116, 8)).map_err(|found| format!("the group {found} is not a number"))
    }

    pub(super) fn size(&self) -> Result<u64, String> {
        number(self.field(124, 12)).map_err(|found| format!("the size {found} is not a number"))
    }

    pub(super) fn device(&self) -> Result<(u32, u32), String> {
        let part = |at: usize| {
            let value = number(self.field(at, 8)).ok().and_then(|value| u32::try_from(value).ok());
            value.ok_or_else(|| "its device number is not a number".to_owned())
        };
        Ok((part(329)?, part(337)?))
    }

    /// Of an old GNU sparse file: four parts, whether more follow, and the whole size.
    pub(super) fn sparse(&self) -> Result<(Parts, bool, u64), String> {
        let size =
            number(self.field(483, 12)).map_err(|found| format!("the size {found} is not a number"))?;
        Ok((sparse_parts(self.field(386, 96))?, self.0[482] != 0, size))
    }

    fn field(&self, at: usize, bytes: usize) -> &'a [u8] {
        // Callers name the standard's offsets, all within the block.
        &self.0[at..at + bytes]
    }
}

/// Pairs of offset and length, 12 bytes each, until one that is empty.
pub(super) fn sparse_parts(field: &[u8]) -> Result<Parts, String> {
    let value = |bytes: &[u8]| number(bytes).map_err(|found| format!("{found} in its map is not a number"));
    let pairs = field.chunks_exact(24).take_while(|pair| pair[0] != 0);
    pairs.map(|pair| Ok((value(&pair[..12])?, value(&pair[12..])?))).collect()
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits among blanks and zero bytes, none at all being 0; or a first bit that says that the rest is one large
/// number. The error is what was found.
fn number(field: &[u8]) -> Result<u64, String> {
    let found = || format!("`{}`", field.escape_ascii());
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        // The second bit is the sign: nothing here may be below zero.
        if first & 0x40 != 0 {
            return Err(found());
        }
        return rest.iter().try_fold(u64::from(first & 0x3f), |value, byte| {
            let value = value.checked_mul(256).ok_or_else(found)?;
            Ok(value | u64::from(*byte))
        });
    }
    let digits = text(field).trim_ascii();
    if digits.iter().any(|byte| !(b'0'..=b'7').contains(byte)) {
        return Err(found());
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        value.checked_mul(8).map(|value| value + u64::from(byte - b'0')).ok_or_else(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_and_never_below_zero() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"\x80\0\0\0\x80\0\0\x01", Some(0x8000_0001)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(0x7fff_ffff_ffff_ffff)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"0000648\0", None),
            (b"-1\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field).ok(), value, "{field:?}");
        }
    }
}
