//! What people see of a plan: the text, the picture, the difference. Looked at as snapshots, on small and large hosts.

use insta::assert_snapshot;
use vmprof_profiles::view::{Backdrop, TextStyle, plan_text_on};
use vmprof_profiles::{
    CoreKind, CpuSet, ErrorPolicy, Format, Held, Ledger, Plan, Rejected, Source, Topology,
};

use crate::fixtures::source;
use crate::host::{HostSpec, NodeSpec, node, planned, profile, set, text_of};

/// 1, 2, 4 … nodes of equal size with SMT2 and L3 caches of eight cores.
fn server(nodes: u32, cores: u32) -> Source {
    let of = |id| NodeSpec { l3_cores: 8, memory_mib: 262_144, nvme: id == 0, ..node(id, cores) };
    HostSpec { threads: 2, ..HostSpec::of((0..nodes).map(of).collect()) }.source()
}

/// A profile with many vCPUs and queues, as large databases have them.
fn wide(vcpus: u32, iothreads: u32, queues: u32) -> String {
    format!(
        "profile wide {{\n    guest \"g.kdl\"\n    vcpu {vcpus}\n    memory \"64GiB\"\n    iothreads {iothreads}\n    \
         disk redo {{\n        source dev=\"/dev/nvme0n1\"\n        driver raw cache=none aio=io_uring\n        \
         queues {queues}\n    }}\n}}\n"
    )
}

struct Shown {
    plan: Plan,
    topology: Topology,
    ledger: Ledger,
    cpuset: Option<CpuSet>,
}

impl Shown {
    fn of(text: &str, source: &Source) -> Shown {
        let profile = profile(text);
        let cpuset = profile.host.cpuset.as_ref().map(|set| set.value.clone());
        let (plan, topology) = (planned(&profile, source), Topology::read(source));
        Shown { plan, topology, ledger: Ledger::default(), cpuset }
    }

    fn on(&self) -> Backdrop<'_> {
        Backdrop { topology: &self.topology, ledger: &self.ledger, cpuset: self.cpuset.as_ref() }
    }

    fn text(&self, style: TextStyle) -> String {
        plan_text_on(&self.plan, self.on(), style)
    }
}

fn columns(width: usize) -> TextStyle {
    TextStyle { width, ..TextStyle::default() }
}

/// No line is longer than asked for, unless a single word is.
fn assert_fits(text: &str, width: usize) {
    for line in text.lines().filter(|line| line.chars().count() > width) {
        panic!("longer than {width} columns:\n{line}");
    }
}

#[test]
fn a_database_on_hosts_of_every_size() {
    let db = text_of("db.kdl");
    for (name, source) in [
        ("2-cpus", source("two-cpus")),
        ("16-cpus", source("smt2")),
        ("256-cpus", server(2, 64)),
        ("1024-cpus", server(8, 64)),
    ] {
        let text = Shown::of(&db, &source).text(columns(100));
        assert_fits(&text, 100);
        assert_snapshot!(format!("text-{name}"), text);
    }
}

#[test]
fn ninety_six_queues_and_sixteen_iothreads_stay_readable() {
    let shown = Shown::of(&wide(64, 16, 96), &server(2, 64));
    let text = shown.text(columns(100));
    assert!(text.lines().count() < 70, "{text}");
    assert_snapshot!("text-wide", text);
}

#[test]
fn eighty_columns_are_kept_on_every_fixture() {
    let db = text_of("db.kdl");
    for (name, _) in crate::fixtures::all() {
        assert_fits(&Shown::of(&db, &source(name)).text(columns(80)), 80);
    }
}
