//! Domains of libvirt as profiles: what comes out, what is said to be left out, and that a domain which goes in and comes
//! out again is the same in everything that was taken.

use std::collections::BTreeMap;

use insta::assert_snapshot;
use proptest::prelude::*;
use roxmltree::{Document, Node};
use vmprof_profiles::export::{self, BootFiles};
use vmprof_profiles::import::{Imported, libvirt};
use vmprof_profiles::{CpuSet, Problems, read_profile};

use crate::host::{HostSpec, node, planned, text_of};

const DOMAINS: [&str; 7] = ["bare", "cloud", "desktop", "mapping", "networks", "sources", "sparse"];

fn domain(name: &str) -> String {
    text_of(&format!("fixtures/domains/{name}.xml"))
}

fn imported(name: &str, xml: &str) -> Imported {
    libvirt(name, xml).unwrap_or_else(|problems| panic!("{name}: {}", said(&problems)))
}

fn said(problems: &Problems) -> String {
    problems.iter().map(|p| format!("{}: {p}\n", p.code())).collect()
}

/// What a user sees: the profile, and the list.
fn shown(imported: &Imported) -> String {
    let mut text = imported.profile.clone();
    for left in &imported.left_out {
        let line = left.line.map_or("-".to_owned(), |line| line.to_string());
        text.push_str(&format!("\n{line}: {}\n  {}\n", left.what, left.why));
    }
    text
}

#[test]
fn domains_of_every_kind_as_profiles() {
    for name in DOMAINS {
        assert_snapshot!(format!("import-{name}"), shown(&imported(name, &domain(name))));
    }
}

#[test]
fn every_import_is_a_profile_that_reads() {
    for name in DOMAINS {
        let imported = imported(name, &domain(name));
        if let Err(problems) = read_profile("imported.kdl", &imported.profile) {
            panic!("{name}: {}\n{}", said(&problems), imported.profile);
        }
        assert!(
            imported.left_out.iter().any(|left| left.line.is_none() && left.what.contains("recipe")),
            "{name}"
        );
        assert!(imported.left_out.iter().all(|left| !left.why.is_empty() && !left.what.is_empty()), "{name}");
    }
}

#[test]
fn what_is_left_out_is_listed_with_the_line_it_stands_in() {
    for name in DOMAINS {
        let xml = domain(name);
        for left in imported(name, &xml).left_out {
            let Some(line) = left.line else { continue };
            let text = xml.lines().nth(line as usize - 1).unwrap_or_default();
            // The first word names the element, or the disk or interface that it belongs to.
            let first = left.what.split([' ', ',', ':', '=']).next().unwrap();
            let known = ["the", "memory", "IOThread", "numatune", "vcpu", "disk", "interface", "IOThreads"];
            assert!(
                text.contains(first) || known.contains(&first),
                "{name}:{line}: {} is not in {text:?}",
                left.what
            );
        }
    }
    let listed = |name: &str, what: &str| {
        imported(name, &domain(name)).left_out.iter().any(|left| left.what.contains(what))
    };
    for what in [
        "cdrom",
        "graphics",
        "input",
        "controller pci (3 of them)",
        "qcow2",
        "metadata",
        "clock",
        "interface 52:54:00:aa:bb:cc",
    ] {
        assert!(listed("desktop", what), "{what}");
    }
    for what in [
        "arch='aarch64'",
        "sockets='2'",
        "migratable='off'",
        "dumpCore='off'",
        "thread_pool_max='8'",
        "disk vda: snapshot='no'",
        "startupPolicy='optional'",
        "disk vda: source: seclabel",
        "disk vdb: source: encryption",
        "disk vdc: source: slices",
        "rotation_rate='7200'",
        "source: dev='eth42'",
        "logFile",
    ] {
        assert!(listed("sources", what), "{what}");
    }
    for what in ["vcpusched", "shares", "memnode", "iotune", "type network", "cpu mode='custom'", "locked"] {
        assert!(listed("cloud", what), "{what}");
    }
}

#[test]
fn a_disk_that_is_not_the_bytes_of_its_source_stays_a_comment() {
    let profile = imported("sources", &domain("sources")).profile;
    for (disk, written) in [("vda", true), ("vdb", false), ("vdc", false), ("sda", true)] {
        assert_eq!(profile.contains(&format!("\n    disk {disk} {{")), written, "{disk}: {profile}");
        assert!(profile.contains(&format!("disk {disk} {{")), "{disk}: {profile}");
    }
}

#[test]
fn a_command_to_copy_quotes_what_the_domain_names() {
    let xml = domain("desktop").replace("type='qcow2'", "type='qed'").replace(".qcow2'", " $(reboot).qcow2'");
    let imported = imported("desktop", &xml);
    let told = imported.left_out.iter().find(|left| left.why.contains("qemu-img")).unwrap();
    let command = told.why.split('`').nth(1).unwrap();
    assert!(command.contains(" $(reboot).qcow2' '") && command.ends_with(".qcow2.raw'"), "{command}");
    assert!(imported.profile.contains(command), "{}", imported.profile);
}

#[test]
fn random_numbers_and_a_vsock_are_every_guests_and_what_is_special_of_theirs_is_listed() {
    let plain = "<rng model='virtio'>\n      <backend model='random'>/dev/urandom</backend>\n    </rng>";
    let xml = domain("desktop");
    assert!(xml.contains(plain));
    for (devices, count) in [
        (plain, 0),
        (
            "<rng model='virtio'><backend model='builtin'/></rng><vsock model='virtio'><cid auto='yes'/></vsock>",
            0,
        ),
        ("<vsock><cid auto='no' address='7'/></vsock>", 1),
        ("<rng model='virtio'><rate bytes='1024'/><backend model='builtin'/></rng>", 1),
        ("<rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng>", 1),
        ("<rng model='virtio'><backend model='egd' type='udp'/></rng>", 1),
    ] {
        let left_out = imported("desktop", &xml.replace(plain, devices)).left_out;
        let told = left_out.iter().filter(|left| left.why.contains("every guest has one v")).count();
        assert_eq!(told, count, "{devices}");
    }
}

#[test]
fn polling_is_imported_with_its_growth_and_a_policy_unsaid_is_qemus() {
    let profile = imported("sources", &domain("sources")).profile;
    for words in ["poll-max-ns 40000\n", "poll-grow 4\n", "poll-shrink 2\n"] {
        assert!(profile.contains(words), "{words}: {profile}");
    }
    assert!(profile.contains("driver raw cache=none aio=native werror=enospc\n"), "{profile}");
    assert!(profile.contains("driver raw cache=none aio=native\n"), "{profile}");
}

/// A domain as far as a profile can say it.
#[derive(Debug, PartialEq)]
struct Said {
    vcpus: Option<String>,
    memory_kib: u64,
    vcpupins: BTreeMap<String, String>,
    emulatorpin: Option<String>,
    iothreadpins: BTreeMap<String, String>,
    /// By source.
    disks: BTreeMap<String, BTreeMap<&'static str, String>>,
}

fn element<'a, 'x>(node: Node<'a, 'x>, path: &[&str]) -> Option<Node<'a, 'x>> {
    path.iter().try_fold(node, |node, name| node.children().find(|child| child.has_tag_name(*name)))
}

fn all<'a, 'x>(node: Option<Node<'a, 'x>>, name: &'static str) -> Vec<Node<'a, 'x>> {
    node.into_iter().flat_map(|node| node.children()).filter(|child| child.has_tag_name(name)).collect()
}

/// `ids` numbers the IOThreads of the domain from 0.
fn read(xml: &str, ids: &[&str], ours: bool) -> Said {
    let document = Document::parse(xml).unwrap();
    let root = document.root_element();
    let memory = element(root, &["memory"]).unwrap();
    let factor = match memory.attribute("unit") {
        None | Some("KiB") => 1024,
        Some("b") => 1,
        Some("MB") => 1_000_000,
        Some("MiB") => 1 << 20,
        Some("GiB") => 1 << 30,
        other => panic!("{other:?}"),
    };
    let tune = element(root, &["cputune"]);
    let number = |id: &str| match ours {
        true => (id.parse::<u32>().unwrap() - 1).to_string(),
        false => ids.iter().position(|known| *known == id).map_or("none".to_owned(), |at| at.to_string()),
    };
    let pins = |element: &'static str, id: &'static str| -> BTreeMap<String, String> {
        let of = |pin: Node<'_, '_>| {
            (pin.attribute(id).unwrap().to_owned(), pin.attribute("cpuset").unwrap().to_owned())
        };
        all(tune, element).into_iter().map(of).collect()
    };
    let mut disks = BTreeMap::new();
    for disk in all(element(root, &["devices"]), "disk") {
        let Some(source) =
            element(disk, &["source"]).and_then(|s| s.attribute("file").or(s.attribute("dev")))
        else {
            continue;
        };
        let mut facts = BTreeMap::new();
        let driver = element(disk, &["driver"]).unwrap();
        for name in ["cache", "io", "queues", "queue_size"] {
            if let Some(value) = driver.attribute(name) {
                facts.insert(name, value.to_owned());
            }
        }
        if let Some(serial) = element(disk, &["serial"]) {
            facts.insert("serial", serial.text().unwrap().to_owned());
        }
        facts.insert("readonly", element(disk, &["readonly"]).is_some().to_string());
        let threads: Vec<String> = all(element(driver, &["iothreads"]), "iothread")
            .into_iter()
            .map(|thread| {
                let queues: Vec<&str> =
                    all(Some(thread), "queue").iter().map(|q| q.attribute("id").unwrap()).collect();
                format!("{}: {}", number(thread.attribute("id").unwrap()), queues.join(","))
            })
            .collect();
        facts.insert("mapping", threads.join("; "));
        disks.insert(source.to_owned(), facts);
    }
    Said {
        vcpus: element(root, &["vcpu"]).map(|vcpu| vcpu.text().unwrap().to_owned()),
        memory_kib: memory.text().unwrap().parse::<u64>().unwrap() * factor / 1024,
        vcpupins: pins("vcpupin", "vcpu"),
        emulatorpin: element(root, &["cputune", "emulatorpin"])
            .map(|pin| pin.attribute("cpuset").unwrap().to_owned()),
        iothreadpins: pins("iothreadpin", "iothread")
            .into_iter()
            .map(|(id, set)| (number(&id), set))
            .collect(),
        disks,
    }
}

/// The domain that comes out when `xml` goes in, planned for a host with everything.
fn round(xml: &str) -> (Imported, String) {
    let imported = imported("domain.xml", xml);
    let (profile, _) = read_profile("imported.kdl", &imported.profile).unwrap();
    let host =
        HostSpec::of(vec![crate::host::NodeSpec { memory_mib: 65536, free_2mib: 8192, ..node(0, 32) }]);
    let plan = planned(&profile, &host.source());
    let files = BootFiles { disks_dir: Some("/disks".into()), ..BootFiles::default() };
    (imported, export::libvirt(&plan, &files).text)
}

#[test]
fn a_domain_with_a_mapping_comes_back_as_it_was() {
    let (_, out) = round(&domain("mapping"));
    let (before, after) = (read(&domain("mapping"), &["1", "2"], false), read(&out, &[], true));
    assert_eq!((&before.vcpus, before.memory_kib), (&after.vcpus, after.memory_kib));
    assert_eq!((&before.vcpupins, &before.emulatorpin), (&after.vcpupins, &after.emulatorpin));
    assert_eq!(before.iothreadpins, after.iothreadpins);
    let disk = |said: &Said, source: &str, fact: &str| said.disks[source].get(fact).cloned();
    for fact in ["cache", "io", "queues", "serial", "readonly", "mapping"] {
        assert_eq!(disk(&before, "/dev/nvme0n1", fact), disk(&after, "/dev/nvme0n1", fact), "{fact}");
    }
    // Round robin in the domain's own order, written out: IOThread 2 has the even queues.
    assert_eq!(disk(&after, "/srv/logs.raw", "mapping").unwrap(), "0: 1,3; 1: 0,2");
}

#[test]
fn pins_for_all_vcpus_and_the_emulator_survive_whatever_form_they_had() {
    let (_, out) = round(&domain("cloud"));
    let after = read(&out, &[], true);
    let pins: Vec<&str> = after.vcpupins.values().map(String::as_str).collect();
    assert_eq!(pins, ["8", "9", "10", "8-11,13-15"], "the last one has the CPUs of all");
    assert_eq!(after.emulatorpin.as_deref(), Some("8-10"));
    assert_eq!(after.iothreadpins["0"], "8-10", "without IOThreads, the emulator's disks stay with it");
    assert_eq!(after.memory_kib, 2 << 20);
    let disk = &after.disks["/dev/sdc"];
    assert_eq!((disk["cache"].as_str(), disk["serial"].len()), ("writethrough", 20));
}

#[test]
fn iothreads_with_gaps_are_counted_from_0_in_the_order_of_their_numbers() {
    let (imported, out) = round(&domain("sparse"));
    let after = read(&out, &[], true);
    // 1 is the lowest free number, which libvirt would take for the third.
    assert_eq!(
        (after.iothreadpins["1"].as_str(), after.iothreadpins["2"].as_str()),
        ("2", "3"),
        "{}",
        imported.profile
    );
    let mapping = |source: &str| after.disks[source]["mapping"].clone();
    assert_eq!(mapping("/srv/a.raw"), "2: 0,1");
    assert!(mapping("/srv/b.raw").starts_with("1: 0,"));
    assert_eq!(after.disks["/srv/a.raw"]["queue_size"], "512");
    let listed = |what: &str| imported.left_out.iter().any(|left| left.what.contains(what));
    for what in [
        "iothreadpin 7",
        "vcpupin 6",
        "thread_pool_min",
        "poll grow='4'",
        "queues='300'",
        "serial `root`",
        "detect_zeroes",
        "shareable",
    ] {
        assert!(listed(what), "{what}");
    }
}

#[test]
fn an_export_comes_back_with_everything_that_both_sides_can_say() {
    for (host, file) in [
        ("lab", "db.kdl"),
        ("smt2", "fixtures/profiles/far-drive.kdl"),
        ("lab", "fixtures/profiles/pinned.kdl"),
    ] {
        let profile = crate::host::profile(&text_of(file));
        let plan = planned(&profile, &crate::fixtures::source(host));
        let files = BootFiles {
            kernel: Some("/store/kernel".into()),
            root: Some("/store/root".into()),
            disks_dir: Some("/disks".into()),
            ..BootFiles::default()
        };
        let first = export::libvirt(&plan, &files).text;
        let imported = imported(file, &first);
        assert!(!imported.profile.contains("vmprof-root"), "{}", imported.profile);
        let (again, _) = read_profile("again.kdl", &imported.profile).unwrap();
        let second = export::libvirt(&planned(&again, &crate::fixtures::source(host)), &files).text;
        // Nothing but the boot files, which no profile names, may differ.
        assert_eq!(read(&first, &[], true), read(&second, &[], true), "{file}");
    }
}

#[test]
fn what_is_no_domain_is_called_what_it_is() {
    for (xml, code, said) in [
        ("", "not_xml", "empty"),
        ("qemu-system-x86_64 -m 1G", "not_xml", "command line of QEMU"),
        ("/usr/libexec/qemu-kvm -name guest=x", "not_xml", "command line of QEMU"),
        ("{\"schema\": 1}", "not_xml", "no XML"),
        ("<domain>\n  <name>x</nam>\n</domain>", "not_xml", "broken"),
        ("<domain", "not_xml", "broken"),
        ("<capabilities><host/></capabilities>", "not_a_domain", "capabilities of a host"),
        ("<domainCapabilities/>", "not_a_domain", "what domains of a host could be"),
        ("<domainsnapshot><domain/></domainsnapshot>", "not_a_domain", "snapshot"),
        ("<network><name>default</name></network>", "not_a_domain", "another thing of libvirt's"),
        ("<html/>", "not_a_domain", "no document of libvirt's"),
        ("<domain type='lxc'><name>c</name></domain>", "other_hypervisor", "for `lxc`"),
        ("<domain type='kvm'><name>c</name></domain>", "incomplete", "memory"),
        ("<domain><memory>lots</memory></domain>", "bad_value", "<memory>"),
        ("<domain><memory>1048576</memory><vcpu>many</vcpu></domain>", "bad_value", "<vcpu>"),
        ("<domain><memory>1048576</memory><vcpu>4096</vcpu></domain>", "refused", "vcpu"),
        ("<domain><memory>1048576</memory><vcpu cpuset='0'>4000000000</vcpu></domain>", "refused", "vcpu"),
        ("<domain><memory>1024</memory></domain>", "refused", "memory"),
    ] {
        let problems = libvirt("it.xml", xml).expect_err(xml);
        let problem = problems.iter().next().unwrap();
        assert_eq!(problem.code(), format!("vmprof::import::{code}"), "{xml}: {problem}");
        assert!(problem.message().contains(said), "{xml}: {problem}");
        assert!(problem.help_text().is_some() && problem.first_span().is_some(), "{xml}");
    }
    let problems = libvirt("it.xml", "<domain>\n  <name>x</nam>\n</domain>").unwrap_err();
    assert_eq!(problems.iter().next().unwrap().first_span().unwrap().offset(), 18, "at the wrong end tag");
}

#[test]
fn text_of_a_domain_stays_text() {
    let xml = "<domain><name>a \"b\" \\ { } // \u{202e}</name><description>one\n two \"three\" \\</description><memory unit='GiB'>1</memory>\
               <devices><disk type='file'><driver type='raw'/><source file='/srv/\"; strict \\&#10;x'/><target dev='vda'/></disk></devices></domain>";
    let imported = imported("it.xml", xml);
    let (profile, _) = read_profile("it.kdl", &imported.profile).unwrap();
    assert_eq!(profile.description.as_deref(), Some("one two \"three\" \\"));
    assert!(profile.strict.is_none());
    let vmprof_profiles::DiskSource::File { path, .. } = &profile.disks[0].source else { panic!() };
    assert_eq!(path, "/srv/\"; strict \\\nx");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_domain_becomes_a_profile_with_its_pins_and_mappings(
        vcpus in 1u32..9,
        ids in prop::collection::btree_set(1u32..40, 0..5),
        pinned in prop::collection::btree_map(0u32..9, 0u32..24, 0..9),
        queues in 1u32..9,
        cache in prop::sample::select(vec!["none", "directsync", "writeback", "writethrough", "unsafe", "default", "sometimes"]),
        io in prop::sample::select(vec!["native", "threads", "io_uring", "posix"]),
        size in prop::sample::select(vec!["256", "1024", "300", "x"]),
        memory in 65536u64..4_000_000,
        round in any::<bool>(),
    ) {
        let pins: String = pinned.iter().map(|(vcpu, cpu)| format!("<vcpupin vcpu='{vcpu}' cpuset='{cpu}'/>")).collect();
        let list: String = ids.iter().map(|id| format!("<iothread id='{id}'/>")).collect();
        let mut mapped: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let numbers: Vec<u32> = ids.iter().rev().copied().take(queues as usize).collect();
        if !numbers.is_empty() {
            (0..queues).for_each(|vq| mapped.entry(numbers[vq as usize % numbers.len()]).or_default().push(vq));
        }
        let threads: String = mapped.iter().map(|(id, vqs)| {
            let vqs: String = vqs.iter().filter(|_| !round).map(|vq| format!("<queue id='{vq}'/>")).collect();
            format!("<iothread id='{id}'>{vqs}</iothread>")
        }).collect();
        let threads = if mapped.is_empty() { String::new() } else { format!("<iothreads>{threads}</iothreads>") };
        let xml = format!(
            "<domain type='kvm'><name>p</name><memory>{memory}</memory><vcpu>{vcpus}</vcpu><iothreadids>{list}</iothreadids>\
             <cputune>{pins}</cputune><devices><disk type='file'><driver type='raw' cache='{cache}' io='{io}' queues='{queues}' \
             queue_size='{size}'>{threads}</driver><source file='/srv/d'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
        );
        let imported = imported("p.xml", &xml);
        let (profile, _) = read_profile("p.kdl", &imported.profile).unwrap();
        let source = HostSpec::of(vec![crate::host::NodeSpec { memory_mib: 65536, ..node(0, 24) }]).source();
        let plan = planned(&profile, &source);
        for (vcpu, cpu) in pinned.iter().filter(|(vcpu, _)| **vcpu < vcpus) {
            prop_assert_eq!(&plan.vcpus[*vcpu as usize].cpus, &CpuSet::of(*cpu));
        }
        prop_assert_eq!(plan.iothreads.len(), ids.len().max(1));
        prop_assert!(plan.memory.bytes >= memory << 10 && plan.memory.bytes < (memory << 10) + (2 << 20));
        let disk = &plan.disks[0];
        prop_assert_eq!(disk.queues, queues);
        if !round {
            let ours: Vec<u32> = ids.iter().copied().collect();
            for queue in &disk.virtqueues {
                if let Some(id) = ours.get(queue.iothread as usize).filter(|_| !mapped.is_empty()) {
                    prop_assert!(mapped[id].contains(&queue.vq));
                }
            }
        }
        for (given, known) in [(cache, !["sometimes"].contains(&cache)), (io, io != "posix"), (size, size == "256" || size == "1024")] {
            prop_assert!(known || imported.left_out.iter().any(|left| left.what.contains(given)), "{given}");
        }
    }

    #[test]
    fn no_truncated_or_altered_domain_makes_it_panic(which in 0..DOMAINS.len(), at in 0usize..6000, with in "[ -~]{0,3}", cut in any::<bool>()) {
        let mut xml = domain(DOMAINS[which]);
        let at = (0..=at.min(xml.len())).rev().find(|at| xml.is_char_boundary(*at)).unwrap_or(0);
        if cut { xml.truncate(at) } else { xml.insert_str(at, &with) }
        if let Ok(imported) = libvirt("x.xml", &xml) {
            prop_assert!(read_profile("x.kdl", &imported.profile).is_ok());
        }
    }
}
