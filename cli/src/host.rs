//! The verb `host`: the topology as vmprof sees it, and its capture.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use miette::Diagnostic;
use vmprof_profiles::view::{host_json, host_text};
use vmprof_profiles::{Capture, HostFileError, Ledger, Source, Topology};

use crate::args::{Format, HostArguments};
use crate::failure::{Failure, Kind};
use crate::report::Report;

/// A capture of a host of 1,024 CPUs and 64 drives has 2 MiB.
const MOST_BYTES: u64 = 256 << 20;

/// Which host to plan for: a capture or an hwloc file, a captured tree, or this one.
pub fn source(capture: Option<&Path>, sysroot: Option<&Path>) -> Result<Source, Failure> {
    match (capture, sysroot) {
        (Some(file), _) => {
            let mut text = String::new();
            let opened = fs::File::open(file);
            opened.and_then(|opened| opened.take(MOST_BYTES + 1).read_to_string(&mut text)).map_err(
                |error| Failure::os(format!("the host file {} cannot be read", file.display()), error),
            )?;
            if text.len() as u64 > MOST_BYTES {
                return Err(Failure::said(
                    Kind::Failure,
                    "vmprof::host::not_a_host",
                    format!(
                        "{} goes on beyond {} MiB: no host takes as many",
                        file.display(),
                        MOST_BYTES >> 20
                    ),
                    "`--host` takes what `vmprof host --capture FILE` or `lstopo --of xml FILE` wrote",
                ));
            }
            from_text(file, &text)
        }
        (None, Some(root)) if !root.join("sys").is_dir() => Err(Failure::said(
            Kind::Failure,
            "vmprof::host::sysroot",
            format!("{} has no directory `sys`", root.display()),
            "--sysroot takes a directory that holds copies of a host's /sys and /proc",
        )),
        (None, Some(root)) => Ok(Source::Sysroot(root.to_owned())),
        (None, None) => Ok(Source::Live),
    }
}

/// The host that the text of `file` describes.
pub fn from_text(file: &Path, text: &str) -> Result<Source, Failure> {
    Source::from_file_text(text)
        .map_err(|found| Failure::new(Kind::Failure, NoHost { file: file.into(), found }))
}

/// What is wrong with a file that describes no host, and which file it is.
#[derive(Debug, thiserror::Error)]
#[error("{}: {found}", file.display())]
struct NoHost {
    file: PathBuf,
    found: HostFileError,
}

impl Diagnostic for NoHost {
    fn code(&self) -> Option<Box<dyn Display + '_>> {
        self.found.code()
    }

    fn help(&self) -> Option<Box<dyn Display + '_>> {
        self.found.help()
    }
}

pub fn show(arguments: &HostArguments, report: Report) -> Result<(), Failure> {
    let source = source(None, arguments.sysroot.as_deref())?;
    if let Some(file) = &arguments.capture {
        let text = Capture::take(&source).to_json();
        fs::write(file, text).map_err(|error| {
            Failure::os(format!("the capture {} cannot be written", file.display()), error)
        })?;
        report.notice(format_args!(
            "{}: written; `vmprof plan PROFILE --host {}` plans for it",
            file.display(),
            file.display()
        ));
        return Ok(());
    }
    let topology = Topology::read(&source);
    let ledger = Ledger::read(&source);
    match arguments.format {
        Format::Json => report.data(&host_json(&topology, &ledger)),
        Format::Text => report.data(&host_text(&topology, &ledger)),
    }
}
