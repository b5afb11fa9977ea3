//! Hosts that hwloc describes, and files that people take for one.

use vmprof_profiles::{CoreKind, Source, Topology};

use crate::host::{layout, planned, set, text_of, with};

fn described(name: &str) -> (Source, Topology) {
    let source = Source::from_file_text(&text_of(&format!("fixtures/hwloc/{name}.xml"))).unwrap();
    let topology = Topology::read(&source);
    (source, topology)
}

#[test]
fn sub_numa_clusters_keep_their_package_cache_and_distances() {
    let (source, topology) = described("xeon-snc");
    assert_eq!(topology.online, set("0-15"));
    assert_eq!(topology.arch.as_deref(), Some("x86_64"));
    let (one, sibling) = (&topology.cpus[&2], &topology.cpus[&10]);
    assert_eq!((one.core, sibling.core, one.package, one.node), (2, 2, Some(0), Some(1)));
    assert_eq!((one.l3, topology.cpus[&7].l3, one.l2), (Some(0), Some(4), Some(2)));
    assert_eq!(topology.nodes[&1].cpus, set("2-3,10-11"));
    assert_eq!((topology.nodes[&0].distance[&1], topology.nodes[&0].distance[&3]), (12, 21));
    assert_eq!(topology.nodes[&3].memory_bytes, Some(8 << 30));
    // 512 pages there, how many of them free the file does not say; none there, so none free.
    assert_eq!(topology.nodes[&0].free_hugepages.keys().copied().collect::<Vec<_>>(), [1 << 30]);
    assert_eq!(topology.nodes[&1].free_hugepages[&(2 << 20)], 0);
    assert_eq!(topology.gaps(), ["how many hugepages of nodes 0 are free"]);
    assert_eq!((topology.block["nvme0n1"].node, topology.block["nvme1n1"].node), (Some(0), Some(2)));
    let plan = planned(&with("vcpu 1\niothreads 1\ndisk d { source dev=\"/dev/nvme1n1\"; }"), &source);
    assert_eq!((plan.disks[0].node, plan.memory.nodes), (Some(2), Some(set("2"))));
}

#[test]
fn several_l3_caches_and_what_the_caller_may_use() {
    let (_, topology) = described("epyc");
    assert_eq!(topology.affinity, Some(set("2-15")));
    let caches: std::collections::BTreeSet<_> = topology.cpus.values().map(|cpu| cpu.l3).collect();
    assert_eq!(caches, [Some(0), Some(2), Some(4), Some(6)].into());
    assert_eq!(topology.block["nvme0n1"].node, Some(0));
    assert_eq!(topology.block["nvme0n1"].logical_block_bytes, Some(512));
}

#[test]
fn economy_cores_by_the_core_type() {
    let (source, topology) = described("hybrid");
    let economy = |cpu: u32| topology.cpus[&cpu].kind == CoreKind::Efficiency;
    assert_eq!((0..10).filter(|cpu| economy(*cpu)).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    assert_eq!((topology.cpus[&5].l2, topology.cpus[&5].l3, topology.cpus[&9].l3), (Some(4), Some(0), None));
    // Economy cores without an L3 are how such chips are, not something unknown.
    assert!(topology.gaps().is_empty(), "{:?}", topology.gaps());
    assert_eq!(layout(&planned(&with("vcpu 1\niothreads 1"), &source)).0, "0");
}

#[test]
fn clusters_capacities_and_memory_without_cpus() {
    let (_, topology) = described("arm");
    assert_eq!(topology.arch.as_deref(), Some("aarch64"));
    assert_eq!((topology.cpus[&6].cluster, topology.cpus[&6].l3), (Some(4), None));
    assert_eq!((topology.cpus[&0].capacity, topology.cpus[&0].kind), (Some(512), CoreKind::Efficiency));
    assert_eq!(topology.cpus[&8].kind, CoreKind::Performance);
    // hwloc says that the CXL memory is near package 1; its CPUs are on the node of its DRAM all the same.
    assert_eq!((topology.cpus[&8].node, topology.nodes[&1].cpus.clone()), (Some(1), set("8-15")));
    assert!(topology.nodes[&2].cpus.is_empty());
    assert_eq!(topology.nodes[&2].memory_bytes, Some(32 << 30));
    // Below the whole machine, a drive can be near to anything.
    assert_eq!(topology.block["nvme0n1"].node, None);
}

#[test]
fn version_1_nests_cores_in_nodes_and_says_what_is_offline() {
    let (_, topology) = described("version-1");
    assert_eq!((topology.online.clone(), topology.offline.clone()), (set("0-6"), set("7")));
    assert_eq!(
        (topology.cpus[&5].node, topology.cpus[&5].l3, topology.cpus[&5].package),
        (Some(1), Some(4), Some(1))
    );
    assert_eq!((topology.nodes[&0].distance[&0], topology.nodes[&0].distance[&1]), (10, 21));
    assert_eq!(topology.block["sda"].node, Some(1));
    assert_eq!(topology.nodes[&1].memory_bytes, Some(4 << 30));
}

#[test]
fn what_is_not_a_host_is_named_with_what_to_give_instead() {
    let help = |error: &vmprof_profiles::HostFileError| {
        miette::Diagnostic::help(error).map(|help| help.to_string()).unwrap_or_default()
    };
    for (text, found, instead) in [
        ("", "empty", "lstopo"),
        ("cpu 1", "neither JSON nor XML", "vmprof host --capture"),
        ("{\"schema\": \"vmprof.plan/1\", \"profile\": \"db\"}", "saved plan", "vmprof up --plan"),
        ("{\"schema\": \"vmprof.host/1\"}", "vmprof host --format json", "--capture"),
        ("{\"schema\": \"other/1\"}", "`other/1`", "--capture"),
        ("{\"schema\": \"vmprof.capture/9\"}", "not a capture that vmprof can read", "--capture"),
        ("{", "not a capture that vmprof can read", "--capture"),
        ("<capabilities><host/></capabilities>", "capabilities", "lstopo"),
        ("<domain type='kvm'/>", "libvirt domain", "vmprof import libvirt"),
        ("<svg/>", "<svg>", "lstopo"),
        ("<topology>\n<object type=\"Machine\"/>\n</topology>", "line 1, column 1", "lstopo"),
        ("<topology>\n<object type=\"Core\" cpuset=\"0xzz\"/>\n</topology>", "line 2, column 1", "lstopo"),
        ("<topology>\n <object type=\"PU\" os_index=\"70000\"/></topology>", "line 2, column 2", "lstopo"),
        ("<topology>\n</topologie>", "line 2", "lstopo"),
    ] {
        let error = Source::from_file_text(text).unwrap_err();
        assert!(error.to_string().contains(found), "{text}: {error}");
        assert!(help(&error).contains(instead), "{text}: {}", help(&error));
        assert!(miette::Diagnostic::code(&error).is_some(), "{text}");
    }
}

#[test]
fn enormous_masks_and_trees_are_read_or_refused_in_a_moment() {
    let machine = "<object type=\"Machine\" cpuset=\"0xf...f\" allowed_cpuset=\"0xf...f,0x0\">";
    let pu = "<object type=\"PU\" os_index=\"65535\"/><object type=\"PU\" os_index=\"31\"/>";
    let text = format!("<topology>{machine}{pu}</object></topology>");
    let topology = Topology::read(&Source::from_file_text(&text).unwrap());
    assert_eq!((topology.online, topology.affinity), (set("31,65535"), Some(set("65535"))));
    let cores = "<object type=\"Core\" cpuset=\"0xf...f\"/>".repeat(100_000);
    let error = Source::from_file_text(&format!("<topology>{machine}{pu}{cores}</object></topology>"));
    assert!(error.unwrap_err().to_string().contains("larger than any machine's"));
}
