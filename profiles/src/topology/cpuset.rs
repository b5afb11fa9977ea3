//! Sets of small ids (CPUs, nodes, virtqueues) and the kernel's list syntax for them: `0-3,8`.
//!
//! Pure: nothing here reads a file. There is no limit of 1024; what a text may name ends at [`CpuSet::LIMIT`] only so
//! that a typing error cannot ask for gigabytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A set of CPU ids, printed as the kernel prints it.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CpuSet {
    /// Bit `i % 64` of word `i / 64`; the last word is never zero, so that equal sets compare equal.
    words: Vec<u64>,
}

/// A set of NUMA node ids, in the same syntax.
pub type NodeSet = CpuSet;

/// Why a text is not a list of ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Something between the commas is no number.
    #[error("`{0}` is not a number or a range")]
    NotANumber(String),
    /// A range whose end lies before its start.
    #[error("the range `{0}` runs backwards")]
    Backwards(String),
    /// An id beyond anything a host has.
    #[error("{0} is beyond the largest id, {max}", max = CpuSet::LIMIT - 1)]
    TooLarge(String),
    /// Nothing between two commas.
    #[error("nothing stands between two commas")]
    Gap,
}

impl CpuSet {
    /// Ids lie below this.
    pub const LIMIT: u32 = 1 << 16;

    /// The empty set.
    pub fn new() -> Self {
        CpuSet::default()
    }

    /// The set of one id.
    pub fn of(id: u32) -> Self {
        CpuSet::from_iter([id])
    }

    /// Adds an id. Ids at or above [`CpuSet::LIMIT`] do not exist and are left out.
    pub fn insert(&mut self, id: u32) {
        if id >= CpuSet::LIMIT {
            return;
        }
        let word = id as usize / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % 64);
    }

    /// Adds all ids from `first` to `last`, both included.
    pub fn insert_range(&mut self, first: u32, last: u32) {
        let last = last.min(CpuSet::LIMIT - 1);
        if last < first {
            return;
        }
        let (from, to) = (first as usize / 64, last as usize / 64);
        if self.words.len() <= to {
            self.words.resize(to + 1, 0);
        }
        for word in from..=to {
            let above = if word == from { u64::MAX << (first % 64) } else { u64::MAX };
            let below = if word == to { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            self.words[word] |= above & below;
        }
    }

    /// Adds what the other set has.
    pub fn extend_with(&mut self, other: &CpuSet) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(own, more)| *own |= more);
    }

    /// Reads a mask as the kernel and hwloc print it, hexadecimal words of 32 bits, the highest first:
    /// `00000003,ffffffff`, `0x00000003,0xffffffff`, and with `0xf...f` in front, every id above.
    pub fn from_mask(text: &str) -> Result<CpuSet, ListError> {
        let mut set = CpuSet::new();
        let words: Vec<&str> = text.trim().split(',').map(str::trim).collect();
        let no_mask = |word: &str| ListError::NotANumber(word.chars().take(40).collect());
        for (at, word) in words.iter().rev().enumerate() {
            let digits = word.strip_prefix("0x").unwrap_or(word);
            if digits == "f...f" && at + 1 == words.len() {
                set.insert_range((at as u32).saturating_mul(32), CpuSet::LIMIT - 1);
                break;
            }
            // hwloc leaves words of zeros empty.
            if digits.is_empty() && words.len() > 1 {
                continue;
            }
            if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(no_mask(word));
            }
            let mut bits = u32::from_str_radix(digits, 16).map_err(|_| no_mask(word))?;
            while bits != 0 {
                let id = (at as u32).saturating_mul(32).saturating_add(bits.trailing_zeros());
                if id >= CpuSet::LIMIT {
                    return Err(ListError::TooLarge(id.to_string()));
                }
                set.insert(id);
                bits &= bits - 1;
            }
        }
        Ok(set)
    }

    /// Whether the id is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|w| w & (1 << (id % 64)) != 0)
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at * 64 + bit)
            })
        })
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The lowest id.
    pub fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// The highest id.
    pub fn last(&self) -> Option<u32> {
        let last = *self.words.last()?;
        // The last word is never zero, and there are at most `LIMIT / 64` of them.
        Some((self.words.len() as u32) * 64 - 1 - last.leading_zeros())
    }

    /// Ids in both.
    #[must_use]
    pub fn and(&self, other: &CpuSet) -> CpuSet {
        CpuSet { words: self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect() }.trimmed()
    }

    /// Ids in either.
    #[must_use]
    pub fn or(&self, other: &CpuSet) -> CpuSet {
        let (short, long) = if self.words.len() < other.words.len() { (self, other) } else { (other, self) };
        let mut all = long.clone();
        all.extend_with(short);
        all
    }

    /// Ids in this set and not in the other.
    #[must_use]
    pub fn minus(&self, other: &CpuSet) -> CpuSet {
        let word = |i: usize| other.words.get(i).copied().unwrap_or(0);
        CpuSet { words: self.words.iter().enumerate().map(|(i, w)| w & !word(i)).collect() }.trimmed()
    }

    /// Whether every id of this set is in the other.
    pub fn is_subset(&self, other: &CpuSet) -> bool {
        let word = |i: usize| other.words.get(i).copied().unwrap_or(0);
        self.words.iter().enumerate().all(|(i, own)| own & !word(i) == 0)
    }

    /// Whether an id is in both.
    pub fn meets(&self, other: &CpuSet) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    fn trimmed(mut self) -> Self {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
        self
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut set = CpuSet::new();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

impl FromStr for CpuSet {
    type Err = ListError;

    /// Reads `0-3,8`; blanks around numbers do not matter, and the empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, ListError> {
        // Thousands of lists are read of a large host, nearly all of them right.
        if let Some(set) = plain_list(text.as_bytes()) {
            return Ok(set);
        }
        let mut set = CpuSet::new();
        if text.trim().is_empty() {
            return Ok(set);
        }
        for part in text.split(',').map(str::trim) {
            if part.is_empty() {
                return Err(ListError::Gap);
            }
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (id(low, part)?, id(high, part)?);
            if last < first {
                return Err(ListError::Backwards(part.to_owned()));
            }
            set.insert_range(first, last);
        }
        Ok(set)
    }
}

/// A list as the kernel prints it, `0-3,8` or `0, 2`, in one pass; `None` for everything else, which may be right.
fn plain_list(text: &[u8]) -> Option<CpuSet> {
    // The ids of a long list tend to be large: room for 1,024.
    let mut set = CpuSet { words: Vec::with_capacity(if text.len() > 24 { 16 } else { 0 }) };
    let mut rest = text;
    loop {
        let first = plain_id(&mut rest)?;
        let mut last = first;
        if let [b'-', more @ ..] = rest {
            rest = more;
            last = plain_id(&mut rest).filter(|last| *last >= first)?;
        }
        if first == last {
            set.insert(first)
        } else {
            set.insert_range(first, last)
        }
        match rest {
            [] | [b'\n'] => return Some(set),
            [b',', b' ', more @ ..] | [b',', more @ ..] => rest = more,
            _ => return None,
        }
    }
}

fn plain_id(rest: &mut &[u8]) -> Option<u32> {
    let mut id = None;
    while let [digit @ b'0'..=b'9', more @ ..] = *rest {
        let next = id.unwrap_or(0) * 10 + u32::from(digit - b'0');
        id = (next < CpuSet::LIMIT).then_some(next);
        id?;
        *rest = more;
    }
    id
}

fn id(text: &str, part: &str) -> Result<u32, ListError> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ListError::NotANumber(part.to_owned()));
    }
    match text.parse::<u32>() {
        Ok(id) if id < CpuSet::LIMIT => Ok(id),
        _ => Err(ListError::TooLarge(text.to_owned())),
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|next| *next == last + 1) {
                last = next;
            }
            match last == first {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_read_and_print_as_the_kernel_does() {
        for (text, printed, len) in [
            ("0-3,8\n", "0-3,8", 5),
            ("", "", 0),
            ("\n", "", 0),
            ("8,0-3", "0-3,8", 5),
            ("0,1,2", "0-2", 3),
            ("63-64", "63-64", 2),
            ("1023,1024-1025,4095", "1023-1025,4095", 4),
            (" 1 - 2 , 5", "1-2,5", 3),
        ] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!((set.to_string().as_str(), set.len()), (printed, len), "{text:?}");
        }
    }

    #[test]
    fn nonsense_lists_are_refused() {
        for text in ["a", "1-", "-1", "3-1", "1,,2", ",", "0-99999999999", "65536", "1 2", "0x3", "^1"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn masks_read_as_the_lists_they_stand_for() {
        for (mask, list) in [
            ("f\n", "0-3"),
            ("00000000,00000003", "0-1"),
            ("00000001,80000000,00000000", "63-64"),
            ("0xf0000000,0x0000ffff", "0-15,60-63"),
            ("0x1,,0x1", "0,64"),
            ("0x0", ""),
        ] {
            assert_eq!(CpuSet::from_mask(mask).unwrap().to_string(), list, "{mask}");
        }
        assert_eq!(CpuSet::from_mask("0xf...f,0x0").unwrap().to_string(), "32-65535");
        let beyond = format!("1{}", ",0".repeat(2048));
        let quiet = format!("0{}", ",0".repeat(5000));
        for mask in ["", "x", "0x", "123456789", "0x1 0x2", "-1", "f...f,f...f", beyond.as_str()] {
            assert!(CpuSet::from_mask(mask).is_err(), "{mask}");
        }
        assert!(CpuSet::from_mask(&quiet).unwrap().is_empty());
    }

    #[test]
    fn ranges_cross_words() {
        for (first, last) in [(0, 0), (0, 63), (0, 64), (63, 64), (5, 200), (64, 127), (65_535, 65_535)] {
            let mut set = CpuSet::new();
            set.insert_range(first, last);
            assert_eq!(set, (first..=last).collect(), "{first}-{last}");
            assert_eq!((set.first(), set.last()), (Some(first), Some(last)));
        }
        let mut beyond = CpuSet::new();
        beyond.insert_range(70_000, 80_000);
        assert!(beyond.is_empty());
    }

    #[test]
    fn set_algebra_keeps_equal_sets_equal() {
        let a: CpuSet = "0-3,200".parse().unwrap();
        let b: CpuSet = "2-5".parse().unwrap();
        assert_eq!(a.and(&b), "2-3".parse().unwrap());
        assert_eq!(a.minus(&"200".parse().unwrap()), "0-3".parse().unwrap());
        assert_eq!(a.or(&b).to_string(), "0-5,200");
        assert!(a.and(&"100".parse().unwrap()).is_empty());
        assert!(a.meets(&b) && !b.meets(&"6-7".parse().unwrap()));
        assert_eq!((a.first(), a.last(), CpuSet::new().first()), (Some(0), Some(200), None));
    }
}
