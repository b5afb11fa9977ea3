//! The profiles that vmprof ships: each says when to use it and where its advice comes from, plans on every host, and has
//! room on a large one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vmprof_profiles::{Plan, Profile, read_profile};

use crate::fixtures::{all, source};
use crate::host::{HostSpec, NodeSpec, node, planned, text_of};

/// Profiles whose warnings are their point: what they give up is said aloud on every host.
const WARNS: [(&str, &str); 1] = [("ci", "vmprof::profile::unsafe_cache")];

/// Name → text, from the directory itself: a profile that is added is tested.
fn shipped() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = fs::read_dir(env!("CARGO_MANIFEST_DIR"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "kdl"))
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

fn profile(name: &str, text: &str) -> Profile {
    let (profile, warnings) = read_profile(&format!("{name}.kdl"), text).unwrap_or_else(|problems| {
        panic!("{name}: {:?}", problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    });
    let found: Vec<&str> = warnings.iter().map(|warning| warning.code()).collect();
    let known: Vec<&str> = WARNS.iter().filter(|(who, _)| *who == name).map(|(_, code)| *code).collect();
    assert_eq!(found, known, "{name}");
    profile
}

/// Two nodes of 32 cores with two threads each, a drive on each.
fn large() -> HostSpec {
    let node =
        |id| NodeSpec { nvme: true, memory_mib: 256 << 10, l3_cores: 8, free_2mib: 32 << 10, ..node(id, 32) };
    HostSpec { threads: 2, ..HostSpec::of(vec![node(0), node(1)]) }
}

fn codes(plan: &Plan) -> BTreeSet<&str> {
    plan.diagnostics.iter().map(|diagnostic| diagnostic.code.as_str()).collect()
}

#[test]
fn there_is_one_for_each_kind_of_load() {
    let names: Vec<String> = shipped().into_iter().map(|(name, _)| name).collect();
    let expected = ["ci", "db", "dense", "hello", "latency", "oracle-wide", "read-heavy", "throughput"];
    assert_eq!(names, expected);
}

#[test]
fn each_says_when_to_use_it_and_where_its_advice_comes_from() {
    for (name, text) in shipped() {
        let head: String = text.lines().skip(1).take_while(|line| line.starts_with("//")).collect();
        assert!(text.starts_with("/- kdl-version 2\n//"), "{name} begins with its version and its purpose");
        assert!(head.contains("Use it for"), "{name} does not say when to use it");
        assert!(head.contains("Not for"), "{name} does not say when not to use it");
        assert!(head.contains("Source"), "{name} does not say where its advice comes from");
    }
}

#[test]
fn each_has_its_name_a_description_and_a_guest_that_is_there() {
    for (name, text) in shipped() {
        let profile = profile(&name, &text);
        assert_eq!(profile.name, name);
        assert!(profile.description.is_some(), "{name}");
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join(&profile.guest.value);
        assert!(guest.exists(), "{name}: {}", guest.display());
    }
}

#[test]
fn each_plans_on_every_host() {
    for (name, text) in shipped() {
        let profile = profile(&name, &text);
        for (host, _) in all() {
            let plan = planned(&profile, &source(host));
            // No fixture has CPUs for 96.
            let vcpus = if name == "oracle-wide" { 24 } else { profile.vcpus.count as usize };
            assert_eq!(plan.vcpus.len(), vcpus, "{name} on {host}");
        }
    }
}

#[test]
fn on_a_large_host_nothing_is_given_up() {
    for (name, text) in shipped() {
        let plan = planned(&profile(&name, &text), &large().source());
        let mut known: BTreeSet<&str> =
            WARNS.iter().filter(|(who, _)| *who == name).map(|(_, code)| *code).collect();
        // 96 vCPUs and eight IOThreads are more than the 64 cores here: siblings and the other node have to do.
        if name == "oracle-wide" {
            known = codes(&plan);
            assert!(!known.contains("vmprof::plan::dense_host"));
            assert!(!known.contains("vmprof::plan::iothread_shares_vcpu"));
        }
        assert_eq!(codes(&plan), known, "{name}");
    }
}

fn shipped_one(name: &str) -> Profile {
    profile(name, &text_of(&format!("{name}.kdl")))
}

#[test]
fn the_wide_database_fits_a_host_of_64_cpus_too() {
    let node = NodeSpec { memory_mib: 64 << 10, l3_cores: 8, free_2mib: 32 << 10, ..node(0, 32) };
    let plan =
        planned(&shipped_one("oracle-wide"), &HostSpec { threads: 2, ..HostSpec::of(vec![node]) }.source());
    assert_eq!((plan.vcpus.len(), plan.disks[0].queues, &plan.ladder[..]), (24, 24, &[][..]));
    assert_eq!(codes(&plan), BTreeSet::from(["vmprof::plan::when_applies"]));
}

#[test]
fn latency_polls_where_the_iothread_has_a_cpu_to_itself() {
    for (cores, polls) in [(2, 0), (3, 131_072), (4, 131_072)] {
        let plan = planned(&shipped_one("latency"), &HostSpec::of(vec![node(0, cores)]).source());
        assert_eq!(plan.iothreads[0].poll_max_ns, polls, "{cores} cores");
        assert!(!codes(&plan).contains("vmprof::plan::polling_on_shared_cpu"));
    }
}

#[test]
fn the_page_lists_them_all() {
    let page = text_of("../docs/profiles.md");
    for (name, _) in shipped() {
        assert!(page.contains(&format!("| `{name}` |")), "docs/profiles.md does not list {name}");
    }
}
