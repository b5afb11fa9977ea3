//! What the fuzz targets call: the crate's readers of what strangers wrote, each with what must be true of its answer. A
//! statement that does not hold panics, which is what a fuzzer looks for. Only the feature `fuzzing` has this; with it,
//! sums over metadata are constant, so that changed bytes reach what is behind them, and archives hold less.

use std::cell::RefCell;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::Result;
use crate::packed::Packing;
use crate::recipe::{Compression, Format};
use crate::tree::{Kind, Node, Origin, Tree};
use crate::{archive, cpio, deb, elf, erofs, ext4, image, kernel, oci, squashfs};

/// Of an ext4 that a round trip makes.
const SMALL_BYTES: u64 = 8 << 20;

/// A tar archive: its paths are plain and each is there once, and what a tree takes of it comes back out of an image.
pub fn tar(bytes: &[u8], formats: u8) {
    let Ok(files) = archive::read("fuzz", bytes, &|_| true) else { return };
    let mut paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    for path in &paths {
        assert!(!path.starts_with('/') && !path.split('/').any(|part| matches!(part, "." | "..")), "{path}");
    }
    paths.sort_unstable();
    assert!(paths.windows(2).all(|pair| pair[0] != pair[1]), "a path twice");
    let mut tree = Tree::default();
    let by = Origin::Package { name: "fuzz".to_owned(), replaces: [].into() };
    for (path, node) in files {
        let _ = if path.is_empty() {
            tree.lay("", node)
        } else {
            tree.put(&path, node, &by).map_err(|e| e.to_string())
        };
    }
    comes_back(&tree, formats);
}

/// One bit of `formats` for each that is tried.
fn comes_back(tree: &Tree, formats: u8) {
    let all = [
        Format::Erofs { compressed: false },
        Format::Erofs { compressed: true },
        Format::Ext4 { bytes: Some(SMALL_BYTES) },
        Format::Squashfs { compression: Compression::Lz4 },
    ];
    for (at, format) in all.into_iter().enumerate() {
        if formats & (1 << at) == 0 {
            continue;
        }
        let Ok(bytes) = written(tree, format) else { continue };
        let back = read(&bytes, format).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        // A squashfs keeps no hard links.
        let wanted =
            if matches!(format, Format::Squashfs { .. }) { without_links(tree) } else { tree.clone() };
        if back.manifest_hash() != wanted.manifest_hash() {
            let listed = |tree: &Tree| tree.iter().map(|(p, n)| format!("{p:?} {n:?}\n")).collect::<String>();
            panic!("{format:?} gives back something else:\n{}\nand not\n{}", listed(&back), listed(&wanted));
        }
    }
}

fn without_links(tree: &Tree) -> Tree {
    let mut out = Tree::default();
    for (path, node) in tree.iter() {
        let _ = out.put(path, Node { inode: None, ..node.clone() }, &Origin::Recipe);
    }
    out
}

fn written(tree: &Tree, format: Format) -> Result<Vec<u8>> {
    let failed = crate::error::failed("keep an image in", "memory");
    let mut file = tempfile::tempfile().map_err(failed)?;
    image::write(tree, format, "fuzz", &mut file)?;
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    read.map_err(crate::error::failed("read an image in", "memory"))?;
    Ok(bytes)
}

fn read(bytes: &[u8], format: Format) -> Result<Tree> {
    match format {
        Format::Squashfs { .. } => squashfs::unpack(bytes),
        Format::Erofs { .. } => erofs::unpack(bytes),
        Format::Ext4 { .. } => {
            let written = tempfile::tempfile().and_then(|mut file| file.write_all(bytes).map(|()| file));
            let file = written.map_err(crate::error::failed("keep an image in", "memory"))?;
            ext4::unpack(&file)
        }
    }
}

/// A package.
pub fn deb(bytes: &[u8]) {
    let _ = deb::Deb::read_some("fuzz", bytes, &|_| true);
}

/// Bytes that say themselves how they are packed.
pub fn packed(bytes: &[u8]) {
    let _ = Packing::of_bytes(bytes).unpack_at_most(1 << 20, bytes);
    let _ = Packing::Lzma.unpack_at_most(1 << 20, bytes);
}

/// An image of a container at a path.
pub fn oci(path: &Path, digest: &str, formats: u8) {
    let Ok(digest) = digest.parse() else { return };
    if let Ok(found) = oci::read(path, digest) {
        comes_back(&found.tree, formats);
    }
}

/// A kernel, a program and an initramfs.
pub fn program(bytes: &[u8]) {
    let _ = kernel::of_file(bytes);
    let _ = kernel::unpack_vmlinuz(bytes);
    let _ = elf::needs(bytes);
    let _ = cpio::members(bytes);
}

/// Images that this crate wrote, of a tree with everything in it, changed in some places: the first byte is the format, and
/// then four for each change (which of the parts that are not empty, where in it, and the new byte). What still reads is
/// written and read again.
pub fn changed_image(data: &[u8]) {
    thread_local! {
        static IMAGES: RefCell<Vec<Sample>> = RefCell::new(samples());
    }
    let Some((format, changes)) = data.split_first() else { return };
    IMAGES.with_borrow_mut(|samples| {
        let count = samples.len();
        let Some(sample) = samples.get_mut(usize::from(*format) % count) else { return };
        let mut before = Vec::new();
        let (changes, _) = changes.as_chunks::<4>();
        for [low, high, offset, value] in changes {
            let part = usize::from(u16::from_le_bytes([*low, *high])) % sample.parts.len();
            let at = sample.parts[part] * PART + usize::from(*offset);
            if let Some(byte) = sample.bytes.get_mut(at) {
                before.push((at, *byte));
                *byte = *value;
            }
        }
        if let Ok(tree) = read(&sample.bytes, sample.format) {
            comes_back(&tree, 1);
        }
        for (at, byte) in before.into_iter().rev() {
            sample.bytes[at] = byte;
        }
    });
}

const PART: usize = 256;

struct Sample {
    format: Format,
    bytes: Vec<u8>,
    /// Those that hold anything, in units of [`PART`].
    parts: Vec<usize>,
}

fn samples() -> Vec<Sample> {
    let formats = [
        (Format::Erofs { compressed: false }, true),
        (Format::Erofs { compressed: true }, true),
        (Format::Ext4 { bytes: Some(SMALL_BYTES) }, true),
        (Format::Squashfs { compression: Compression::Lz4 }, false),
    ];
    let sample = |(format, xattrs): (Format, bool)| {
        let bytes = written(&sample_tree(xattrs), format).unwrap();
        let filled = |(at, part): (usize, &[u8])| part.iter().any(|byte| *byte != 0).then_some(at);
        let parts = bytes.chunks(PART).enumerate().filter_map(filled).collect();
        Sample { format, bytes, parts }
    };
    formats.into_iter().map(sample).collect()
}

fn sample_tree(xattrs: bool) -> Tree {
    let mut tree = Tree::default();
    let mut put = |path: &str, node: Node| tree.put(path, node, &Origin::Recipe).unwrap();
    let shared = Node { inode: Some("one".into()), ..Node::file(0o644, *b"shared") };
    put("a", shared.clone());
    put("b", shared);
    put("dev/null", Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666));
    put("dev/sda", Node::new(Kind::BlockDevice { major: 259, minor: 70_000 }, 0o660));
    put("dev/pipe", Node::new(Kind::Fifo, 0o600));
    put("short", Node::link("a"));
    // The format without attributes holds links of 255 bytes at most.
    put("long", Node::link("x/".repeat(if xattrs { 1000 } else { 120 })));
    put("empty", Node::file(0o600, *b""));
    put("text", Node::file(0o644, b"one line of many\n".repeat(2000)));
    put("holes", Node::file(0o644, [&[1; 5000][..], &[0; 60_000], &[2; 10]].concat()));
    for number in 0..60 {
        put(&format!("many/of-{number}"), Node::file(0o644, format!("{number}").into_bytes()));
    }
    if xattrs {
        let xattrs = [
            ("security.capability".to_owned(), vec![1; 20]),
            ("user.large".to_owned(), vec![7; 900]),
            ("system.posix_acl_access".to_owned(), vec![2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255]),
        ];
        let small = xattrs.iter().take(1).cloned().collect();
        put("capable", Node { xattrs: small, ..Node::file(0o755, *b"program") });
        put("many", Node { xattrs: xattrs.into_iter().take(2).collect(), ..Node::directory(0o700) });
    }
    tree
}
