//! A file that describes a host: vmprof's capture or hwloc's XML, told apart by what is in it. Whatever else people
//! take for one is named, with what to give instead.

use serde::Deserialize;

use super::capture::{Capture, CaptureError};
use super::hwloc::{self, HwlocError};
use super::source::Source;

/// Why a file describes no host.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum HostFileError {
    /// A capture that cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Capture(#[from] CaptureError),
    /// An hwloc file that cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Hwloc(#[from] HwlocError),
    /// Something else.
    #[error("{found} is not a host to plan for")]
    #[diagnostic(code(vmprof::host::not_a_host), help("{instead}"))]
    NotAHost {
        /// What the file is.
        found: String,
        /// What to do instead.
        instead: String,
    },
}

const TAKES: &str = "`--host` takes what `vmprof host --capture FILE` or `lstopo --of xml FILE` wrote";

impl Source {
    /// The host that a file's text describes: a capture of vmprof's, or an hwloc topology in XML.
    pub fn from_file_text(text: &str) -> Result<Source, HostFileError> {
        let start = text.trim_start_matches('\u{feff}').trim_start();
        match start.as_bytes().first() {
            Some(b'{') => Ok(Source::Capture(capture(start)?)),
            Some(b'<') => Ok(Source::Described(Box::new(xml(start)?))),
            None => Err(not_a_host("an empty file", TAKES)),
            Some(_) => Err(not_a_host("a file that is neither JSON nor XML", TAKES)),
        }
    }
}

fn not_a_host(found: impl Into<String>, instead: impl Into<String>) -> HostFileError {
    HostFileError::NotAHost { found: found.into(), instead: instead.into() }
}

fn capture(text: &str) -> Result<Capture, HostFileError> {
    let error = match Capture::from_json(text) {
        Ok(capture) => return Ok(capture),
        Err(error) => error,
    };
    #[derive(Deserialize)]
    struct Stamp {
        schema: String,
    }
    let Ok(Stamp { schema }) = serde_json::from_str(text) else { return Err(error.into()) };
    Err(match schema.split('/').next() {
        Some("vmprof.capture") => error.into(),
        Some("vmprof.plan") => not_a_host(
            "a saved plan",
            format!(
                "it says where threads go, not what a host has: `vmprof up --plan FILE` runs it; {TAKES}"
            ),
        ),
        Some("vmprof.host") => not_a_host(
            "the output of `vmprof host --format json`",
            "it is made for reading; `vmprof host --capture FILE` writes what a plan can be made from",
        ),
        _ => not_a_host(format!("JSON with the schema `{schema}`"), TAKES),
    })
}

fn xml(text: &str) -> Result<super::Topology, HostFileError> {
    let document = hwloc::parse(text)?;
    let name = document.root_element().tag_name().name();
    let lstopo = "`lstopo --of xml FILE` or `vmprof host --capture FILE` on that machine writes one";
    match name {
        "topology" => Ok(hwloc::read(&document)?),
        "capabilities" => Err(not_a_host(
            "libvirt's `capabilities`",
            format!("it knows neither drives nor what their queues are served by; {lstopo}"),
        )),
        "domainCapabilities" => Err(not_a_host("libvirt's `domainCapabilities`", lstopo)),
        "domain" => Err(not_a_host(
            "a libvirt domain",
            format!("`vmprof import libvirt FILE` makes a profile of it; for a host, {lstopo}"),
        )),
        _ => Err(not_a_host(format!("XML that begins with `<{name}>`"), TAKES)),
    }
}
