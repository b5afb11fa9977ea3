//! Packages made up on the spot, for tests without a network: real .deb files, with whatever a test wants in them. With the
//! feature `testing`, tests of the binary get whole sites of them.

#[cfg(test)]
use std::cell::RefCell;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

#[cfg(test)]
use crate::apt::Archives;
use crate::digest::Sha256;
use crate::fetch;
use crate::kernel;
use crate::lock::{Asked, Lock, LockedPackage, Release};
use crate::modules;
use crate::recipe::Recipe;
#[cfg(test)]
use crate::recipe::{Kernel, Root};
use crate::store::Store;

/// Makes a program of a shell script. Another process writes it: of a file that this one has open for writing a child that another
/// test just starts has a copy until its exec, and nobody may run it meanwhile (ETXTBSY, execve(2)).
pub fn program(path: &Path, script: &str) {
    let mut install = Command::new("install");
    install.args(["-m755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut child = install.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// What a made-up package holds.
#[derive(Debug, Clone)]
pub enum Thing<'a> {
    Dir,
    File(u32, &'a [u8]),
    Link(&'a str),
    HardLink(&'a str),
    Char(u32, u32),
}

/// The bytes of a package whose members are packed as `form` says: `.xz`, `.gz`, `.zst` or nothing.
pub(crate) fn deb(name: &str, control: &str, form: &str, things: &[(&str, Thing<'_>)]) -> Vec<u8> {
    let control = format!("Package: {name}\nVersion: 1\n{control}");
    let mut out = Vec::new();
    {
        let mut archive = ar::Builder::new(&mut out);
        let mut add = |member: String, bytes: &[u8]| {
            archive.append(&ar::Header::new(member.into_bytes(), bytes.len() as u64), bytes).unwrap();
        };
        add("debian-binary".to_owned(), b"2.0\n");
        add(
            format!("control.tar{form}"),
            &pack(form, &tar(&[("control", Thing::File(0o644, control.as_bytes()))])),
        );
        add(format!("data.tar{form}"), &pack(form, &tar(things)));
    }
    out
}

pub(crate) fn tar(things: &[(&str, Thing<'_>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, thing) in things {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o755);
        let mut content: &[u8] = b"";
        match thing {
            Thing::Dir => header.set_entry_type(tar::EntryType::Directory),
            Thing::File(mode, bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                content = bytes;
            }
            Thing::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_link_name_literal(target).unwrap();
            }
            Thing::HardLink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                header.set_link_name_literal(target).unwrap();
            }
            Thing::Char(major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
            }
        }
        header.set_size(content.len() as u64);
        // Written past the library's own check, which knows no paths that lead upwards.
        let name = format!("./{path}");
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn pack(form: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Read as _;

    let mut out = Vec::new();
    match form {
        ".xz" => {
            liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut out).unwrap();
        }
        ".gz" => {
            flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
        }
        ".zst" => out = ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest),
        _ => out = bytes.to_vec(),
    }
    out
}

/// What every guest needs, with what each depends on.
const MODULES: [(&str, &str); 11] = [
    ("virtio", ""),
    ("virtio_ring", ""),
    ("virtio_pci", "virtio,virtio_ring"),
    ("virtio_blk", "virtio"),
    ("virtio_console", "virtio"),
    ("squashfs", ""),
    ("libcrc32c", ""),
    ("erofs", "libcrc32c"),
    ("overlay", ""),
    ("button", ""),
    ("evdev", ""),
];

/// A kernel's package with the modules every guest needs.
pub(crate) fn kernel_deb() -> Vec<u8> {
    let elf = [&b"\x7fELF"[..], &[7; 5000]].concat();
    let vmlinuz = kernel::made::image(&kernel::made::lz4(&elf), elf.len() as u32);
    let modules: Vec<(String, Arc<[u8]>)> = MODULES
        .map(|(name, depends)| {
            (format!("lib/modules/6.1.0-9-test/kernel/{name}.ko"), modules::made::module(depends))
        })
        .into();
    let mut things = vec![("boot/vmlinuz-6.1.0-9-test", Thing::File(0o644, &vmlinuz[..]))];
    things
        .push(("lib/modules/6.1.0-9-test/modules.builtin", Thing::File(0o644, b"kernel/fs/ext4/ext4.ko\n")));
    things.extend(modules.iter().map(|(path, content)| (path.as_str(), Thing::File(0o644, content))));
    deb("linux-image-test", "", ".xz", &things)
}

/// The smallest kernel that the builder takes as a file: an ELF of one note, which says where to start it, and a banner.
#[cfg(test)]
pub(crate) fn vmlinux(release: &str) -> Vec<u8> {
    let note = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
    let note = [&note[..], b"Xen\0", &0x0100_0000_u32.to_le_bytes()].concat();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64 + 56, 0);
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2_u16.to_le_bytes()); // executable
    put(18, &62_u16.to_le_bytes()); // x86-64
    put(20, &1_u32.to_le_bytes());
    put(32, &64_u64.to_le_bytes()); // program headers
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(64, &4_u32.to_le_bytes()); // a note
    put(72, &120_u64.to_le_bytes());
    put(96, &(note.len() as u64).to_le_bytes());
    put(104, &(note.len() as u64).to_le_bytes());
    put(112, &4_u64.to_le_bytes());
    elf.extend_from_slice(&note);
    elf.extend_from_slice(b"Linux version %s (");
    elf.extend_from_slice(format!("Linux version {release} (somebody) #1\n\0").as_bytes());
    elf
}

/// A recipe whose inputs all lie in `directory`, which this fills: a root from a tar, a kernel by path, and the modules that
/// every guest needs. Nothing of it comes from packages, so it has no lock.
#[cfg(test)]
pub(crate) fn local_recipe(directory: &Path, body: &str) -> Recipe {
    let tar = tar(&[
        ("etc", Thing::Dir),
        ("etc/motd", Thing::File(0o644, b"from the tar")),
        ("usr/bin/tool", Thing::File(0o755, b"a program")),
        ("usr/bin/same", Thing::HardLink("usr/bin/tool")),
        ("bin", Thing::Link("usr/bin")),
    ]);
    std::fs::write(directory.join("root.tar"), &tar).unwrap();
    std::fs::write(directory.join("vmlinux"), vmlinux("6.9.1-own")).unwrap();
    let modules = directory.join("lib/modules/6.9.1-own");
    std::fs::create_dir_all(modules.join("kernel")).unwrap();
    std::fs::write(modules.join("modules.builtin"), "kernel/fs/squashfs/squashfs.ko\n").unwrap();
    for name in MODULES.map(|(name, _)| name).iter().filter(|name| **name != "squashfs") {
        let depends = MODULES.iter().find(|(one, _)| one == name).map_or("", |(_, depends)| depends);
        std::fs::write(modules.join(format!("kernel/{name}.ko")), modules::made::module(depends)).unwrap();
    }
    let mut local = recipe(directory, body);
    local.distribution = None;
    local.root = Root::Tar { path: directory.join("root.tar"), sha256: Sha256::of(&tar) };
    local.kernel = Kernel::File { path: directory.join("vmlinux"), modules: Some(modules) };
    local
}

/// Puts a package into the store as if it had been fetched, and locks it.
pub(crate) fn adopted(store: &Store, name: &str, bytes: &[u8]) -> LockedPackage {
    let locked = locked(name, bytes);
    let dir = store.temp_dir().unwrap();
    let file = dir.path().join(locked.file_name());
    std::fs::write(&file, bytes).unwrap();
    fetch::adopt(store, &locked, &file).unwrap();
    locked
}

pub(crate) fn locked(name: &str, bytes: &[u8]) -> LockedPackage {
    LockedPackage {
        name: name.to_owned(),
        version: "1".to_owned(),
        arch: "amd64".to_owned(),
        size: bytes.len() as u64,
        sha256: Sha256::of(bytes),
        path: format!("pool/main/t/{name}/{name}_1_amd64.deb"),
    }
}

/// A lock for the recipe over these packages.
pub(crate) fn lock(recipe: &Recipe, kernel: LockedPackage, packages: Vec<LockedPackage>) -> Lock {
    let release = Release {
        suite: "bookworm".to_owned(),
        date: "Thu, 01 Jan 1970 00:00:00 UTC".to_owned(),
        sha256: Sha256::of(b""),
    };
    Lock {
        guest: recipe.name.clone(),
        releases: vec![release],
        arch: "amd64".to_owned(),
        asked: Asked::by(recipe),
        kernel: vec![kernel],
        packages,
    }
}

/// A recipe with this body besides distribution and kernel, as if it lay in `directory`.
#[cfg(test)]
pub(crate) fn recipe(directory: &Path, body: &str) -> Recipe {
    Recipe::parse(&directory.join("trial.kdl"), &recipe_text("trial", body)).unwrap()
}

fn recipe_text(name: &str, body: &str) -> String {
    format!(
        "guest {name} {{\n distribution debian suite=bookworm\n kernel package=linux-image-test\n{body}\n}}\n"
    )
}

/// A guest of a [`site`].
#[cfg(feature = "testing")]
#[derive(Debug, Clone)]
pub struct Guest {
    pub name: String,
    /// Names of packages, which are made as they are named: each holds a program of its name and a megabyte of data.
    pub packages: Vec<String>,
    /// The rest of the recipe.
    pub body: String,
}

/// Writes each guest's recipe and lock into `directory`, and puts their packages into the store, as if they had been fetched:
/// what is built of them needs no network.
#[cfg(feature = "testing")]
pub fn site(directory: &Path, store: &Path, guests: &[Guest]) {
    let store = Store::open(store).unwrap();
    let kernel = adopted(&store, "linux-image-test", &kernel_deb());
    for guest in guests {
        let packages = guest.packages.iter().map(|name| {
            // No two packages alike, and none that packs to nothing.
            let seed = blake3::hash(name.as_bytes());
            let mut data = vec![0; 1 << 20];
            blake3::Hasher::new_keyed(seed.as_bytes()).finalize_xof().fill(&mut data);
            let things = [
                (format!("usr/bin/{name}"), Thing::File(0o755, name.as_bytes())),
                (format!("usr/share/{name}/data"), Thing::File(0o644, &data)),
            ];
            let things: Vec<_> = things.iter().map(|(path, thing)| (path.as_str(), thing.clone())).collect();
            adopted(&store, name, &deb(name, "", ".gz", &things))
        });
        let packages: Vec<_> = packages.collect();
        let body = match guest.packages.is_empty() {
            true => guest.body.clone(),
            false => format!(" packages {}\n{}", guest.packages.join(" "), guest.body),
        };
        let text = recipe_text(&guest.name, &body);
        let path = directory.join(format!("{}.kdl", guest.name));
        let recipe = Recipe::parse(&path, &text).unwrap();
        std::fs::write(&recipe.lock_path, lock(&recipe, kernel.clone(), packages).to_text()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
}

#[cfg(test)]
thread_local! {
    static ARCHIVE: RefCell<Option<Archives>> = const { RefCell::new(None) };
}

/// The archive that this thread's locks are made from instead of the host's.
#[cfg(test)]
pub(crate) fn local_archive() -> Option<Archives> {
    ARCHIVE.with_borrow(Clone::clone)
}

/// Makes an archive in `directory` of packages given as name, version and what they depend on, and has this thread lock
/// from it. It is not signed: nobody but the archive's keeper could do that.
#[cfg(test)]
pub(crate) fn serve_archive(directory: &Path, packages: &[(&str, &str, &str)]) {
    let index: String = packages
        .iter()
        .map(|(name, version, depends)| {
            let depends = if depends.is_empty() { String::new() } else { format!("Depends: {depends}\n") };
            format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\n{depends}Size: 9\nSHA256: {}\nFilename: \
                 pool/main/{name}_{version}_amd64.deb\nDescription: a package\n\n",
                Sha256::of(format!("{name} {version}").as_bytes())
            )
        })
        .collect();
    let suite = directory.join("dists/bookworm");
    std::fs::create_dir_all(suite.join("main/binary-amd64")).unwrap();
    std::fs::write(suite.join("main/binary-amd64/Packages"), &index).unwrap();
    let release = format!(
        "Suite: bookworm\nCodename: bookworm\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nArchitectures: amd64\nComponents: \
         main\nSHA256:\n {} {} main/binary-amd64/Packages\n",
        Sha256::of(index.as_bytes()),
        index.len()
    );
    std::fs::write(suite.join("Release"), release).unwrap();
    let base = format!("copy:{}", directory.display());
    ARCHIVE.set(Some(Archives { likely: vec![base], others: Vec::new() }));
}
