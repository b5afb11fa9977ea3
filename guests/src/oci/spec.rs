//! The parts of the OCI image specification's documents that decide a root, and of `docker save`'s `manifest.json`. Docker's own
//! media types (schema 2) say the same with other names.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::recipe::{ImageConfig, SIGNALS};

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Descriptor {
    #[serde(default, rename = "mediaType")]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: Option<u64>,
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    pub(super) config: Option<Execution>,
    pub(super) rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
pub(super) struct Rootfs {
    /// `null` in some images without layers.
    #[serde(deserialize_with = "or_null")]
    pub(super) diff_ids: Vec<String>,
}

/// How the image is run; each may be missing or `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Execution {
    #[serde(deserialize_with = "or_null")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    working_dir: String,
    #[serde(deserialize_with = "or_null")]
    user: String,
    #[serde(deserialize_with = "or_null")]
    stop_signal: String,
}

/// An image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    /// `DIGEST.json`, or `blobs/sha256/DIGEST`.
    pub(super) config: String,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) layers: Vec<String>,
}

fn or_null<'de, D, T>(reader: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(reader)?.unwrap_or_default())
}

/// What a digest may name.
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
    Config,
}

impl Document {
    /// By what it holds: media types are not always written, and an attacker's are worth nothing.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|_| "it is not an image, but some other blob".to_owned())?;
        let has = |key: &str| value.get(key).is_some();
        // What is both is read differently by different programs.
        match (has("manifests"), has("layers"), has("rootfs")) {
            (true, false, false) => serde_json::from_value(value).map(Self::Index).map_err(|e| e.to_string()),
            (false, true, false) => {
                serde_json::from_value(value).map(Self::Manifest).map_err(|e| e.to_string())
            }
            (false, false, true) => Ok(Self::Config),
            _ => Err("it is neither an index, nor a manifest, nor an image's config".to_owned()),
        }
    }
}

impl Descriptor {
    pub(super) fn is_for(&self, os: &str, architecture: &str) -> bool {
        self.platform
            .as_ref()
            .is_some_and(|platform| platform.os == os && platform.architecture == architecture)
    }

    /// Why that is no layer to build with, if it is none.
    pub(super) fn refused_as_layer(&self) -> Option<&'static str> {
        let kind = self.media_type.as_str();
        if kind.contains("nondistributable") || kind.contains(".foreign.") {
            return Some("such layers are not in the image, but somewhere else");
        }
        let known = ["vnd.oci.image.layer.v1.tar", "vnd.docker.image.rootfs.diff.tar"];
        let plain = known.iter().any(|known| {
            let ending = kind.strip_prefix("application/").and_then(|kind| kind.strip_prefix(known));
            matches!(ending, Some("" | "+gzip" | ".gzip" | "+zstd" | ".zstd"))
        });
        (!plain).then_some("that is not a kind of layer that can be unpacked")
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// `SIGINT` or `2`, as images write it; one that is not known is left to the default.
fn signal_number(text: &str) -> Option<i32> {
    let known = SIGNALS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    known.or_else(|| text.parse().ok().filter(|number| (1..32).contains(number)))
}

impl From<Execution> for ImageConfig {
    fn from(said: Execution) -> Self {
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        Self {
            env: said.env.iter().map(pair).collect(),
            argv: said.entrypoint.into_iter().chain(said.cmd).collect(),
            directory: (!said.working_dir.is_empty()).then_some(said.working_dir),
            user: (!said.user.is_empty()).then_some(said.user),
            stop_signal: signal_number(&said.stop_signal),
        }
    }
}
