//! Where an image's files are: in a directory, or in a tar of one, looked up by their names. A directory's files are read where
//! they are and links out of it are not followed; a tar is read whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spec::{Descriptor, Document, Index, Manifest, Saved};
use super::{Layer, MOST_LEVELS, matches, sha256};
use crate::archive;
use crate::digest::Sha256;
use crate::error::{GuestError, Result};
use crate::packed::Packing;
use crate::tree::Kind;

/// Of documents: manifests are a few kilobytes.
const MOST_DOCUMENT_BYTES: usize = 16 << 20;
/// As many links as one name in an archive may lead over.
const MOST_LINKS: u32 = 8;

/// What a digest that marks an image in an index is called in its annotations.
const NAME: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

pub(super) struct Layout {
    path: PathBuf,
    files: Files,
}

enum Files {
    Directory,
    Archive(HashMap<String, Kind>),
}

impl Layout {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let is_directory = std::fs::metadata(path).map_err(crate::error::failed("read", path))?.is_dir();
        let mut layout = Self { path: path.to_owned(), files: Files::Directory };
        if !is_directory {
            let packed = crate::store::read(path)?;
            let tar = match Packing::of_bytes(&packed) {
                Packing::None => packed,
                packing => packing.unpack(&packed).map_err(|problem| layout.bad(problem))?,
            };
            let files = archive::read("image", &tar, &|_| true).map_err(|problem| layout.bad(problem))?;
            layout.files = Files::Archive(files.into_iter().map(|(path, node)| (path, node.kind)).collect());
        }
        if layout.find("index.json")?.is_none() && layout.find("manifest.json")?.is_none() {
            return Err(layout.bad("it has neither an index.json nor a manifest.json".to_owned()));
        }
        Ok(layout)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bad(&self, problem: String) -> GuestError {
        GuestError::BadArchive { what: format!("the image {}", self.path.display()), problem }
    }

    /// What a digest names: a blob, or the layout's own index.
    pub(super) fn named(&self, digest: Sha256) -> Result<Option<Vec<u8>>> {
        let path = format!("blobs/sha256/{digest}");
        if let Some(bytes) = self.find(&path)? {
            matches(&bytes, digest, || format!("blob {digest} of {}", self.path.display()))?;
            if bytes.len() > MOST_DOCUMENT_BYTES {
                return Err(self.bad(format!("blob {digest} is not an image, but some other blob")));
            }
            return Ok(Some(bytes.to_vec()));
        }
        let index = self.find("index.json")?;
        Ok(index.filter(|bytes| Sha256::of(bytes) == digest).map(|bytes| bytes.to_vec()))
    }

    /// A blob, and what it must be.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = sha256(&descriptor.digest).map_err(|problem| self.bad(problem))?;
        let bytes = self.file(&format!("blobs/sha256/{digest}"))?;
        matches(&bytes, digest, || format!("blob {digest} of {}", self.path.display()))?;
        if descriptor.size.is_some_and(|size| size != bytes.len() as u64) {
            return Err(self.bad(format!("blob {digest} has {} bytes, and should have others", bytes.len())));
        }
        Ok(bytes)
    }

    pub(super) fn layer(&self, layer: &Layer) -> Result<Vec<u8>> {
        match layer {
            Layer::Blob(descriptor) => self.blob(descriptor),
            Layer::File(name) => self.file(name),
        }
    }

    pub(super) fn file(&self, name: &str) -> Result<Vec<u8>> {
        let found = self.find(name)?;
        found.map(|bytes| bytes.to_vec()).ok_or_else(|| self.bad(format!("it has no {name}")))
    }

    /// The manifest in the index, or in an index of the index, whose config that is.
    pub(super) fn manifest_of(&self, config: Sha256) -> Result<Option<Manifest>> {
        let wanted = format!("sha256:{config}");
        let mut found = None;
        self.each_manifest(&mut |_, manifest| {
            if manifest.config.digest == wanted && found.is_none() {
                found = Some(manifest);
            }
        })?;
        Ok(found)
    }

    /// The images of `manifest.json`, none where there is no such file.
    pub(super) fn saved(&self) -> Result<Vec<Saved>> {
        let Some(bytes) = self.find("manifest.json")? else { return Ok(Vec::new()) };
        serde_json::from_slice(&bytes).map_err(|error| self.bad(format!("its manifest.json: {error}")))
    }

    /// Every image with its names, a line each, for who asked for another.
    pub(super) fn images(&self) -> Result<Vec<String>> {
        let mut there = Vec::new();
        self.each_manifest(&mut |at, manifest| {
            let names: Vec<&str> = NAME
                .iter()
                .filter_map(|name| at.annotations.get(*name).map(String::as_str))
                .take(1)
                .collect();
            let platform = at.platform.as_ref().map(|platform| format!(" {platform}")).unwrap_or_default();
            let name = names.first().map(|name| format!(" {name}")).unwrap_or_default();
            there.push(format!(
                "manifest {}{name}{platform} with config {}",
                at.digest, manifest.config.digest
            ));
        })?;
        if there.is_empty() {
            for image in self.saved()? {
                let name = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
                there.push(format!("config sha256:{name} {}", image.repo_tags.join(" ")).trim().to_owned());
            }
        }
        there.sort();
        there.dedup();
        Ok(there)
    }

    /// Calls with every manifest that can be reached from the layout's index.
    fn each_manifest(&self, with: &mut dyn FnMut(&Descriptor, Manifest)) -> Result<()> {
        let Some(bytes) = self.find("index.json")? else { return Ok(()) };
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|error| self.bad(format!("its index.json: {error}")))?;
        self.walk(&index, 0, with)
    }

    fn walk(&self, index: &Index, level: u32, with: &mut dyn FnMut(&Descriptor, Manifest)) -> Result<()> {
        if level > MOST_LEVELS {
            return Ok(());
        }
        for descriptor in &index.manifests {
            // A layout may hold only some of the platforms that its indexes name.
            let Ok(digest) = sha256(&descriptor.digest) else { continue };
            let Some(bytes) = self.named(digest)? else { continue };
            match Document::read(&bytes) {
                Ok(Document::Index(index)) => self.walk(&index, level + 1, with)?,
                Ok(Document::Manifest(manifest)) => with(descriptor, manifest),
                Ok(Document::Config) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// A file by its path below the layout; `None` where there is none.
    fn find(&self, name: &str) -> Result<Option<Arc<[u8]>>> {
        let plain =
            |name: &str| !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !plain(name) {
            return Err(self.bad(format!("it names the file `{name}`, which is no plain path")));
        }
        match &self.files {
            Files::Directory => {
                let path = self.path.join(name);
                match std::fs::symlink_metadata(&path) {
                    Ok(found) if found.is_file() => crate::store::read(&path).map(|bytes| Some(bytes.into())),
                    Ok(_) => Err(self.bad(format!("{name} is not a file"))),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(crate::error::failed("read", &path)(error)),
                }
            }
            Files::Archive(files) => {
                let mut at = name.to_owned();
                // `docker save` writes a layer that is there twice as a link to the first.
                for _ in 0..MOST_LINKS {
                    match files.get(&at) {
                        None => return Ok(None),
                        Some(Kind::File(content)) => return Ok(Some(Arc::clone(content))),
                        Some(Kind::Link(target)) => {
                            at = linked(&at, target)
                                .ok_or_else(|| self.bad(format!("{name} is a link that leads out")))?;
                        }
                        Some(_) => return Err(self.bad(format!("{name} is not a file"))),
                    }
                }
                Err(self.bad(format!("{name} is a link that leads in a circle")))
            }
        }
    }
}

/// Where a link of an archive leads within it.
fn linked(from: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
