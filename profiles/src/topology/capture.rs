//! A host in one file: exactly the sysfs and procfs files, links and directory listings that reading its topology
//! looks at, and the CPUs that its VMs held. `vmprof host --capture FILE` writes it, `vmprof plan --host FILE` plans
//! from it on any machine.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::source::{Reader, Source};
use super::table::{Names, Table, Text};
use super::{devices, sysfs};
use crate::ledger::Ledger;

/// The captured files of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    pub(super) schema: Schema,
    /// Path → text.
    pub(super) files: Table<Text>,
    /// Path of a link → its target as the link has it.
    pub(super) links: Table<Text>,
    /// Path of a directory → the names in it.
    pub(super) dirs: Table<Names>,
    /// What other VMs held when it was taken. Processes are not captured as files: their names are nobody's business.
    #[serde(default, skip_serializing_if = "Ledger::is_empty")]
    pub(crate) ledger: Ledger,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Schema {
    #[default]
    #[serde(rename = "vmprof.capture/1")]
    V1,
}

/// Why a text is not a capture.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("this is not a capture that vmprof can read")]
#[diagnostic(
    code(vmprof::host::bad_capture),
    help("`vmprof host --capture FILE` on the machine to plan for writes one")
)]
pub struct CaptureError {
    #[source]
    cause: serde_json::Error,
}

impl Capture {
    /// Records what reading the topology of `source` looks at. A description by another tool (hwloc) has no files to
    /// record; its capture is empty.
    pub fn take(source: &Source) -> Capture {
        if let Source::Capture(capture) = source {
            return capture.clone();
        }
        let reader = Reader::recording(source);
        sysfs::read(&reader);
        // Where a file lies is asked later, when a profile is there; the mounts, the device numbers and the names
        // below /dev answer it.
        reader.read("/proc/self/mountinfo");
        let mut devices: BTreeSet<String> = reader.list("/sys/block").into_iter().map(String::from).collect();
        for numbers in reader.list("/sys/dev/block") {
            if let Some(dir) = reader.link(&format!("/sys/dev/block/{numbers}"))
                && let Some((_, name)) = dir.rsplit_once('/')
            {
                devices.insert(name.to_owned());
            }
        }
        devices::record_names(&reader, &devices);
        Capture { ledger: Ledger::read(source), ..reader.into_capture() }
    }

    /// Reads a capture file's text.
    pub fn from_json(text: &str) -> Result<Capture, CaptureError> {
        serde_json::from_str(text).map_err(|cause| CaptureError { cause })
    }

    /// The capture file's text: the same facts give the same bytes.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
