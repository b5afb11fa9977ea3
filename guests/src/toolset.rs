//! Programs of Debian's packages, realised into the store without root and run by their own loader, on any distribution:
//! the lab's emulator is one, and tests bring others.
//!
//! A toolset is locked on the spot, since any version of its suites will do: apt checks the signatures, and the lock that
//! was used is kept in the store, so that a store with the packages can realise it again without the network.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::apt::{Apt, Wanted};
use crate::builder::{BUILDER_VERSION, Builder, role};
use crate::deb::Deb;
use crate::digest::Inputs;
use crate::error::{GuestError, Result};
use crate::fetch::FetchError;
use crate::lock::{Asked, Lock, LockedPackage};
use crate::progress::Stage;
use crate::store::{Entry, Record, Root, Store, StoreError};
use crate::tree::{Kind, Node, Origin, Tree};
use crate::{elf, fetch, parallel};

const ARCH: &str = "amd64";
pub(crate) const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
pub(crate) const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// What to take out of which packages.
#[derive(Debug, Clone, Copy)]
pub struct Toolset {
    /// Its name in the store and in messages.
    pub name: &'static str,
    /// The last suite is preferred, and builds on those before it.
    pub suites: &'static [&'static str],
    /// With what they depend on; recommended packages stay out.
    pub packages: &'static [&'static str],
    /// Paths of the programs; the libraries they name come with them.
    pub programs: &'static [&'static str],
    /// Paths of other files; one that ends with a slash is a directory with all that is in it.
    pub data: &'static [&'static str],
    /// Directories whose files `data` may link to.
    pub linked: &'static [&'static str],
    /// Grows when another part of the packages is kept.
    pub layout: &'static str,
}

/// A toolset in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realised {
    entry: Entry,
    facts: std::collections::BTreeMap<String, String>,
}

impl Realised {
    /// The words in front of a program's own arguments: its loader, with what that needs.
    pub fn argv(&self, program: &str) -> Vec<OsString> {
        let name = program.rsplit('/').next().unwrap_or(program);
        vec![
            self.path(LOADER).into(),
            "--argv0".into(),
            name.into(),
            "--library-path".into(),
            self.path(LIBRARIES).into(),
            self.path(program).into(),
        ]
    }

    /// Where a file or a directory of it lies.
    pub fn path(&self, below: &str) -> PathBuf {
        self.entry.path.join(below)
    }

    /// What was found out about it when it was realised.
    pub(crate) fn fact(&self, name: &str) -> Option<&str> {
        self.facts.get(name).map(String::as_str)
    }
}

impl Toolset {
    /// Finds it in the store, or makes it. Warm, this starts no process.
    pub fn realise(&self, builder: &Builder<'_>) -> Result<Realised> {
        self.realise_checked(builder, |_| Ok(Vec::new()))
    }

    /// The same; `check` sees a new one before it is kept, and may refuse it or note facts about it.
    pub(crate) fn realise_checked(
        &self,
        builder: &Builder<'_>,
        check: impl FnOnce(&Realised) -> Result<Vec<(&'static str, String)>>,
    ) -> Result<Realised> {
        let inputs = self.inputs();
        let using = builder.store().using()?;
        let (record, entries) = builder.once(inputs, |builder| {
            let (lock, packages) = self.fetched(builder)?;
            let stage = builder.stage(&format!("unpacking the {}", self.name), Some(packages.len() as u64));
            let tree = self.unpack(&*stage, &lock.packages, &packages)?;
            let entry = self.publish(builder.store(), &tree)?;
            drop(stage);
            let facts = check(&Realised { entry: entry.clone(), facts: Default::default() })?;
            let kept = Record::new(format!("lock of the {}", self.name));
            let kept = kept.with("lock", &self.publish_lock(builder.store(), &lock)?);
            builder.store().remember(self.lock_inputs(), &kept)?;
            let bytes = builder.store().size_of(&entry)?.to_string();
            let record = Record::new(self.name).with(self.name, &entry).fact("bytes", bytes);
            Ok(facts.into_iter().fold(record, |record, (name, value)| record.fact(name, value)))
        })?;
        let entry = role(inputs, entries, self.name)?;
        // Hashing all of it would take longer than starting it. That a file is gone or cut short shows in the sum of sizes.
        let bytes = builder.store().size_of(&entry)?.to_string();
        if record.facts.get("bytes").is_some_and(|then| *then != bytes) {
            return Err(StoreError::Damaged { path: entry.path }.into());
        }
        if let Some(lock) = self.kept_lock(builder.store()) {
            builder.keep(&using, Root::of_toolset(self.name), &lock, [inputs, self.lock_inputs()])?;
        }
        Ok(Realised { entry, facts: record.facts })
    }

    pub(crate) fn inputs(&self) -> Inputs {
        Inputs::of(self.name)
            .field("builder", BUILDER_VERSION.as_bytes())
            .field("layout", self.layout.as_bytes())
            .field("suites", self.suites.join(" ").as_bytes())
            .finish()
    }

    fn lock_inputs(&self) -> Inputs {
        let kind = format!("{} lock", self.name);
        Inputs::of(&kind).field("suites", self.suites.join(" ").as_bytes()).finish()
    }

    /// A lock and its packages in the store: the lock used before if everything is still here, otherwise a new one, since
    /// the archive may no longer have the old one's packages.
    fn fetched(&self, builder: &Builder<'_>) -> Result<(Lock, Vec<Entry>)> {
        if let Some(lock) = self.kept_lock(builder.store()) {
            let here: Option<Vec<Entry>> =
                lock.packages.iter().map(|p| fetch::find(builder.store(), p)).collect();
            if let Some(entries) = here {
                return Ok((lock, entries));
            }
        }
        let names: Vec<String> = self.packages.iter().map(|name| (*name).to_owned()).collect();
        if builder.is_offline() {
            return Err(FetchError::Offline { names }.into());
        }
        builder.progress().note(&format!(
            "taking the {} from Debian's {} into the store",
            self.name,
            self.suites.last().unwrap_or(&"")
        ));
        let lock = self.lock(builder, names)?;
        let packages: Vec<&LockedPackage> = lock.packages.iter().collect();
        let entries = fetch::packages(builder, &packages, self.suites.first().unwrap_or(&""))?;
        Ok((lock, entries))
    }

    fn lock(&self, builder: &Builder<'_>, names: Vec<String>) -> Result<Lock> {
        let doing = format!("locking the {}: reading Debian {}", self.name, self.suites.join(" and "));
        let _stage = builder.stage(&doing, None);
        let apt = Apt::update(builder.store(), self.suites, ARCH, builder.prepare())?;
        let packages = apt.resolve(&Wanted { names: &names, without: &[], recommends: false }, &[])?;
        let releases = apt.releases()?;
        let suite = self.suites.last().copied().unwrap_or_default().to_owned();
        let asked = Asked { suite, packages: names, kernel: "none".to_owned(), ..Asked::default() };
        Ok(Lock {
            guest: self.name.to_owned(),
            releases,
            arch: ARCH.to_owned(),
            asked,
            kernel: Vec::new(),
            packages,
        })
    }

    fn publish_lock(&self, store: &Store, lock: &Lock) -> Result<Entry> {
        store.publish_bytes(&format!("{}.lock.kdl", self.name), lock.to_text().as_bytes())
    }

    fn kept_lock(&self, store: &Store) -> Option<Lock> {
        let (_, entries) = store.recall(self.lock_inputs())?;
        let path = &entries.first()?.path;
        Lock::read(path).ok()
    }

    /// Everything the packages hold that could be needed, with /usr merged as the archive's newer packages expect.
    fn unpack(&self, stage: &dyn Stage, packages: &[LockedPackage], entries: &[Entry]) -> Result<Tree> {
        let mut tree = Tree::default();
        for (path, target) in
            [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")]
        {
            tree.put(path, Node::link(target), &Origin::Builder)?;
        }
        let wanted = |path: &str| {
            let named = |names: &[&str]| names.iter().any(|name| path.starts_with(name));
            path.contains(".so") || self.programs.contains(&path) || named(self.data) || named(self.linked)
        };
        let pairs: Vec<_> = packages.iter().zip(entries).collect();
        let unpack = |(package, entry): &(&LockedPackage, &Entry)| {
            let deb = Deb::read_some(package.file_name(), &fetch::read(package, entry)?, &wanted);
            stage.advance(1);
            deb
        };
        let debs = parallel::each(&pairs, |(package, _)| package.size, unpack)?;
        for deb in debs {
            let by = Origin::Package { name: deb.name, replaces: deb.replaces.into() };
            for (path, node) in deb.files {
                tree.put(&path, node, &by)?;
            }
        }
        Ok(tree)
    }

    /// The programs, the libraries they name over any number of steps, the loader, the data.
    fn publish(&self, store: &Store, tree: &Tree) -> Result<Entry> {
        let dir = store.temp_dir()?;
        let bad = |problem: String| GuestError::BadArchive {
            what: format!("the closure of the {}", self.name),
            problem,
        };
        let content = |path: &str| match tree.look(path) {
            Some((_, node)) => match &node.kind {
                Kind::File(content) => Ok(content),
                _ => Err(bad(format!("{path} is not a file"))),
            },
            None => Err(bad(format!("{path} is missing"))),
        };
        let mut open: Vec<(String, bool)> =
            self.programs.iter().chain([&LOADER]).map(|path| ((*path).to_owned(), true)).collect();
        let mut written: BTreeSet<String> = open.iter().map(|(path, _)| path.clone()).collect();
        while let Some((path, executable)) = open.pop() {
            let bytes = content(&path)?;
            dir.write(&path, bytes, executable)?;
            for library in elf::needs(bytes).unwrap_or_default().libraries {
                let path = format!("{LIBRARIES}/{library}");
                if written.insert(path.clone()) {
                    open.push((path, false));
                }
            }
        }
        for path in self.data {
            if !path.ends_with('/') {
                dir.write(path, content(path)?, false)?;
                continue;
            }
            let below: Vec<&str> = tree
                .iter()
                .filter(|(at, node)| at.starts_with(path) && matches!(node.kind, Kind::File(_)))
                .map(|(at, _)| at)
                .collect();
            if below.is_empty() {
                return Err(bad(format!("{path} is missing")));
            }
            below.into_iter().try_for_each(|at| dir.write(at, content(at)?, false))?;
        }
        store.publish_dir(dir, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use crate::testing::{Thing, adopted, deb};

    const TRIAL: Toolset = Toolset {
        name: "trial",
        suites: &["bookworm"],
        packages: &["trial"],
        programs: &["usr/bin/trial"],
        data: &["usr/share/trial/one.rng", "usr/share/all/"],
        linked: &[],
        layout: "1",
    };

    /// A store that holds the packages of a lock used before.
    fn store_with(directory: &std::path::Path, things: &[(&str, Thing<'_>)]) -> Store {
        let store = Store::open(directory.join("store")).unwrap();
        let package = adopted(&store, "trial", &deb("trial", "", ".xz", things));
        let lock = Lock {
            guest: "trial".to_owned(),
            releases: Vec::new(),
            arch: ARCH.to_owned(),
            asked: Asked { suite: "bookworm".to_owned(), kernel: "none".to_owned(), ..Asked::default() },
            kernel: Vec::new(),
            packages: vec![package],
        };
        let entry = TRIAL.publish_lock(&store, &lock).unwrap();
        store.remember(TRIAL.lock_inputs(), &Record::new("lock").with("lock", &entry)).unwrap();
        store
    }

    const WHOLE: [(&str, Thing<'static>); 6] = [
        ("usr/bin/trial", Thing::File(0o755, b"no ELF file")),
        (LOADER, Thing::File(0o755, b"loader")),
        ("usr/share/trial/one.rng", Thing::File(0o644, b"1")),
        ("usr/share/trial/other.rng", Thing::File(0o644, b"2")),
        ("usr/share/all/a", Thing::File(0o644, b"a")),
        ("usr/share/all/b/c", Thing::File(0o644, b"c")),
    ];

    #[test]
    fn a_toolset_whose_packages_are_here_is_realised_offline_with_its_programs_and_data_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = store_with(directory.path(), &WHOLE);
        let builder = Builder::new(&store, &Silent).offline(true);
        let realised = TRIAL.realise(&builder).unwrap();
        for below in
            ["usr/bin/trial", LOADER, "usr/share/trial/one.rng", "usr/share/all/a", "usr/share/all/b/c"]
        {
            assert!(realised.path(below).is_file(), "{below}");
        }
        assert!(!realised.path("usr/share/trial/other.rng").exists());
        let argv = realised.argv("usr/bin/trial");
        assert_eq!((&argv[0], &argv[2]), (&realised.path(LOADER).into(), &"trial".into()));
        assert_eq!(argv.last(), Some(&realised.path("usr/bin/trial").into()));
        assert_eq!(TRIAL.realise(&builder).unwrap(), realised);
    }

    #[test]
    fn a_package_without_a_promised_file_is_refused() {
        for without in ["usr/bin/trial", "usr/share/trial/one.rng", "usr/share/all/"] {
            let directory = tempfile::tempdir().unwrap();
            let things: Vec<_> = WHOLE.into_iter().filter(|(path, _)| !path.starts_with(without)).collect();
            let store = store_with(directory.path(), &things);
            let error = TRIAL.realise(&Builder::new(&store, &Silent).offline(true)).unwrap_err();
            assert!(error.to_string().contains("trial") || error.to_string().contains("closure"), "{error}");
            assert!(
                matches!(&error, GuestError::BadArchive { problem, .. } if problem.contains(without)),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_toolset_that_is_not_here_is_refused_offline() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        let error = TRIAL.realise(&Builder::new(&store, &Silent).offline(true)).unwrap_err();
        assert!(
            matches!(&error, GuestError::Fetch(FetchError::Offline { names, .. }) if names == &["trial"]),
            "{error:?}"
        );
    }
}
