//! `image root { format …; exclude … }` and `image none`.

use vmprof_document::Node;

use super::absolute;
use crate::recipe::{Compression, Format, Image};

/// Sizes of ext4 images are whole multiples of this.
const EXT4_STEP_BYTES: u64 = 1 << 20;

pub(super) fn default() -> Image {
    Image::Root { format: Format::Squashfs { compression: Compression::Lz4 }, exclude: Vec::new() }
}

pub(super) fn image(node: Node<'_>) -> Option<Image> {
    let kind = node
        .required_arg("which image", "write `image root { … }` or `image none`")
        .and_then(|v| v.word(&[("root", true), ("none", false)]));
    if kind == Some(false) {
        node.finish();
        return Some(Image::None);
    }
    let found = node.findings();
    let body = node.children();
    let format = match body.only("format") {
        None => Some(Format::Squashfs { compression: Compression::Lz4 }),
        Some(node) => format(node),
    };
    let mut exclude = Vec::new();
    for left_out in body.all("exclude") {
        for value in left_out.args("a path") {
            exclude.extend(absolute(found, value));
        }
        left_out.finish();
    }
    exclude.sort();
    exclude.dedup();
    body.finish();
    node.finish();
    kind?;
    Some(Image::Root { format: format?, exclude })
}

#[derive(Debug, Clone, Copy)]
enum Word {
    Squashfs,
    Erofs,
    Ext4,
}

fn format(node: Node<'_>) -> Option<Format> {
    let words = [("squashfs", Word::Squashfs), ("erofs", Word::Erofs), ("ext4", Word::Ext4)];
    let word = node.required_arg("a format", "write `format squashfs compression=lz4`");
    let format = word.and_then(|v| v.word(&words)).and_then(|word| match word {
        Word::Squashfs => {
            let words = [("lz4", Compression::Lz4), ("zstd", Compression::Zstd)];
            let compression = match node.prop("compression") {
                None => Some(Compression::Lz4),
                Some(value) => value.word(&words),
            };
            compression.map(|compression| Format::Squashfs { compression })
        }
        Word::Erofs => {
            let compressed = match node.prop("compression") {
                None => Some(true),
                Some(value) => value.word(&[("lz4", true), ("none", false)]),
            };
            compressed.map(|compressed| Format::Erofs { compressed })
        }
        Word::Ext4 => match node.prop("size") {
            None => Some(Format::Ext4 { bytes: None }),
            Some(value) => value.bytes().and_then(|bytes| {
                if bytes == 0 || !bytes.is_multiple_of(EXT4_STEP_BYTES) {
                    let problem = value.problem("bad_size", "an ext4 image has a whole number of MiB");
                    node.findings().push(problem.help("write a size such as \"8GiB\", or leave it out"));
                    return None;
                }
                Some(Format::Ext4 { bytes: Some(bytes) })
            }),
        },
    });
    node.finish();
    format
}
