//! Lines that say a tar archive, so that changes of a text reach what is behind checksums, lengths and blocks:
//!
//! ```text
//! x KEY=VALUE                          a record of an extended header for the next member; `g` for all that come
//! L NAME                               a long name, K a long target
//! KIND MODE SIZE NAME TAB LINK TAB DATA  a member; a SIZE of `-` is DATA's own length
//! ```
//!
//! In data `\n` is a line's end, `\0` a zero byte, `\p` fills the block up. The link of a member of kind `S` is its map:
//! octal numbers with commas, the last one the whole size.

const BLOCK: usize = 512;

pub fn tar(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut records: (u8, Vec<u8>) = (0, Vec::new());
    for line in text.split(|byte| *byte == b'\n') {
        let (kind, rest) = match line {
            [kind, b' ', rest @ ..] => (*kind, rest),
            _ => continue,
        };
        if records.0 != kind && !records.1.is_empty() {
            member(&mut out, records.0, b"644", b"-", b"pax", b"", &records.1);
            records.1.clear();
        }
        match kind {
            b'x' | b'g' => {
                records.0 = kind;
                records.1.extend(record(&escaped(rest)));
            }
            b'L' | b'K' => member(&mut out, kind, b"644", b"-", b"long", b"", rest),
            _ => {
                let mut words = rest.splitn(3, |byte| *byte == b' ');
                let mode = words.next().unwrap_or_default();
                let size = words.next().unwrap_or_default();
                let mut parts = words.next().unwrap_or_default().splitn(3, |byte| *byte == b'\t');
                let name = parts.next().unwrap_or_default();
                let link = parts.next().unwrap_or_default();
                let data = escaped(parts.next().unwrap_or_default());
                member(&mut out, kind, mode, size, name, link, &data);
            }
        }
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

/// A record with its own length before it.
fn record(body: &[u8]) -> Vec<u8> {
    let mut length = body.len() + 3;
    while length != body.len() + 2 + length.to_string().len() {
        length = body.len() + 2 + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", body, b"\n"].concat()
}

fn escaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match (byte, (*byte == b'\\').then(|| bytes.next()).flatten()) {
            (b'\\', Some(b'n')) => out.push(b'\n'),
            (b'\\', Some(b'0')) => out.push(0),
            (b'\\', Some(b'p')) => out.resize(out.len().next_multiple_of(BLOCK), 0),
            (byte, _) => out.push(*byte),
        }
    }
    out
}

pub fn member(out: &mut Vec<u8>, kind: u8, mode: &[u8], size: &[u8], name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(most)];
        header[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, 100, name);
    put(100, 8, mode);
    put(108, 8, b"0000001");
    put(116, 8, b"0000002");
    let own = format!("{:011o}", data.len());
    put(124, 12, if size == b"-" { own.as_bytes() } else { size });
    put(156, 1, &[kind]);
    if kind == b'S' {
        put(257, 8, b"ustar  \0");
        let numbers: Vec<&[u8]> = link.split(|byte| *byte == b',').collect();
        if let Some((whole, parts)) = numbers.split_last() {
            for (at, number) in parts.iter().take(8).enumerate() {
                put(386 + at * 12, 12, number);
            }
            put(483, 12, whole);
        }
    } else {
        put(157, 100, link);
        put(257, 8, b"ustar\x0000");
    }
    if matches!(kind, b'3' | b'4') {
        put(329, 8, link);
        put(337, 8, b"3");
    }
    put(148, 8, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}
