//! Profile × topology → plan. Pure: a `&Topology`, the storage under each disk and the ledger come in, a [`Plan`]
//! with a reason for every value goes out, or [`HostCannot`]. The rules are those of `docs/plan.md`.

mod alternatives;
mod board;
mod check;
mod claims;
mod demand;
mod digest;
mod disks;
mod home;
mod ladder;
mod lints;
mod mapping;
mod memory;
mod nets;
mod report;
mod require;
mod seats;
mod shape;
mod threads;
mod usable;

use std::fmt;

use miette::{Diagnostic as Rendered, LabeledSpan, Severity as Level, SourceCode};
use vmprof_document::{Problem, Problems};

use crate::asserts;
use crate::conditions::Facts;
use crate::ledger::Ledger;
use crate::plan::{Diagnostic, GuestCpus, HomePlan, HostSize, LadderStep, Plan, Schema, Severity};
use crate::profile::{Mapping, Profile};
use crate::storage::Storage;
use crate::topology::Topology;

pub use check::PlanFault;
pub use digest::{host_digest, profile_digest};

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
    ladder: Vec<LadderStep>,
    refused: Vec<Problem>,
}

impl Gathered {
    /// A step down the ladder: what was given up, and what it costs.
    fn step(
        &mut self,
        step: &str,
        count: u32,
        code: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.warn(code, message, help);
        let code = format!("{AREA}::{code}");
        self.ladder.push(LadderStep { step: step.to_owned(), code, count });
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

    /// What another part gathered comes after this.
    fn append(&mut self, later: Gathered) {
        self.remarks.extend(later.remarks);
        self.steps.extend(later.steps);
        self.ladder.extend(later.ladder);
        self.refused.extend(later.refused);
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
    let digests = digest::Digests::of(profile, topology, storage, ledger);
    let Resolved { guest, home, memory, threads, disks, nets } = resolved;
    let mut ladder = gathered.ladder;
    // Cheapest first; `home` and `memory` come after the letters, as they are decided before any thread is placed.
    ladder.sort_by(|a, b| (a.step.len(), &a.step, &b.code).cmp(&(b.step.len(), &b.step, &a.code)));
    let mut plan = Plan {
        schema: Schema::V1,
        profile: profile.name.clone(),
        digest: digests.whole,
        profile_digest: digests.profile,
        host: HostSize {
            cpus: topology.online.len(),
            nodes: topology.nodes.len().max(1),
            digest: digests.host,
        },
        guest,
        home,
        iothread_count: threads.count,
        memory,
        vcpus: threads.vcpus,
        iothreads: threads.iothreads,
        emulator: threads.emulator,
        disks,
        nets,
        ladder,
        diagnostics: gathered.remarks.into_iter().chain(from_profile).collect(),
    };
    let lints = lints::lints(profile, topology, storage, ledger, &plan);
    plan.diagnostics.extend(lints);
    lints::said_once(&mut plan);
    let broken = asserts::broken_by_plan(&profile.asserts, &plan);
    if broken.is_empty() { Ok(plan) } else { Err(refused(broken.into_iter().map(assert_failed).collect())) }
}

fn assert_failed(broken: asserts::Broken) -> Problem {
    problem("assert_failed", format!("{}: {}", broken.text, broken.found))
        .at(broken.span, "claimed here")
        .help("`vmprof plan` on a host that can keep it, or change the `assert`")
}

struct Resolved {
    guest: GuestCpus,
    home: HomePlan,
    memory: crate::plan::MemoryPlan,
    threads: threads::Threads,
    disks: Vec<crate::plan::DiskPlan>,
    nets: Vec<crate::plan::NetPlan>,
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
    let taken = threads::taken(profile);
    let Seated { demand, siblings, chosen, memory, layout } =
        seat_everyone(profile, topology, storage, &seats, taken, gathered)?;
    let hottest = home::hottest(profile, topology, storage);
    let alternatives =
        alternatives::Alternatives::new(&layout.board, topology, hottest.as_ref(), &chosen.nodes);
    let home = chosen.home;
    let threads =
        threads::threads(profile, topology, &home, &demand, &layout, &alternatives, ledger, gathered);
    let disks = disks::disks(profile, topology, storage, &threads, gathered);
    let nets = nets::nets(profile, &threads.iothreads);
    let home =
        HomePlan { node: home.node, because: home.to_string(), rejected: chosen.rejected.map(Into::into) };
    let guest = GuestCpus { threads_per_core: siblings };
    Some(Resolved { guest, home, memory: memory?, threads, disks, nets })
}

/// Everyone in their seats, and where the VM lives.
struct Seated<'s> {
    demand: demand::Demand,
    siblings: u32,
    chosen: home::Chosen,
    memory: Option<crate::plan::MemoryPlan>,
    layout: ladder::Layout<'s>,
}

/// Others keep off the CPUs that the profile pins the emulator to. Where these are several, and that would cost a step
/// of the ladder, they do not: the emulator has little to do, and can do it on any of them.
fn seat_everyone<'s>(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    seats: &'s seats::Seats,
    taken: Vec<(u32, board::Sitter)>,
    gathered: &mut Gathered,
) -> Option<Seated<'s>> {
    let mut said = Gathered::default();
    let seated = seat(profile, topology, storage, seats, taken.clone(), &mut said);
    let others =
        || taken.iter().copied().filter(|(_, who)| *who != board::Sitter::Emulator).collect::<Vec<_>>();
    let wide = taken.len() > others().len() + 1;
    let steps = |seated: &Option<Seated<'_>>| seated.as_ref().map(|seated| seated.layout.depths);
    if wide && steps(&seated) != Some(shape::Depths::default()) {
        let mut said_then = Gathered::default();
        let then = seat(profile, topology, storage, seats, others(), &mut said_then);
        if steps(&then).is_some_and(|then| steps(&seated).is_none_or(|first| then < first)) {
            gathered.append(said_then);
            return then;
        }
    }
    gathered.append(said);
    seated
}

fn seat<'s>(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    seats: &'s seats::Seats,
    mut taken: Vec<(u32, board::Sitter)>,
    gathered: &mut Gathered,
) -> Option<Seated<'s>> {
    let pairing = require::pairing(profile, seats, &taken, gathered)?;
    let paired: Vec<u32> = pairing.completed.iter().map(|(id, _)| *id).collect();
    taken.extend(pairing.completed.iter().map(|(id, seat)| (seat.cpu, board::Sitter::Vcpu(*id))));
    let demand = demand::Demand::of(profile, pairing.siblings, &paired);
    let board = board::Board::new(seats, &taken);
    let chosen = home::home(profile, topology, storage, &board, &demand, gathered)?;
    let memory = memory::memory(profile, topology, &chosen.home, gathered);
    let locality = profile.disks.iter().any(|disk| disk.mapping == Mapping::Locality);
    let Some(mut layout) = ladder::place(&board, &chosen.nodes, &demand, locality) else {
        refuse_layout(seats, &demand, gathered);
        return None;
    };
    layout.vcpus.extend(pairing.completed);
    layout.vcpus.sort_by_key(|(id, _)| *id);
    Some(Seated { demand, siblings: pairing.siblings, chosen, memory, layout })
}

fn refuse_layout(seats: &seats::Seats, demand: &demand::Demand, gathered: &mut Gathered) {
    let (wanted, siblings) = (demand.guest_cores(), demand.siblings as usize);
    if siblings > 1 {
        let whole = seats.cores.iter().filter(|core| core.cpus.len() >= siblings).count();
        let message = format!(
            "`smt require`: the vCPUs need {wanted} free cores with {siblings} usable CPUs each, and the usable CPUs {} make {whole}",
            seats.usable
        );
        let help = "ask for fewer vCPUs, widen `host { cpuset }`, or write `smt prefer`";
        gathered.refuse(problem("no_siblings", message).help(help));
        return;
    }
    gathered.refuse(
        problem("no_usable_cpu", format!("no layout fits on the usable CPUs {}", seats.usable))
            .help("widen `host { cpuset }`"),
    );
}
