//! From a locked package to its files. A package is taken out of its compression once, as soon as it has been fetched, and
//! kept in a form that is quick to read back: the archive of its files under LZ4, which halves it and costs a fifth of a
//! second for 300 MB, and in the record the text of its control file. Guests share them, and so do an image and the next.

use std::io::{Read as _, Write as _};

use super::{BUILDER_VERSION, Builder};
use crate::deb::{Deb, Unpacked};
use crate::digest::Inputs;
use crate::error::{GuestError, Result};
use crate::fetch;
use crate::lock::LockedPackage;
use crate::parallel::{self, Feed};
use crate::store::{Entry, Record, StoreError};

/// A fact of an unpacked package's record.
const CONTROL: &str = "control";

/// Where an image's packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// What was unpacked before.
    Store,
    /// The .debs once more, as if nothing had been unpacked yet.
    Anew,
}

/// What an unpacked package's record is found by.
pub(super) fn inputs(package: &LockedPackage) -> Inputs {
    Inputs::of("unpacked package")
        .field("builder", BUILDER_VERSION.as_bytes())
        .field("sha256", package.sha256.to_string().as_bytes())
        .finish()
}

impl Builder<'_> {
    /// Has all packages unpacked in the store: fetches what is missing, and unpacks while the rest still comes.
    pub(super) fn have_unpacked(&self, packages: &[&LockedPackage], suite: &str) -> Result<()> {
        let mut lacking: Vec<&LockedPackage> =
            packages.iter().copied().filter(|package| self.store.recall(inputs(package)).is_none()).collect();
        // A lock may name a package twice, for the kernel and for the root.
        lacking.sort_by_key(|package| package.sha256);
        lacking.dedup_by_key(|package| package.sha256);
        if lacking.is_empty() {
            return Ok(());
        }
        let (here, missing): (Vec<_>, Vec<_>) =
            lacking.iter().copied().partition(|package| fetch::find(self.store, package).is_some());
        let feed = Feed::default();
        let put = |package: &LockedPackage| {
            let piece = lacking.iter().position(|one| one.sha256 == package.sha256);
            piece.is_none_or(|piece| feed.put(package.size, piece))
        };
        for package in here {
            put(package);
        }
        let stage = self.stage("unpacking packages", Some(lacking.len() as u64));
        let fetched = std::thread::scope(|scope| {
            for _ in 0..parallel::threads().min(lacking.len()) {
                scope.spawn(|| {
                    feed.work(|piece| {
                        let Some(package) = lacking.get(piece) else { return Ok(()) };
                        self.once(inputs(package), |builder| builder.unpack(package))?;
                        stage.advance(1);
                        Ok(())
                    });
                });
            }
            let fetched = fetch::missing(self, &missing, suite, &put);
            feed.close();
            fetched
        });
        // What stopped the unpacking has stopped the fetching too.
        feed.finish()?;
        fetched
    }

    fn unpack(&self, package: &LockedPackage) -> Result<Record> {
        let bad = |problem: String| bad(package, problem);
        let gone = || bad("it has left the store".to_owned());
        let deb = fetch::read(package, &fetch::find(self.store, package).ok_or_else(gone)?)?;
        let unpacked = Unpacked::read(package.file_name(), &deb)?;
        let mut packed = lz4_flex::frame::FrameEncoder::new(Vec::with_capacity(unpacked.tar.len() / 2));
        packed.write_all(&unpacked.tar).map_err(|error| bad(error.to_string()))?;
        let packed = packed.finish().map_err(|error| bad(error.to_string()))?;
        let name = package.file_name().trim_end_matches(".deb");
        let entry = self.store.publish_bytes(&format!("{name}.tar.lz4"), &packed)?;
        Ok(Record::new(format!("files of package {} {}", package.name, package.version))
            .with("files", &entry)
            .fact(CONTROL, unpacked.control))
    }

    /// The packages' files as far as they are `wanted`, in the order of `packages`, which are all unpacked in the store.
    pub(super) fn open_packages(
        &self,
        packages: &[&LockedPackage],
        suite: &str,
        from: From,
        wanted: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Vec<Deb>> {
        match from {
            From::Store => {
                let open = |package: &&LockedPackage| self.open_unpacked(package, wanted);
                parallel::each(packages, |package| package.size, open)
            }
            From::Anew => {
                let entries = fetch::packages(self, packages, suite)?;
                let pairs: Vec<(&LockedPackage, Entry)> = packages.iter().copied().zip(entries).collect();
                let stage = self.stage("unpacking packages", Some(pairs.len() as u64));
                let open = |(package, entry): &(&LockedPackage, Entry)| {
                    let deb = Deb::read_some(package.file_name(), &fetch::read(package, entry)?, wanted);
                    stage.advance(1);
                    deb
                };
                parallel::each(&pairs, |(package, _)| package.size, open)
            }
        }
    }

    fn open_unpacked(&self, package: &LockedPackage, wanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<Deb> {
        let found = self.store.recall(inputs(package));
        let (record, entries) = found.ok_or_else(|| bad(package, "it has left the store".to_owned()))?;
        let entry = super::role(inputs(package), entries, "files")?;
        let packed = crate::store::read(&entry.path)?;
        // Cheap beside unpacking, and a damaged store must not become an image.
        if blake3::hash(&packed).to_hex().as_str() != entry.digest() {
            return Err(StoreError::Damaged { path: entry.path }.into());
        }
        let mut tar = Vec::with_capacity(packed.len() * 2);
        lz4_flex::frame::FrameDecoder::new(&packed[..])
            .read_to_end(&mut tar)
            .map_err(|error| bad(package, error.to_string()))?;
        let control = record.facts.get(CONTROL).cloned().unwrap_or_default();
        Unpacked { control, tar }.open(package.file_name(), wanted)
    }
}

fn bad(package: &LockedPackage, problem: String) -> GuestError {
    GuestError::BadArchive { what: package.file_name().to_owned(), problem }
}
