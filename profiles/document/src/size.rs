//! Byte sizes as text: `"8GiB"`, `"512MiB"`, `"4096KiB"`, `"512B"`. Only whole numbers with a binary unit.

/// The units, largest first.
const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A number alone: bytes, or the MiB of libvirt and QEMU?
    #[error("`{0}` has no unit")]
    NoUnit(String),
    /// A unit that is not one of ours.
    #[error("`{0}` is not a unit of size")]
    Unit(String),
    /// Not a whole number in front of the unit.
    #[error("`{0}` is not a whole number")]
    Number(String),
    /// More bytes than 64 bits count.
    #[error("`{0}` is larger than any size")]
    TooLarge(String),
}

/// Bytes of a size such as `8GiB`.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() || unit.starts_with(['.', ',']) {
        return Err(SizeError::Number(text.to_owned()));
    }
    if unit.is_empty() {
        return Err(SizeError::NoUnit(text.to_owned()));
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(SizeError::Unit(unit.to_owned()));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*factor))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// The shortest exact text for a number of bytes.
pub fn format_size(bytes: u64) -> String {
    match UNITS.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// What was probably meant by a unit that is not one of ours.
pub(crate) fn unit_meant(unit: &str) -> Option<&'static str> {
    match unit.to_ascii_lowercase().as_str() {
        "t" | "tb" | "tib" => Some("TiB"),
        "g" | "gb" | "gib" => Some("GiB"),
        "m" | "mb" | "mib" => Some("MiB"),
        "k" | "kb" | "kib" => Some("KiB"),
        "b" | "byte" | "bytes" => Some("B"),
        _ => None,
    }
}
