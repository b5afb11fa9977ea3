//! What the vmprof inside is to do, whichever emulated host it is in: its command line, its files, its disks.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vmprof_guests::RootImage;
use vmprof_job::Bytes;
use vmprof_profiles::{DiskSource, Profile};

use crate::failure::Failure;
use crate::lab::{ENVIRONMENT, Media, PathsInside};
use crate::lower::ROOT_SERIAL;
use crate::run::artifacts::{Artifact, Artifacts};
use crate::run::terminal;
use crate::up::{BootImage, Upping};

/// A run as it goes into an emulated host.
pub(super) struct Going<'a> {
    pub(super) upping: &'a Upping,
    /// The profile's sources, in its order.
    pub(super) paths: &'a [PathBuf],
    pub(super) image: Option<&'a BootImage>,
    /// What is copied out of its guest.
    pub(super) artifacts: &'a Artifacts,
}

/// A drive that it needs, and where it looks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The disk's name, by which it is found in a host of its own.
    pub(super) name: String,
    pub(super) media: Media,
    pub(super) read_only: bool,
    /// As an NVMe drive; otherwise as a virtio disk.
    pub(super) is_nvme: bool,
    /// The path in the emulated host by which the vmprof inside knows it.
    pub(super) path: String,
}

impl Going<'_> {
    /// The `up` inside, of the run that is called `name` there.
    pub(super) fn argv(&self, inside: &PathsInside, name: &str) -> Vec<Bytes> {
        let arguments = &self.upping.arguments;
        let mut argv: Vec<Bytes> = [&*inside.vmprof, "up", "--on", "kvm"].map(Into::into).into();
        match self.image {
            Some(_) => argv.extend(["--image", &inside.image()].map(Bytes::from)),
            None => argv.push("--dry-run".into()),
        }
        argv.extend(["--name", name].map(Bytes::from));
        for (word, is_asked_for) in [("--console", arguments.console), ("--no-reboot", arguments.no_reboot)] {
            if is_asked_for {
                argv.push(word.into());
            }
        }
        let (inside_it, _) = self.artifacts.by_way_of(inside.artifacts().as_ref());
        for Artifact { from, into, .. } in inside_it {
            let both = [from.as_os_str().as_bytes(), into.as_os_str().as_bytes()].join(&b'=');
            argv.extend(["--artifact".into(), both.as_slice().into()]);
        }
        argv.push(inside.file(&self.upping.path).as_str().into());
        // The emulated host is the one that it was made for: the vmprof inside sees whether it still is.
        if self.upping.saved.is_some() {
            argv.extend(["--plan", &inside.plan()].map(Bytes::from));
        }
        argv
    }

    /// The command line's end.
    pub(super) fn command(&self) -> Vec<Bytes> {
        let bytes = |word: &OsStr| word.as_bytes().into();
        match self.upping.with_command() {
            true => {
                let words = self.upping.arguments.command.iter().map(|word| bytes(word));
                std::iter::once("--".into()).chain(words).collect()
            }
            false => Vec::new(),
        }
    }

    pub(super) fn env(&self, inside: &PathsInside) -> Vec<(Bytes, Bytes)> {
        let (rows, columns) = terminal::size();
        let own =
            [("VMPROF_STATE", inside.state()), ("LINES", rows.to_string()), ("COLUMNS", columns.to_string())];
        let shared = ENVIRONMENT.map(|(name, value)| (name, value.to_owned()));
        let mut env: Vec<(&str, String)> = shared.into_iter().chain(own).collect();
        env.extend(["TERM", "NO_COLOR"].iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))));
        env.iter().map(|(name, value)| ((*name).into(), value.as_str().into())).collect()
    }

    /// The files of this run alone, each with its path inside: the profile's, the image's description, the plan.
    pub(super) fn files(&self, inside: &PathsInside) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let mut files = Vec::new();
        if let Some(image) = self.image {
            let there = BootImage {
                kernel: inside.kernel.clone().into(),
                initramfs: inside.initramfs.clone().into(),
                root: image
                    .root
                    .as_ref()
                    .map(|root| RootImage { path: inside.root().into(), ..root.clone() }),
                ..image.clone()
            };
            let description = serde_json::to_vec(&there)
                .map_err(|error| Failure::os("the image cannot be described", error.into()))?;
            files.push((inside.image(), description));
        }
        files.extend(self.texts(inside));
        if let Some(saved) = &self.upping.saved {
            files.push((inside.plan(), read(&saved.path)?));
        }
        Ok(files)
    }

    /// What the profile was read from, each file with its place inside: its own, and those that it extends.
    fn texts(&self, inside: &PathsInside) -> impl Iterator<Item = (String, Vec<u8>)> {
        self.upping.profile.source().files().iter().enumerate().map(|(position, file)| {
            let outside = match position {
                0 => self.upping.path.clone(),
                // Its path leads from the directory of the profile's own.
                _ => self.upping.path.with_file_name(file.path.as_ref()),
            };
            (inside.file(&outside), file.text.as_bytes().to_vec())
        })
    }

    /// The profile's disks, and behind them the root image.
    pub(super) fn sources(&self, inside: &PathsInside) -> Vec<Source> {
        let dry = self.upping.arguments.dry_run;
        let media = |source: &DiskSource, path: &Path| match source {
            // A plan needs to know that the drive is there, not what is on it; nothing of the user's is opened or made.
            DiskSource::File { .. } if dry => Media::Empty,
            DiskSource::File { .. } => Media::File(path.to_owned()),
            DiskSource::Device { .. } => Media::BlockDevice(path.to_owned()),
        };
        let disks = self.upping.profile.disks.iter().zip(self.paths);
        let mut sources: Vec<Source> = disks
            .map(|(disk, path)| Source {
                name: disk.name.value.clone(),
                media: media(&disk.source, path),
                read_only: disk.readonly || dry,
                is_nvme: true,
                path: path_inside(inside, &self.upping.profile, &disk.source, path)
                    .to_string_lossy()
                    .into_owned(),
            })
            .collect();
        sources.extend(self.image.and_then(|image| image.root.as_ref()).map(|root| Source {
            name: ROOT_SERIAL.to_owned(),
            media: Media::File(root.path.clone()),
            read_only: !root.writable,
            is_nvme: false,
            path: inside.root(),
        }));
        sources
    }
}

/// Where the inner `up` will look for the source that lies at `outside` here.
fn path_inside(inside: &PathsInside, profile: &Profile, source: &DiskSource, outside: &Path) -> PathBuf {
    match source {
        DiskSource::File { path, .. } if Path::new(path).is_relative() => {
            Path::new(&inside.state()).join("disks").join(&profile.name).join(path)
        }
        _ => outside.to_owned(),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let unread =
        |error: io::Error| Failure::os(format!("{} cannot be read for the lab", path.display()), error);
    std::fs::read(path).map_err(unread)
}
