//! LZ4 blocks that are made once and read often: every match within reach is looked for, and among all ways to write a block
//! with those matches the shortest is taken. Several times slower to make than by the usual greedy search, as fast to read,
//! and a tenth smaller. The format is the LZ4 project's `lz4_Block_format.md`.
//!
//! A crate of its own so that a debug build of everything else has it optimised. Decompression is `lz4_flex`'s.

/// The most that a window can hold: no match reaches further back.
pub const MOST_BYTES: usize = 64 << 10;

const SHORTEST_MATCH: usize = 4;
/// The format's end conditions: no match begins in the last 12 bytes, and the last 5 are literals.
const NO_MATCH_BYTES: usize = 12;
const LITERAL_BYTES: usize = 5;

const HASH_BITS: u32 = 15;
/// Earlier places with the same hash that are tried for one place.
const DEPTH: u32 = 8;
/// A match so long is good enough not to look for another one at the next place.
const GOOD_BYTES: u32 = 32;
/// Shorter forms of a match that are weighed against it.
const WEIGHED_BYTES: u32 = 8;

/// A piece of content, and the shortest way to write each beginning of it.
#[derive(Debug)]
pub struct Window<'a> {
    content: &'a [u8],
    matches: Vec<Match>,
    /// To each place: how long what is written until there is, and the length of the match that ends there, 0 for a literal.
    ways: Vec<Way>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Match {
    /// 0 for none.
    bytes: u32,
    back: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    cost: u32,
    matched: u32,
}

impl<'a> Window<'a> {
    /// Of at most [`MOST_BYTES`]; what is beyond them is not in the window.
    pub fn new(content: &'a [u8]) -> Self {
        let content = content.get(..MOST_BYTES).unwrap_or(content);
        let matches = matches(content);
        let ways = ways(&matches);
        Self { content, matches, ways }
    }

    /// How long the blocks of the content's beginnings are, about: of the first `step` bytes, of twice as many, and so on.
    pub fn sizes(&self, step: usize) -> Vec<usize> {
        self.ways.iter().skip(step).step_by(step).map(|way| way.cost as usize + 1).collect()
    }

    /// The block of the first `bytes` of the content.
    pub fn block(&self, bytes: usize) -> Vec<u8> {
        let bytes = bytes.min(self.content.len());
        let mut block = Vec::with_capacity(bytes / 2);
        let mut at = 0;
        for (literals, found) in self.sequences(bytes) {
            let matched = (found.bytes as usize).saturating_sub(SHORTEST_MATCH);
            block.push((literals.min(15) << 4 | matched.min(15)) as u8);
            put_length(&mut block, literals);
            block.extend(self.content.get(at..at + literals).unwrap_or_default());
            if found.bytes > 0 {
                block.extend((found.back as u16).to_le_bytes());
                put_length(&mut block, matched);
            }
            at += literals + found.bytes as usize;
        }
        block
    }

    /// How many literals, then which match; the last match is none.
    fn sequences(&self, bytes: usize) -> Vec<(usize, Match)> {
        // Back from the end. The last bytes are literals, and so is a match that begins too near the end.
        let mut reversed = Vec::new();
        let mut literals = bytes.min(LITERAL_BYTES);
        let mut at = bytes - literals;
        while at > 0 {
            let matched = self.ways.get(at).map_or(0, |way| way.matched) as usize;
            let from = at.saturating_sub(matched);
            if matched == 0 || from + NO_MATCH_BYTES > bytes {
                literals += 1;
                at -= 1;
                continue;
            }
            let back = self.matches.get(from).map_or(0, |found| found.back);
            reversed.push((literals, Match { bytes: matched as u32, back }));
            literals = 0;
            at = from;
        }
        // Literals stood behind their match so far; from the start, they stand before it.
        let mut sequences = Vec::with_capacity(reversed.len() + 1);
        for (behind, found) in reversed.into_iter().rev() {
            sequences.push((literals, found));
            literals = behind;
        }
        sequences.push((literals, Match::default()));
        sequences
    }
}

/// A match costs its token and its distance, a literal itself; of long runs the few bytes more are not counted.
fn ways(matches: &[Match]) -> Vec<Way> {
    let mut ways = vec![Way { cost: u32::MAX, matched: 0 }; matches.len() + 1];
    if let Some(start) = ways.first_mut() {
        start.cost = 0;
    }
    for (at, found) in matches.iter().enumerate() {
        let Some([here, ahead @ ..]) = ways.get_mut(at..) else { break };
        let cost = here.cost;
        // `ahead` begins one byte further.
        let mut reach = |bytes: u32, cost: u32| {
            if let Some(way) = ahead.get_mut(bytes as usize - 1)
                && (cost < way.cost || cost == way.cost && bytes > 1)
            {
                *way = Way { cost, matched: if bytes > 1 { bytes } else { 0 } };
            }
        };
        reach(1, cost + 1);
        if found.bytes as usize >= SHORTEST_MATCH {
            for bytes in SHORTEST_MATCH as u32..found.bytes.min(WEIGHED_BYTES) {
                reach(bytes, cost + 3);
            }
            let more = if found.bytes < 19 { 0 } else { 1 + (found.bytes - 19) / 255 };
            reach(found.bytes, cost + 3 + more);
        }
    }
    ways
}

fn put_length(block: &mut Vec<u8>, length: usize) {
    if let Some(mut rest) = length.checked_sub(15) {
        while rest >= 255 {
            block.push(255);
            rest -= 255;
        }
        block.push(rest as u8);
    }
}

fn word(content: &[u8], at: usize) -> Option<u32> {
    content.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// How many bytes are equal from both places on, the later one ending at `end`.
fn equal(content: &[u8], early: usize, late: usize, end: usize) -> usize {
    let (Some(from), Some(to)) = (content.get(early..), content.get(late..end)) else { return 0 };
    let mut count = 0;
    for (a, b) in from.chunks_exact(8).zip(to.chunks_exact(8)) {
        let (Ok(a), Ok(b)) = (<[u8; 8]>::try_from(a), <[u8; 8]>::try_from(b)) else { break };
        let differ = u64::from_le_bytes(a) ^ u64::from_le_bytes(b);
        if differ != 0 {
            return count + differ.trailing_zeros() as usize / 8;
        }
        count += 8;
    }
    let rest = from.iter().skip(count).zip(to.iter().skip(count));
    count + rest.take_while(|(a, b)| a == b).count()
}

fn matches(content: &[u8]) -> Vec<Match> {
    let mut matches = vec![Match::default(); content.len()];
    let Some(last) = content.len().checked_sub(NO_MATCH_BYTES) else { return matches };
    let end = content.len() - LITERAL_BYTES;
    // Places by hash, the latest first; one more than the place, so that 0 is none.
    let mut latest = vec![0_u32; 1 << HASH_BITS];
    let mut earlier = vec![0_u32; content.len()];
    let mut before = Match::default();
    for at in 0..=last {
        let Some(wanted) = word(content, at) else { break };
        let hash = (wanted.wrapping_mul(2_654_435_761) >> (32 - HASH_BITS)) as usize;
        let Some(newest) = latest.get_mut(hash) else { break };
        let mut candidate = std::mem::replace(newest, at as u32 + 1);
        if let Some(next) = earlier.get_mut(at) {
            *next = candidate;
        }
        // What matched at the byte before goes on matching here.
        let mut best = Match { bytes: before.bytes.saturating_sub(1), back: before.back };
        let mut tries = if best.bytes >= GOOD_BYTES { 0 } else { DEPTH };
        while tries > 0 && candidate > 0 {
            tries -= 1;
            let early = candidate as usize - 1;
            if at - early > u16::MAX as usize {
                break;
            }
            let further = best.bytes as usize;
            // Only a match that is longer is worth comparing all of it.
            if content.get(early + further) == content.get(at + further)
                && word(content, early) == Some(wanted)
            {
                let bytes = equal(content, early, at, end) as u32;
                if bytes > best.bytes {
                    best = Match { bytes, back: (at - early) as u32 };
                    if bytes >= GOOD_BYTES {
                        break;
                    }
                }
            }
            candidate = earlier.get(early).copied().unwrap_or(0);
        }
        if (best.bytes as usize) < SHORTEST_MATCH {
            best = Match::default();
        }
        if let Some(found) = matches.get_mut(at) {
            *found = best;
        }
        before = best;
    }
    matches
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn comes_back(content: &[u8], bytes: usize) -> usize {
        let block = Window::new(content).block(bytes);
        let mut room = vec![0; bytes];
        assert_eq!(lz4_flex::block::decompress_into(&block, &mut room).ok(), Some(bytes));
        assert_eq!(room, content[..bytes]);
        block.len()
    }

    fn text(bytes: usize) -> Vec<u8> {
        let line = |line: u32| format!("line {line}, and {} what all lines say\n", line * line).into_bytes();
        (0..).flat_map(line).take(bytes).collect()
    }

    #[test]
    fn every_beginning_of_a_text_comes_back() {
        let text = text(600);
        (0..=600).for_each(|bytes| {
            comes_back(&text, bytes);
        });
        (0..300).for_each(|bytes| {
            comes_back(&vec![0; bytes], bytes);
        });
    }

    #[test]
    fn a_full_window_is_smaller_than_by_the_usual_search() {
        let text = text(MOST_BYTES);
        let usual = lz4_flex::block::compress(&text).len();
        let own = comes_back(&text, MOST_BYTES);
        assert!(own * 100 < usual * 95, "{own} of {usual}");
        assert!(comes_back(&[0; MOST_BYTES], MOST_BYTES) < 300);
    }

    #[test]
    fn the_sizes_of_beginnings_are_nearly_those_of_their_blocks() {
        let text = text(MOST_BYTES);
        let window = Window::new(&text);
        let sizes = window.sizes(4096);
        assert_eq!(sizes.len(), 16);
        for (number, size) in sizes.into_iter().enumerate() {
            let block = window.block((number + 1) * 4096).len();
            assert!(block.abs_diff(size) < 100, "{block} {size}");
        }
    }

    proptest! {
        #[test]
        fn anything_comes_back(
            parts in vec((vec(any::<u8>(), 0..40), 1_usize..60), 0..40),
            letters in vec(0_u8..3, 0..3000),
            bytes in any::<proptest::sample::Index>(),
        ) {
            let mut content: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
            content.extend(letters);
            content.truncate(MOST_BYTES);
            comes_back(&content, bytes.index(content.len() + 1));
        }
    }
}
