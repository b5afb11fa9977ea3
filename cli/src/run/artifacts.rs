//! What outlives a run: files and directories that are copied out of the guest when its work is done, before it powers off.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmprof_job::agent::Target;

use super::files::fetch;
use super::reach;
use super::supervise::Collect;
use crate::failure::Failure;
use crate::places::Places;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Where its user has it.
    pub named: PathBuf,
    /// Where it lies in the machine that it is copied out of.
    pub from: PathBuf,
    /// The directory here that it goes into, which is made where it is missing.
    pub into: PathBuf,
}

/// What was asked for of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    pub wanted: Vec<Artifact>,
    /// What comes is itself a directory of such: what it holds goes into the other.
    pub are_unpacked: bool,
}

/// How it went with one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    pub artifact: Artifact,
    /// Why it is not there.
    pub failure: Option<String>,
}

impl Artifacts {
    /// All of them from the machine of the run `name`, one after the other.
    fn collect(&self, places: &Places, name: &str) -> Vec<Collected> {
        let one = |artifact: &Artifact| {
            let failure = match self.fetch_one(places, name, artifact) {
                Ok(true) => None,
                // The vmprof inside has said why.
                Ok(false) => return None,
                Err(failure) => Some(failure.told()),
            };
            Some(Collected { artifact: artifact.clone(), failure })
        };
        self.wanted.iter().filter_map(one).collect()
    }

    /// What collects them; `None` where nothing is wanted.
    pub fn collector(self, name: &str) -> Result<Option<Collect>, Failure> {
        if self.wanted.is_empty() {
            return Ok(None);
        }
        let (places, name) = (Places::from_environment()?, name.to_owned());
        Ok(Some(Arc::new(move || self.collect(&places, &name))))
    }

    /// `false`: half of the way it was lost, and that was told there.
    fn fetch_one(&self, places: &Places, name: &str, artifact: &Artifact) -> Result<bool, Failure> {
        let Artifact { from, into, .. } = artifact;
        let mut stream = reach::machine(places, name)?;
        let is_new = !into.exists();
        let unmade = |error| Failure::os(format!("the directory {} cannot be made", into.display()), error);
        fs::create_dir_all(into).map_err(unmade)?;
        let target = Target { path: into.clone(), is_name: self.are_unpacked, keep_modes: false };
        let fetched = fetch(&mut stream, name, from, &target, &mut |_| {});
        if is_new && fetched.is_err() {
            // One that holds something stays.
            let _ = fs::remove_dir(into);
        }
        match fetched {
            Ok(_) => Ok(true),
            Err(refused) if self.are_unpacked && reach::is_refused(&refused) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// What the vmprof inside an emulated host is to copy out of its guest, each into a directory of its own below `place`,
    /// and what is then to be copied from there.
    pub fn by_way_of(&self, place: &Path) -> (Vec<Artifact>, Artifacts) {
        let own = |number: usize| place.join(number.to_string());
        let inside = self.wanted.iter().enumerate();
        let inside = inside.map(|(number, wanted)| Artifact { into: own(number), ..wanted.clone() });
        let outside = self.wanted.iter().enumerate();
        let outside = outside.map(|(number, wanted)| Artifact { from: own(number), ..wanted.clone() });
        (inside.collect(), Artifacts { wanted: outside.collect(), are_unpacked: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_by_way_of_another_machine_ends_where_it_was_wanted() {
        let artifact = |named: &str, from: &str, into: &str| Artifact {
            named: named.into(),
            from: from.into(),
            into: into.into(),
        };
        let wanted = vec![artifact("/var/log", "/var/log", "logs"), artifact("/out", "/out", "out")];
        let artifacts = Artifacts { wanted, are_unpacked: false };
        let (inside, outside) = artifacts.by_way_of("/a".as_ref());
        assert_eq!(inside, [artifact("/var/log", "/var/log", "/a/0"), artifact("/out", "/out", "/a/1")]);
        assert_eq!(outside.wanted, [artifact("/var/log", "/a/0", "logs"), artifact("/out", "/a/1", "out")]);
        assert!(outside.are_unpacked);
    }
}
