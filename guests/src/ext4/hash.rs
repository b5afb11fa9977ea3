//! The hash that orders the names of a large directory: two rounds less than half of MD4, keyed with the filesystem's seed
//! (ext4 calls it half_md4), over bytes taken as unsigned.

/// Of all directories of one filesystem.
#[derive(Debug, Clone, Copy)]
pub(super) struct HashSeed(pub(super) [u32; 4]);

/// One name eats words of 32 bytes at a time.
const WORDS: usize = 8;
/// The highest hash marks the end of a directory for readers, so no name has it.
const END: u32 = 0xffff_fffe;
/// The square roots of 2 and 3, as MD4 has them (RFC 1320, 3.4).
const ROOT_2: u32 = 0x5a82_7999;
const ROOT_3: u32 = 0x6ed9_eba1;

impl HashSeed {
    /// The major hash, which decides the leaf, and the minor one. The major's lowest bit is 0: the index uses it as a mark.
    pub(super) fn of(self, name: &[u8]) -> (u32, u32) {
        let mut state = self.0;
        let mut rest = name;
        loop {
            mix(&mut state, &words(rest));
            match rest.get(WORDS * 4..) {
                Some(further) if !further.is_empty() => rest = further,
                _ => break,
            }
        }
        let major = state[1] & !1;
        (if major == END { END - 2 } else { major }, state[2])
    }
}

/// The first 32 bytes as big-endian words, padded with the length of what is left.
fn words(rest: &[u8]) -> [u32; WORDS] {
    let length = rest.len() as u32;
    let pair = length | length << 8;
    let padding = pair | pair << 16;
    let mut words = [padding; WORDS];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes.iter().fold(padding, |word, byte| (word << 8).wrapping_add(u32::from(*byte)));
    }
    words
}

fn mix(state: &mut [u32; 4], words: &[u32; WORDS]) {
    let select = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mut mixed = *state;
    round(&mut mixed, words, select, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&mut mixed, words, majority, ROOT_2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&mut mixed, words, parity, ROOT_3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (state, mixed) in state.iter_mut().zip(mixed) {
        *state = state.wrapping_add(mixed);
    }
}

/// Eight steps; each changes the word that the step four before it changed.
fn round(
    state: &mut [u32; 4],
    words: &[u32; WORDS],
    choose: impl Fn(u32, u32, u32) -> u32,
    constant: u32,
    order: [usize; WORDS],
    turns: [u32; 4],
) {
    for (step, index) in order.into_iter().enumerate() {
        let [a, b, c, d] = *state;
        let sum = a.wrapping_add(choose(b, c, d)).wrapping_add(words[index]).wrapping_add(constant);
        *state = [d, sum.rotate_left(turns[step % 4]), b, c];
    }
}
