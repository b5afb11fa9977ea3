//! Container images on disk as roots: an OCI image layout, as a directory or in a tar, and what `docker save` writes, in its old
//! form (`manifest.json` beside layers) and its new one (a layout besides). An image is named by its digest, every blob is
//! checked against the digest that names it, and every layer once more, unpacked, against the image's config.

mod error;
mod layers;
mod layout;
mod spec;

use std::path::Path;

use crate::digest::Sha256;
use crate::error::{GuestError, Result};
use crate::packed::Packing;
use crate::recipe::ImageConfig;
use crate::tree::Tree;
use layout::Layout;
use spec::{Config, Descriptor, Document, Manifest};

pub use error::OciError;

/// How deep an index may lie in an index.
const MOST_LEVELS: u32 = 4;

/// The only platform there is a VMM for.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// An image, its layers put on each other.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) tree: Tree,
    pub(crate) config: ImageConfig,
}

/// Reads the image with that digest: of a manifest, of an index (its image for linux/amd64), or of an image's config.
pub(crate) fn read(path: &Path, digest: Sha256) -> Result<Image> {
    let layout = Layout::open(path)?;
    let found = find(&layout, digest, 0)?;
    let bad = |problem: String| layout.bad(problem);
    let config: Config = serde_json::from_slice(&found.config)
        .map_err(|error| bad(format!("the config of image {digest} is not one: {error}")))?;
    if config.os != OS || config.architecture != ARCHITECTURE {
        let platform = format!("{}/{}", config.os, config.architecture);
        return Err(OciError::Platform { path: path.to_owned(), digest, platform }.into());
    }
    let ids = &config.rootfs.diff_ids;
    if ids.len() != found.layers.len() {
        let counts = format!("{} layers, and {} in its config", found.layers.len(), ids.len());
        return Err(bad(format!("image {digest} has {counts}")));
    }
    let mut tree = Tree::default();
    for (layer, id) in found.layers.iter().zip(ids) {
        let id = sha256(id).map_err(bad)?;
        let bytes = layout.layer(layer)?;
        let packing = Packing::of_bytes(&bytes);
        if !matches!(packing, Packing::None | Packing::Gzip | Packing::Zstd) {
            return Err(bad(format!("layer {id} is packed with {}, which no image may be", packing.name())));
        }
        let tar = packing.unpack(&bytes).map_err(|problem| bad(format!("layer {id}: {problem}")))?;
        let what = || format!("layer {id} of {}, unpacked,", path.display());
        matches(&tar, id, what)?;
        layers::apply(&mut tree, &id.to_string(), &tar)
            .map_err(|problem| bad(format!("layer {id}: {problem}")))?;
    }
    Ok(Image { tree, config: config.config.unwrap_or_default().into() })
}

/// What makes up an image, from either description of it.
struct Found {
    config: Vec<u8>,
    layers: Vec<Layer>,
}

/// Where a layer's bytes are, and what they must be before they are unpacked.
enum Layer {
    Blob(Descriptor),
    /// In an archive of `docker save`, which names no digest of it; its config does.
    File(String),
}

fn find(layout: &Layout, digest: Sha256, level: u32) -> Result<Found> {
    let no_image = || {
        OciError::NoSuchImage {
            path: layout.path().to_owned(),
            digest,
            there: layout.images().unwrap_or_default(),
        }
        .into()
    };
    if level > MOST_LEVELS {
        return Err(layout.bad(format!("more than {MOST_LEVELS} indexes lie in each other")));
    }
    let Some(bytes) = layout.named(digest)? else {
        // Old archives of `docker save` keep the config beside their manifest, under its digest.
        return saved(layout, digest)?.ok_or_else(no_image);
    };
    match Document::read(&bytes).map_err(|problem| layout.bad(format!("{digest}: {problem}")))? {
        Document::Index(index) => {
            let ours = index.manifests.iter().find(|one| one.is_for(OS, ARCHITECTURE));
            let ours = match (&index.manifests[..], ours) {
                (_, Some(ours)) => ours,
                // An index of one image need not say for what platform it is; the config does.
                ([only], None) if only.platform.is_none() => only,
                (all, None) => {
                    let platforms: Vec<String> =
                        all.iter().filter_map(|one| one.platform.as_ref().map(ToString::to_string)).collect();
                    let platform = platforms.join(", ");
                    return Err(
                        OciError::Platform { path: layout.path().to_owned(), digest, platform }.into()
                    );
                }
            };
            find(layout, sha256(&ours.digest).map_err(|problem| layout.bad(problem))?, level + 1)
        }
        Document::Manifest(manifest) => of_manifest(layout, manifest),
        Document::Config => {
            if let Some(manifest) = layout.manifest_of(digest)? {
                return of_manifest(layout, manifest);
            }
            saved(layout, digest)?.ok_or_else(no_image)
        }
    }
}

fn of_manifest(layout: &Layout, manifest: Manifest) -> Result<Found> {
    for layer in &manifest.layers {
        if let Some(reason) = layer.refused_as_layer() {
            return Err(OciError::Layer {
                path: layout.path().to_owned(),
                digest: layer.digest.clone(),
                media_type: layer.media_type.clone(),
                reason,
            }
            .into());
        }
    }
    let config = layout.blob(&manifest.config)?;
    Ok(Found { config, layers: manifest.layers.into_iter().map(Layer::Blob).collect() })
}

/// The image as `manifest.json` describes it.
fn saved(layout: &Layout, digest: Sha256) -> Result<Option<Found>> {
    for image in layout.saved()? {
        let stem = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if stem.parse() != Ok(digest) {
            continue;
        }
        let config = layout.file(&image.config)?;
        matches(&config, digest, || format!("{} of {}", image.config, layout.path().display()))?;
        let layers = image.layers.into_iter().map(Layer::File).collect();
        return Ok(Some(Found { config, layers }));
    }
    Ok(None)
}

/// `sha256:…` of a descriptor.
fn sha256(digest: &str) -> Result<Sha256, String> {
    let hex = digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    hex.ok_or_else(|| format!("the digest `{digest}` is not a SHA-256"))
}

/// Refuses bytes that are not those that were named.
fn matches(bytes: &[u8], wanted: Sha256, what: impl FnOnce() -> String) -> Result<()> {
    let found = Sha256::of(bytes);
    if found == wanted {
        return Ok(());
    }
    Err(GuestError::InputMismatch { what: what(), wanted, found })
}

#[cfg(test)]
mod tests;
