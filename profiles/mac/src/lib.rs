//! A network device's hardware address (MAC address), as text and as bytes. The language, the command line and the guest's
//! first process read and print it by this one type, which needs nothing of any of them.

use std::fmt;
use std::str::FromStr;

/// In the order in which a frame has its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hardware address is six bytes in hexadecimal, such as 52:54:00:12:34:56")]
pub struct NotAMacAddress;

impl MacAddress {
    pub const fn new(octets: [u8; 6]) -> MacAddress {
        MacAddress(octets)
    }

    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether a device may have it for its own: not a group's (IEEE 802: the lowest bit of the first byte), and not all zero,
    /// which Linux takes for none.
    pub fn is_a_devices_own(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

/// `52:54:00:12:34:56`, in letters of either case.
impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    fn from_str(text: &str) -> Result<MacAddress, NotAMacAddress> {
        // Two digits each; from_str_radix alone would take `+5`.
        let byte = |part: &str| match part.len() == 2 && !part.starts_with('+') {
            true => u8::from_str_radix(part, 16).ok(),
            false => None,
        };
        let octets: Option<Vec<u8>> = text.split(':').map(byte).collect();
        octets.and_then(|octets| octets.try_into().ok()).map(MacAddress).ok_or(NotAMacAddress)
    }
}

/// As messages, arguments and /sys have it: in lower case.
impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_bytes_of_two_digits() {
        let address = MacAddress::new([0x52, 0x54, 0, 0xab, 0xcd, 1]);
        assert_eq!("52:54:00:AB:cd:01".parse(), Ok(address));
        assert_eq!(address.to_string(), "52:54:00:ab:cd:01");
        for bad in [
            "",
            "52:54",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5g",
            "52:54:0:12:34:56",
            "52:54:+1:12:34:56",
            "52-54-00-12-34-56",
            "52:54:00:12:34:56\n",
            "52:54:00:12:34:é",
        ] {
            assert_eq!(bad.parse::<MacAddress>(), Err(NotAMacAddress), "{bad:?}");
        }
    }

    #[test]
    fn a_groups_address_and_none_at_all_are_no_devices_own() {
        assert!(MacAddress::new([2, 0, 0, 0, 0, 0]).is_a_devices_own());
        assert!(MacAddress::new([0, 0, 0, 0, 0, 1]).is_a_devices_own());
        assert!(!MacAddress::new([0xff; 6]).is_a_devices_own());
        assert!(!MacAddress::new([1, 0, 0x5e, 0, 0, 1]).is_a_devices_own());
        assert!(!MacAddress::new([0; 6]).is_a_devices_own());
    }
}
