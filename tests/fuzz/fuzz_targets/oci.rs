//! Container images, as a tar of an OCI layout or what `docker save` writes: read or refused, and what the layers make
//! comes back out of an image of the root.
//!
//! The first line is which digest is asked for, and a byte of the formats. Files stand behind each other, a line `%% NAME`
//! before each: the NAME `blob` is one that lies under its own digest, `layer` one whose text is the lines of a tar. In every
//! text `@N` stands for the digest of blob N with `sha256:` before it, `#N` without it; only earlier blobs have one.

#![no_main]

mod tarball;

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use vmprof_guests::{Sha256, fuzzing};

fuzz_target!(|data: &[u8]| {
    let mut parts = split(data, b"\n%% ").into_iter();
    let [asked, formats, ..] = parts.next().unwrap_or_default() else { return };
    let mut digests: Vec<String> = Vec::new();
    let mut files: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for part in parts {
        let end = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
        let (name, text) = part.split_at(end);
        let text = filled(text.get(1..).unwrap_or_default(), &digests);
        let bytes = if name == b"layer" { tarball::tar(&text) } else { text };
        if matches!(name, b"layer" | b"blob") {
            let digest = Sha256::of(&bytes).to_string();
            files.push((format!("blobs/sha256/{digest}").into_bytes(), bytes));
            digests.push(digest);
        } else {
            files.push((filled(name, &digests), bytes));
        }
    }
    let Some(asked) = digests.get(usize::from(asked.wrapping_sub(b'0'))) else { return };
    let mut archive = Vec::new();
    for (name, bytes) in &files {
        tarball::member(&mut archive, b'0', b"644", b"-", name, b"", bytes);
    }
    archive.resize(archive.len() + 1024, 0);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&archive).unwrap();
    fuzzing::oci(file.path(), asked, *formats);
});

fn split<'a>(mut bytes: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = bytes.windows(by.len()).position(|window| window == by) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + by.len()..];
    }
    parts.push(bytes);
    parts
}

fn filled(text: &[u8], digests: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().map(|next| usize::from(next.wrapping_sub(b'0')));
        match (byte, number.and_then(|number| digests.get(number))) {
            (b'@' | b'#', Some(digest)) => {
                bytes.next();
                if *byte == b'@' {
                    out.extend_from_slice(b"sha256:");
                }
                out.extend_from_slice(digest.as_bytes());
            }
            _ => out.push(*byte),
        }
    }
    out
}
