//! The verb `import`: a profile made of what another tool describes. The profile is data; what it does not say is told on
//! stderr, line by line, so that nothing is lost without a word.

use std::fs;
use std::io::Read;
use std::path::Path;

use vmprof_profiles::import::{self, LeftOut};

use crate::args::ImportVerb;
use crate::failure::{Failure, Kind};
use crate::replace::replace;
use crate::report::Report;

pub fn import(verb: &ImportVerb, report: Report) -> Result<(), Failure> {
    let ImportVerb::Libvirt { file, output } = verb;
    let (name, text) = text_of(file)?;
    let imported = import::libvirt(&name, &text).map_err(|problems| Failure::new(Kind::Failure, problems))?;
    if !imported.left_out.is_empty() {
        report.notice(format_args!("the profile does not say all that {name} says:"));
        for LeftOut { line, what, why } in &imported.left_out {
            let place = line.map_or(name.clone(), |line| format!("{name}:{line}"));
            report.text(&format!("  {place}: {what}: {why}\n"));
        }
    }
    match output {
        None => report.data(&imported.profile),
        Some(path) => {
            replace(path, imported.profile.as_bytes()).map_err(|error| {
                Failure::os(format!("the profile {} cannot be written", path.display()), error)
            })?;
            let path = path.display();
            report.notice(format_args!("{path}: written; `vmprof plan {path}` plans it"));
            Ok(())
        }
    }
}

fn text_of(path: &Path) -> Result<(String, String), Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text);
        return match read {
            Ok(_) => Ok(("standard input".to_owned(), text)),
            Err(error) => Err(Failure::os("standard input cannot be read", error)),
        };
    }
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::os(format!("{} cannot be read", path.display()), error))?;
    Ok((path.display().to_string(), text))
}
