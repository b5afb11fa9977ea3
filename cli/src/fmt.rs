//! The verb `fmt`: profiles and guests in their canonical layout. What is not KDL is left as it is, and all of its problems
//! are told; the other files of the same run are laid out all the same.

use std::fs;
use std::path::Path;

use crate::args::FmtArguments;
use crate::failure::{Failure, Kind};
use crate::profile::bytes_of;
use crate::replace::replace;
use crate::report::Report;

/// What became of one file.
enum Done {
    AsItWas,
    Changed,
}

pub fn fmt(arguments: &FmtArguments, report: Report) -> Result<(), Failure> {
    let (mut otherwise, mut failed): (usize, Option<Kind>) = (0, None);
    for path in &arguments.files {
        match one(path, arguments.check, report) {
            Ok(Done::AsItWas) => {}
            Ok(Done::Changed) => otherwise += 1,
            Err(failure) => {
                report.diagnostic(&*failure.problem);
                // An invalid file outweighs one that could not be written: it needs its author.
                failed = failed.filter(|kind| *kind == Kind::Invalid).or(Some(failure.kind));
            }
        }
    }
    if let Some(kind) = failed {
        let message = "not every file could be laid out";
        return Err(Failure::said(kind, "vmprof::fmt::failed", message, "each problem is shown above"));
    }
    if arguments.check && otherwise > 0 {
        let message = match otherwise {
            1 => "1 file is not laid out canonically".to_owned(),
            more => format!("{more} files are not laid out canonically"),
        };
        let help = "`vmprof fmt` with the same files mends that";
        return Err(Failure::said(Kind::Failure, "vmprof::fmt::not_formatted", message, help));
    }
    Ok(())
}

fn one(path: &Path, check: bool, report: Report) -> Result<Done, Failure> {
    let stdin = path == Path::new("-");
    let name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
    let unread = |error| Failure::os(format!("{name} cannot be read"), error);
    let bytes = match stdin {
        true => bytes_of(std::io::stdin().lock()),
        false => fs::File::open(path).and_then(bytes_of),
    };
    let bytes = bytes.map_err(unread)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let message = format!("{name} is not UTF-8 text: byte {at} is none");
        Failure::said(Kind::Invalid, "vmprof::profile::unreadable", message, "KDL files are UTF-8")
    })?;
    let area = match vmprof_document::first_node(&text).as_deref() {
        Some("guest") => "vmprof::guest",
        _ => "vmprof::profile",
    };
    let laid_out = vmprof_document::format(area, &name, &text)
        .map_err(|problems| Failure::new(Kind::Invalid, problems))?;
    let done = if laid_out == text { Done::AsItWas } else { Done::Changed };
    match (&done, check, stdin) {
        (Done::Changed, true, _) => report.data(&format!("{name}\n"))?,
        (_, false, true) => report.data(&laid_out)?,
        (Done::Changed, false, false) => replace(path, laid_out.as_bytes())
            .map_err(|error| Failure::os(format!("{name} cannot be rewritten"), error))?,
        (Done::AsItWas, ..) => {}
    }
    Ok(done)
}
