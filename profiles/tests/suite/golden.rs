//! Topology × profile → plan, as text and as JSON. A change here is a change of what users get.

use insta::assert_snapshot;
use vmprof_profiles::{Ledger, Plan, Source, Topology, view};

use crate::fixtures::source;
use crate::host::{planned, profile, text_of};

/// The plan as text, without the digest: that changes with every comment of a profile.
fn text(name: &str, file: &str) -> String {
    text_on(&source(name), &text_of(file))
}

fn text_on(source: &Source, text: &str) -> String {
    let profile = profile(text);
    undigested(&view::plan_text(&planned(&profile, source), &Topology::read(source), false))
}

fn undigested(text: &str) -> String {
    let is_digest = |word: &str| word.len() >= 16 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let line = |line: &str| {
        let words = line.split(' ').map(|word| {
            let bare = word.trim_matches(|c| c == '"' || c == ',');
            if is_digest(bare) { word.replace(bare, "DIGEST") } else { word.to_owned() }
        });
        words.collect::<Vec<_>>().join(" ") + "\n"
    };
    text.lines().map(line).collect()
}

/// Every profile that vmprof brings, by name.
fn shipped() -> Vec<String> {
    let names =
        std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> =
        names.filter_map(|name| Some(name.to_str()?.strip_suffix(".kdl")?.to_owned())).collect();
    names.sort();
    names
}

#[test]
fn every_shipped_profile_on_every_fixture() {
    let shipped = shipped();
    assert!(["db", "hello"].iter().all(|name| shipped.iter().any(|s| s == name)), "{shipped:?}");
    for profile in shipped {
        for (name, _) in crate::fixtures::all() {
            assert_snapshot!(format!("{profile}-{name}"), text(name, &format!("{profile}.kdl")));
        }
    }
}

/// Its capture is too large to be a file of the checkout, and is made anew.
#[test]
fn every_shipped_profile_on_1024_cpus() {
    let large = crate::fixtures::large().source();
    for profile in shipped() {
        let text = text_on(&large, &text_of(&format!("{profile}.kdl")));
        assert_snapshot!(format!("{profile}-1024-cpus"), text);
    }
}

/// A relative file lies nowhere known on a captured host; here each disk of the profile lies on the host's last drive.
#[test]
fn every_shipped_profile_beside_its_drive() {
    for (host, mount) in [("two-nodes", "/srv/n1"), ("smt2", "/srv/n1"), ("far-nvme", "/srv/n1")] {
        for profile in shipped() {
            let text = text_of(&format!("{profile}.kdl")).replace("file=\"", &format!("file=\"{mount}/"));
            assert_snapshot!(format!("{profile}-{host}-beside-its-drive"), text_on(&source(host), &text));
        }
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
    assert_snapshot!("far-drive-two-nodes-json", undigested(&plan.to_json()));
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
    assert_snapshot!("db-256-cpus", undigested(&text));
}

#[test]
fn the_threads_of_the_running_vm_go_by_the_names_that_proc_shows() {
    let plan = planned(&profile(&text_of("hello.kdl")), &source("lab"));
    let names: Vec<String> = plan.threads().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["CPU 0/KVM", "IO iothread0", "vmprof"]);
    assert!(plan.threads().iter().all(|(_, cpus)| cpus.len() == 1));
}
