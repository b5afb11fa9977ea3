//! `when` and `assert`: what a profile comes to on a host, and what it and its plans must keep.

use proptest::prelude::*;
use vmprof_profiles::{
    Facts, IoThreadCount, Ledger, Problems, Profile, Storage, ThreadPins, plan, read_profile,
};

use crate::host::{HostSpec, codes, node, planned, profile, with};

fn refused(nodes: &str) -> Problems {
    let text = format!("profile test {{\n guest \"g.kdl\"\n memory \"1GiB\"\n{nodes}\n}}\n");
    read_profile("test.kdl", &text).unwrap_err()
}

fn last_words(problems: &Problems) -> Vec<String> {
    problems
        .iter()
        .filter(|p| p.is_error())
        .map(|p| p.code().rsplit("::").next().unwrap_or_default().to_owned())
        .collect()
}

fn facts(spec: &HostSpec, profile: &Profile) -> Facts {
    Facts::of(profile, &spec.topology(), &Ledger::default())
}

#[test]
fn facts_are_those_of_the_host() {
    let spec = HostSpec { threads: 2, ..HostSpec::of(vec![node(0, 4), node(1, 4)]) };
    let found = facts(&spec, &with("vcpu 2\nhost { cpuset \"0-5,^3\"; }"));
    assert_eq!((found.cpus, found.cores, found.nodes), (16, 8, 2));
    assert_eq!((found.usable_cpus, found.usable_cores, found.spare_cores), (5, 5, 2));
    assert_eq!((found.memory, found.smt, found.hybrid), (Some(8 << 30), true, false));
    assert_eq!((found.isolated_cpus, found.free_hugepages, found.vms), (0, Some(0), 0));
    assert_eq!(facts(&spec, &with("vcpu 100")).spare_cores, 0, "never below 0");
}

#[test]
fn conditions_hold_by_their_operators() {
    let spec = HostSpec::of(vec![node(0, 4)]);
    for (condition, holds) in [
        ("host.cpus eq=4", true),
        ("host.cpus lt=4", false),
        ("host.cpus le=4", true),
        ("host.cpus gt=3 lt=5", true),
        ("host.cpus gt=3 lt=4", false),
        ("host.cpus ne=4", false),
        ("host.memory ge=\"4GiB\"", true),
        ("host.memory gt=\"4GiB\"", false),
        ("host.smt eq=#false", true),
        ("host.hybrid ne=#true", true),
        ("host.spare-cores lt=2", true),
        // Nobody knows it here, and what is unknown satisfies nothing.
        ("host.arch ne=aarch64", false),
        ("host.vms eq=0", true),
    ] {
        let profile = with(&format!("vcpu 2\nwhen {condition} {{ memory \"2GiB\"; }}"));
        let found = facts(&spec, &profile);
        let effective = profile.on(&found);
        assert_eq!(effective.memory.bytes.value == 2 << 30, holds, "{condition}");
        assert_eq!(effective.applied.len(), usize::from(holds), "{condition}");
    }
}

#[test]
fn what_applies_is_said_and_planned() {
    let nodes = "vcpu 2\niothreads auto min=1 max=8\nwhen host.spare-cores lt=2 {\n iothreads 1 { iothreadpin emulator; }\n}";
    let small = planned(&with(nodes), &HostSpec::of(vec![node(0, 4)]).source());
    let note = small.diagnostics.iter().find(|d| d.code == "vmprof::plan::when_applies").unwrap();
    assert_eq!(note.message, "line 6: host.spare-cores is 1, less than 2");
    assert_eq!((small.iothreads.len(), &small.iothreads[0].cpus), (1, &small.emulator.cpus));
    let large = planned(&with(nodes), &HostSpec::of(vec![node(0, 16)]).source());
    assert!(!codes(&large).contains(&"when_applies"));
    assert!(large.iothreads[0].cpus != large.emulator.cpus);
}

#[test]
fn conditions_lie_over_each_other_in_the_order_of_the_file() {
    let nodes = "vcpu 1\nwhen host.cpus ge=1 { iothreads 2; strict; }\nwhen host.cpus ge=2 { iothreads 3; }";
    for (cpus, iothreads) in [(1, 2), (2, 3)] {
        let spec = HostSpec::of(vec![node(0, cpus)]);
        let profile = with(nodes);
        let found = facts(&spec, &profile);
        let effective = profile.on(&found);
        assert!(
            matches!(&effective.iothreads.count, IoThreadCount::Fixed(n) if n.value == iothreads),
            "{cpus}"
        );
        assert!(effective.strict.is_some() && profile.strict.is_none());
    }
}

#[test]
fn a_mistake_under_a_condition_is_found_without_a_host() {
    for (nodes, wanted) in [
        ("vcpu 2\nwhen host.cpus lt=1 { iothreads 2; vcpupni none; }", vec!["unknown_node"]),
        (
            "vcpu 2\niothreads 4\ndisk d { source file=d; iothread-vq-mapping { iothread 3; }; }\nwhen host.cpus lt=1 { iothreads 2; }",
            vec!["no_such_iothread"],
        ),
        // Each alone is right, both together are not.
        (
            "vcpu 4\nwhen host.cpus lt=9 { vcpu 3; }\nwhen host.smt eq=#true { host { smt require; }; }",
            vec!["odd_vcpus"],
        ),
        ("vcpu 2\nwhen host.cpus lt=1 { guest other; }", vec!["not_under_when"]),
        (
            "vcpu 2\nwhen host.cpus lt=1 { disk d { source file=x; }; }\ndisk d { source file=d; }",
            vec!["not_under_when"],
        ),
        (
            "vcpu 2\nwhen host.cpus lt=1 { disk e { queues 2; }; }\ndisk d { source file=d; }",
            vec!["new_disk_under_when"],
        ),
        ("vcpu 2\nwhen host.cpus lt=1", vec!["empty_when"]),
        ("vcpu 2\nwhen host.cpus { strict; }", vec!["missing_property"]),
        ("vcpu 2\nwhen host.cups lt=1 { strict; }", vec!["unknown_word"]),
        ("vcpu 2\nwhen host.smt lt=1 { strict; }", vec!["unordered_fact"]),
        ("vcpu 2\nwhen host.smt eq=1 { strict; }", vec!["wrong_type"]),
        ("vcpu 2\nwhen host.memory lt=1 { strict; }", vec!["wrong_type"]),
        ("vcpu 2\nwhen host.cpus lt=1 below=2 { strict; }", vec!["unknown_property"]),
    ] {
        let found = last_words(&refused(nodes));
        assert!(wanted.iter().all(|code| found.contains(&(*code).to_owned())), "{nodes}: {found:?}");
    }
    let many = "when host.cpus lt=1 { strict; }\n".repeat(9);
    assert_eq!(last_words(&refused(&format!("vcpu 1\n{many}"))), ["too_many_whens"]);
}

#[test]
fn asserts_that_no_host_can_keep_fail_the_reading() {
    let disk = "disk data { source file=d; driver raw cache=writeback; queues 2; }";
    for (claim, holds) in [
        ("disk data cache=writeback", true),
        ("disk data cache=none", false),
        ("disk \"*\" cache=none", false),
        ("disk data direct=#false", true),
        ("disk data direct=#true", false),
        ("disk data aio=io_uring discard=ignore rerror=report werror=report readonly=#false", true),
        ("disk data aio=threads", false),
        ("disk data discard=unmap", false),
        ("disk data readonly=#true", false),
        ("disk data queues=2", true),
        ("disk data queues-min=3", false),
        ("disk data queues-max=1", false),
        ("vcpu min=2 max=4", true),
        ("vcpu min=4", false),
        ("vcpu pinned=#true", true),
        ("iothreads max=8", true),
        ("iothreads min=9", false),
        ("memory min=\"1GiB\" max=\"1GiB\"", true),
        ("memory max=\"512MiB\"", false),
        ("memory hugepages=any", false),
        ("memory hugepages=none", true),
        ("net none", true),
        ("same-node disk=data", true),
        ("without \"unsafe_cache\"", true),
    ] {
        let text = format!(
            "profile t {{ guest g; vcpu 2; memory \"1GiB\"; {disk}; assert \"our rule\" {{ {claim}; }}; }}"
        );
        match read_profile("t.kdl", &text) {
            Ok(_) => assert!(holds, "{claim}"),
            Err(problems) => {
                assert!(!holds, "{claim}: {problems:?}");
                assert_eq!(last_words(&problems), ["assert_failed"], "{claim}");
                assert!(problems.iter().next().unwrap().message().starts_with("our rule: "));
            }
        }
    }
    for (nodes, claim) in [
        ("vcpu 2 { vcpupin none; }", "vcpu pinned=#true"),
        ("vcpu 2; iothreads 1 { iothreadpin none; }", "iothreads pinned=#true"),
        ("vcpu 2; net passt", "net none"),
        ("vcpu 2; disk d { source file=d; driver raw cache=unsafe; }", "without unsafe_cache"),
        (
            "vcpu 2; disk d { source file=d; driver raw cache=unsafe; }",
            "without \"vmprof::profile::unsafe_cache\"",
        ),
    ] {
        assert_eq!(
            last_words(&refused(&format!("{nodes}; assert \"r\" {{ {claim}; }}"))),
            ["assert_failed"],
            "{claim}"
        );
    }
    // A condition may break it, on hosts that this one is not.
    assert_eq!(
        last_words(&refused("vcpu 2\nwhen host.cpus lt=1 { vcpu 4; }\nassert \"r\" { vcpu max=2; }")),
        ["assert_failed"]
    );
}

#[test]
fn asserts_on_the_plan_fail_the_plan() {
    let mut spec = HostSpec::of(vec![node(0, 4), node(1, 4)]);
    spec.nodes[1].nvme = true;
    let refused = |nodes: &str| {
        let profile = with(nodes);
        let (topology, source) = (spec.topology(), spec.source());
        let storage = Storage::read(&source, &profile, &topology, None);
        let refused = plan(&profile, &topology, &storage, &Ledger::default()).unwrap_err();
        refused.problems().iter().map(|p| format!("{} {}", p.code(), p.message())).collect::<Vec<_>>()
    };
    let far = "vcpu 2\nhost { numa node=0; }\niothreads 1\ndisk data { source file=\"/srv/n1/d\"; }\n";
    assert_eq!(
        refused(&format!("{far}assert \"near the drive\" {{ same-node disk=data; }}")),
        ["vmprof::plan::assert_failed near the drive: iothread0 is on node 0, disk `data` on node 1"]
    );
    let dense = "vcpu 9\niothreads 1\nassert \"no sharing\" { without dense_host; vcpu pinned=#true; }";
    assert!(refused(dense).iter().all(|p| p.starts_with("vmprof::plan::assert_failed no sharing: ")));
    let few = "vcpu 2\niothreads auto\nassert \"four\" { iothreads min=4; }\ndisk data { source file=d; queues 2; }";
    assert_eq!(refused(few), ["vmprof::plan::assert_failed four: there is 1 IOThread"]);
    let near = "vcpu 2\niothreads 1\ndisk data { source file=\"/srv/n1/d\"; }\nassert \"near\" { same-node disk=data; vcpu pinned=#true; }";
    planned(&with(near), &spec.source());
}

#[test]
fn a_claim_that_means_nothing_is_refused() {
    for (claim, code) in [
        ("disk data cach=none", "unknown_property"),
        ("disk daat cache=none", "no_such_disk"),
        ("disk data", "empty_assert"),
        ("vcpus min=1", "unknown_node"),
        ("vcpu", "empty_assert"),
        ("net passt", "unknown_word"),
        ("same-node disk=other", "no_such_disk"),
        ("same-node", "missing_property"),
        ("without \"no such\"", "bad_code"),
        ("without \"profile::x\"", "bad_code"),
    ] {
        let nodes = format!("vcpu 2\ndisk data {{ source file=d; }}\nassert \"r\" {{ {claim}; }}");
        assert_eq!(last_words(&refused(&nodes)), [code], "{claim}");
    }
    assert_eq!(last_words(&refused("vcpu 2\nassert \"r\"")), ["empty_assert"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// For every host, the effective profile is the one that a file without conditions would spell out.
    #[test]
    fn a_profile_on_a_host_is_what_its_conditions_say(cores in 1u32..12, limits in prop::collection::vec(1u32..12, 1..4)) {
        let whens: String = (0..).zip(&limits).map(|(at, limit)| format!("when host.cores le={limit} {{ memory \"{}GiB\"; emulatorpin {at}; }}\n", at + 2)).collect();
        let spec = HostSpec::of(vec![node(0, cores)]);
        let conditional = profile(&format!("profile t {{\nguest g\nvcpu 1\nmemory \"1GiB\"\n{whens}}}\n"));
        let effective = conditional.on(&facts(&spec, &conditional)).clone();
        let last = limits.iter().rposition(|limit| cores <= *limit);
        let bytes = last.map_or(1 << 30, |at| (at as u64 + 2) << 30);
        prop_assert_eq!(effective.memory.bytes.value, bytes);
        prop_assert_eq!(effective.applied.len(), limits.iter().filter(|limit| cores <= **limit).count());
        prop_assert!(matches!(effective.vcpus.pin, ThreadPins::Auto));
    }
}

#[test]
fn a_remark_that_only_a_condition_brings_is_told_once_and_names_it() {
    let profile = with(
        "vcpu 4\niothreads 2\ndisk data { source file=\"d.raw\"; queues 4; }\n\
         when host.cpus ge=2 { disk data { driver raw aio=threads; }; }\nwhen host.smt eq=#true { strict; }",
    );
    assert!(profile.warnings.is_empty(), "{:?}", profile.warnings);
    let remarks = profile.remarks();
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    let places: Vec<usize> =
        miette::Diagnostic::labels(&remarks[0]).unwrap().map(|label| label.offset()).collect();
    let text = &profile.source().files()[0].text;
    assert!(places.contains(&text.find("when host.cpus").unwrap()), "{remarks:?}");
    assert!(!places.contains(&text.find("when host.smt").unwrap()), "{remarks:?}");
}

#[test]
fn large_profiles_have_fewer_whens() {
    let disks = |count: usize, whens: usize| {
        let disk = |n| format!("disk d{n} {{ source file=\"d{n}.raw\"; driver raw cache=none; }}\n");
        let when = |n| format!("when host.cpus lt={n} {{ disk d0 {{ driver raw cache=writeback; }}; }}\n");
        (0..count).map(disk).chain((0..whens).map(when)).collect::<String>() + "vcpu 4\n"
    };
    assert_eq!(last_words(&refused(&disks(600, 8))), ["too_many_whens"]);
    let profile = with(&disks(600, 2));
    assert_eq!(profile.whens().len(), 2);
}
