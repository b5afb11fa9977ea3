//! The verbs on running VMs: `ps`, `logs`, `stop`, `pause`, `resume`, `verify`, `stats`, `iothread`, and `ask`, through which the lab's are reached.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::{
    Format, FormatArguments, IothreadArguments, LogsArguments, NameArguments, NamedArguments, StatsArguments,
    StatsFormat, StopArguments, Switch,
};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::report::Report;
use crate::run::control::{self, AskError, Request};
use crate::run::log::{Reading, last_lines};
use crate::run::record::{self, Run};
use crate::run::retune::{IothreadSet, Retuned};
use crate::stats::Stats;
use crate::verify::{Finding, table};

pub fn ps(arguments: &FormatArguments, report: Report) -> Result<(), Failure> {
    let runs = record::running(&Places::from_environment()?);
    if arguments.format == Format::Json {
        return report.json(&runs);
    }
    let mut text = format!("{:<20} {:>8}  {:<4} {:<8} {:>6}  PROFILE\n", "NAME", "PID", "ON", "STATE", "UP");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    for run in runs {
        let state = if run.paused.is_some() { "paused" } else { run.state.word() };
        let profile = run.profile.display();
        let up = age(now.saturating_sub(run.started));
        text += &format!("{:<20} {:>8}  {:<4} {state:<8} {up:>6}  {profile}\n", run.name, run.pid, run.on);
        if let Some(why) = run.paused.filter(|why| !why.is_empty()) {
            text += &format!("  {why}\n");
        }
    }
    report.data(&text)
}

/// Seconds as their two largest units.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, ..) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// How often a run is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub fn logs(arguments: &LogsArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    let (name, path) = (&arguments.name, places.log_of(&arguments.name));
    let unread = |error| Failure::os(format!("the log {} cannot be read", path.display()), error);
    let (said, mut log) = match Reading::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(no_log(&places, name)),
        other => other.map_err(unread)?,
    };
    let said = arguments.lines.map_or(&*said, |lines| last_lines(&said, lines));
    let mut is_read = report.bytes(said)?;
    let mut is_written = arguments.follow;
    while is_written && is_read {
        // Asked first: what comes after that is read once more.
        is_written = log.is_written().map_err(unread)?;
        let more = log.more().map_err(unread)?;
        is_read = report.bytes(&more)?;
        if more.is_empty() && is_written {
            thread::sleep(LOOK_EVERY);
        }
    }
    Ok(())
}

fn no_log(places: &Places, name: &str) -> Failure {
    let (message, help) = match record::find(places, name) {
        Ok(run) => (
            format!("`{name}` keeps no log: what it says comes where it was started (pid {})", run.pid),
            "`vmprof up --detach` leaves a VM running and keeps its log",
        ),
        Err(_) => (
            format!("there is no log of a VM named `{name}`"),
            "`vmprof ps` lists the running ones; a log is kept of those that were started with `up --detach`",
        ),
    };
    Failure::said(Kind::Failure, "vmprof::run::no_log", message, help)
}

pub fn stop(arguments: &StopArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    let mut failed = None;
    let mut keep = |failure: Failure| {
        if let Some(before) = failed.replace(failure) {
            report.failure(&before);
        }
    };
    let runs: Vec<Run> = if arguments.all {
        record::running(&places)
    } else {
        let found = arguments.names.iter().map(|name| record::find(&places, name));
        found.filter_map(|run| run.map_err(|error| keep(error.into())).ok()).collect()
    };
    if runs.is_empty() && arguments.all {
        report.notice("no VM is running");
    }
    // All are asked before the first is waited for.
    let mut asked = Vec::new();
    for run in runs {
        match have_stop(&places, &run) {
            Ok(process) => asked.push((run, process)),
            Err(failure) => keep(failure),
        }
    }
    for (run, process) in asked {
        if let Some(process) = process {
            // Readable is a process that has ended, and with it all that it had.
            retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], None))
                .map_err(|error| Failure::os(format!("`{}` cannot be waited for", run.name), error.into()))?;
        }
        report.notice(format_args!("{} has stopped", run.name));
    }
    failed.map_or(Ok(()), Err)
}

/// Has it stop; its process, to be waited for. A run that is not so far that it can be asked is ended.
fn have_stop(places: &Places, run: &Run) -> Result<Option<OwnedFd>, Failure> {
    let not_ended = |error| Failure::os(format!("`{}` (pid {}) cannot be ended", run.name, run.pid), error);
    let Some(process) = record::process_of(places, run).map_err(not_ended)? else { return Ok(None) };
    match control::ask(&run.name, &places.run_of(&run.name), Request::Stop) {
        Err(AskError::NotYet { .. }) => record::end_early(&process).map_err(not_ended)?,
        asked => asked.map(drop)?,
    }
    Ok(Some(process))
}

pub fn pause(arguments: &NameArguments, report: Report) -> Result<(), Failure> {
    ask(&Places::from_environment()?, &arguments.name, Request::Pause)?;
    report.notice(format_args!("{0} is paused, until `vmprof resume {0}`", arguments.name));
    Ok(())
}

pub fn resume(arguments: &NameArguments, report: Report) -> Result<(), Failure> {
    ask(&Places::from_environment()?, &arguments.name, Request::Resume)?;
    report.notice(format_args!("{} goes on", arguments.name));
    Ok(())
}

pub fn verify(arguments: &NamedArguments, report: Report) -> Result<(), Failure> {
    let answer = ask(&Places::from_environment()?, &arguments.name, Request::Verify)?;
    let findings: Vec<Finding> = read(answer)?;
    match arguments.format {
        Format::Json => report.json(&findings)?,
        Format::Text => report.data(&table(&findings))?,
    }
    let strays: Vec<String> =
        findings.iter().filter(|finding| !finding.as_planned).map(|finding| finding.what.name()).collect();
    if strays.is_empty() {
        return Ok(());
    }
    let message = format!("{} is not as its plan has it: {}", arguments.name, strays.join(", "));
    Err(Failure::said(
        Kind::Failure,
        "vmprof::verify::strayed",
        message,
        "what is not as planned now was changed after the start (a cgroup, taskset, a daemon), is the host's to set (its \
         schedulers), or could not be found out",
    ))
}

pub fn stats(arguments: &StatsArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    let name = &arguments.name;
    if let Some(switch) = arguments.latency {
        return take_times(&places, name, switch, report);
    }
    let first = read_stats(&places, name)?;
    match (arguments.format, arguments.watch) {
        (StatsFormat::Json, None) => report.json(&first),
        (StatsFormat::Text, None) => report.data(&first.table()),
        (StatsFormat::Prometheus, _) => report.data(&first.prometheus(name)),
        (StatsFormat::Json, Some(every)) => {
            watch(&places, name, first, every, report, |now, _| report.json_line(now))
        }
        (StatsFormat::Text, Some(every)) => {
            let show = |now: &Stats, before: Option<&Stats>| match before {
                Some(before) => report.screen(&now.rates_since(before)),
                None => Ok(true),
            };
            watch(&places, name, first, every, report, show)
        }
    }
}

pub fn iothread(arguments: &IothreadArguments, report: Report) -> Result<(), Failure> {
    let IothreadArguments { name, id, cpuset, poll_max_ns, poll_grow, poll_shrink, format } = arguments;
    let set = IothreadSet {
        id: id.clone(),
        cpuset: cpuset.clone(),
        poll_max_ns: *poll_max_ns,
        poll_grow: *poll_grow,
        poll_shrink: *poll_shrink,
        latency: None,
    };
    let retuned: Retuned = read(ask(&Places::from_environment()?, name, Request::IothreadSet(set))?)?;
    match format {
        Format::Json => report.json(&retuned),
        Format::Text => report.data(&retuned.text()),
    }
}

/// Has all IOThreads of a VM take times, or leave it.
fn take_times(places: &Places, name: &str, switch: Switch, report: Report) -> Result<(), Failure> {
    let iothreads = read_stats(places, name)?.machine.iothreads;
    for iothread in &iothreads {
        let (id, latency) = (iothread.name.clone(), Some(switch == Switch::On));
        ask(places, name, Request::IothreadSet(IothreadSet { id, latency, ..IothreadSet::default() }))?;
    }
    let names: Vec<&str> = iothreads.iter().map(|iothread| iothread.name.as_str()).collect();
    let what = if switch == Switch::On { "taken" } else { "not taken any more" };
    report.notice(format_args!("the times of requests are {what} on {}", names.join(", ")));
    Ok(())
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer)
        .map_err(|error| Failure::os("the answer of the running VM cannot be read", error.into()))
}

/// The answer to `stats`.
pub fn read_stats(places: &Places, name: &str) -> Result<Stats, Failure> {
    read(ask(places, name, Request::Stats)?)
}

/// Shows each answer with the one before, until the VM has ended or nobody reads, which `show` says.
fn watch(
    places: &Places,
    name: &str,
    first: Stats,
    every: Duration,
    report: Report,
    show: impl Fn(&Stats, Option<&Stats>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let run = record::find(places, name)?;
    let (mut before, mut next) = (first, Instant::now() + every);
    let mut is_read = show(&before, None)?;
    while is_read {
        // The asking is part of the time, however long the answer takes.
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now() + every;
        let stats = match read_stats(places, name) {
            Ok(stats) => stats,
            Err(_) if ends_soon(places, &run) => {
                report.notice(format_args!("{name} has ended"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        is_read = show(&stats, Some(&before))?;
        before = stats;
    }
    Ok(())
}

/// Whether a run that does not answer is just ending.
fn ends_soon(places: &Places, run: &Run) -> bool {
    let limit = Instant::now() + Duration::from_secs(5);
    while is_running(places, run) {
        if Instant::now() >= limit {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
    true
}

/// Another of the same name may run by now.
fn is_running(places: &Places, run: &Run) -> bool {
    record::running(places).iter().any(|found| (&found.name, found.pid) == (&run.name, run.pid))
}

/// Prints the answer as JSON, whatever it is; with `relay` also a refusal. `arguments` are JSON.
pub fn ask_and_print(
    name: &str,
    word: &str,
    arguments: Option<&str>,
    relay: bool,
    report: Report,
) -> Result<(), Failure> {
    let said =
        |message| Failure::said(Kind::Failure, "vmprof::run::control", message, "docs/running.md lists them");
    let arguments = arguments.map(serde_json::from_str).transpose();
    let arguments =
        arguments.map_err(|error| said(format!("the arguments of `{word}` are no JSON: {error}")))?;
    let request = Request::read(word, arguments).map_err(said)?;
    let places = Places::from_environment()?;
    if relay {
        record::find(&places, name)?;
        return report.json(&control::exchange(name, &places.run_of(name), request)?);
    }
    report.json(&ask(&places, name, request)?)
}

fn ask(places: &Places, name: &str, request: Request) -> Result<Value, Failure> {
    record::find(places, name)?;
    Ok(control::ask(name, &places.run_of(name), request)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_their_two_largest_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m01s"), (3_600, "1h00m"), (86_399, "23h59m"), (90_000, "1d01h")]
        {
            assert_eq!(age(seconds), text);
        }
    }
}
