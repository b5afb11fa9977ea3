//! The verb `doctor`: what of this host keeps vmprof from running VMs well, or at all, before the first one is tried.

mod host;
mod probes;

use std::path::Path;

use serde::Serialize;

use crate::args::{Format, FormatArguments};
use crate::failure::{Failure, Kind};
use crate::report::Report;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// VMs run, and slower or less evenly than they could.
    Warning,
    /// Something that vmprof can do is not to be had here.
    Problem,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, one word.
    pub check: &'static str,
    pub state: State,
    /// What is there, and what follows from it.
    pub found: String,
    /// What to do about it; empty where there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, state: State::Ok, found: found.into(), fix: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, state: State::Warning, found: found.into(), fix: fix.into() }
    }

    fn problem(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, state: State::Problem, found: found.into(), fix: fix.into() }
    }
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    schema: &'static str,
    findings: &'a [Finding],
}

pub fn doctor(arguments: &FormatArguments, report: Report) -> Result<(), Failure> {
    let mut findings = probes::all();
    findings.extend(host::all(Path::new("/")));
    match arguments.format {
        Format::Json => report.json(&Answer { schema: "vmprof.doctor/1", findings: &findings })?,
        Format::Text => report.data(&table(&findings))?,
    }
    let problems: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.state == State::Problem)
        .map(|finding| finding.check)
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::said(
        Kind::HostCannot,
        "vmprof::doctor::problems",
        format!("this host cannot do everything: {}", problems.join(", ")),
        "each is above, with what to do about it",
    ))
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { check, state, found, fix } in findings {
        text += &format!("{:<7}  {check:<width$}  {found}\n", state.word());
        for line in fix.lines() {
            text += &format!("{:<7}  {:<width$}    {line}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_line_and_its_fix_below() {
        let findings = [
            Finding::ok("kvm", "it runs stock kernels"),
            Finding::warning("governor", "powersave on CPU 0", "set it\nor not"),
        ];
        assert_eq!(
            table(&findings),
            "ok       kvm       it runs stock kernels\n\
             warning  governor  powersave on CPU 0\n\
             \x20                    set it\n\
             \x20                    or not\n"
        );
    }
}
