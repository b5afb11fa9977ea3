//! `assert "text" { … }`: rules of a team that a profile, or the plan made of it, must keep. What needs no host is checked
//! when the profile is read; all of it is checked on the plan.

use vmprof_document::{Line, SourceSpan, format_size};

use crate::plan::{DiskPlan, Plan};
use crate::profile::{
    Aio, CacheMode, Disk, ErrorPolicy, Hugepages, IoThreadCount, PageSize, Profile, ThreadPins,
};

/// One `assert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assert {
    /// What it is for, in the team's own words.
    pub text: String,
    /// Its line.
    pub line: Line,
    pub(crate) claims: Vec<Claim>,
}

/// One thing that must be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) span: SourceSpan,
    pub(crate) about: About,
}

/// What a claim is about, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum About {
    /// One disk, or all of them.
    Disk(Option<String>, DiskClaim),
    Vcpus(ThreadsClaim),
    IoThreads(ThreadsClaim),
    MemoryBytes(Bounds),
    Hugepages(PagesClaim),
    NoNet,
    /// Every IOThread that serves the disk is on the node of its controller.
    SameNode(String),
    /// The plan makes no remark of this code: its last word, or the whole.
    Without(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskClaim {
    Cache(CacheMode),
    Aio(Aio),
    Discard(bool),
    Rerror(ErrorPolicy),
    Werror(ErrorPolicy),
    Queues(Bounds),
    Readonly(bool),
    Direct(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadsClaim {
    Count(Bounds),
    /// Each on one CPU, or none of them.
    Pinned(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PagesClaim {
    /// Ordinary pages.
    None,
    /// Hugepages of whatever size.
    Any,
    Size(PageSize),
}

/// Both ends count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Bounds {
    fn contains(self, value: u64) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

/// A claim that is not so: its assert's text, its place, and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) text: String,
    pub(crate) span: SourceSpan,
    pub(crate) found: String,
}

/// The claims that no host can make true. `remarks` are the codes of the remarks made on the profile so far.
pub(crate) fn broken_by_profile(profile: &Profile, remarks: &[String]) -> Vec<Broken> {
    broken(&profile.asserts, |about| match about {
        About::Without(code) => {
            let said = remarks.iter().find(|found| same_code(found, code));
            said.map(|found| format!("the profile has the remark {found}")).into_iter().collect()
        }
        about => in_profile(about, profile),
    })
}

fn same_code(found: &str, code: &str) -> bool {
    found == code || found.rsplit("::").next() == Some(code)
}

/// The claims that the plan does not keep.
pub(crate) fn broken_by_plan(asserts: &[Assert], plan: &Plan) -> Vec<Broken> {
    broken(asserts, |about| in_plan(about, plan))
}

fn broken(asserts: &[Assert], found: impl Fn(&About) -> Vec<String>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for assert in asserts {
        for claim in &assert.claims {
            let new = |found| Broken { text: assert.text.clone(), span: claim.span, found };
            broken.extend(found(&claim.about).into_iter().map(new));
        }
    }
    broken
}

/// What the profile says against a claim.
fn in_profile(about: &About, profile: &Profile) -> Vec<String> {
    let lone = |found: Option<String>| found.into_iter().collect();
    match about {
        About::Disk(name, claim) => {
            let meant = |disk: &&Disk| name.as_ref().is_none_or(|name| *name == disk.name.value);
            profile.disks.iter().filter(meant).filter_map(|disk| disk_in_profile(disk, *claim)).collect()
        }
        About::Vcpus(ThreadsClaim::Count(bounds)) => {
            lone(count("vCPU", u64::from(profile.vcpus.count), *bounds))
        }
        About::Vcpus(ThreadsClaim::Pinned(wanted)) => lone(floats("vCPUs", &profile.vcpus.pin, *wanted)),
        About::IoThreads(ThreadsClaim::Count(bounds)) => lone(match &profile.iothreads.count {
            IoThreadCount::Fixed(fixed) => count("IOThread", u64::from(fixed.value), *bounds),
            IoThreadCount::Auto { min, max } => (u64::from(*max) < bounds.min
                || u64::from(*min) > bounds.max)
                .then(|| format!("there are {min} to {max} IOThreads")),
        }),
        About::IoThreads(ThreadsClaim::Pinned(wanted)) => {
            lone(floats("IOThreads", &profile.iothreads.pin, *wanted))
        }
        About::MemoryBytes(bounds) => lone(memory(profile.memory.bytes.value, *bounds)),
        About::Hugepages(claim) => lone(match &profile.memory.hugepages {
            Hugepages::None => pages(None, *claim),
            Hugepages::Required(size) => pages(Some(size.value), *claim),
            Hugepages::Auto => pages(Some(PageSize::Mib2), *claim).filter(|_| *claim != PagesClaim::None),
        }),
        About::NoNet => lone(nets(profile.nets.len())),
        About::SameNode(_) | About::Without(_) => Vec::new(),
    }
}

fn disk_in_profile(disk: &Disk, claim: DiskClaim) -> Option<String> {
    if let DiskClaim::Aio(wanted) = claim {
        // With a fallback, only the host tells which of the two it is.
        let other = disk.aio != wanted && disk.aio_fallback != Some(wanted);
        return other.then(|| format!("disk `{}` has aio={}", disk.name.value, engine(disk.aio)));
    }
    let facts = DiskFacts {
        name: &disk.name.value,
        cache: disk.cache,
        aio: disk.aio,
        discard: disk.discard,
        rerror: disk.rerror,
        werror: disk.werror,
        queues: disk.queues,
        readonly: disk.readonly,
    };
    facts.against(claim)
}

/// What the plan says against a claim.
fn in_plan(about: &About, plan: &Plan) -> Vec<String> {
    let lone = |found: Option<String>| found.into_iter().collect();
    match about {
        About::Disk(name, claim) => {
            let meant = |disk: &&DiskPlan| name.as_ref().is_none_or(|name| *name == disk.name);
            plan.disks.iter().filter(meant).filter_map(|disk| DiskFacts::of(disk).against(*claim)).collect()
        }
        About::Vcpus(ThreadsClaim::Count(bounds)) => lone(count("vCPU", plan.vcpus.len() as u64, *bounds)),
        About::Vcpus(ThreadsClaim::Pinned(wanted)) => {
            pinned(plan.vcpus.iter().map(|v| (format!("vcpu {}", v.id), &v.cpus)), *wanted)
        }
        About::IoThreads(ThreadsClaim::Count(bounds)) => {
            lone(count("IOThread", plan.iothreads.len() as u64, *bounds))
        }
        About::IoThreads(ThreadsClaim::Pinned(wanted)) => {
            pinned(plan.iothreads.iter().map(|i| (i.name.clone(), &i.cpus)), *wanted)
        }
        About::MemoryBytes(bounds) => lone(memory(plan.memory.bytes, *bounds)),
        About::Hugepages(claim) => lone(pages(plan.memory.hugepages, *claim)),
        About::NoNet => lone(nets(plan.nets.len())),
        About::SameNode(name) => plan
            .disks
            .iter()
            .filter(|disk| disk.name == *name)
            .flat_map(|disk| off_node(disk, plan))
            .collect(),
        About::Without(code) => {
            let said = plan.diagnostics.iter().filter(|d| same_code(&d.code, code));
            said.map(|d| format!("the plan says {}: {}", d.code, d.message)).collect()
        }
    }
}

/// The IOThreads of a disk that are not on its node. On a host of one node all are.
fn off_node(disk: &DiskPlan, plan: &Plan) -> Vec<String> {
    if plan.host.nodes <= 1 {
        return Vec::new();
    }
    let Some(node) = disk.node else {
        return vec![format!("the node of disk `{}` is unknown", disk.name)];
    };
    let serves = |id: u32| disk.virtqueues.iter().any(|v| v.iothread == id);
    let away = plan.iothreads.iter().filter(|i| serves(i.id) && i.node != Some(node));
    away.map(|i| {
        let there = i.node.map_or("no one node".to_owned(), |node| format!("node {node}"));
        format!("{} is on {there}, disk `{}` on node {node}", i.name, disk.name)
    })
    .collect()
}

/// What a claim can ask of a disk, from a profile or from a plan.
struct DiskFacts<'a> {
    name: &'a str,
    cache: CacheMode,
    aio: Aio,
    discard: bool,
    rerror: ErrorPolicy,
    werror: ErrorPolicy,
    queues: u32,
    readonly: bool,
}

impl DiskFacts<'_> {
    fn of(disk: &DiskPlan) -> DiskFacts<'_> {
        DiskFacts {
            name: &disk.name,
            cache: disk.cache,
            aio: disk.aio,
            discard: disk.discard,
            rerror: disk.rerror,
            werror: disk.werror,
            queues: disk.queues,
            readonly: disk.readonly,
        }
    }

    fn against(&self, claim: DiskClaim) -> Option<String> {
        let discard = |on: bool| if on { "unmap" } else { "ignore" };
        let (right, found) = match claim {
            DiskClaim::Cache(wanted) => (self.cache == wanted, format!("cache={}", self.cache.word())),
            DiskClaim::Aio(wanted) => (self.aio == wanted, format!("aio={}", engine(self.aio))),
            DiskClaim::Discard(wanted) => {
                (self.discard == wanted, format!("discard={}", discard(self.discard)))
            }
            DiskClaim::Rerror(wanted) => (self.rerror == wanted, format!("rerror={}", self.rerror.word())),
            DiskClaim::Werror(wanted) => (self.werror == wanted, format!("werror={}", self.werror.word())),
            DiskClaim::Queues(bounds) => {
                (bounds.contains(u64::from(self.queues)), format!("{} virtqueues", self.queues))
            }
            DiskClaim::Readonly(wanted) => (self.readonly == wanted, format!("readonly=#{}", self.readonly)),
            DiskClaim::Direct(wanted) => {
                let direct = self.cache.direct();
                (direct == wanted, format!("direct=#{direct} (cache={})", self.cache.word()))
            }
        };
        (!right).then(|| format!("disk `{}` has {found}", self.name))
    }
}

fn engine(aio: Aio) -> &'static str {
    match aio {
        Aio::IoUring => "io_uring",
        Aio::Native => "native",
        Aio::Threads => "threads",
    }
}

fn count(what: &str, found: u64, bounds: Bounds) -> Option<String> {
    let (verb, plural) = if found == 1 { ("is", "") } else { ("are", "s") };
    (!bounds.contains(found)).then(|| format!("there {verb} {found} {what}{plural}"))
}

fn memory(bytes: u64, bounds: Bounds) -> Option<String> {
    (!bounds.contains(bytes)).then(|| format!("the guest has {}", format_size(bytes)))
}

fn pages(found: Option<PageSize>, claim: PagesClaim) -> Option<String> {
    let right = match claim {
        PagesClaim::None => found.is_none(),
        PagesClaim::Any => found.is_some(),
        PagesClaim::Size(size) => found == Some(size),
    };
    let found =
        found.map_or("ordinary pages".to_owned(), |size| format!("pages of {}", format_size(size.bytes())));
    (!right).then(|| format!("the guest's memory has {found}"))
}

fn nets(found: usize) -> Option<String> {
    (found > 0).then(|| format!("there are {found} network devices"))
}

/// Threads that float are pinned on no host.
fn floats(what: &str, pins: &ThreadPins, wanted: bool) -> Option<String> {
    match pins {
        ThreadPins::Float { line } if wanted => Some(format!("the {what} float, as line {line} says")),
        _ => None,
    }
}

fn pinned<'p>(
    threads: impl Iterator<Item = (String, &'p crate::topology::CpuSet)>,
    wanted: bool,
) -> Vec<String> {
    threads
        .filter(|(_, cpus)| (cpus.len() == 1) != wanted)
        .map(|(name, cpus)| format!("{name} is on {} {cpus}", if cpus.len() == 1 { "CPU" } else { "CPUs" }))
        .collect()
}
