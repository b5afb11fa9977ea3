//! A guest's recipe: what `NAME.kdl` and the files that it extends say, validated, the same on every host. Reading it is in
//! `recipe/decode.rs`; what the packages are at this moment is the lock's business.

mod conduct;
mod decode;
mod words;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use vmprof_document::{Load, Problems};

use crate::digest::Sha256;
use crate::error::{GuestError, Result, failed};

pub(crate) use conduct::steps;
pub use conduct::{Conduct, GuestMount, ImageConfig, Init};
pub(crate) use decode::AREA;
pub(crate) use words::{Form, PACKAGE, PLAIN_NAME, SIGNALS, SUITE, VERSION};

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
    /// Over nothing but the defaults; an image's own configuration goes below it with [`Recipe::conduct_with`].
    pub conduct: Conduct,
    said: conduct::Said,
    pub image: Image,
    /// Declared paths, in the order of the recipe.
    pub placed: Vec<Placed>,
    /// Remarks that did not stop the reading; perhaps none.
    pub warnings: Problems,
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

/// More than any recipe may have: past it nothing is read, so that /dev/zero is refused and not gathered.
const MOST_BYTES_READ: u64 = 1 << 20;

impl Recipe {
    /// Reads and validates the recipe at `path` and those it extends: either a whole recipe, or all that is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_looking(path, false)
    }

    /// As [`Recipe::read`]; files of this machine that it names (`from=`, a kernel, a root) must be there, too.
    pub fn read_with_files(path: &Path) -> Result<Self> {
        Self::read_looking(path, true)
    }

    fn read_looking(path: &Path, looked_at: bool) -> Result<Self> {
        let text = text_of(path).map_err(|error| match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(Utf8 { at }) => GuestError::NotText { path: path.to_owned(), at: *at },
            None => failed("read the guest", path)(error),
        })?;
        // A file that it extends is named relative to its own directory.
        let beside = |name: &str| text_of(&path.with_file_name(name));
        decode::recipe(path, &text, Some(&beside), looked_at).map_err(|problems| Box::new(problems).into())
    }

    /// The kernel's package, unless the kernel is a file.
    pub(crate) fn kernel_package(&self) -> Option<&str> {
        match &self.kernel {
            Kernel::Package(name) => Some(name),
            Kernel::File { .. } => None,
        }
    }

    /// As [`Recipe::read`], from text that belongs to `path` and extends nothing.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        decode::recipe(path, text, None, false).map_err(|problems| Box::new(problems).into())
    }

    /// As [`Recipe::parse`]; `load` gives the text of an extended file, named relative to the directory of `path`.
    pub fn parse_with(path: &Path, text: &str, load: &Load<'_>) -> Result<Self> {
        decode::recipe(path, text, Some(load), false).map_err(|problems| Box::new(problems).into())
    }

    /// Everything in the recipe that decides the root's tree besides its packages, the format and the contents of files, or
    /// whether that tree is accepted; in a stable order, for digests of inputs.
    pub(crate) fn tree_inputs(&self) -> Vec<(&'static str, String)> {
        let Conduct { hostname, env, mounts, init, services, run, .. } = &self.conduct;
        let mut inputs = vec![("hostname", hostname.clone())];
        let mut put = |name, value: String| inputs.push((name, value));
        for User { name, uid, gid, groups, home, shell } in &self.users {
            put("user", format!("{name} {uid} {gid} {groups:?} {home:?} {shell:?}"));
        }
        for Group { name, gid } in &self.groups {
            put("group", format!("{name} {gid}"));
        }
        for placed in &self.placed {
            put("owner", placed.owner.clone());
        }
        for GuestMount { mount, format, .. } in mounts {
            put("mount", format!("{:?} {:?} {format:?}", mount.path, mount.owner));
        }
        if let Init::Systemd { enable, mask } = init {
            put("systemd", format!("{enable:?} {mask:?}"));
        }
        // What runs decides nothing in the tree, but whether it is accepted.
        put("path", format!("{:?}", env.iter().find(|(name, _)| name == "PATH")));
        put("run", format!("{:?}", run.first()));
        for service in services {
            let owners: Vec<_> = service.directories.iter().map(|directory| &directory.owner).collect();
            put("service", format!("{} {owners:?}", service.name));
            for step in steps(service) {
                let program = step.argv.first();
                let path = step.env.iter().find(|(name, _)| name.as_bytes() == b"PATH");
                put("step", format!("{program:?} {path:?} {:?} {:?}", step.user, step.group));
            }
        }
        inputs
    }
}

/// Text that is not UTF-8 from byte `at` on.
#[derive(Debug, thiserror::Error)]
#[error("it is not UTF-8 text: byte {at} is none")]
struct Utf8 {
    at: usize,
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES_READ + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES_READ {
        return Err(io::Error::other("it has more than 1 MiB, and a KDL file is a few kilobytes long"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, Utf8 { at })
    })
}

#[cfg(test)]
mod tests;
