//! `vmprof lab start`, `stop` and `status`.

use std::io;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::standing::{Asked, Facts, Said, Standing, Tenant};
use super::{Shape, keeper};
use crate::args::{Format, LabVerb};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::report::Report;
use crate::run::detached::{self, Detached, Left, Word};
use crate::running::age;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Answers the exit status.
pub fn run(verb: &LabVerb, report: Report) -> Result<u8, Failure> {
    let places = Places::from_environment()?;
    match verb {
        LabVerb::Start { lab } => start(&places, lab.as_ref(), report),
        LabVerb::Stop => stop(&places, report).map(|()| 0),
        LabVerb::Status { format } => status(&places, *format, report).map(|()| 0),
    }
}

fn start(places: &Places, shape: Option<&Shape>, report: Report) -> Result<u8, Failure> {
    let alone = Detached::here(places.lab_log());
    let alone = alone.map_err(|error| Failure::os("vmprof cannot go on on its own", error))?;
    if let Some(detached) = alone {
        let report = Report::without_colour();
        return keeper::keep(places, shape, &detached, report).map(|()| 0);
    }
    if let Some(standing) = Standing::find(&places.lab).filter(|found| !found.facts.is_stopping) {
        return is_up_already(&standing.facts, shape, report).map(|()| 0);
    }
    let left = detached::leave(Word::Ready);
    match left.map_err(|error| Failure::os("the lab cannot be left on its own", error))? {
        Left::Running { pid } => {
            report.notice(format_args!(
                "the lab is up (pid {pid}): `vmprof up --on lab` joins it, and `vmprof lab stop` ends it"
            ));
            Ok(0)
        }
        // It has said why.
        Left::Ended { status, .. } => Ok(status),
    }
}

/// The second time is as good as the first, if it is the same lab that is wanted.
pub(super) fn is_up_already(facts: &Facts, shape: Option<&Shape>, report: Report) -> Result<(), Failure> {
    match shape.map(Shape::to_string).filter(|wanted| *wanted != facts.shape) {
        None => {
            report.notice(format_args!("the lab is up already (pid {}): {}", facts.pid, facts.shape));
            Ok(())
        }
        Some(wanted) => {
            let message = format!("a lab of another shape is up: {} (pid {})", facts.shape, facts.pid);
            let help = format!("stop it first with `vmprof lab stop`, then start one of {wanted}");
            Err(Failure::said(Kind::Failure, "vmprof::lab::is_up", message, help))
        }
    }
}

fn standing(places: &Places) -> Result<Standing, Failure> {
    Standing::find(&places.lab).ok_or_else(|| {
        let help = "`vmprof lab start` starts one; without it each `up --on lab` boots one for itself";
        Failure::said(Kind::Failure, "vmprof::lab::is_not_up", "no lab is up", help)
    })
}

fn unreached(error: io::Error) -> Failure {
    Failure::os("the lab's keeper cannot be reached", error)
}

fn stop(places: &Places, report: Report) -> Result<(), Failure> {
    let standing = standing(places)?;
    let (tenants, said) = match (standing.ask(&Asked::Runs), standing.ask(&Asked::Stop)) {
        (Ok((Said::Runs(tenants), _)), Ok((Said::Stopping, stream))) => (tenants, stream),
        (Err(error), _) | (_, Err(error)) => return Err(unreached(error)),
        _ => return Err(unreached(io::ErrorKind::InvalidData.into())),
    };
    for tenant in tenants.iter().filter(|tenant| !tenant.is_leaving) {
        report.notice(format_args!("stopping {}", tenant.name));
    }
    // It closes with the keeper.
    let _ = io::Read::read(&mut &said, &mut [0]);
    let end = Instant::now() + Duration::from_secs(10);
    while Standing::find(&places.lab).is_some_and(|found| found.facts.pid == standing.facts.pid)
        && Instant::now() < end
    {
        thread::sleep(LOOK_EVERY);
    }
    report.notice("the lab has stopped");
    Ok(())
}

fn status(places: &Places, format: Format, report: Report) -> Result<(), Failure> {
    let found = Standing::find(&places.lab);
    if format == Format::Json && found.is_none() {
        report.json(&json!({ "schema": "vmprof.lab/1", "up": false }))?;
    }
    let standing = found.map_or_else(|| standing(places), Ok)?;
    let tenants = match standing.ask(&Asked::Runs).map_err(unreached)? {
        (Said::Runs(tenants), _) => tenants,
        _ => return Err(unreached(io::ErrorKind::InvalidData.into())),
    };
    let facts = &standing.facts;
    if format == Format::Json {
        return report.json(&json!({
            "schema": facts.schema, "up": true, "pid": facts.pid, "shape": facts.shape,
            "emulator": facts.emulator, "kernel": facts.kernel, "started": facts.started,
            "is_stopping": facts.is_stopping, "runs": tenants,
        }));
    }
    report.data(&text(facts, &tenants))
}

fn text(facts: &Facts, tenants: &[Tenant]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let up = age(now.saturating_sub(facts.started));
    let mut text = format!(
        "the lab is {} for {up} (pid {}): {}, Linux {}, QEMU {}\n",
        if facts.is_stopping { "stopping, and was up" } else { "up" },
        facts.pid,
        facts.shape,
        facts.kernel,
        facts.emulator
    );
    for tenant in tenants {
        let leaves = if tenant.is_leaving { "  leaving" } else { "" };
        text += &format!("  {:<20} pid {}{leaves}\n", tenant.name, tenant.pid);
    }
    if tenants.is_empty() {
        text += "  no run has joined it\n";
    }
    text
}
