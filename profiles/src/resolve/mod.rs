//! Profile × topology → plan. Pure: a `&Topology`, the storage under each disk and the ledger come in, a [`Plan`]
//! with a reason for every value goes out, or [`HostCannot`]. The rules are those of `docs/plan.md`.

mod disks;
mod home;
mod ladder;
mod memory;
mod report;
mod seats;
mod threads;
mod usable;

use std::fmt;

use miette::{Diagnostic as Rendered, LabeledSpan, Severity as Level, SourceCode};
use vmprof_document::{Problem, Problems};

use crate::asserts;
use crate::conditions::Facts;
use crate::ledger::Ledger;
use crate::plan::{
    Diagnostic, GuestCpus, HomePlan, HostSize, IoThreadCountPlan, Plan, RULES, Schema, Severity,
};
use crate::profile::Profile;
use crate::storage::Storage;
use crate::topology::Topology;

/// The prefix of the planner's codes.
const AREA: &str = "vmprof::plan";

/// The profile is right, and this host cannot satisfy it: what was asked, what the host has, what to do.
#[derive(Debug, Clone)]
pub struct HostCannot(Problems);

impl HostCannot {
    /// The single problems.
    pub fn problems(&self) -> &Problems {
        &self.0
    }
}

impl fmt::Display for HostCannot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this host cannot satisfy {}", self.0.file())
    }
}

impl std::error::Error for HostCannot {}

impl Rendered for HostCannot {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new("vmprof::plan::host_cannot"))
    }
    fn severity(&self) -> Option<Level> {
        Some(Level::Error)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source_code()
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        None
    }
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Rendered> + 'a>> {
        self.0.related()
    }
}

/// What one resolving gathers on its way: remarks for the plan, and what the host cannot give.
#[derive(Debug, Default)]
struct Gathered {
    remarks: Vec<Diagnostic>,
    /// Those of the remarks that are steps down the ladder, which `strict` forbids.
    steps: Vec<Diagnostic>,
    refused: Vec<Problem>,
}

impl Gathered {
    /// A step down the ladder: what was given up, and what it costs.
    fn step(&mut self, code: &str, message: impl Into<String>, help: impl Into<String>) {
        self.warn(code, message, help);
        self.steps.extend(self.remarks.last().cloned());
    }

    fn warn(&mut self, code: &str, message: impl Into<String>, help: impl Into<String>) {
        self.remark(Severity::Warning, code, message.into(), help.into());
    }

    fn note(&mut self, code: &str, message: impl Into<String>, help: impl Into<String>) {
        self.remark(Severity::Note, code, message.into(), help.into());
    }

    fn remark(&mut self, severity: Severity, code: &str, message: String, help: String) {
        self.remarks.push(Diagnostic { severity, code: format!("{AREA}::{code}"), message, help });
    }

    fn refuse(&mut self, problem: Problem) {
        self.refused.push(problem);
    }
}

fn problem(code: &str, message: impl Into<String>) -> Problem {
    Problem::error(format!("{AREA}::{code}"), message)
}

/// Resolves a profile on a host. The same four inputs give the same plan, byte for byte.
pub fn plan(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    ledger: &Ledger,
) -> Result<Plan, HostCannot> {
    let mut gathered = Gathered::default();
    let facts = Facts::of(profile, topology, ledger);
    let profile = profile.on(&facts);
    for when in &profile.applied {
        gathered.note("when_applies", when.says(&facts), "the plan is made with the nodes of this `when`");
    }
    let resolved = resolve(profile, topology, storage, ledger, &mut gathered);
    if let Some(strict) = &profile.strict {
        for step in std::mem::take(&mut gathered.steps) {
            gathered.refused.push(
                Problem::error(step.code, step.message)
                    .at(strict.span, "`strict` takes no such step")
                    .help(step.help),
            );
        }
    }
    let refused = |problems| HostCannot(Problems::new(AREA, profile.source.clone(), problems));
    let Some(resolved) = resolved.filter(|_| gathered.refused.is_empty()) else {
        return Err(refused(gathered.refused));
    };
    let from_profile = profile.warnings.iter().map(|w| Diagnostic {
        severity: Severity::Warning,
        code: w.code().to_owned(),
        message: w.message().to_owned(),
        help: w.help_text().unwrap_or_default().to_owned(),
    });
    let digests = Digests::of(profile, topology, storage, ledger);
    let plan = Plan {
        schema: Schema::V1,
        profile: profile.name.clone(),
        digest: digests.whole,
        profile_digest: digests.profile,
        host: HostSize {
            cpus: topology.online.len(),
            nodes: topology.nodes.len().max(1),
            digest: digests.host,
        },
        guest: GuestCpus { threads_per_core: 1 },
        home: resolved.home,
        iothread_count: IoThreadCountPlan {
            count: u32::try_from(resolved.threads.iothreads.len()).unwrap_or(u32::MAX),
            because: String::new(),
            rejected: None,
        },
        memory: resolved.memory,
        vcpus: resolved.threads.vcpus,
        iothreads: resolved.threads.iothreads,
        emulator: resolved.threads.emulator,
        disks: resolved.disks,
        nets: Vec::new(),
        diagnostics: gathered.remarks.into_iter().chain(from_profile).collect(),
    };
    let broken = asserts::broken_by_plan(&profile.asserts, &plan);
    if broken.is_empty() { Ok(plan) } else { Err(refused(broken.into_iter().map(assert_failed).collect())) }
}

fn assert_failed(broken: asserts::Broken) -> Problem {
    problem("assert_failed", format!("{}: {}", broken.text, broken.found))
        .at(broken.span, "claimed here")
        .help("`vmprof plan` on a host that can keep it, or change the `assert`")
}

struct Resolved {
    home: HomePlan,
    memory: crate::plan::MemoryPlan,
    threads: threads::Threads,
    disks: Vec<crate::plan::DiskPlan>,
}

fn resolve(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    ledger: &Ledger,
    gathered: &mut Gathered,
) -> Option<Resolved> {
    let usable = usable::usable(profile, topology, ledger, gathered)?;
    let seats = seats::Seats::new(topology, &usable, profile.host.smt);
    let home = home::home(profile, topology, storage, &seats, gathered)?;
    let memory = memory::memory(profile, topology, &home, gathered);
    let threads = threads::threads(profile, topology, &seats, &home, gathered)?;
    let disks = disks::disks(profile, topology, storage, &threads, gathered);
    let home = HomePlan { node: home.node, because: home.to_string(), rejected: None };
    Some(Resolved { home, memory: memory?, threads, disks })
}

/// blake3 of what was decided upon.
struct Digests {
    profile: String,
    host: String,
    /// Of both, and of the rules.
    whole: String,
}

impl Digests {
    /// Free memory is shown and never decided upon, so it is left out.
    fn of(profile: &Profile, topology: &Topology, storage: &Storage, ledger: &Ledger) -> Digests {
        let mut facts = topology.clone();
        facts.nodes.values_mut().for_each(|node| node.free_bytes = None);
        let json = |part: serde_json::Result<Vec<u8>>| part.unwrap_or_default();
        let texts: Vec<&[u8]> = profile.source.files().iter().map(|file| file.text.as_bytes()).collect();
        let profile = blake3_of(&texts);
        let host = blake3_of(&[
            &json(serde_json::to_vec(&facts)),
            &json(serde_json::to_vec(storage)),
            &json(serde_json::to_vec(ledger)),
        ]);
        let whole = blake3_of(&[RULES.as_bytes(), profile.as_bytes(), host.as_bytes()]);
        Digests { profile, host, whole }
    }
}

fn blake3_of(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex().to_string()
}
