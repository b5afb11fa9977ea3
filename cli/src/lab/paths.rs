//! Where the vmprof inside an emulated host has its files.

use std::path::{Component, Path};

/// What all runs in it share, and what is one run's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathsInside {
    base: String,
    /// This program.
    pub vmprof: String,
    pub kernel: String,
    pub initramfs: String,
}

impl PathsInside {
    /// The program that the emulated host itself was given.
    pub const VMPROF: &'static str = "/vmprof/vmprof";
    pub const STORE: &'static str = "/vmprof/store";
    pub const RUNTIME: &'static str = "/run/vmprof";
    /// What runs leave for the next, by the hash of its bytes.
    pub const CACHE: &'static str = "/vmprof/cache";

    /// A directory for each run.
    pub const RUNS: &'static str = "/vmprof/runs";

    /// In an emulated host that is one run's alone.
    pub fn alone() -> PathsInside {
        PathsInside {
            base: "/vmprof".to_owned(),
            vmprof: PathsInside::VMPROF.to_owned(),
            kernel: "/vmprof/kernel".to_owned(),
            initramfs: "/vmprof/initramfs".to_owned(),
        }
    }

    /// For the run `name` in one that several share; `hashes` are those of the program, the kernel and the initramfs.
    pub fn shared(name: &str, hashes: &[String; 3]) -> PathsInside {
        let [vmprof, kernel, initramfs] =
            hashes.each_ref().map(|hash| format!("{}/{hash}", PathsInside::CACHE));
        PathsInside { base: PathsInside::base_of(name), vmprof, kernel, initramfs }
    }

    /// The directory of what is the run's.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn base_of(name: &str) -> String {
        format!("{}/{name}", PathsInside::RUNS)
    }

    pub fn image(&self) -> String {
        format!("{}/image.json", self.base)
    }

    pub fn root(&self) -> String {
        format!("{}/root", self.base)
    }

    pub fn plan(&self) -> String {
        format!("{}/plan.json", self.base)
    }

    pub fn state(&self) -> String {
        format!("{}/state", self.base)
    }

    pub fn artifacts(&self) -> String {
        format!("{}/artifacts", self.base)
    }

    /// Where the vmprof inside says how far it is, in a host that several share.
    pub fn relay(&self) -> String {
        format!("{}/relay.sock", self.base)
    }

    /// Where a file of the profile lies, given its absolute path outside: below one directory all keep their places, so that
    /// what one says of another's path holds. `..` is taken by the names, as it is inside, where no link is in the way.
    pub fn file(&self, outside: &Path) -> String {
        let mut places = Vec::new();
        for component in outside.components() {
            match component {
                Component::Normal(name) => places.push(name.to_string_lossy()),
                Component::ParentDir => drop(places.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        format!("{}/files/{}", self.base, places.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_their_places_to_one_another() {
        let inside = PathsInside::alone();
        let place = |outside: &str| inside.file(outside.as_ref());
        assert_eq!(place("/home/u/profiles/db.kdl"), "/vmprof/files/home/u/profiles/db.kdl");
        assert_eq!(place("/home/u/profiles/../base/./db.kdl"), "/vmprof/files/home/u/base/db.kdl");
        assert_eq!(place("/../../etc/passwd"), "/vmprof/files/etc/passwd", "no path leads out of there");
    }
}
