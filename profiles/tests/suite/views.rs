//! What people see of a plan: the text, the picture, the difference. Looked at as snapshots, on small and large hosts.

use insta::assert_snapshot;
use vmprof_profiles::view::{Backdrop, TextStyle, diff, plan_svg, plan_text_on};
use vmprof_profiles::{
    CacheMode, CoreKind, CpuSet, Diagnostic, DiskSource, ErrorPolicy, Format, Forward, Held, Ledger,
    NetBackend, NetPlan, Plan, Protocol, Rejected, Severity, Source, Topology, Virtqueue,
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

/// A hybrid host with dies, clusters, isolated and held CPUs, and a plan with everything that a plan can say.
fn full() -> Shown {
    let host = HostSpec {
        isolated: set("4-7"),
        affinity: Some(set("0-27")),
        ..HostSpec::of(vec![
            NodeSpec { l3_cores: 8, nvme: true, ..node(0, 16) },
            NodeSpec { l3_cores: 8, ..node(1, 16) },
        ])
    };
    let mut shown = Shown::of(&text_of("fixtures/profiles/far-drive.kdl"), &host.source());
    for (id, cpu) in &mut shown.topology.cpus {
        cpu.die = Some(id / 8 * 8);
        cpu.cluster = Some(id / 4 * 4);
        if id % 8 > 3 && *id > 15 {
            cpu.kind = CoreKind::Efficiency;
        }
    }
    shown.ledger.held = vec![Held { holder: "other".to_owned(), cpus: set("22-23"), pid: None }];
    let plan = &mut shown.plan;
    let not = |instead: &str, because: &str| {
        Some(Rejected { instead: instead.to_owned(), because: because.to_owned() })
    };
    plan.vcpus[0].rejected = not("CPU 9", "its core belongs to another L3 cache than the other vCPUs'");
    plan.iothread_count.because = "as many as the profile writes".to_owned();
    plan.iothread_count.rejected = not("3", "no core is left for a third one");
    plan.home.rejected = not("node 1", "disk `data` does not lie there");
    let disk = &mut plan.disks[0];
    (disk.discard, disk.rerror, disk.werror) = (true, ErrorPolicy::Stop, ErrorPolicy::Enospc);
    (disk.logical_block_bytes, disk.physical_block_bytes) = (Some(512), Some(4096));
    disk.format = Some(Format { filesystem: "ext4".to_owned(), mount: Some("/srv".to_owned()) });
    disk.rejected = not("locality", "the vCPUs share one L3 cache, and so would the IOThreads");
    plan.nets = vec![NetPlan {
        name: "net0".to_owned(),
        backend: NetBackend::Passt {
            forwards: vec![Forward { protocol: Protocol::Tcp, host: 8080, guest: 80 }],
        },
        queues: 1,
        queue_size: 256,
        mac: None,
        virtqueues: (0..3).map(|vq| Virtqueue { vq, iothread: 0 }).collect(),
        because: "the IOThread with the fewest queues".to_owned(),
    }];
    shown
}

fn columns(width: usize) -> TextStyle {
    TextStyle { width, ..TextStyle::default() }
}

/// No line is longer than asked for, unless a single word is.
fn assert_fits(text: &str, width: usize) {
    let longer: Vec<&str> = text.lines().filter(|line| line.chars().count() > width).collect();
    assert!(longer.is_empty(), "longer than {width} columns:\n{}", longer.join("\n"));
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
fn everything_that_a_plan_can_say_is_shown_and_explained() {
    let shown = full();
    assert_snapshot!("text-full", shown.text(columns(100)));
    let explained = shown.text(TextStyle { explain: true, ..columns(80) });
    assert_fits(&explained, 80);
    for instead in ["not CPU 9: ", "not 3: ", "not node 1: ", "not locality: "] {
        assert!(explained.contains(instead), "no `{instead}` in\n{explained}");
        assert!(!shown.text(columns(80)).contains(instead));
    }
    assert_snapshot!("text-full-explained", explained);
}

#[test]
fn colours_change_nothing_but_the_colours() {
    let shown = full();
    let plain = shown.text(columns(100));
    let coloured = shown.text(TextStyle { colour: true, ..columns(100) });
    let (mut bare, mut rest) = (String::new(), coloured.as_str());
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        bare.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    bare.push_str(rest);
    assert_ne!(coloured, plain);
    assert_eq!(bare, plain);
}

#[test]
fn eighty_columns_are_kept_on_every_fixture() {
    let db = text_of("db.kdl");
    for (name, _) in crate::fixtures::all() {
        assert_fits(&Shown::of(&db, &source(name)).text(columns(80)), 80);
    }
}

#[test]
fn real_plans_fit_the_schema_and_spoilt_ones_do_not() {
    let schema: serde_json::Value = serde_json::from_str(&vmprof_profiles::plan_schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for file in ["db.kdl", "hello.kdl", "fixtures/profiles/far-drive.kdl"] {
        for (name, _) in crate::fixtures::all() {
            let plan = Shown::of(&text_of(file), &source(name)).plan;
            let json = serde_json::to_value(&plan).unwrap();
            let problems: Vec<String> = validator.iter_errors(&json).map(|e| e.to_string()).collect();
            assert!(problems.is_empty(), "{file} on {name}: {problems:?}");
        }
    }
    let mut json = serde_json::to_value(full().plan).unwrap();
    assert!(validator.is_valid(&json));
    for (pointer, wrong) in [
        ("/vcpus/0/cpus", serde_json::json!("all")),
        ("/disks/0/cache", serde_json::json!("maybe")),
        ("/memory/bytes", serde_json::json!("1GiB")),
        ("/schema", serde_json::json!("vmprof.plan/2")),
    ] {
        let whole = json.clone();
        *json.pointer_mut(pointer).unwrap() = wrong;
        assert!(!validator.is_valid(&json), "{pointer}");
        json = whole;
    }
    json.as_object_mut().unwrap().remove("emulator");
    assert!(!validator.is_valid(&json));
}

/// Every picture, by name.
fn pictures() -> Vec<(&'static str, String)> {
    let db = text_of("db.kdl");
    let shown = [
        ("2-cpus", Shown::of(&db, &source("two-cpus"))),
        ("16-cpus", Shown::of(&db, &source("smt2"))),
        ("256-cpus", Shown::of(&wide(64, 16, 96), &server(2, 64))),
        ("1024-cpus", Shown::of(&db, &server(8, 64))),
        ("holes", Shown::of(&db, &source("holes"))),
        ("full", full()),
    ];
    shown.into_iter().map(|(name, shown)| (name, plan_svg(&shown.plan, shown.on()))).collect()
}

/// With VMPROF_PICTURES set to a directory, the pictures are written there to be looked at.
#[test]
fn pictures_are_well_formed_and_hold_every_thread() {
    for (name, svg) in pictures() {
        if let Some(directory) = std::env::var_os("VMPROF_PICTURES") {
            std::fs::write(std::path::Path::new(&directory).join(format!("{name}.svg")), &svg).unwrap();
        }
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{name}: {error}"));
        let root = document.root_element();
        assert_eq!(
            (root.tag_name().name(), root.tag_name().namespace()),
            ("svg", Some("http://www.w3.org/2000/svg"))
        );
        // Self-contained: nothing is loaded, nothing runs.
        for element in root.descendants().filter(|node| node.is_element()) {
            assert!(!["image", "script", "use", "style"].contains(&element.tag_name().name()), "{name}");
            let numbers = ["x", "y", "width", "height"].map(|key| element.attribute(key).unwrap_or("0"));
            assert!(numbers.iter().all(|n| n.parse::<f64>().is_ok_and(|n| n >= 0.0)), "{name}: {numbers:?}");
        }
        assert!(!svg.replace("http://www.w3.org/2000/svg", "").contains("http"), "{name}");
        let texts: Vec<&str> = root.descendants().filter_map(|node| node.text()).collect();
        assert!(texts.iter().any(|text| text.contains("emulator: ")), "{name}");
    }
    let again: Vec<_> = pictures();
    assert_eq!(again, pictures());
}

#[test]
fn names_that_xml_would_take_for_markup_stay_names() {
    let mut shown = Shown::of(&text_of("db.kdl"), &source("two-cpus"));
    let name = "<a href=\"x\">&'\u{1}";
    shown.plan.profile = name.to_owned();
    shown.plan.disks[0].source = DiskSource::File { path: name.to_owned(), bytes: None };
    let svg = plan_svg(&shown.plan, shown.on());
    let document = roxmltree::Document::parse(&svg).unwrap();
    let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
    assert!(texts.contains(&"<a href=\"x\">&'\u{fffd}"), "{texts:?}");
    assert!(!document.descendants().any(|node| node.has_tag_name("a")));
}

#[test]
fn a_plan_does_not_differ_from_itself() {
    let plan = full().plan;
    let same = diff((&plan, "one"), (&plan, "other"));
    assert!(same.same && same.changes.is_empty());
    assert!(same.text(columns(100)).ends_with("\nno difference\n"));
    let mut elsewhere = plan.clone();
    elsewhere.digest = "0".repeat(64);
    let text = diff((&plan, "one"), (&elsewhere, "other")).text(columns(100));
    assert!(text.contains("no difference; the digests differ"), "{text}");
}

#[test]
fn every_kind_of_change_is_shown_with_its_reason() {
    let from = full().plan;
    let mut to = from.clone();
    to.vcpus[1].cpus = set("9");
    to.vcpus[1].because = "its old core is gone".to_owned();
    to.iothreads.pop();
    to.iothread_count.count = 1;
    to.iothread_count.because = "no core is left for a second one".to_owned();
    to.memory.nodes = Some(set("0-1"));
    to.disks[0].cache = CacheMode::Writeback;
    to.disks[1].virtqueues.iter_mut().for_each(|queue| queue.iothread = 0);
    to.nets.clear();
    to.diagnostics.push(Diagnostic {
        severity: Severity::Warning,
        code: "vmprof::plan::fewer_iothreads".to_owned(),
        message: "1 IOThread instead of 2".to_owned(),
        help: String::new(),
    });
    let found = diff((&from, "before.json"), (&to, "now"));
    let changed: Vec<(&str, &str)> = found.changes.iter().map(|c| (c.name.as_str(), c.field)).collect();
    for expected in [
        ("1", "cpus"),
        ("logs", "cache"),
        ("data", "virtqueues"),
        ("memory", "nodes"),
        ("iothreads", "count"),
        ("net0", "backend"),
    ] {
        assert!(changed.contains(&expected), "no {expected:?} in {changed:?}");
    }
    assert_eq!((found.appeared.len(), found.gone.len()), (1, 0));
    let text = found.text(columns(100));
    assert!(text.contains("CPU 5 → CPU 9") && text.contains("because: its old core is gone"), "{text}");
    assert_snapshot!("diff-changes", text);
    assert_snapshot!("diff-changes-json", found.to_json());
    // The other way round, what appeared is gone.
    let back = diff((&to, "now"), (&from, "before.json"));
    assert_eq!((back.appeared.len(), back.gone.len()), (0, 1));
    assert_eq!(back.changes.len(), found.changes.len());
    assert_snapshot!("diff-changes-back", back.text(columns(80)));
}

#[test]
fn many_threads_that_move_alike_are_told_together() {
    let here = Shown::of(&wide(64, 16, 96), &server(2, 64));
    let there = Shown::of(&wide(64, 16, 96), &server(4, 64));
    let text = diff((&here.plan, "two nodes"), (&there.plan, "four nodes")).text(columns(100));
    assert!(text.lines().count() < 20, "{text}");
    let mut moved = here.plan.clone();
    for vcpu in &mut moved.vcpus {
        vcpu.cpus = CpuSet::of(vcpu.id + 128);
    }
    let text = diff((&here.plan, "here"), (&moved, "moved")).text(columns(100));
    assert!(text.contains("vcpu 0-63  CPU 0-63 → CPU 128-191"), "{text}");
}
