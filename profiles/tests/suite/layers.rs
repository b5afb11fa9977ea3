//! `extends`: files over files, where each value comes from, and which file a diagnostic points into.

use std::collections::BTreeMap;
use std::io;

use vmprof_profiles::{
    Aio, CacheMode, DiskSource, EmulatorPin, IoThreadCount, Mapping, NetBackend, Problems, Profile,
    ThreadPins, read_profile, read_profile_with,
};

/// Reads the first file; the others are found by their paths.
pub(crate) fn read(name: &str, files: &[(&str, &str)]) -> Result<(Profile, Problems), Problems> {
    let all: BTreeMap<&str, &str> = files.iter().copied().collect();
    let load = |path: &str| {
        all.get(path).map(|text| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    read_profile_with(name, files[0].1, &load)
}

fn right(files: &[(&str, &str)]) -> Profile {
    match read("p/top.kdl", files) {
        Ok((profile, _)) => profile,
        Err(problems) => panic!("{:#?}", problems.iter().collect::<Vec<_>>()),
    }
}

fn last_words(problems: &Problems) -> Vec<&str> {
    problems.iter().map(|p| p.code().rsplit("::").next().unwrap_or_default()).collect()
}

const BASE: &str = r#"
profile whatever {
    description "of the base"
    guest "../guests/g.kdl"
    host { cpuset "0-7"; smt isolate }
    vcpu 2 { vcpupin { vcpu 0 cpuset="0"; vcpu 1 cpuset="1" } }
    emulatorpin none
    memory "1GiB" hugepages=auto
    iothreads auto min=1 max=8 { iothreadpin none; poll-max-ns 1000 }
    disk data {
        source file="data.raw" size="8GiB"
        driver raw cache=none io=native
        queues 4 size=128
        iothread-vq-mapping { iothread 0 }
    }
    net passt { forward tcp host=8080 guest=80 }
}
"#;

#[test]
fn a_file_lies_over_the_one_it_extends() {
    let top = r#"
profile top {
    extends "base.kdl"
    vcpu 2 { vcpupin { vcpu 1 cpuset="3" } }
    memory "2GiB"
    emulatorpin "5"
    iothreads 2 { iothreadpin { iothread 0 cpuset="6" } }
    disk logs { source file="logs.raw" }
    disk data { source dev="/dev/vdb"; driver raw aio=threads; queues 2; iothread-vq-mapping round-robin }
    net passt { forward tcp host=2222 guest=22 }
}
"#;
    let profile = right(&[("top.kdl", top), ("base.kdl", BASE)]);
    assert_eq!((profile.name.as_str(), profile.description.as_deref()), ("top", None));
    assert_eq!(profile.guest.value, "../guests/g.kdl");
    let ThreadPins::Explicit(pins) = &profile.vcpus.pin else { panic!() };
    let pins: Vec<String> = pins.values().map(|pin| pin.value.to_string()).collect();
    assert_eq!(pins, ["0", "3"], "vCPU 0 from the base, vCPU 1 from the top");
    assert_eq!(profile.memory.bytes.value, 2 << 30);
    assert!(matches!(&profile.emulator, EmulatorPin::Explicit(set) if set.value.to_string() == "5"));
    assert!(matches!(&profile.iothreads.count, IoThreadCount::Fixed(n) if n.value == 2));
    assert_eq!(profile.iothreads.poll_max_ns, Some(1000));
    let names: Vec<&str> = profile.disks.iter().map(|d| d.name.value.as_str()).collect();
    assert_eq!(names, ["data", "logs"], "the base's first");
    let data = &profile.disks[0];
    assert_eq!(data.source, DiskSource::Device { path: "/dev/vdb".into() });
    assert_eq!((data.cache, data.aio, data.queues, data.queue_size), (CacheMode::None, Aio::Threads, 2, 128));
    assert_eq!(data.mapping, Mapping::RoundRobin);
    let NetBackend::Passt { forwards } = &profile.nets[0].backend.value else { panic!() };
    assert_eq!(forwards.iter().map(|f| f.host).collect::<Vec<_>>(), [8080, 2222]);
}

#[test]
fn a_line_names_its_file_where_that_is_not_the_first() {
    let top = "profile top {\n extends \"base.kdl\"\n host { numa node=1 }\n}";
    let profile = right(&[("top.kdl", top), ("base.kdl", BASE)]);
    assert_eq!(profile.host.node.as_ref().unwrap().line.to_string(), "3");
    assert_eq!(profile.guest.line.to_string(), "4 of base.kdl");
    let files: Vec<(&str, &str)> =
        profile.source().files().iter().map(|f| (f.name.as_ref(), f.path.as_ref())).collect();
    assert_eq!(files, [("p/top.kdl", "p/top.kdl"), ("p/base.kdl", "base.kdl")]);
}

#[test]
fn paths_are_relative_to_the_file_that_names_them() {
    let top = "profile top { extends \"deep/one.kdl\"; }";
    let one = "profile { extends \"../two.kdl\" \"more/three.kdl\"; vcpu 3; guest \"one-guest.kdl\"; }";
    let two = "profile { guest \"two.kdl\"; memory \"1GiB\"; vcpu 1; }";
    let three = "profile { memory \"2GiB\"; }";
    let files = [("top.kdl", top), ("deep/one.kdl", one), ("two.kdl", two), ("deep/more/three.kdl", three)];
    let profile = right(&files);
    assert_eq!(profile.guest.value, "deep/one-guest.kdl");
    assert_eq!((profile.vcpus.count, profile.memory.bytes.value), (3, 2 << 30), "the later file wins");
}

#[test]
fn net_none_and_a_network_take_each_other_away() {
    let base = |net: &str| format!("profile {{ guest g; vcpu 1; memory \"1GiB\"; {net}; }}");
    for (below, above, left) in [
        ("net passt", "net none", 0),
        ("net passt; net tap name=tap0", "net none", 0),
        ("net none", "net tap name=tap1", 1),
        ("net tap name=tap0", "net tap name=tap1", 2),
        ("net tap name=tap0", "net tap name=tap0 { queues 2; }", 1),
    ] {
        let top = format!("profile top {{ extends \"base.kdl\"; {above}; }}");
        let profile = right(&[("top.kdl", &top), ("base.kdl", &base(below))]);
        assert_eq!(profile.nets.len(), left, "{above} over {below}");
    }
}

#[test]
fn what_stands_twice_in_one_file_is_still_refused() {
    let top = "profile top { extends \"base.kdl\"; memory \"2GiB\"; memory \"3GiB\"; }";
    let problems = read("top.kdl", &[("top.kdl", top), ("base.kdl", BASE)]).unwrap_err();
    assert_eq!(last_words(&problems), ["duplicate_node"]);
    let top = "profile top { extends \"base.kdl\"; memory \"2GiB\" hugepages=none hugepages=auto; }";
    let problems = read("top.kdl", &[("top.kdl", top), ("base.kdl", BASE)]).unwrap_err();
    assert_eq!(last_words(&problems), ["duplicate_property"]);
}

#[test]
fn a_base_that_cannot_be_had_is_named_at_its_place() {
    let chain: Vec<(String, String)> = (0..20)
        .map(|n| (format!("f{n}.kdl"), format!("profile {{ extends \"f{}.kdl\"; }}", n + 1)))
        .collect();
    let chain: Vec<(&str, &str)> = chain.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let wide: Vec<(String, String)> = (0..12)
        .map(|n| {
            (format!("w{n}.kdl"), format!("profile {{ extends \"w{m}.kdl\" \"w{m}.kdl\"; }}", m = n + 1))
        })
        .chain([("w12.kdl".into(), "profile { vcpu 1; }".into())])
        .collect();
    let wide: Vec<(&str, &str)> = wide.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let top = |path: &str| format!("profile top {{ extends \"{path}\"; }}");
    for (path, others, code, place) in [
        ("none.kdl", vec![], "extends_unreadable", "\"none.kdl\""),
        ("top.kdl", vec![], "extends_cycle", "\"top.kdl\""),
        ("./x/../top.kdl", vec![], "extends_cycle", "\"./x/../top.kdl\""),
        (
            "a.kdl",
            vec![("a.kdl", "profile { extends \"b.kdl\"; }"), ("b.kdl", "profile { extends \"a.kdl\"; }")],
            "extends_cycle",
            "",
        ),
        ("/abs.kdl", vec![], "extends_absolute", "\"/abs.kdl\""),
        ("guest.kdl", vec![("guest.kdl", "guest x { }")], "extends_other", "\"guest.kdl\""),
        ("f0.kdl", chain, "extends_too_deep", ""),
        ("w0.kdl", wide, "extends_too_many", ""),
        ("broken.kdl", vec![("broken.kdl", "profile {")], "syntax", ""),
    ] {
        let text = top(path);
        let files: Vec<(&str, &str)> = [("top.kdl", text.as_str())].into_iter().chain(others).collect();
        let problems = read("top.kdl", &files).unwrap_err();
        assert!(
            last_words(&problems).iter().all(|word| *word == code),
            "{path}: {:?}",
            last_words(&problems)
        );
        let first = problems.iter().next().unwrap();
        assert!(first.help_text().is_some() || code == "syntax", "{first:?}");
        let span = first.first_span().unwrap();
        if !place.is_empty() {
            assert_eq!(&text[span.offset()..span.offset() + span.len()], place, "{path}");
        }
    }
    for odd in ["extends", "extends 3", "extends \"\"", "extends a=b", "extends \"x.kdl\" { y; }"] {
        let text = format!("profile top {{ {odd}; }}");
        let problems = read("top.kdl", &[("top.kdl", &text), ("x.kdl", BASE)]).unwrap_err();
        assert!(last_words(&problems).contains(&"bad_extends"), "{odd}");
    }
    let alone = read_profile("top.kdl", &top("base.kdl")).unwrap_err();
    assert_eq!(last_words(&alone), ["extends_nowhere"]);
}

#[test]
fn slips_in_a_base_do_not_hide_other_mistakes() {
    let base = "profile { guest g; vcpu 1; memory 1GiB; strict true; }";
    let top = "profile top { extends \"base.kdl\"; emulatorpin nnoe; }";
    let problems = read("top.kdl", &[("top.kdl", top), ("base.kdl", base)]).unwrap_err();
    assert_eq!(last_words(&problems), ["unknown_word", "missing_quotes", "bare_keyword"]);
}
