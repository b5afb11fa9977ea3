//! A guest's recipe: what `NAME.kdl` says, validated, the same on every host. Reading it is in `recipe/decode.rs`; what
//! the packages are at this moment is the lock's business.

mod decode;
mod words;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmprof_document::Problems;
use vmprof_job::{Filesystem, Mount, Service};

use crate::digest::Sha256;
use crate::error::{Result, read_text};

pub(crate) use decode::AREA;
pub(crate) use words::{Form, PACKAGE, PLAIN_NAME, SUITE, VERSION};

/// The words of one guest.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The guest's name, as in `guest NAME`.
    pub name: String,
    /// The file it was read from, as messages show it.
    pub path: PathBuf,
    /// Files that it extends, as messages show them; perhaps none.
    pub extended: Vec<PathBuf>,
    pub description: Option<String>,
    /// `None` only where neither the root nor the kernel is made of packages.
    pub distribution: Option<Distribution>,
    /// Where the lock is kept.
    pub lock_path: PathBuf,
    pub packages: Packages,
    pub root: Root,
    pub kernel: Kernel,
    /// Words added to the kernel's command line.
    pub cmdline: Option<String>,
    /// Kernel modules in the initramfs besides the builder's own.
    pub modules: Vec<String>,
    pub users: Vec<User>,
    pub groups: Vec<Group>,
    pub conduct: Conduct,
    pub image: Image,
    /// Declared paths, in the order of the recipe.
    pub placed: Vec<Placed>,
    /// Remarks that did not stop the reading; perhaps none.
    pub warnings: Problems,
}

/// What the guest does once it runs. Nothing of it decides the root image's bytes but the host name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conduct {
    pub hostname: String,
    /// The whole environment of what runs, sorted by name.
    pub env: Vec<(String, String)>,
    /// Kernel settings by their dotted names.
    pub sysctl: Vec<(String, String)>,
    pub mounts: Vec<GuestMount>,
    pub init: Init,
    /// In the order of the recipe.
    pub services: Vec<Service>,
    /// How long a clean stop may take in all.
    pub stop_within_ms: u64,
    /// What the guest does when no command is given. Empty: it serves until it is stopped, or has no image.
    pub run: Vec<String>,
}

/// Where the root's files come from, before what the recipe declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// [`Recipe::packages`].
    Packages,
    /// An OCI image layout (a directory, or a tar of one) or what `docker save` wrote, found from the recipe's directory.
    Oci { path: PathBuf, digest: Sha256 },
    /// A tar archive, plain or packed with gzip, xz or zstd; the hash is the file's.
    Tar { path: PathBuf, sha256: Sha256 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// A package, often one that only depends on the present kernel.
    Package(String),
    /// A vmlinux or bzImage of the building machine, and the directory of its modules (`…/lib/modules/RELEASE`); without one
    /// everything must be built in.
    File { path: PathBuf, modules: Option<PathBuf> },
}

/// An entry of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    /// Its own group's id; a group of the user's name is made where no group has it.
    pub gid: u32,
    /// Groups besides, sorted.
    pub groups: Vec<String>,
    pub home: String,
    pub shell: String,
}

/// An entry of /etc/group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
}

/// A mount of the recipe: a disk goes by the name the profile gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    pub mount: Mount,
    /// The filesystem for an empty disk where the profile names none; `None` for what is in memory, and for disks that
    /// must hold one.
    pub format: Option<Filesystem>,
    /// A profile without that disk is not refused.
    pub optional: bool,
}

/// Who is process 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    Vmprof,
    /// The distribution's systemd, with these units enabled and masked.
    Systemd {
        enable: Vec<String>,
        mask: Vec<String>,
    },
}

/// Whose packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// A Debian suite: `bookworm`.
    pub suite: String,
    /// Debian's name of the architecture: `amd64`.
    pub arch: String,
}

/// Which packages make up the root image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packages {
    /// As written, sorted, each once.
    pub names: Vec<String>,
    /// Dependencies that are left out, with everything that only they need; sorted.
    pub without: Vec<String>,
    pub recommends: bool,
}

/// The root image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// No root image: kernel and initramfs only.
    None,
    Root {
        format: Format,
        /// Absolute paths left out, with everything below them.
        exclude: Vec<String>,
    },
}

/// How the root image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Squashfs {
        compression: Compression,
    },
    /// `compressed` is LZ4.
    Erofs {
        compressed: bool,
    },
    /// For a root that is written to without an overlay; of this size, or of what its files need and half as much again.
    Ext4 {
        bytes: Option<u64>,
    },
}

impl Format {
    /// The kernel's name of the filesystem.
    pub fn name(self) -> &'static str {
        match self {
            Self::Squashfs { .. } => "squashfs",
            Self::Erofs { .. } => "erofs",
            Self::Ext4 { .. } => "ext4",
        }
    }

    /// Everything that decides the layout, as one word list, for digests of inputs.
    pub(crate) fn inputs(self) -> String {
        match self {
            Self::Squashfs { compression } => format!("squashfs {}", compression.name()),
            Self::Erofs { compressed } => format!("erofs {}", if compressed { "lz4" } else { "plain" }),
            Self::Ext4 { bytes } => format!("ext4 {bytes:?}"),
        }
    }

    /// Mounted as it is; the others lie under an overlay in memory.
    pub fn is_writable(self) -> bool {
        matches!(self, Self::Ext4 { .. })
    }
}

/// Of a squashfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Lz4,
    Zstd,
}

impl Compression {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// A path the recipe declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Absolute.
    pub path: String,
    /// `USER:GROUP`, each a name of the guest's /etc/passwd and /etc/group or a number.
    pub owner: String,
    pub what: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Directory {
        mode: u16,
    },
    Link {
        target: String,
    },
    Text {
        mode: u16,
        text: String,
    },
    /// A file of the building machine, found from the recipe's directory.
    From {
        mode: u16,
        source: PathBuf,
    },
}

impl Recipe {
    /// Reads and validates the recipe at `path`: either a whole recipe, or all that is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text("read the guest", path)?;
        Self::parse(path, &text)
    }

    /// The kernel's package, unless the kernel is a file.
    pub(crate) fn kernel_package(&self) -> Option<&str> {
        match &self.kernel {
            Kernel::Package(name) => Some(name),
            Kernel::File { .. } => None,
        }
    }

    /// As [`Recipe::read`], from text that belongs to `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        decode::recipe(path, text).map_err(|problems| Box::new(problems).into())
    }
}

#[cfg(test)]
mod tests;
