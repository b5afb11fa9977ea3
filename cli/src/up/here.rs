//! `up` on this host's KVM: everything up to the machine, which this process goes on as.

use vmprof_guests::{Store, append_archive};
use vmprof_job::{JOB_PATH, Streams};
use vmprof_profiles::CpuSet;

use super::handover::Handover;
use super::lease::Lease;
use super::nets::{self, Carrier};
use super::{Guest, Patience, Upping, engines, promises, sources};
use crate::failure::Failure;
use crate::lower;
use crate::profile;
use crate::progress::Stages;
use crate::run::detached::Detached;
use crate::run::reboots::Policy;
use crate::run::record::{self, OwnRecord, Run, Turn};
use crate::run::supervise;
use crate::run::terminal;
use crate::verify::PlannedThread;

pub fn up(upping: &Upping) -> Result<u8, Failure> {
    let (report, arguments) = (upping.report, &upping.arguments);
    supervise::may_lose_readers()
        .map_err(|error| Failure::os("a signal's handler cannot be installed", error))?;
    let directory = upping.places.disks_of(&upping.profile.name);
    let paths = sources::paths(&upping.profile, &directory);
    // From looking at what others hold to saying what this run will.
    let turn = match arguments.dry_run {
        true => None,
        false => Some(
            Turn::take(&upping.places).map_err(|error| Failure::os("the run cannot be planned", error))?,
        ),
    };
    let host = profile::Host::live(&upping.profile, &directory, &record::running(&upping.places));
    let plan = upping.plan(&host)?;
    promises::of_plan(&plan)?;
    report.text(&host.text(&plan, false));

    if arguments.dry_run {
        report.data(&plan.to_json())?;
        return Ok(0);
    }

    let engines = engines::choose(&plan, report)?;
    let disks = sources::make(&upping.profile, &paths)?;
    let own = OwnRecord::claim(&upping.places, &upping.name)?;
    record::refuse_shared_disks(&upping.places, &disks)?;
    let devices = nets::of_plan(&upping.name, &plan.nets);
    let in_use = nets::in_use(&devices);
    record::refuse_shared_nets(&upping.places, &upping.name, &in_use)?;
    let run = Run::new(&upping.name, &upping.path, "kvm", host.pinned(&plan), disks).with_nets(in_use);
    let keeper = own.write(run)?;
    drop(turn);

    let store = Store::open(&upping.places.store)?;
    let Guest { image, filesystems, work, held } = upping.guest(&store)?;
    let stages = Stages::new(report);
    // With an image at hand this is the vmprof inside: passt runs outside.
    let passts = match arguments.image {
        Some(_) => Vec::new(),
        None => nets::passts(&devices, &upping.builder(&store, &stages))?,
    };
    let (image, private_root) = image.with_private_root(&upping.places, &upping.name)?;

    let streams = match arguments.console {
        true => {
            let (rows, columns) = terminal::size();
            Streams::Console { rows, columns, term: std::env::var("TERM").unwrap_or_else(|_| "vt100".into()) }
        }
        false => Streams::Ports,
    };
    let job = lower::job(&upping.name, &plan, &image, &filesystems, &work, streams);
    let config = lower::machine(&upping.name, &plan, &image, &paths, &engines);
    let job = append_archive(&[(JOB_PATH, 0o600, vmprof_job::line(&job))])?;

    let kept = |error| Failure::os("what this run holds cannot be kept", error);
    let mut leases = Vec::new();
    if let Some(root) = &private_root {
        leases.push(Lease::of_root(root).map_err(kept)?);
    }
    leases.push(Lease::of_record(&own).map_err(kept)?);
    leases.extend(Lease::of_hold(&held).map_err(kept)?);
    let detached = upping.detached.as_ref().map(Detached::pass).transpose().map_err(kept)?;
    let carriers: Vec<Carrier> = match arguments.image {
        Some(_) => Carrier::outside(&devices),
        None => passts
            .iter()
            .map(|passt| passt.pass().map(Carrier::Passt))
            .collect::<Result<_, _>>()
            .map_err(kept)?,
    };
    let planned = |(name, cpus): (String, CpuSet)| PlannedThread { name, cpus: cpus.to_string() };
    let handover = Handover {
        telling: upping.telling(work.ran(), Some(&image)),
        with_command: upping.with_command(),
        timeout: arguments.timeout,
        patience: Patience::with(&image.conduct),
        config,
        plan: plan.to_json(),
        threads: plan.threads().into_iter().map(planned).collect(),
        keeper,
        record: own.directory().to_owned(),
        detached,
        artifacts: upping.artifacts()?,
        leases,
        carriers,
        reboots: Policy::of(arguments.no_reboot, image.cmdline.as_deref()),
        job,
    };
    match handover.go_on() {
        Ok(never) => match never {},
        Err(error) => Err(Failure::os("vmprof cannot go on as the machine's program", error)),
    }
}
