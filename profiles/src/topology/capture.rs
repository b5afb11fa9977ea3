//! A host in one file: exactly the sysfs and procfs files, links and directory listings that reading its topology
//! looks at. `vmprof host --capture FILE` writes it, `vmprof plan --host FILE` plans from it on any machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::source::{Reader, Source};
use super::sysfs;

/// The captured files of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    schema: Schema,
    /// Path → text.
    pub(crate) files: BTreeMap<String, String>,
    /// Path of a link → its target as the link has it.
    pub(crate) links: BTreeMap<String, String>,
    /// Path of a directory → the names in it.
    pub(crate) dirs: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Schema {
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
    /// Records what reading the topology of `source` looks at.
    pub fn take(source: &Source) -> Capture {
        let reader = Reader::recording(source);
        sysfs::read(&reader);
        // Where a file lies is asked later, when a profile is there; the mounts and device numbers answer it.
        reader.read("/proc/self/mountinfo");
        for name in reader.list("/sys/dev/block") {
            reader.link(&format!("/sys/dev/block/{name}"));
        }
        reader.into_capture()
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
