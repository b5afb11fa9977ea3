//! Which engine moves each disk's bytes on this host: the one that the profile names, or the fallback that it names beside it,
//! each tried. Nothing else takes its place.

use vmprof_profiles::{Aio, Plan};
use vmprof_vmm::config::Engine;
use vmprof_vmm::iothread::{self, IoThreadError};

use crate::failure::{Failure, Kind};
use crate::report::Report;

/// What was tried, and how it ended: each engine once.
struct Tried<P> {
    probe: P,
    outcomes: Vec<(Aio, Result<(), IoThreadError>)>,
}

/// The engines of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engines {
    /// Of the plan's disks, in its order.
    pub disks: Vec<Engine>,
    /// Of the guest's root: io_uring unless no disk has it, or the host.
    pub root: Engine,
}

/// The engines that this host has for the plan's disks; told where it is a fallback.
pub fn choose(plan: &Plan, report: Report) -> Result<Engines, Failure> {
    let named = |disk: &vmprof_profiles::DiskPlan| Named {
        disk: disk.name.clone(),
        aio: disk.aio,
        fallback: disk.aio_fallback,
    };
    let disks: Vec<Named> = plan.disks.iter().map(named).collect();
    choose_with(&disks, iothread::probe, |line| report.notice(format_args!("{line}")))
}

/// The engines that a disk names.
struct Named {
    disk: String,
    aio: Aio,
    fallback: Option<Aio>,
}

fn choose_with(
    named: &[Named],
    probe: impl FnMut(Engine) -> Result<(), IoThreadError>,
    mut tell: impl FnMut(String),
) -> Result<Engines, Failure> {
    let mut tried = Tried { probe, outcomes: Vec::new() };
    let mut disks = Vec::new();
    for disk in named {
        let taken = tried.take(disk)?;
        if taken != disk.aio {
            let cause = tried.cause(disk.aio);
            tell(format!(
                "disk `{}`: this host has no aio={} ({cause}); its fallback aio={} is taken",
                disk.disk,
                engine(disk.aio),
                engine(taken)
            ));
        }
        disks.push(engine(taken));
    }
    // The root is no disk of the profile's: it goes with the others, so that a run without io_uring needs none.
    let wanted = disks.is_empty() || disks.contains(&Engine::IoUring);
    let root = if wanted && tried.has(Aio::IoUring) { Engine::IoUring } else { Engine::Threads };
    Ok(Engines { disks, root })
}

impl<P: FnMut(Engine) -> Result<(), IoThreadError>> Tried<P> {
    fn has(&mut self, aio: Aio) -> bool {
        self.outcome(aio).is_ok()
    }

    fn outcome(&mut self, aio: Aio) -> &Result<(), IoThreadError> {
        let known = self.outcomes.iter().position(|(other, _)| *other == aio);
        let at = known.unwrap_or_else(|| {
            self.outcomes.push((aio, (self.probe)(engine(aio))));
            self.outcomes.len() - 1
        });
        &self.outcomes[at].1
    }

    /// Why the host lacks an engine: what the kernel said, in one sentence.
    fn cause(&mut self, aio: Aio) -> String {
        match self.outcome(aio) {
            Ok(()) => String::new(),
            Err(error) => {
                let cause = std::error::Error::source(error);
                cause.map_or_else(|| error.to_string(), ToString::to_string)
            }
        }
    }

    fn take(&mut self, disk: &Named) -> Result<Aio, Failure> {
        let named = [Some(disk.aio), disk.fallback];
        if let Some(taken) = named.into_iter().flatten().find(|aio| self.has(*aio)) {
            return Ok(taken);
        }
        let what = |aio: Aio| format!("aio={}", engine(aio));
        let names = named.into_iter().flatten().map(what).collect::<Vec<_>>().join(" and no ");
        let message = format!("disk `{}`: this host has no {names}: {}", disk.disk, self.cause(disk.aio));
        let help = "make the engine work here, or name another that may take its place: `driver raw fallback=threads`";
        Err(Failure::said(Kind::HostCannot, "vmprof::up::no_engine", message, help))
    }
}

/// The machine's word for the profile's.
pub fn engine(aio: Aio) -> Engine {
    match aio {
        Aio::IoUring => Engine::IoUring,
        Aio::Native => Engine::Native,
        Aio::Threads => Engine::Threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(aio: Aio, fallback: Option<Aio>, other: Aio) -> [Named; 2] {
        [
            Named { disk: "data".into(), aio, fallback },
            Named { disk: "log".into(), aio: other, fallback: None },
        ]
    }

    fn lacks(missing: Engine) -> impl FnMut(Engine) -> Result<(), IoThreadError> {
        move |engine| match engine == missing {
            false => Ok(()),
            true => Err(IoThreadError::Ended { name: "probe".into(), how: "switched off".into() }),
        }
    }

    #[test]
    fn a_fallback_is_taken_where_the_first_engine_is_missing_and_only_there() {
        let chosen = |aio, fallback, missing| {
            let mut told = Vec::new();
            let disks = named(aio, fallback, Aio::IoUring);
            let engines = choose_with(&disks, lacks(missing), |line| told.push(line));
            (engines.map(|engines| (engines.disks[0], engines.root)), told)
        };
        let (engines, told) = chosen(Aio::IoUring, Some(Aio::Threads), Engine::Native);
        assert_eq!((engines.unwrap(), told.len()), ((Engine::IoUring, Engine::IoUring), 0));
        let (engines, told) = chosen(Aio::Native, Some(Aio::Threads), Engine::Native);
        assert_eq!(engines.unwrap(), (Engine::Threads, Engine::IoUring));
        assert!(told[0].contains("`data`") && told[0].contains("switched off"), "{told:?}");
        let (engines, _) = chosen(Aio::Native, None, Engine::Native);
        let error = engines.unwrap_err();
        assert_eq!(error.problem.code().unwrap().to_string(), "vmprof::up::no_engine");
    }

    #[test]
    fn a_run_without_io_uring_needs_none_for_its_root() {
        let disks = named(Aio::Threads, None, Aio::Native);
        let engines = choose_with(&disks, lacks(Engine::IoUring), |line| panic!("{line}")).unwrap();
        assert_eq!((engines.disks, engines.root), (vec![Engine::Threads, Engine::Native], Engine::Threads));
        assert_eq!(choose_with(&[], lacks(Engine::IoUring), drop).unwrap().root, Engine::Threads);
        assert_eq!(choose_with(&[], lacks(Engine::Native), drop).unwrap().root, Engine::IoUring);
    }
}
