//! Topology × profile → plan, as text and as JSON. A change here is a change of what users get.

use insta::assert_snapshot;
use vmprof_profiles::{Ledger, Plan, Topology, view};

use crate::fixtures::source;
use crate::host::{planned, profile, text_of};

fn text(name: &str, file: &str) -> String {
    let profile = profile(&text_of(file));
    let source = source(name);
    view::plan_text(&planned(&profile, &source), &Topology::read(&source), false)
}

#[test]
fn db_on_every_fixture() {
    for (name, _) in crate::fixtures::all() {
        assert_snapshot!(format!("db-{name}"), text(name, "db.kdl"));
    }
}

#[test]
fn hello_on_every_fixture() {
    for (name, _) in crate::fixtures::all() {
        assert_snapshot!(format!("hello-{name}"), text(name, "hello.kdl"));
    }
}

#[test]
fn a_database_on_the_second_drive() {
    for name in ["two-nodes", "lab", "smt2"] {
        assert_snapshot!(format!("far-drive-{name}"), text(name, "fixtures/profiles/far-drive.kdl"));
    }
}

#[test]
fn explicit_pins_and_an_exact_mapping() {
    assert_snapshot!("pinned-lab", text("lab", "fixtures/profiles/pinned.kdl"));
}

#[test]
fn the_json_of_a_plan() {
    let plan = planned(&profile(&text_of("fixtures/profiles/far-drive.kdl")), &source("two-nodes"));
    assert_snapshot!("far-drive-two-nodes-json", plan.to_json());
    assert_eq!(Plan::from_json(&plan.to_json()).unwrap(), plan);
}

#[test]
fn the_hosts_as_text() {
    for (name, _) in crate::fixtures::all() {
        assert_snapshot!(format!("host-{name}"), {
            let source = source(name);
            view::host_text(&Topology::read(&source), &Ledger::read(&source))
        });
    }
}

#[test]
fn a_large_host_stays_legible() {
    let spec = crate::host::HostSpec {
        threads: 2,
        ..crate::host::HostSpec::of(
            (0..2).map(|id| crate::host::NodeSpec { l3_cores: 8, ..crate::host::node(id, 64) }).collect(),
        )
    };
    let source = spec.source();
    let plan = planned(&profile(&text_of("db.kdl")), &source);
    let text = view::plan_text(&plan, &Topology::read(&source), false);
    assert!(text.lines().take_while(|l| *l != "threads").all(|line| line.chars().count() <= 100));
    assert_snapshot!("db-256-cpus", text);
}

#[test]
fn the_threads_of_the_running_vm_go_by_the_names_that_proc_shows() {
    let plan = planned(&profile(&text_of("hello.kdl")), &source("lab"));
    let names: Vec<String> = plan.threads().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["CPU 0/KVM", "IO iothread0", "vmprof"]);
    assert!(plan.threads().iter().all(|(_, cpus)| cpus.len() == 1));
}
