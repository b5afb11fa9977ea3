//! The captured hosts in `fixtures/topology`, which other tests and people plan against. They are written from the
//! descriptions here: with VMPROF_WRITE_FIXTURES set, the test writes them instead of comparing.

use std::path::PathBuf;

use vmprof_profiles::{Capture, Source};

use crate::host::{HostSpec, NodeSpec, node, set, text_of};

/// Name → description.
pub(crate) fn all() -> Vec<(&'static str, HostSpec)> {
    let nvme = |id, cores| NodeSpec { nvme: true, ..node(id, cores) };
    vec![
        ("one-cpu", HostSpec::of(vec![node(0, 1)])),
        ("two-cpus", HostSpec::of(vec![node(0, 2)])),
        ("two-nodes", HostSpec::of(vec![nvme(0, 4), nvme(1, 4)])),
        // What `up --on lab` emulates unless told otherwise.
        ("lab", HostSpec::of(vec![nvme(0, 8), nvme(1, 4)])),
        (
            "smt2",
            HostSpec {
                threads: 2,
                affinity: Some(set("0-15")),
                ..HostSpec::of(vec![nvme(0, 4), NodeSpec { free_2mib: 1024, ..nvme(1, 4) }])
            },
        ),
        // Offline CPUs, node ids with a gap, a node without CPUs and one without memory.
        (
            "holes",
            HostSpec {
                offline: set("1,4-5"),
                ..HostSpec::of(vec![
                    node(0, 4),
                    NodeSpec { memory_mib: 0, l3_cores: 2, ..nvme(2, 4) },
                    NodeSpec { memory_mib: 8192, ..node(5, 0) },
                ])
            },
        ),
        // Two L3 caches per node, isolated cores, and a caller that may not use all.
        (
            "isolated",
            HostSpec {
                isolated: set("4-7"),
                affinity: Some(set("1-15")),
                ..HostSpec::of(vec![
                    NodeSpec { l3_cores: 4, ..nvme(0, 8) },
                    NodeSpec { l3_cores: 4, ..node(1, 8) },
                ])
            },
        ),
    ]
}

/// A fixture as a source, read from its file.
pub(crate) fn source(name: &str) -> Source {
    Source::Capture(Capture::from_json(&text_of(&format!("fixtures/topology/{name}.json"))).unwrap())
}

#[test]
fn fixture_files_are_what_their_descriptions_say() {
    for (name, spec) in all() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/topology/{name}.json"));
        if std::env::var_os("VMPROF_WRITE_FIXTURES").is_some() {
            std::fs::write(&path, spec.capture().to_json()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Capture::from_json(&text).unwrap(), spec.capture(), "{name}");
        assert_eq!(Capture::from_json(&text).unwrap().to_json(), text, "{name}");
    }
}
