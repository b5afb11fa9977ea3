//! Spans of time as text: `"90s"`, `"500ms"`, `"5m"`, `"1h"`. Only whole numbers with a unit.

/// The units in milliseconds, largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is not a span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number alone: seconds, or milliseconds?
    #[error("`{0}` has no unit")]
    NoUnit(String),
    /// A unit that is not one of ours.
    #[error("`{0}` is not a unit of time")]
    Unit(String),
    /// Not a whole number in front of the unit.
    #[error("`{0}` is not a whole number")]
    Number(String),
    /// More milliseconds than 64 bits count.
    #[error("`{0}` is longer than can be counted")]
    TooLong(String),
}

/// Milliseconds of a span such as `90s`.
pub fn parse_duration(text: &str) -> Result<u64, DurationError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() || unit.starts_with(['.', ',']) {
        return Err(DurationError::Number(text.to_owned()));
    }
    if unit.is_empty() {
        return Err(DurationError::NoUnit(text.to_owned()));
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(DurationError::Unit(unit.to_owned()));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*factor))
        .ok_or_else(|| DurationError::TooLong(text.to_owned()))
}

/// The shortest exact text for a number of milliseconds.
pub fn format_duration(milliseconds: u64) -> String {
    match UNITS.iter().find(|(_, factor)| milliseconds != 0 && milliseconds.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", milliseconds / factor),
        None => format!("{milliseconds}ms"),
    }
}

/// What was probably meant by a unit that is not one of ours.
pub(crate) fn unit_meant(unit: &str) -> Option<&'static str> {
    match unit.to_ascii_lowercase().as_str() {
        "h" | "hr" | "hour" | "hours" => Some("h"),
        "m" | "min" | "mins" | "minute" | "minutes" => Some("m"),
        "s" | "sec" | "secs" | "second" | "seconds" => Some("s"),
        "ms" | "msec" | "millisecond" | "milliseconds" => Some("ms"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_whole_number_with_a_unit() {
        for (text, milliseconds) in [("250ms", 250), ("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(milliseconds));
            assert_eq!(parse_duration(&format_duration(milliseconds)), Ok(milliseconds));
        }
        assert_eq!(format_duration(0), "0ms");
        assert!(matches!(parse_duration("90"), Err(DurationError::NoUnit(_))));
        assert!(matches!(parse_duration("90sec"), Err(DurationError::Unit(_))));
        assert!(matches!(parse_duration("1.5s"), Err(DurationError::Number(_))));
        assert!(matches!(parse_duration("s"), Err(DurationError::Number(_))));
        assert!(matches!(parse_duration("99999999999999999999s"), Err(DurationError::TooLong(_))));
    }
}
