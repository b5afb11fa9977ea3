//! Extended headers (POSIX pax): records `LENGTH KEY=VALUE\n`, counted and not ended by their newline, since values may hold
//! any byte; a file capability often does.

use std::collections::BTreeMap;

/// What Linux holds of one attribute: XATTR_NAME_MAX and XATTR_SIZE_MAX.
const LONGEST_ATTRIBUTE_NAME: usize = 255;
const LARGEST_ATTRIBUTE_BYTES: usize = 64 << 10;

/// Records in their order: sparse maps of the oldest form say a key again for each part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let bad = || "an extended header is damaged".to_owned();
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let blank = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = decimal(bytes.get(..blank).unwrap_or_default()).ok_or_else(bad)?;
            let record = usize::try_from(length).ok().and_then(|length| bytes.get(..length));
            let record = record.ok_or_else(bad)?;
            let text = record.get(blank + 1..).and_then(|text| text.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = text.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
            let (key, value) = text.split_at(equals);
            records.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
            bytes = bytes.get(record.len()..).unwrap_or_default();
        }
        Ok(Self(records))
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// These, with a member's own behind them, which count more.
    pub(super) fn with(&self, local: Self) -> Self {
        let mut all = self.clone();
        all.extend(local);
        all
    }

    fn last(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(found, _)| found == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The value; an empty one takes back what was said before.
    pub(super) fn text(&self, key: &str) -> Option<&[u8]> {
        self.last(key).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        let Some(value) = self.text(key) else { return Ok(None) };
        let number = decimal(value);
        number.map(Some).ok_or_else(|| format!("{key} `{}` is not a number", value.escape_ascii()))
    }

    /// The values of every record with one of these keys, in their order.
    pub(super) fn each<'a>(&'a self, keys: &'a [&str]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let named = |key: &[u8]| keys.iter().any(|name| name.as_bytes() == key);
        self.0
            .iter()
            .filter(move |(key, _)| named(key))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Extended attributes, as GNU tar and star write them and as libarchive does.
    pub(super) fn xattrs(&self) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let mut plain = BTreeMap::new();
        let mut encoded = BTreeMap::new();
        for (key, value) in &self.0 {
            let name = key.escape_ascii().to_string();
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                plain.insert(attribute_name(name.to_vec())?, value.clone());
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let bad = |what: &str| format!("{what} of the extended attribute {name:?} is damaged");
                let name = percent_decoded(name).ok_or_else(|| bad("the name"))?;
                let value = base64_decoded(value).ok_or_else(|| bad("the value"))?;
                encoded.insert(attribute_name(name)?, value);
            } else if key == b"RHT.security.selinux" {
                encoded.insert("security.selinux".to_owned(), value.clone());
            } else if key.starts_with(b"SCHILY.acl.") && !value.is_empty() {
                return Err(format!("it has an access list as text ({name}), which is not read"));
            }
        }
        // Where both forms are there, the plain one is the original.
        encoded.extend(plain);
        for (name, value) in &encoded {
            if value.len() > LARGEST_ATTRIBUTE_BYTES {
                return Err(format!("its extended attribute {name} has {} bytes", value.len()));
            }
        }
        Ok(encoded)
    }
}

fn attribute_name(name: Vec<u8>) -> Result<String, String> {
    let bad = |name: &[u8]| format!("`{}` is not the name of an extended attribute", name.escape_ascii());
    let text = String::from_utf8(name).map_err(|error| bad(error.as_bytes()))?;
    let has_space = text.split_once('.').is_some_and(|(space, rest)| !space.is_empty() && !rest.is_empty());
    if !has_space || text.len() > LONGEST_ATTRIBUTE_NAME || text.contains('\0') {
        return Err(bad(text.as_bytes()));
    }
    Ok(text)
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first == b'%' {
            let ([high, low], behind) = rest.split_first_chunk::<2>()?;
            out.push(digit(*high)? * 16 + digit(*low)?);
            rest = behind;
        } else {
            out.push(*first);
        }
    }
    Some(out)
}

/// Base 64, with or without `=` at its end.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |at| at + 1);
    let (text, closing) = text.split_at(end);
    if closing.len() > 2 || text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        out.extend(bits.to_be_bytes().into_iter().skip(1).take(group.len() - 1));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines_and_zeros() {
        let records = Records::parse(b"12 a=1\n\0=b\n\n11 path=xy\n").unwrap();
        assert_eq!(records.last("a"), Some(&b"1\n\0=b\n"[..]));
        assert_eq!(records.text("path"), Some(&b"xy"[..]));
    }

    #[test]
    fn damaged_records_are_refused() {
        for bytes in
            [&b"11 path=x"[..], b"9 path=xy\n", b"x path=y\n", b"6 =xy\n", b"6 abc\n", b" a=b\n", b"0 \n"]
        {
            assert!(Records::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn base_64_reads_every_length() {
        for (text, plain) in
            [("", ""), ("YQ", "a"), ("YQ==", "a"), ("YWI", "ab"), ("YWJj", "abc"), ("YWJjZGU=", "abcde")]
        {
            assert_eq!(base64_decoded(text.as_bytes()).unwrap(), plain.as_bytes(), "{text}");
        }
        for text in ["Y", "Y*==", "YQ==="] {
            assert_eq!(base64_decoded(text.as_bytes()), None, "{text}");
        }
    }
}
