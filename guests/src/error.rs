//! What can go wrong between a recipe and an image, each with what was asked, what was found and the next step. Problems
//! inside a recipe or a lock file carry spans and live in `recipe` and `lock`; here they arrive as one list.

use std::io;
use std::path::{Path, PathBuf};

use crate::apt::AptError;
use crate::digest::Sha256;
use crate::fetch::FetchError;
use crate::lock::LockError;

/// Which of the command line's exit codes a failure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The recipe or its lock is wrong: exit 3.
    Invalid,
    /// Bytes differ from the hash they were asked by: exit 102.
    HashMismatch,
    /// Two builds of the same inputs differ: exit 104.
    NotDeterministic,
    /// Everything else: exit 1.
    Failure,
}

impl FailureClass {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 3,
            Self::HashMismatch => 102,
            Self::NotDeterministic => 104,
            Self::Failure => 1,
        }
    }
}

/// The result of anything in this crate that can fail.
pub type Result<T, E = GuestError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum GuestError {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Document(#[from] Box<vmprof_document::Problems>),

    #[error("could not {doing} {}", path.display())]
    #[diagnostic(code(vmprof::guest::io))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },

    #[error("no space left while writing {}", path.display())]
    #[diagnostic(
        code(vmprof::guest::no_space),
        help(
            "nothing half-written was left in the store. Free some space, or put the store on another disk with VMPROF_STORE"
        )
    )]
    NoSpace { path: PathBuf, source: io::Error },

    #[error("{} is not text: byte {at} is not UTF-8", path.display())]
    #[diagnostic(
        code(vmprof::guest::not_text),
        help("a guest and its lock are KDL files; `vmprof lock` makes a lock anew")
    )]
    NotText { path: PathBuf, at: usize },

    #[error("the guest is not built")]
    #[diagnostic(code(vmprof::guest::not_built), help("`vmprof build` builds it"))]
    NotBuilt,

    #[error(
        "`{package}` is not a kernel: no linux-image package with a kernel in it was found through its dependencies"
    )]
    #[diagnostic(
        code(vmprof::guest::not_a_kernel),
        help("name a kernel package such as linux-image-cloud-amd64")
    )]
    NotAKernel { package: String },

    #[error("{what} is not what the recipe names: its SHA-256 is {found}, and {wanted} was asked for")]
    #[diagnostic(
        code(vmprof::guest::input_mismatch),
        help("bring the file that was meant, or write the other hash into the recipe if this one is")
    )]
    InputMismatch { what: String, wanted: Sha256, found: Sha256 },

    #[error("{} has no image with digest sha256:{digest}", path.display())]
    #[diagnostic(code(vmprof::guest::no_such_image), help("{}", there_help(there)))]
    NoSuchImage { path: PathBuf, digest: Sha256, there: Vec<String> },

    #[error("image sha256:{digest} of {} is for {platform}, and guests are linux/amd64", path.display())]
    #[diagnostic(
        code(vmprof::guest::image_platform),
        help(
            "save the image for that platform: `skopeo copy --override-arch amd64`, or `docker pull --platform linux/amd64`"
        )
    )]
    ImagePlatform { path: PathBuf, digest: Sha256, platform: String },

    #[error("layer {digest} of {} is of type `{media_type}`: {reason}", path.display())]
    #[diagnostic(
        code(vmprof::guest::image_layer),
        help(
            "layers that are a tar, plain or packed with gzip or zstd, are understood; save the image with those"
        )
    )]
    ImageLayer { path: PathBuf, digest: String, media_type: String, reason: &'static str },

    #[error("{} is not a kernel to boot: {problem}", path.display())]
    #[diagnostic(
        code(vmprof::guest::kernel_file),
        help(
            "take a vmlinux or bzImage of x86-64, built with CONFIG_PVH and packed with gzip, xz, zstd, LZ4, bzip2 or lzma"
        )
    )]
    KernelFile { path: PathBuf, problem: String },

    #[error("module `{name}` is built for {found}, and the kernel is {release}")]
    #[diagnostic(
        code(vmprof::guest::foreign_module),
        help("name the directory lib/modules/{release} of the same kernel")
    )]
    ForeignModule { name: String, found: String, release: String },

    #[error("{what} is damaged or of an unknown form: {problem}")]
    #[diagnostic(code(vmprof::guest::bad_archive))]
    BadArchive { what: String, problem: String },

    #[error("packages `{first}` and `{second}` both hold /{path}, with different content")]
    #[diagnostic(
        code(vmprof::guest::file_conflict),
        help(
            "leave one of the packages out, `exclude` the path, or write the path as a `file` of the recipe"
        )
    )]
    FileConflict { path: String, first: String, second: String },

    #[error("{by} puts something at /{path}, but {reason}")]
    #[diagnostic(code(vmprof::guest::bad_path))]
    BadPath { path: String, by: String, reason: String },

    #[error("the kernel of {package} is packed in a way vmprof does not know: {found}")]
    #[diagnostic(
        code(vmprof::guest::kernel_format),
        help("gzip, xz, zstd, LZ4, bzip2 and lzma kernels of x86-64 are understood")
    )]
    KernelFormat { package: String, found: String },

    #[error("the kernel {release} has no module `{name}`, neither as a file nor built in{}", needed_by.as_ref().map(|by| format!(" (needed by `{by}`)")).unwrap_or_default())]
    #[diagnostic(
        code(vmprof::guest::no_module),
        help("check the name under `modules`, or choose a kernel package that has it")
    )]
    NoModule { name: String, release: String, needed_by: Option<String> },

    #[error("{who} runs `{program}`, which is not in its image{}", because.as_ref().map(|b| format!(": {b}")).unwrap_or_default())]
    #[diagnostic(code(vmprof::guest::no_program), help("{}", no_program_help(program)))]
    NoProgram { who: String, program: String, because: Option<String> },

    #[error("guest `{guest}` makes {filesystem} on the empty disk of {path}, and has no {program}")]
    #[diagnostic(
        code(vmprof::guest::no_mkfs),
        help("add the package {} under `packages`", if *filesystem == "xfs" { "xfsprogs" } else { "e2fsprogs" })
    )]
    NoMkfs { guest: String, path: String, filesystem: &'static str, program: String },

    #[error("{of} names {what} `{asked}`, which the guest does not have; it has {}", known.join(", "))]
    #[diagnostic(
        code(vmprof::guest::unknown_account),
        help(
            "declare it: {}",
            if *what == "user" { format!("`user {asked} uid=…`") } else { format!("`group {asked} gid=…`") }
        )
    )]
    UnknownAccount { what: &'static str, asked: String, of: String, known: Vec<String> },

    #[error("{what} `{name}` shall have id {id}, which {what} `{holder}` has in the image")]
    #[diagnostic(code(vmprof::guest::taken_id), help("give `{name}` another id"))]
    TakenId { what: &'static str, name: String, id: u32, holder: String },

    #[error("guest `{guest}` has `init systemd`, and no /usr/lib/systemd/systemd in its image")]
    #[diagnostic(
        code(vmprof::guest::no_systemd),
        help("add `systemd` under `packages`, or take `init systemd` out")
    )]
    NoSystemd { guest: String },

    #[error("guest `{guest}` enables `{unit}`, which is not among the units in its image")]
    #[diagnostic(
        code(vmprof::guest::no_unit),
        help("{}", near.as_ref().map_or("add the package that holds it, or write the unit with `file`".to_owned(), |near| format!("did you mean `{near}`?")))
    )]
    NoUnit { guest: String, unit: String, near: Option<String> },

    #[error("unit `{unit}` cannot be enabled or masked: {problem}")]
    #[diagnostic(
        code(vmprof::guest::unit_refused),
        help("take it out of `init systemd`, or change the unit")
    )]
    UnitNotEnabled { unit: String, problem: String },

    #[error(
        "programs of guest `{guest}` need libraries that are not in its image: {}",
        list_missing(missing)
    )]
    #[diagnostic(
        code(vmprof::guest::missing_library),
        help("a package named under `without` holds them: take it out of that list")
    )]
    MissingLibraries { guest: String, missing: Vec<MissingLibrary> },

    #[error("squashfs: {problem}")]
    #[diagnostic(code(vmprof::guest::squashfs))]
    Squashfs { problem: String },

    #[error("squashfs: /{path} has the extended attribute {name}, which vmprof's squashfs cannot hold")]
    #[diagnostic(
        code(vmprof::guest::squashfs_xattr),
        help(
            "write `image root {{ format erofs }}`: that format keeps extended attributes. Or leave the file out with `exclude`"
        )
    )]
    SquashfsXattr { path: String, name: String },

    #[error("{format}: {problem}")]
    #[diagnostic(code(vmprof::guest::image_format))]
    ImageFormat { format: &'static str, problem: String },

    #[error("the {format} image of {} MiB is too small: what goes into it needs {} MiB", asked >> 20, needed >> 20)]
    #[diagnostic(
        code(vmprof::guest::image_too_small),
        help(
            "give `format {format}` a size of at least \"{}MiB\", or none: then it is what its files need and half as much again",
            needed >> 20
        )
    )]
    ImageTooSmall { format: &'static str, asked: u64, needed: u64 },

    #[error("building `{what}` twice gave different bytes: {difference}")]
    #[diagnostic(
        code(vmprof::guest::not_deterministic),
        help("this is a defect of vmprof or a damaged store: `vmprof store verify` tells the two apart")
    )]
    NotDeterministic { what: String, difference: String },

    #[error("store entry {} is damaged: its content no longer has the hash in its name", path.display())]
    #[diagnostic(
        code(vmprof::guest::store_damaged),
        help(
            "run `vmprof store verify --repair`, which moves what is damaged out of the way, and build again: what is missing is made anew"
        )
    )]
    StoreDamaged { path: PathBuf },

    #[error("{} is no directory, so it cannot be the store", path.display())]
    #[diagnostic(
        code(vmprof::store::not_a_directory),
        help("move it away, or name another place with VMPROF_STORE")
    )]
    StoreNotADirectory { path: PathBuf },

    #[error("the store {} may not be written by this user", path.display())]
    #[diagnostic(
        code(vmprof::store::not_writable),
        help(
            "name a store of your own with VMPROF_STORE. A store is shared by a group when its directory belongs to that group and is group-writable with the setgid bit"
        )
    )]
    StoreNotWritable { path: PathBuf, source: io::Error },

    #[error("the filesystem of the store {} has no locks", path.display())]
    #[diagnostic(
        code(vmprof::store::no_locks),
        help(
            "builders and gc keep out of each other's way with flock: put the store on a local filesystem with VMPROF_STORE"
        )
    )]
    StoreNoLocks { path: PathBuf, source: io::Error },

    #[error("the store's root {} cannot be understood: {problem}", path.display())]
    #[diagnostic(
        code(vmprof::store::bad_root),
        help(
            "nothing was removed, since what it keeps is not known. `vmprof store verify --repair` moves it away; the next build of its recipe writes it anew"
        )
    )]
    BadRoot { path: PathBuf, problem: String },

    #[error("nothing in the store is called `{asked}`")]
    #[diagnostic(
        code(vmprof::store::no_entry),
        help(
            "`vmprof store ls` lists what there is; the beginning of a digest or the name of a package is enough"
        )
    )]
    NoEntry { asked: String },

    #[error("several digests in the store begin with `{asked}`: {}", first_of(names))]
    #[diagnostic(code(vmprof::store::ambiguous), help("write more of the one that is meant"))]
    AmbiguousEntry { asked: String, names: Vec<String> },

    #[error("the emulator realised from Debian is version {found}; the lab needs at least {wanted}")]
    #[diagnostic(code(vmprof::guest::emulator_version), help("put a QEMU of at least that version on PATH"))]
    EmulatorVersion { found: String, wanted: String },

    #[error("the emulator {} does not start: {output}", program.display())]
    #[diagnostic(code(vmprof::guest::emulator_broken))]
    EmulatorBroken { program: PathBuf, output: String },

    #[error(transparent)]
    #[diagnostic(transparent)]
    Apt(#[from] AptError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Fetch(#[from] FetchError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Lock(#[from] LockError),
}

/// A library that a program names and the image lacks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingLibrary {
    pub library: String,
    pub needed_by: String,
}

impl GuestError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Document(_)
            | Self::NotText { .. }
            | Self::NotAKernel { .. }
            | Self::FileConflict { .. }
            | Self::BadPath { .. }
            | Self::SquashfsXattr { .. }
            | Self::NoModule { .. }
            | Self::NoSuchImage { .. }
            | Self::ImagePlatform { .. }
            | Self::ImageLayer { .. }
            | Self::KernelFile { .. }
            | Self::ForeignModule { .. }
            | Self::NoProgram { .. }
            | Self::NoMkfs { .. }
            | Self::UnknownAccount { .. }
            | Self::TakenId { .. }
            | Self::NoSystemd { .. }
            | Self::NoUnit { .. }
            | Self::UnitNotEnabled { .. }
            | Self::MissingLibraries { .. }
            | Self::ImageTooSmall { .. } => FailureClass::Invalid,
            Self::InputMismatch { .. } | Self::StoreDamaged { .. } => FailureClass::HashMismatch,
            Self::NotDeterministic { .. } => FailureClass::NotDeterministic,
            Self::Io { .. }
            | Self::NotBuilt
            | Self::StoreNotADirectory { .. }
            | Self::StoreNotWritable { .. }
            | Self::StoreNoLocks { .. }
            | Self::BadRoot { .. }
            | Self::NoEntry { .. }
            | Self::AmbiguousEntry { .. }
            | Self::NoSpace { .. }
            | Self::BadArchive { .. }
            | Self::KernelFormat { .. }
            | Self::Squashfs { .. }
            | Self::ImageFormat { .. }
            | Self::EmulatorVersion { .. }
            | Self::EmulatorBroken { .. } => FailureClass::Failure,
            Self::Apt(error) => error.class(),
            Self::Fetch(error) => error.class(),
            Self::Lock(error) => error.class(),
        }
    }
}

/// Turns an I/O failure into an error that names the path: `.map_err(failed("read", path))`.
pub(crate) fn failed(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.as_ref().to_owned();
    move |source| match source.kind() {
        // A limit on a file's size (`ulimit -f`) stops a writer as a full disk does.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            GuestError::NoSpace { path, source }
        }
        _ => GuestError::Io { doing, path, source },
    }
}

/// Reads a file that must be text.
pub(crate) fn read_text(doing: &'static str, path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(failed(doing, path))?;
    String::from_utf8(bytes)
        .map_err(|error| GuestError::NotText { path: path.to_owned(), at: error.utf8_error().valid_up_to() })
}

/// A list for a sentence: what is past the first few is counted.
fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

/// Which of the names that are there was meant.
pub(crate) fn near_help(near: &[String]) -> String {
    match near {
        [] => "check the name".to_owned(),
        names => {
            format!(
                "did you mean {}?",
                names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")
            )
        }
    }
}

fn no_program_help(program: &str) -> String {
    let mut words = program.split_whitespace().map(|word| format!("\"{word}\""));
    match (words.next(), words.collect::<Vec<_>>().join(" ")) {
        (Some(program), words) if !words.is_empty() => {
            format!("no shell takes it apart: write each word for itself, {program} {words}")
        }
        _ => "add the package that holds it under `packages`, or the file or link that should be there"
            .to_owned(),
    }
}

fn there_help(there: &[String]) -> String {
    match there {
        [] => "there is no image in it".to_owned(),
        images => format!("there is: {}", images.join("; ")),
    }
}

fn list_missing(missing: &[MissingLibrary]) -> String {
    let each: Vec<_> = missing.iter().map(|m| format!("{} (for {})", m.library, m.needed_by)).collect();
    each.join(", ")
}
