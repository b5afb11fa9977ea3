//! How far a fetch is, while it runs: apt says nothing that can be read while it works, but writes each package straight to the
//! file it was told, so the files' lengths are looked at. A package counts once, from whichever archive its bytes come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::digest::Sha256;
use crate::lock::LockedPackage;
use crate::progress::Stage;

/// Between two looks: often enough for a bar that moves, seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Of one stage of fetching.
pub(super) struct Meter<'s> {
    stage: &'s dyn Stage,
    /// The fetching threads and the one that looks meet here.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of each package that the stage has been told.
    told: BTreeMap<Sha256, u64>,
    /// What is being fetched, with its size.
    under_way: BTreeMap<PathBuf, (Sha256, u64)>,
}

impl<'s> Meter<'s> {
    pub(super) fn new(stage: &'s dyn Stage) -> Self {
        Self { stage, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// The package will grow in `file`, until it [`came`](Meter::came) or [`left`](Meter::left).
    pub(super) fn begins(&self, package: &LockedPackage, file: &Path) {
        self.state().under_way.insert(file.to_owned(), (package.sha256, package.size));
    }

    /// The whole package is there.
    pub(super) fn came(&self, package: &LockedPackage, file: &Path) {
        let mut state = self.state();
        state.under_way.remove(file);
        self.tell(&mut state, package.sha256, package.size);
    }

    /// It did not come. What was counted stays counted, for the next archive to reach.
    pub(super) fn left(&self, file: &Path) {
        self.state().under_way.remove(file);
    }

    /// Tells the stage what has come since the last look.
    fn look(&self) {
        let mut state = self.state();
        let lengths: Vec<(Sha256, u64)> = state
            .under_way
            .iter()
            .filter_map(|(file, (package, size))| Some((*package, file.metadata().ok()?.len().min(*size))))
            .collect();
        for (package, bytes) in lengths {
            self.tell(&mut state, package, bytes);
        }
    }

    fn tell(&self, state: &mut State, package: Sha256, bytes: u64) {
        let told = state.told.entry(package).or_default();
        if bytes > *told {
            self.stage.advance(bytes - *told);
            *told = bytes;
        }
    }

    /// Looks now and then, until the other end of `ended` is dropped.
    pub(super) fn watch(&self, ended: &Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
            self.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Sum(AtomicU64);

    impl Stage for Sum {
        fn advance(&self, by: u64) {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }

    fn package(content: &[u8]) -> LockedPackage {
        LockedPackage {
            name: "x".to_owned(),
            version: "1".to_owned(),
            arch: "amd64".to_owned(),
            path: "pool/x.deb".to_owned(),
            size: content.len() as u64,
            sha256: Sha256::of(content),
        }
    }

    #[test]
    fn bytes_are_told_as_they_come_and_each_once_whatever_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (file, sum) = (dir.path().join("x.deb"), Sum::default());
        let meter = Meter::new(&sum);
        let told = || sum.0.load(Ordering::Relaxed);
        let package = package(&[7; 100]);
        meter.begins(&package, &file);
        meter.look();
        assert_eq!(told(), 0, "nothing is there yet");
        std::fs::write(&file, [7; 40]).unwrap();
        meter.look();
        meter.look();
        assert_eq!(told(), 40);
        // The first archive broke off; the second begins anew, and sends more than it should.
        meter.left(&file);
        meter.begins(&package, &file);
        std::fs::write(&file, [7; 10]).unwrap();
        meter.look();
        assert_eq!(told(), 40);
        std::fs::write(&file, [7; 300]).unwrap();
        meter.look();
        assert_eq!(told(), 100);
        meter.came(&package, &file);
        assert_eq!(told(), 100);
    }

    #[test]
    fn a_package_that_nobody_saw_grow_counts_whole() {
        let (sum, file) = (Sum::default(), Path::new("nowhere.deb"));
        let (meter, package) = (Meter::new(&sum), package(&[1; 60]));
        meter.begins(&package, file);
        meter.came(&package, file);
        meter.look();
        assert_eq!(sum.0.load(Ordering::Relaxed), 60);
    }
}
