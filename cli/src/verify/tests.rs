use std::fs;

use serde_json::json;
use vmprof_profiles::{CpuSet, Ledger, Plan, Source, Storage, Topology, plan, read_profile};
use vmprof_vmm::config::Engine;

use super::*;

const PROFILE: &str = r#"/- kdl-version 2
profile db {
    guest "hello.kdl"
    vcpu 1
    memory "256MiB"
    iothreads 1
    disk data {
        source file="/data.raw" size="1GiB"
        driver raw cache=none aio=io_uring fallback=threads
        scheduler host=none guest=none
    }
}
"#;

/// A plan whose disk lies on md0.
fn planned() -> Plan {
    let (profile, _) = read_profile("db.kdl", PROFILE).unwrap();
    let topology = Topology::read(&Source::Live);
    let mut plan = plan(&profile, &topology, &Storage::default(), &Ledger::default()).unwrap();
    plan.disks[0].device = Some("md0".into());
    // Whatever this host is.
    plan.memory.nodes = Some(CpuSet::of(0));
    plan
}

/// A host whose md0 stands on a drive and on a partition of another, and a process with guest memory on node 0.
fn host() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = host.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("block/md0/slaves/sda", "");
    put("block/md0/slaves/sdb1", "");
    put("block/sda/queue/scheduler", "[none] mq-deadline\n");
    put("block/sdb/queue/scheduler", "none\n");
    put("block/sdb/sdb1/size", "9\n");
    let name = "/memfd:vmprof\\040guest\\040memory\\040(deleted)";
    put("self/numa_maps", &format!("7f00 bind:0 file={name} dirty=3 N0=3 kernelpagesize_kB=4\n"));
    put(
        "self/smaps",
        "7f00-7f10 rw-s 00 00:01 9   /memfd:vmprof guest memory (deleted)\nKernelPageSize:        4 kB\n",
    );
    put("self/task/7/status", "Cpus_allowed_list:\t2\n");
    put("self/task/7/comm", "CPU 0/KVM\n");
    let fields: Vec<String> = (3..=52).map(|field| if field == 39 { "2" } else { "0" }.to_owned()).collect();
    put("self/task/7/stat", &format!("7 (CPU 0/KVM) {}\n", fields.join(" ")));
    host
}

fn found(
    plan: &Plan,
    open: OpenAs,
    guest: Result<&[DiskScheduler], &str>,
    host: &tempfile::TempDir,
) -> Vec<Finding> {
    let threads = [PlannedThread { name: "CPU 0/KVM".into(), cpus: "2".into() }];
    let (process, block) = (host.path().join("self"), host.path().join("block"));
    read_back(plan, &threads, &[open], &[], guest, Host { process: &process, block: &block })
}

fn open(engine: Engine, direct: bool) -> OpenAs {
    OpenAs { name: "data".into(), engine, iopoll: false, direct }
}

fn told(scheduler: &str) -> [DiskScheduler; 1] {
    [DiskScheduler { serial: "data".into(), scheduler: Some(scheduler.into()) }]
}

fn strays(findings: &[Finding]) -> Vec<String> {
    findings.iter().filter(|finding| !finding.as_planned).map(|finding| finding.what.name()).collect()
}

#[test]
fn a_run_as_planned_has_no_strays_and_reads_as_a_table() {
    let findings = found(&planned(), open(Engine::IoUring, true), Ok(&told("none")), &host());
    assert_eq!(strays(&findings), [""; 0]);
    let expected = "\
WHAT                          PLANNED   FOUND                         VERDICT
CPU 0/KVM                     2         2 (thread 7, last on 2)       as planned
memory                        strict 0  strict 0 (3 pages on node 0)  as planned
memory's pages                4KiB      4KiB                          as planned
data: engine                  io_uring  io_uring                      as planned
data: direct I/O              yes       yes                           as planned
data: scheduler               none      none (md0)                    as planned
data: scheduler in the guest  none      none                          as planned
";
    assert_eq!(table(&findings), expected);
}

#[test]
fn each_difference_is_told_and_a_fallback_that_the_profile_names_is_none() {
    let (plan, host) = (planned(), host());
    let with = |open, guest: Result<&[DiskScheduler], &str>| strays(&found(&plan, open, guest, &host));
    let none: [&str; 0] = [];
    assert_eq!(with(open(Engine::Threads, true), Ok(&told("none"))), none);
    assert_eq!(with(open(Engine::Native, true), Ok(&told("none"))), ["data: engine"]);
    assert_eq!(with(open(Engine::IoUring, false), Ok(&told("none"))), ["data: direct I/O"]);
    let of_guest = ["data: scheduler in the guest"];
    for guest in [Ok(&told("bfq")[..]), Ok(&told("none\u{1b}[2J")), Ok(&[]), Err("the VM is paused")] {
        assert_eq!(with(open(Engine::IoUring, true), guest), of_guest, "{guest:?}");
    }
    fs::write(host.path().join("block/sdb/queue/scheduler"), "none [bfq]\n").unwrap();
    let findings = found(&plan, open(Engine::IoUring, true), Ok(&told("none")), &host);
    assert_eq!(strays(&findings), ["data: scheduler"]);
    assert!(table(&findings).contains("none on sda, bfq on sdb1 (md0)"), "{}", table(&findings));
    fs::remove_file(host.path().join("block/sdb/queue/scheduler")).unwrap();
    assert_eq!(with(open(Engine::IoUring, true), Ok(&told("none"))), ["data: scheduler"]);
}

#[test]
fn what_the_plan_leaves_open_is_shown_and_never_a_stray() {
    let (mut plan, host) = (planned(), host());
    (plan.disks[0].scheduler.host, plan.disks[0].scheduler.guest) = (None, None);
    plan.disks[0].device = None;
    let findings = found(&plan, open(Engine::IoUring, true), Err("the guest has ended"), &host);
    assert_eq!(strays(&findings), [""; 0]);
    assert!(table(&findings).contains("unknown (the guest has ended)"), "{}", table(&findings));
}

/// Others read it: a thread has the fields that it always had.
#[test]
fn the_json_of_a_finding_has_its_kind_and_reads_back_as_the_same() {
    let findings = found(&planned(), open(Engine::IoUring, true), Ok(&told("none")), &host());
    let value = serde_json::to_value(&findings).unwrap();
    assert_eq!(serde_json::from_value::<Vec<Finding>>(value.clone()).unwrap(), findings);
    let thread = json!({
        "kind": "thread", "thread": "CPU 0/KVM", "tid": 7, "allowed": "2", "last_cpu": 2,
        "planned": "2", "found": "2", "as_planned": true,
    });
    assert_eq!(value[0], thread);
    let memory = json!({
        "kind": "memory", "pages": [{ "node": 0, "pages": 3 }],
        "planned": "strict 0", "found": "strict 0", "as_planned": true,
    });
    assert_eq!(value[1], memory);
    let kinds: Vec<&str> =
        value.as_array().unwrap().iter().filter_map(|finding| finding["kind"].as_str()).collect();
    let expected =
        ["thread", "memory", "huge-pages", "engine", "direct-io", "host-scheduler", "guest-scheduler"];
    assert_eq!(kinds, expected);
}

#[test]
fn a_network_is_held_against_its_link_and_its_iothreads() {
    use vmprof_vmm::virtio::net::{NetQueueSnapshot, QueueKind};

    let text = PROFILE.replace("iothreads 1", "iothreads 1; net passt;");
    let (profile, _) = read_profile("db.kdl", &text).unwrap();
    let topology = Topology::read(&Source::Live);
    let plan = plan(&profile, &topology, &Storage::default(), &Ledger::default()).unwrap();
    let queue = |vq, kind, iothread| NetQueueSnapshot {
        vq,
        kind,
        iothread,
        packets: 0,
        bytes: 0,
        dropped: 0,
        kicks: 0,
        interrupts: 0,
    };
    let net = |link, control, fault: Option<&str>| NetSnapshot {
        name: "net0".into(),
        link,
        virtqueues: vec![
            queue(0, QueueKind::Receive, Some(0)),
            queue(1, QueueKind::Transmit, Some(0)),
            queue(2, QueueKind::Control, control),
        ],
        fault: fault.map(str::to_owned),
    };
    let lines = |found: Option<&NetSnapshot>| {
        let text = table(&nets::read_back(&plan.nets[0], found));
        text.lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        lines(Some(&net(true, Some(0), None))),
        ["net0: link up up as planned", "net0: virtqueues 0,1,2 on iothread0 0,1,2 on iothread0 as planned"]
    );
    assert_eq!(
        lines(Some(&net(false, Some(1), Some("it closed")))),
        [
            "net0: link up down (it closed) NOT AS PLANNED",
            "net0: virtqueues 0,1,2 on iothread0 0,1 on iothread0; 2 on iothread1 NOT AS PLANNED"
        ]
    );
    let mut asleep = net(true, None, None);
    asleep.virtqueues.truncate(0);
    assert_eq!(
        lines(Some(&asleep))[1],
        "net0: virtqueues 0,1,2 on iothread0 unknown (the guest's driver has enabled none) NOT AS PLANNED"
    );
    assert_eq!(lines(None)[0], "net0: link up unknown (the machine has no such device) NOT AS PLANNED");
}
