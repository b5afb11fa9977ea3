//! The captured hosts in `fixtures/topology`, which other tests and people plan against. They are written from the
//! descriptions here: with VMPROF_WRITE_FIXTURES set, the test writes them instead of comparing.

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
        // Four threads to a core, ids side by side, and nodes with a gap between them, as POWER has it.
        (
            "smt4",
            HostSpec {
                threads: 4,
                adjacent: true,
                arch: Some("ppc64le"),
                ..HostSpec::of(vec![
                    NodeSpec { l3_cores: 2, ..nvme(0, 4) },
                    NodeSpec { l3_cores: 2, ..nvme(8, 4) },
                ])
            },
        ),
        // Two packages, each split into two nodes that share its L3.
        (
            "snc",
            HostSpec {
                threads: 2,
                l3_by_package: true,
                distance: rows([[10, 12, 21, 21], [12, 10, 21, 21], [21, 21, 10, 12], [21, 21, 12, 10]]),
                ..HostSpec::of(vec![
                    NodeSpec { package: Some(0), ..nvme(0, 4) },
                    NodeSpec { package: Some(0), ..node(1, 4) },
                    NodeSpec { package: Some(1), ..nvme(2, 4) },
                    NodeSpec { package: Some(1), ..node(3, 4) },
                ])
            },
        ),
        (
            "four-nodes",
            HostSpec {
                distance: rows([[10, 16, 32, 32], [16, 10, 32, 32], [32, 32, 10, 16], [32, 32, 16, 10]]),
                ..HostSpec::of(vec![node(0, 4), nvme(1, 4), node(2, 4), nvme(3, 4)])
            },
        ),
        // Eight fast cores with two threads each, eight economical ones in two clusters.
        (
            "hybrid",
            HostSpec {
                threads: 2,
                adjacent: true,
                arch: Some("x86_64"),
                ..HostSpec::of(vec![NodeSpec {
                    efficiency: 8,
                    l3_cores: 16,
                    memory_mib: 32_768,
                    ..nvme(0, 8)
                }])
            },
        ),
        // Memory behind CXL: a node that has nothing else.
        (
            "cpuless",
            HostSpec {
                distance: rows([[10, 21, 14], [21, 10, 24], [14, 24, 10]]),
                ..HostSpec::of(vec![
                    nvme(0, 8),
                    nvme(1, 8),
                    NodeSpec { memory_mib: 65_536, package: Some(0), ..node(2, 0) },
                ])
            },
        ),
        // A container that a cgroup leaves four CPUs of each node.
        (
            "cgroup",
            HostSpec {
                cgroup: Some(set("2-5,10-13")),
                affinity: Some(set("2-5,10-13")),
                ..HostSpec::of(vec![nvme(0, 8), nvme(1, 8)])
            },
        ),
        // The drive hangs on a node that is too small for most guests.
        ("far-nvme", HostSpec::of(vec![node(0, 8), nvme(1, 2)])),
        // Many cores in clusters, and a cache above them that the kernel does not list.
        (
            "arm",
            HostSpec {
                arch: Some("aarch64"),
                ..HostSpec::of(vec![NodeSpec { l3_cores: 0, cluster_cores: 4, queues: 32, ..nvme(0, 80) }])
            },
        ),
    ]
}

fn rows<const N: usize>(rows: [[u32; N]; N]) -> Vec<Vec<u32>> {
    rows.into_iter().map(|row| row.to_vec()).collect()
}

/// 1,024 CPUs on 8 nodes, two threads to a core, and 64 NVMe drives with 64 queues each. Too large to keep as a file.
pub(crate) fn large() -> HostSpec {
    let nodes = (0..8).map(|id| NodeSpec {
        l3_cores: 8,
        drives: 8,
        queues: 64,
        memory_mib: 65_536,
        package: Some(id / 4),
        ..node(id, 64)
    });
    HostSpec { threads: 2, arch: Some("x86_64"), ..HostSpec::of(nodes.collect()) }
}

/// A fixture as a source, read from its file.
pub(crate) fn source(name: &str) -> Source {
    Source::Capture(Capture::from_json(&text_of(&format!("fixtures/topology/{name}.json"))).unwrap())
}

#[test]
fn fixture_files_are_what_their_descriptions_say() {
    for (name, spec) in all() {
        let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("fixtures/topology/{name}.json"));
        if std::env::var_os("VMPROF_WRITE_FIXTURES").is_some() {
            std::fs::write(&path, spec.capture().to_json()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Capture::from_json(&text).unwrap(), spec.capture(), "{name}");
        assert_eq!(Capture::from_json(&text).unwrap().to_json(), text, "{name}");
    }
}
