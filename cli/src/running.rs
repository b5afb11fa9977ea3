//! The verbs on running VMs: `ps`, `stop`, `pause`, `resume`, `verify`, `stats`, and `ask`, through which the lab's are reached.

use serde_json::Value;

use crate::args::{Format, NamedArguments, PsArguments, StopArguments};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::report::Report;
use crate::run::control::{self, Request};
use crate::run::record;
use crate::stats::Stats;
use crate::verify::{Finding, table};

pub fn ps(arguments: &PsArguments, report: Report) -> Result<(), Failure> {
    let runs = record::running(&Places::from_environment()?);
    if arguments.format == Format::Json {
        return report.json(&runs);
    }
    let mut text = format!("{:<20} {:>8}  {:<4} {:<8}  PROFILE\n", "NAME", "PID", "ON", "STATE");
    for run in runs {
        let state = if run.paused.is_some() { "paused" } else { run.state.word() };
        let profile = run.profile.display();
        text += &format!("{:<20} {:>8}  {:<4} {state:<8}  {profile}\n", run.name, run.pid, run.on);
        if let Some(why) = run.paused.filter(|why| !why.is_empty()) {
            text += &format!("  {why}\n");
        }
    }
    report.data(&text)
}

pub fn stop(arguments: &StopArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    ask(&places, &arguments.name, Request::Stop)?;
    while record::find(&places, &arguments.name).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    report.notice(format_args!("{} has stopped", arguments.name));
    Ok(())
}

pub fn pause(arguments: &StopArguments, report: Report) -> Result<(), Failure> {
    ask(&Places::from_environment()?, &arguments.name, Request::Pause)?;
    report.notice(format_args!("{0} is paused, until `vmprof resume {0}`", arguments.name));
    Ok(())
}

pub fn resume(arguments: &StopArguments, report: Report) -> Result<(), Failure> {
    ask(&Places::from_environment()?, &arguments.name, Request::Resume)?;
    report.notice(format_args!("{} goes on", arguments.name));
    Ok(())
}

pub fn verify(arguments: &NamedArguments, report: Report) -> Result<(), Failure> {
    let answer = ask(&Places::from_environment()?, &arguments.name, Request::Verify)?;
    let findings: Vec<Finding> = serde_json::from_value(answer)
        .map_err(|error| Failure::os("the answer of the running VM cannot be read", error.into()))?;
    match arguments.format {
        Format::Json => report.json(&findings)?,
        Format::Text => report.data(&table(&findings))?,
    }
    let strays: Vec<&str> = findings
        .iter()
        .filter(|finding| !finding.as_planned)
        .map(|finding| finding.thread.as_str())
        .collect();
    if strays.is_empty() {
        return Ok(());
    }
    let message = format!("{} is not where the plan has it: {}", arguments.name, strays.join(", "));
    Err(Failure::said(
        Kind::Failure,
        "vmprof::verify::strayed",
        message,
        "something moved its threads after the start: a cgroup, taskset, or a daemon",
    ))
}

pub fn stats(arguments: &NamedArguments, report: Report) -> Result<(), Failure> {
    let answer = ask(&Places::from_environment()?, &arguments.name, Request::Stats)?;
    let stats: Stats = serde_json::from_value(answer)
        .map_err(|error| Failure::os("the answer of the running VM cannot be read", error.into()))?;
    match arguments.format {
        Format::Json => report.json(&stats),
        Format::Text => report.data(&stats.table()),
    }
}

/// Prints the answer as JSON, whatever it is.
pub fn ask_and_print(name: &str, word: &str, report: Report) -> Result<(), Failure> {
    let Some(request) = Request::from_word(word) else {
        let message = format!("`{word}` is nothing a running VM can be asked");
        return Err(Failure::said(
            Kind::Failure,
            "vmprof::run::control",
            message,
            "plan, stats, verify, stop, pause or resume",
        ));
    };
    report.json(&ask(&Places::from_environment()?, name, request)?)
}

fn ask(places: &Places, name: &str, request: Request) -> Result<Value, Failure> {
    record::find(places, name)?;
    Ok(control::ask(name, &places.run_of(name), request)?)
}
