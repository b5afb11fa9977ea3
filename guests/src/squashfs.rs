//! A tree as a squashfs image, and back. The compressors are compiled in; times are 0; the same tree gives the same bytes.
//! backhand writes no extended attributes, so a tree that has any is refused; hard links become files of their own, whose
//! equal blocks it stores once, but not their tails.

use std::io::{BufReader, Cursor, Read};
use std::sync::Arc;

use backhand::compression::{CompressionOptions, Compressor, Lz4, Zstd};
use backhand::{FilesystemCompressor, FilesystemReader, FilesystemWriter, InnerNode, NodeHeader};

use crate::error::{GuestError, Result};
use crate::image::ImageError;
use crate::recipe::Compression;
use crate::tree::{Kind, Node, Origin, Tree, TreeError};

/// Of a data block. Larger packs tighter, smaller reads less for a page: 128 KiB is what mksquashfs takes, too.
const BLOCK_BYTES: u32 = 128 << 10;
/// What backhand packs zstd with, and what the image says of itself.
const ZSTD_LEVEL: u32 = 3;
/// Of a link: backhand writes no longer one, and panics where it meets it.
const LONGEST_TARGET: usize = 255;

/// Packs the tree.
pub(crate) fn pack(tree: &Tree, compression: Compression) -> Result<Vec<u8>> {
    let mut writer = FilesystemWriter::default();
    writer.set_block_size(BLOCK_BYTES);
    writer.set_time(0);
    writer.set_only_root_id();
    // A block device reads whole pages; backhand's default pads to 4 KiB as well, but by its own decision.
    writer.set_kib_padding(4);
    writer.set_compressor(compressor(compression)?);
    for (path, node) in tree.iter() {
        if let Some(name) = node.xattrs.keys().next() {
            return Err(ImageError::SquashfsXattr { path: path.to_owned(), name: name.clone() }.into());
        }
        let header = NodeHeader { permissions: node.mode, uid: node.uid, gid: node.gid, mtime: 0 };
        if path.is_empty() {
            writer.set_root_mode(node.mode);
            continue;
        }
        let pushed = match &node.kind {
            Kind::Directory => writer.push_dir(path, header),
            Kind::File(content) => writer.push_file(Cursor::new(Arc::clone(content)), path, header),
            Kind::Link(target) if target.len() > LONGEST_TARGET => return Err(too_long(path, target).into()),
            Kind::Link(target) => writer.push_symlink(target, path, header),
            Kind::CharDevice { major, minor } => {
                writer.push_char_device(device(path, *major, *minor)?, path, header)
            }
            Kind::BlockDevice { major, minor } => {
                writer.push_block_device(device(path, *major, *minor)?, path, header)
            }
            Kind::Fifo => writer.push_fifo(path, header),
        };
        pushed.map_err(failed)?;
    }
    let mut image = Cursor::new(Vec::new());
    writer.write(&mut image).map_err(failed)?;
    Ok(image.into_inner())
}

fn compressor(compression: Compression) -> Result<FilesystemCompressor> {
    let (id, options) = match compression {
        // Version 1 is the only one there is; the kernel refuses an LZ4 image that does not state it.
        Compression::Lz4 => (Compressor::Lz4, CompressionOptions::Lz4(Lz4 { version: 1, flags: 0 })),
        Compression::Zstd => {
            (Compressor::Zstd, CompressionOptions::Zstd(Zstd { compression_level: ZSTD_LEVEL }))
        }
    };
    FilesystemCompressor::new(id, Some(options)).map_err(failed)
}

fn too_long(path: &str, target: &str) -> TreeError {
    let bytes = target.len();
    let reason = format!(
        "it is a link to a path of {bytes} bytes, and vmprof's squashfs holds links of {LONGEST_TARGET}; `format erofs` and \
         `format ext4` hold every link"
    );
    TreeError::BadPath { path: path.to_owned(), by: "the guest".to_owned(), reason }
}

/// Linux's 32-bit form of a device number.
fn device(path: &str, major: u32, minor: u32) -> Result<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        let reason = format!("{major}:{minor} is no device number");
        return Err(
            TreeError::BadPath { path: path.to_owned(), by: "the device node".to_owned(), reason }.into()
        );
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Reads an image back into a tree, to compare two of them.
pub(crate) fn unpack(image: &[u8]) -> Result<Tree> {
    let reader = FilesystemReader::from_reader(BufReader::new(Cursor::new(image))).map_err(failed)?;
    let mut tree = Tree::default();
    for found in reader.files() {
        let path = found.fullpath.to_string_lossy();
        let kind = match &found.inner {
            InnerNode::Dir(_) => Kind::Directory,
            InnerNode::Symlink(link) => Kind::Link(link.link.to_string_lossy().into_owned()),
            InnerNode::CharacterDevice(device) => {
                number(device.device_number, |major, minor| Kind::CharDevice { major, minor })
            }
            InnerNode::BlockDevice(device) => {
                number(device.device_number, |major, minor| Kind::BlockDevice { major, minor })
            }
            InnerNode::NamedPipe => Kind::Fifo,
            InnerNode::Socket => {
                return Err(ImageError::Squashfs {
                    problem: format!("{path} is a socket, which no build makes"),
                }
                .into());
            }
            InnerNode::File(file) => {
                let mut content = Vec::new();
                let mut content_reader = reader.file(file).reader();
                content_reader
                    .read_to_end(&mut content)
                    .map_err(|error| ImageError::Squashfs { problem: error.to_string() })?;
                Kind::File(Arc::from(content))
            }
        };
        let header = found.header;
        let node = Node { uid: header.uid, gid: header.gid, ..Node::new(kind, header.permissions) };
        tree.put(path.trim_start_matches('/'), node, &Origin::Recipe)?;
    }
    Ok(tree)
}

fn number(device: u32, kind: impl FnOnce(u32, u32) -> Kind) -> Kind {
    kind((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & !0xff))
}

fn failed(error: backhand::BackhandError) -> GuestError {
    ImageError::Squashfs { problem: error.to_string() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        let mut put = |path: &str, node: Node| tree.put(path, node, &Origin::Recipe).unwrap();
        put("usr/bin/setgid", Node { gid: 42, ..Node::file(0o2755, vec![1; 300_000]) });
        put("etc/empty", Node::file(0o644, *b""));
        put("etc/small", Node::file(0o600, *b"small"));
        put("bin", Node::link("usr/bin"));
        put("dev/sda", Node { gid: 6, ..Node::new(Kind::BlockDevice { major: 259, minor: 700 }, 0o660) });
        put("dev/null", Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666));
        put("run/pipe", Node::new(Kind::Fifo, 0o600));
        put("tmp", Node::directory(0o1777));
        tree
    }

    #[test]
    fn what_is_packed_is_what_is_read_back() {
        let tree = tree();
        for compression in [Compression::Lz4, Compression::Zstd] {
            let image = pack(&tree, compression).unwrap();
            assert_eq!(image.len() % 4096, 0);
            let back = unpack(&image).unwrap();
            let nodes = |tree: &Tree| tree.iter().map(|(p, n)| (p.to_owned(), n.clone())).collect::<Vec<_>>();
            assert_eq!(nodes(&back), nodes(&tree));
        }
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        assert!(pack(&tree(), Compression::Lz4).unwrap() == pack(&tree(), Compression::Lz4).unwrap());
    }

    #[test]
    fn an_extended_attribute_is_refused_rather_than_lost() {
        let xattrs = [("security.capability".to_owned(), vec![1; 20])].into();
        let mut tree = tree();
        tree.put("usr/bin/ping", Node { xattrs, ..Node::file(0o755, *b"") }, &Origin::Recipe).unwrap();
        let error = pack(&tree, Compression::Lz4).unwrap_err();
        let said = "squashfs: /usr/bin/ping has the extended attribute security.capability, which vmprof's squashfs cannot hold";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn a_link_too_long_for_the_writer_is_refused_and_the_longest_comes_back() {
        let mut tree = tree();
        let longest = "x".repeat(LONGEST_TARGET);
        tree.put("longest", Node::link(longest.clone()), &Origin::Recipe).unwrap();
        let back = unpack(&pack(&tree, Compression::Lz4).unwrap()).unwrap();
        assert_eq!(back.at("longest"), Some(&Node::link(longest.clone())));
        tree.put("longer", Node::link(longest + "x"), &Origin::Recipe).unwrap();
        let error = pack(&tree, Compression::Lz4).unwrap_err().to_string();
        assert!(
            error.contains("longer") && error.contains("256 bytes") && error.contains("erofs"),
            "{error}"
        );
    }

    #[test]
    fn a_torn_image_is_an_error() {
        let image = pack(&tree(), Compression::Lz4).unwrap();
        // Behind the superblock: of an image this small most is padding.
        assert!(unpack(&image[..200]).is_err());
    }
}
