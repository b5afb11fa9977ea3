//! `vmprof cp`: files and directories into a running guest, and out of it.

use vmprof_job::agent::{Item, Target};

use crate::args::{CpArguments, Place};
use crate::failure::Failure;
use crate::places::Places;
use crate::progress::Bytes;
use crate::report::Report;
use crate::run::{files, reach};

pub fn cp(arguments: &CpArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    match (&arguments.from, &arguments.to) {
        (Place::Here(from), Place::Guest { name, path }) => {
            let item = Item::at(from).map_err(|error| files::failed(name, error))?;
            let mut stream = reach::guest(&places, name)?;
            let progress = Bytes::new(report);
            let skipped = files::put(&mut stream, name, from, path, item, &mut |bytes| progress.add(bytes))?;
            drop(progress);
            say_skipped(&skipped, report);
            Ok(())
        }
        (Place::Guest { name, path }, Place::Here(to)) => {
            let mut stream = reach::guest(&places, name)?;
            let target = Target { path: to.clone(), is_name: false, keep_modes: false };
            let progress = Bytes::new(report);
            let skipped = files::fetch(&mut stream, name, path, &target, &mut |bytes| progress.add(bytes))?;
            drop(progress);
            say_skipped(&skipped, report);
            Ok(())
        }
        // Refused as they were read.
        _ => Ok(()),
    }
}

fn say_skipped(skipped: &[String], report: Report) {
    for path in skipped {
        report.notice(format_args!("{path} is no file, directory or link, and was left out"));
    }
}
