//! Manual pages and shell completions, made from the arguments themselves.

use clap::CommandFactory;

use crate::args::Arguments;
use crate::failure::{Failure, Kind};
use crate::report::Report;

pub fn completions(shell: clap_complete::Shell, report: Report) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "vmprof", &mut script);
    report.data(&String::from_utf8_lossy(&script))
}

pub fn page(verb: Option<&str>, report: Report) -> Result<(), Failure> {
    let mut whole = Arguments::command();
    whole.build();
    let command = match verb {
        None => whole,
        Some(verb) => match whole.find_subcommand(verb).filter(|found| !found.is_hide_set()) {
            Some(found) => found.clone(),
            None => {
                let message = format!("vmprof has no verb `{verb}`");
                return Err(Failure::said(
                    Kind::Failure,
                    "vmprof::man",
                    message,
                    "`vmprof --help` lists them",
                ));
            }
        },
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::os("the manual page cannot be written", error))?;
    report.data(&String::from_utf8_lossy(&page))
}
