//! libvirt's numbers: sizes with its units, CPU lists with exclusions. Pure.

use crate::topology::CpuSet;

/// Bytes of a number with one of libvirt's units; without one it counts KiB.
pub(super) fn bytes(number: &str, unit: Option<&str>) -> Option<u64> {
    let factor: u64 = match unit.unwrap_or("KiB") {
        "b" | "bytes" | "byte" => 1,
        "KB" => 1_000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.trim().parse::<u64>().ok()?.checked_mul(factor)
}

/// A CPU list; `^3` takes a CPU out of those before it.
pub(super) fn cpus(text: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in text.split(',').map(str::trim) {
        match part.strip_prefix('^') {
            Some(without) => set = set.minus(&without.parse().ok()?),
            None => set = set.or(&part.parse().ok()?),
        }
    }
    (!set.is_empty()).then_some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_libvirts_units() {
        for (number, unit, wanted) in [
            ("1048576", None, Some(1 << 30)),
            (" 4 ", Some("GiB"), Some(4 << 30)),
            ("4", Some("G"), Some(4 << 30)),
            ("2000", Some("MB"), Some(2_000_000_000)),
            ("512", Some("bytes"), Some(512)),
            ("1", Some("TB"), Some(1_000_000_000_000)),
            ("1", Some("PiB"), None),
            ("x", None, None),
            ("", None, None),
            ("99999999999999999999", None, None),
            ("18446744073709551615", Some("T"), None),
        ] {
            assert_eq!(bytes(number, unit), wanted, "{number} {unit:?}");
        }
    }

    #[test]
    fn cpu_lists_leave_out_what_is_struck_from_them() {
        for (text, wanted) in [
            ("0-3", Some("0-3")),
            ("1-4,^3", Some("1-2,4")),
            ("1-4,^2-3,8", Some("1,4,8")),
            ("^1,1-2", Some("1-2")),
            ("3,^3", None),
            ("", None),
            ("a", None),
            ("1,^", Some("1")),
        ] {
            assert_eq!(cpus(text).map(|set| set.to_string()).as_deref(), wanted, "{text}");
        }
    }
}
