//! `up` in the lab: the same `up`, run by the vmprof inside an emulated KVM host, which is booted for it or is there already.

mod booted;
mod command;
mod forwarded;
mod joined;
mod tenant;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use vmprof_guests::{Builder, Store, Using};
use vmprof_job::ToGuest;

use self::booted::Means;
use self::command::Going;
use self::forwarded::Forwarded;
use super::{Guest, Patience, Upping, nets, promises, sources};
use crate::failure::Failure;
use crate::lab::standing::Standing;
use crate::lab::{PathsInside, Shape};
use crate::progress::Stages;
use crate::run::channels::Channels;
use crate::run::control;
use crate::run::conversation::Manners;
use crate::run::record::{self, DiskInUse, Kept, OwnRecord, Run};
use crate::run::relay;
use crate::run::sockets::{self, VSOCK};
use crate::run::supervise::{Input, Supervision};
use crate::run::terminal::RawTerminal;
use crate::run::verdict::{MachineEnd, Ran};

/// How long an emulated host may take to its first word, on a machine with other work to do.
const HELLO_WITHIN: Duration = Duration::from_secs(180);
/// How long an emulated host may be silent before it counts as stalled.
const SILENCE: Duration = Duration::from_secs(120);

/// The vmprof inside, as it is reached and ended.
struct Machine {
    inside: PathsInside,
    /// What the run is called there.
    name: String,
    channels: Channels,
    relay: Box<dyn Read + Send>,
    kill: Box<dyn Fn() + Send>,
    wait: Box<dyn FnOnce() -> MachineEnd>,
}

/// Which emulated host a run goes into.
enum Lab {
    Own(Box<Means>),
    Joined(Standing),
}

impl Lab {
    /// The one that is up, if it is one as it is wanted; otherwise what one is made of.
    fn find(upping: &Upping, builder: &Builder<'_>, using: &Using) -> Result<Lab, Failure> {
        match to_join(upping) {
            Some(standing) => Ok(Lab::Joined(standing)),
            None => Ok(Lab::Own(Box::new(Means::find(upping, builder, using)?))),
        }
    }

    fn told(&self, shape: &Shape) -> String {
        match self {
            Lab::Own(means) => means.told(shape),
            Lab::Joined(standing) => joined::told(standing),
        }
    }

    /// The socket that leads into one that was joined.
    fn vsock(&self) -> Option<PathBuf> {
        match self {
            Lab::Own(_) => None,
            Lab::Joined(standing) => Some(standing.vsock()),
        }
    }

    fn start(
        self,
        going: &Going<'_>,
        shape: &Shape,
        patience: Patience,
        own: Option<&OwnRecord>,
    ) -> Result<Machine, Failure> {
        match self {
            Lab::Own(means) => means.start(going, shape, patience, own),
            Lab::Joined(standing) => joined::start(going, &standing),
        }
    }
}

fn no_channels(error: io::Error) -> Failure {
    Failure::os("the channels to the lab cannot be opened", error)
}

/// The lab to join: the one that is up, if it is one as it is wanted.
fn to_join(upping: &Upping) -> Option<Standing> {
    let standing = Standing::find(&upping.places.lab).filter(|found| !found.facts.is_stopping)?;
    let wanted = upping.arguments.lab.as_ref().map(Shape::to_string);
    if let Some(wanted) = wanted.filter(|wanted| *wanted != standing.facts.shape) {
        upping.report.notice(format_args!(
            "the lab that is up has another shape ({}): this run boots one of its own, {wanted}",
            standing.facts.shape
        ));
        return None;
    }
    Some(standing)
}

pub fn up(upping: &Upping) -> Result<u8, Failure> {
    let report = upping.report;
    promises::in_the_lab(&upping.profile)?;
    let shape = upping.arguments.lab.clone().unwrap_or_default();
    let directory = upping.places.disks_of(&upping.profile.name);
    let paths = sources::paths(&upping.profile, &directory);

    let store = Store::open(&upping.places.store)?;
    let dry = upping.arguments.dry_run;
    let guest = if dry { None } else { Some(upping.guest(&store)?) };
    let patience =
        guest.as_ref().map_or(Patience::without_guest(), |guest| Patience::with(&guest.image.conduct));
    let stages = Stages::new(report);
    let builder = upping.builder(&store, &stages);
    let using = store.using()?;
    let lab = Lab::find(upping, &builder, &using)?;
    drop(using);

    let claimed = if dry { None } else { Some(claim(upping, &paths)?) };
    // Before anything boots: a port may be in use.
    let passts = match dry {
        true => Vec::new(),
        false => nets::passts(&nets::of_profile(&upping.name, &upping.profile), &builder)?,
    };
    // Made here and not inside, where the copy would be in memory: it hangs from the emulated host as a drive to write to.
    let (image, _private_root) = match guest {
        Some(Guest { image, .. }) => {
            let (image, copy) = image.with_private_root(&upping.places, &upping.name)?;
            (Some(image), copy)
        }
        None => (None, None),
    };

    let artifacts = upping.artifacts()?;
    let going = Going { upping, paths: &paths, image: image.as_ref(), artifacts: &artifacts };
    report.notice(lab.told(&shape));
    if let Some(detached) = &upping.detached {
        detached.begin_log().map_err(|error| Failure::os("the log cannot be begun", error))?;
    }
    let own = claimed.as_ref().map(|claimed| &claimed.own);
    let started = Instant::now();
    let joined = lab.vsock();
    let machine = lab.start(&going, &shape, patience, own)?;
    let Machine { inside, name, channels, relay, kill, wait } = machine;
    if let (Some(Claimed { own, kept, .. }), Some(vsock)) = (&claimed, &joined) {
        kept.keeper().is_inside_as(&name);
        // Verbs find the way to the emulated host where that of a run's own would be.
        sockets::lead(own.directory(), VSOCK, vsock).map_err(no_channels)?;
    }
    // It may have taken a while until here, and somebody may have wanted out.
    let raw = match upping.arguments.console {
        true => RawTerminal::take().map_err(|error| Failure::os("the terminal cannot be made raw", error))?,
        false => None,
    };
    let (_, artifacts) = artifacts.by_way_of(inside.artifacts().as_ref());
    let mut supervision = Supervision::new(manners(upping, patience), artifacts.collector(&upping.name)?);
    relay::listen(relay, supervision.events.clone()).map_err(no_channels)?;
    let _carried = nets::lab::carry_all(passts, &upping.places, &upping.name, &supervision.events)
        .map_err(no_channels)?;
    if let Some(Claimed { own, kept, .. }) = &claimed {
        let (vmprof, kept) = (inside.vmprof.clone(), kept.clone());
        let answers = Forwarded { vmprof, name, kept, events: supervision.events.clone() };
        control::serve(own.directory(), Arc::new(answers))
            .map_err(|error| Failure::os("the control socket cannot be opened", error))?;
    }

    let input = match (upping.arguments.console, upping.with_command()) {
        (true, _) if raw.is_some() => Input::Keys,
        // What a console gets at the end of a file, the vmprof inside knows.
        (true, _) | (false, true) => Input::Stdin,
        (false, false) => Input::Nothing,
    };
    let ran = Ran::Inside { with_command: upping.with_command() };
    let kept = claimed.as_ref().map(|claimed| claimed.kept.clone());
    let telling = upping.telling(ran, image.as_ref());
    let tell = telling.teller(report, kept, upping.detached.clone(), raw.is_some());
    let mut tell = tell.map_err(|error| Failure::os("the events cannot be written", error))?;
    let outcome = supervision
        .run(channels, input, started, kill, wait, &mut tell)
        .map_err(|error| Failure::os("the lab cannot be supervised", error))?;
    drop(raw);
    if let Some(up_after) = outcome.account.hello_after.filter(|_| joined.is_none()) {
        let (up_after, all) = (up_after.as_secs_f64(), started.elapsed().as_secs_f64());
        report.notice(format_args!("the lab was up after {up_after:.1} s and ran {all:.1} s"));
    }
    Ok(telling.conclude(report, &outcome))
}

/// What the vmprof inside is told by signals.
fn manners(upping: &Upping, patience: Patience) -> Manners {
    Manners {
        interrupt: ToGuest::Signal { number: SIGTERM },
        clean_stop: ToGuest::Signal { number: SIGUSR1 },
        // Not SIGPIPE, which the vmprof inside gets for much else.
        reader_gone: ToGuest::Signal { number: SIGUSR2 },
        grace: patience.lab,
        last_word: patience.last_word,
        timeout: upping.arguments.timeout,
        hello_within: Some(HELLO_WITHIN),
        silence: Some(SILENCE),
    }
}

/// What this run has to itself, to its end.
struct Claimed {
    own: OwnRecord,
    kept: Kept,
    /// The emulator's own locks do not say who has the disk.
    _locks: Vec<File>,
}

/// Makes the disks that are missing, and takes them and the name.
fn claim(upping: &Upping, paths: &[PathBuf]) -> Result<Claimed, Failure> {
    let disks = sources::make(&upping.profile, paths)?;
    let own = OwnRecord::claim(&upping.places, &upping.name)?;
    record::refuse_shared_disks(&upping.places, &disks)?;
    let in_use = nets::in_use(&nets::of_profile(&upping.name, &upping.profile));
    record::refuse_shared_nets(&upping.places, &upping.name, &in_use)?;
    let run = Run::new(&upping.name, &upping.path, "lab", String::new(), disks.clone()).with_nets(in_use);
    let kept = Kept::new(own.write(run)?);
    let locks = lock_all(upping, paths, &disks)?;
    Ok(Claimed { own, kept, _locks: locks })
}

/// Locks every disk as the VMM would, so that nobody uses one twice, in the lab or out of it.
fn lock_all(upping: &Upping, paths: &[PathBuf], disks: &[DiskInUse]) -> Result<Vec<File>, Failure> {
    let mut locks = Vec::new();
    for ((disk, path), in_use) in upping.profile.disks.iter().zip(paths).zip(disks) {
        let lock = || -> io::Result<File> {
            let file = File::options().read(true).write(!disk.readonly).open(path)?;
            match disk.readonly {
                true => file.try_lock_shared()?,
                false => file.try_lock()?,
            }
            Ok(file)
        };
        let unlocked = |error| match record::refuse_shared_disks(&upping.places, std::slice::from_ref(in_use))
        {
            // Who has it is more than that somebody has.
            Err(refused) => Failure::from(refused),
            Ok(()) => {
                let (name, path) = (&disk.name.value, path.display());
                Failure::os(format!("disk `{name}` ({path}) cannot be locked for this run"), error)
            }
        };
        locks.push(lock().map_err(unlocked)?);
    }
    Ok(locks)
}
