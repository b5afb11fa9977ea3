//! `when FACT OP=VALUE { … }`: what a profile can ask of a host before it is resolved. The facts are a closed list, and are
//! gathered from the topology and the ledger, not from the host.

use std::collections::BTreeSet;
use std::fmt;

use vmprof_document::{Line, SourceSpan, format_size};

use crate::ledger::Ledger;
use crate::profile::Profile;
use crate::topology::{CoreKind, CpuSet, Topology};

/// What conditions are tested against. A fact that nobody knows satisfies no condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `host.cpus`: online CPUs.
    pub cpus: u64,
    /// `host.cores`: cores with an online CPU.
    pub cores: u64,
    /// `host.usable-cpus`: online, allowed to vmprof, inside the profile's `cpuset`, and held by no other VM.
    pub usable_cpus: u64,
    /// `host.usable-cores`: cores with a usable CPU.
    pub usable_cores: u64,
    /// `host.spare-cores`: usable cores less one for each vCPU and one for the emulator; never below 0.
    pub spare_cores: u64,
    /// `host.nodes`: NUMA nodes; 1 where the kernel knows none.
    pub nodes: u64,
    /// `host.memory`, bytes, where every node's is known.
    pub memory: Option<u64>,
    /// `host.smt`: whether a core has two online CPUs.
    pub smt: bool,
    /// `host.hybrid`: whether there are cores of two kinds.
    pub hybrid: bool,
    /// `host.arch`, in the kernel's word.
    pub arch: Option<String>,
    /// `host.isolated-cpus`: online CPUs that the scheduler leaves alone.
    pub isolated_cpus: u64,
    /// `host.free-hugepages`: free pages of 2 MiB, where any node tells.
    pub free_hugepages: Option<u64>,
    /// `host.vms`: other running VMs that hold CPUs.
    pub vms: u64,
}

impl Facts {
    /// The facts of a host for `profile`, whose own `cpuset` and vCPUs count as they stand outside any `when`.
    pub fn of(profile: &Profile, topology: &Topology, ledger: &Ledger) -> Facts {
        let online = &topology.online;
        let limits = [&topology.affinity, &topology.cgroup_cpus];
        let allowed = limits.into_iter().flatten().fold(online.clone(), |cpus, limit| cpus.and(limit));
        let wished = profile.host.cpuset.as_ref().map_or(allowed.clone(), |wish| wish.value.and(&allowed));
        let usable = wished.minus(&ledger.cpus());
        let cores = |cpus: &CpuSet| {
            cpus.iter()
                .map(|cpu| topology.cpus.get(&cpu).map_or(cpu, |c| c.core))
                .collect::<BTreeSet<_>>()
                .len()
        };
        let kinds: BTreeSet<CoreKind> = topology.cpus.values().map(|cpu| cpu.kind).collect();
        let pages: Vec<u64> =
            topology.nodes.values().filter_map(|n| n.free_hugepages.get(&(2 << 20)).copied()).collect();
        let usable_cores = cores(&usable) as u64;
        Facts {
            cpus: online.len() as u64,
            cores: cores(online) as u64,
            usable_cpus: usable.len() as u64,
            usable_cores,
            spare_cores: usable_cores.saturating_sub(u64::from(profile.vcpus.count) + 1),
            nodes: topology.nodes.len().max(1) as u64,
            memory: topology.memory_bytes(),
            smt: cores(online) < online.len(),
            hybrid: kinds.len() > 1,
            arch: topology.arch.clone(),
            isolated_cpus: topology.isolated.and(online).len() as u64,
            free_hugepages: (!pages.is_empty())
                .then(|| pages.iter().fold(0, |all: u64, n| all.saturating_add(*n))),
            vms: ledger.held.len() as u64,
        }
    }

    /// The value of one fact, where it is known.
    pub fn value(&self, fact: Fact) -> Option<FactValue> {
        Some(match fact {
            Fact::Cpus => FactValue::Number(self.cpus),
            Fact::Cores => FactValue::Number(self.cores),
            Fact::UsableCpus => FactValue::Number(self.usable_cpus),
            Fact::UsableCores => FactValue::Number(self.usable_cores),
            Fact::SpareCores => FactValue::Number(self.spare_cores),
            Fact::Nodes => FactValue::Number(self.nodes),
            Fact::Memory => FactValue::Bytes(self.memory?),
            Fact::Smt => FactValue::Switch(self.smt),
            Fact::Hybrid => FactValue::Switch(self.hybrid),
            Fact::Arch => FactValue::Word(self.arch.clone()?),
            Fact::IsolatedCpus => FactValue::Number(self.isolated_cpus),
            Fact::FreeHugepages => FactValue::Number(self.free_hugepages?),
            Fact::Vms => FactValue::Number(self.vms),
        })
    }
}

/// The name of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is a field of `Facts`, where it is told")]
pub enum Fact {
    Cpus,
    Cores,
    UsableCpus,
    UsableCores,
    SpareCores,
    Nodes,
    Memory,
    Smt,
    Hybrid,
    Arch,
    IsolatedCpus,
    FreeHugepages,
    Vms,
}

impl Fact {
    /// Every fact under the word of the language.
    pub const ALL: [(&'static str, Fact); 13] = [
        ("host.cpus", Fact::Cpus),
        ("host.cores", Fact::Cores),
        ("host.usable-cpus", Fact::UsableCpus),
        ("host.usable-cores", Fact::UsableCores),
        ("host.spare-cores", Fact::SpareCores),
        ("host.nodes", Fact::Nodes),
        ("host.memory", Fact::Memory),
        ("host.smt", Fact::Smt),
        ("host.hybrid", Fact::Hybrid),
        ("host.arch", Fact::Arch),
        ("host.isolated-cpus", Fact::IsolatedCpus),
        ("host.free-hugepages", Fact::FreeHugepages),
        ("host.vms", Fact::Vms),
    ];

    /// The word of the language.
    pub fn word(self) -> &'static str {
        Fact::ALL.iter().find(|(_, fact)| *fact == self).map_or("", |(word, _)| word)
    }
}

/// The value of a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FactValue {
    /// A count.
    Number(u64),
    /// A size.
    Bytes(u64),
    /// Yes or no.
    Switch(bool),
    /// A word.
    Word(String),
}

impl fmt::Display for FactValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FactValue::Number(n) => write!(f, "{n}"),
            FactValue::Bytes(n) => f.write_str(&format_size(*n)),
            FactValue::Switch(on) => write!(f, "#{on}"),
            FactValue::Word(word) => f.write_str(word),
        }
    }
}

/// How a fact is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the language, as in a shell's `test`")]
pub enum Comparison {
    Lt,
    Le,
    Eq,
    Ne,
    Ge,
    Gt,
}

impl Comparison {
    /// Every comparison under the word of the language.
    pub const ALL: [(&'static str, Comparison); 6] = [
        ("lt", Comparison::Lt),
        ("le", Comparison::Le),
        ("eq", Comparison::Eq),
        ("ne", Comparison::Ne),
        ("ge", Comparison::Ge),
        ("gt", Comparison::Gt),
    ];

    fn holds(self, found: &FactValue, wanted: &FactValue) -> bool {
        let order = match (found, wanted) {
            (FactValue::Number(a), FactValue::Number(b)) | (FactValue::Bytes(a), FactValue::Bytes(b)) => {
                a.cmp(b)
            }
            (a, b) => return (self == Comparison::Eq && a == b) || (self == Comparison::Ne && a != b),
        };
        match self {
            Comparison::Lt => order.is_lt(),
            Comparison::Le => order.is_le(),
            Comparison::Eq => order.is_eq(),
            Comparison::Ne => order.is_ne(),
            Comparison::Ge => order.is_ge(),
            Comparison::Gt => order.is_gt(),
        }
    }

    fn aloud(self) -> &'static str {
        match self {
            Comparison::Lt => "less than",
            Comparison::Le => "at most",
            Comparison::Eq => "equal to",
            Comparison::Ne => "not",
            Comparison::Ge => "at least",
            Comparison::Gt => "more than",
        }
    }
}

/// One `when`: a fact and what it is compared with; all comparisons must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// What is asked.
    pub fact: Fact,
    /// What it must be.
    pub tests: Vec<(Comparison, FactValue)>,
    /// The line of the `when`.
    pub line: Line,
    pub(crate) span: SourceSpan,
}

impl When {
    /// Whether it holds on a host with these facts.
    pub fn holds(&self, facts: &Facts) -> bool {
        let Some(found) = facts.value(self.fact) else { return false };
        self.tests.iter().all(|(comparison, wanted)| comparison.holds(&found, wanted))
    }

    /// The condition with what was found: `line 12: host.spare-cores is 1, less than 2`.
    pub fn says(&self, facts: &Facts) -> String {
        let found = facts.value(self.fact).map_or("unknown".to_owned(), |found| found.to_string());
        let tests: Vec<String> = self
            .tests
            .iter()
            .map(|(comparison, wanted)| format!("{} {wanted}", comparison.aloud()))
            .collect();
        format!("line {}: {} is {found}, {}", self.line, self.fact.word(), tests.join(" and "))
    }
}
