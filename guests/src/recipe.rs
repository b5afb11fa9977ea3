//! A guest's recipe: what `NAME.kdl` says, validated, the same on every host. Reading it is in `recipe/decode.rs`; what
//! the packages are at this moment is the lock's business.

mod decode;
mod words;

use std::path::{Path, PathBuf};

use vmprof_document::Problems;

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
    pub description: Option<String>,
    pub distribution: Distribution,
    /// Where the lock is kept.
    pub lock_path: PathBuf,
    pub packages: Packages,
    /// The kernel's package, often one that only depends on the present kernel.
    pub kernel_package: String,
    /// Words added to the kernel's command line.
    pub cmdline: Option<String>,
    /// Kernel modules in the initramfs besides the builder's own.
    pub modules: Vec<String>,
    pub hostname: String,
    /// The whole environment of what runs, sorted by name.
    pub env: Vec<(String, String)>,
    /// What the guest does when no command is given. Empty only with [`Image::None`].
    pub run: Vec<String>,
    pub image: Image,
    /// Declared paths, in the order of the recipe.
    pub placed: Vec<Placed>,
    /// Remarks that did not stop the reading; perhaps none.
    pub warnings: Problems,
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
    Squashfs {
        compression: Compression,
        /// Absolute paths left out, with everything below them.
        exclude: Vec<String>,
    },
}

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

    /// As [`Recipe::read`], from text that belongs to `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        decode::recipe(path, text).map_err(|problems| Box::new(problems).into())
    }
}

#[cfg(test)]
mod tests;
