//! A domain of libvirt as a profile: `virsh dumpxml NAME`, running or not, or the file that defines it.
//!
//! libvirt counts IOThreads as it likes, from 1 upwards and with gaps; here they are 0, 1, 2 in the order of their numbers.
//! What a domain leaves to QEMU is written as what QEMU does, so that the profile is the machine one has, and what a
//! domain leaves open is left to the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use miette::{NamedSource, SourceSpan};
use roxmltree::{Document, Node, ParsingOptions};
use vmprof_document::{Problem, Problems, format_size};

use super::draft::{Draft, Origin, quoted, string};
use super::{Imported, LeftOut, devices, quantities, unsaid};
use crate::topology::CpuSet;

const AREA: &str = "vmprof::import";
/// More elements than any domain has.
const MOST_NODES: u32 = 200_000;
/// Guest memory comes in steps of this.
const MEMORY_STEP: u64 = 2 << 20;

/// Makes a profile of a domain. `name` is what diagnostics call the file.
pub fn libvirt(name: &str, xml: &str) -> Result<Imported, Problems> {
    let fail = |problem: Problem| Problems::new(AREA, NamedSource::new(name, Arc::from(xml)), vec![problem]);
    let options = ParsingOptions { allow_dtd: true, nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).map_err(|error| fail(not_xml(xml, &error)))?;
    let root = document.root_element();
    if let Some(problem) = not_a_domain(root) {
        return Err(fail(problem));
    }
    let mut reading = Reading { document: &document, left_out: Vec::new() };
    let draft = reading.domain(root).map_err(&fail)?;
    let (profile, refused) = draft.settle(name).map_err(|refused| {
        let reason = refused.problem.map(|problem| problem.to_string()).unwrap_or_default();
        let place = reading.place_of_line(refused.origin.line);
        let message = format!("{} cannot be in a profile: {reason}", refused.origin.what);
        fail(
            Problem::error(format!("{AREA}::refused"), message)
                .at(place, "this")
                .help("change it in the XML, and import again"),
        )
    })?;
    let mut left_out = reading.left_out;
    left_out.extend(refused);
    Ok(Imported { profile, left_out: together(left_out) })
}

fn not_xml(xml: &str, error: &roxmltree::Error) -> Problem {
    let start = xml.trim_start();
    let said = |code: &str, message: &str, help: &str| {
        Problem::error(format!("{AREA}::{code}"), message)
            .at((xml.len() - start.len(), 0).into(), "here")
            .help(help)
    };
    if start.is_empty() {
        return said("not_xml", "the file is empty", "write the output of `virsh dumpxml NAME` into it");
    }
    if !start.starts_with('<') {
        let first = start.split_whitespace().next().unwrap_or_default();
        return match first.rsplit('/').next() {
            Some(program) if program.starts_with("qemu") || program == "kvm" => said(
                "not_xml",
                "this is a command line of QEMU, and no domain XML",
                "where libvirt started it, `virsh dumpxml NAME` has the domain",
            ),
            _ => said("not_xml", "this is no XML", "give it the output of `virsh dumpxml NAME`"),
        };
    }
    let position = error.pos();
    let line =
        xml.split_inclusive('\n').take(position.row.saturating_sub(1) as usize).map(str::len).sum::<usize>();
    let column =
        xml.get(line..).unwrap_or_default().char_indices().nth(position.col.saturating_sub(1) as usize);
    let offset = line + column.map_or(0, |(at, _)| at);
    Problem::error(format!("{AREA}::not_xml"), format!("the XML is broken: {error}"))
        .at((offset.min(xml.len()), 0).into(), format!("line {}, column {}", position.row, position.col))
        .help("`xmllint --noout FILE` checks it; `virsh dumpxml NAME` writes it whole")
}

/// What the file is, where it is no domain of QEMU's.
fn not_a_domain(root: Node<'_, '_>) -> Option<Problem> {
    let at = SourceSpan::from((root.range().start, root.tag_name().name().len() + 1));
    let element = root.tag_name().name();
    if element != "domain" {
        let (what, help) = match element {
            "capabilities" => (
                "the capabilities of a host",
                "`virsh dumpxml NAME` writes a domain; `virsh list --all` has the names",
            ),
            "domainCapabilities" => {
                ("what domains of a host could be", "`virsh dumpxml NAME` writes a domain")
            }
            "domainsnapshot" | "domaincheckpoint" | "domainbackup" => {
                ("a snapshot or backup of a domain", "`virsh dumpxml NAME` writes the domain itself")
            }
            "domstatus" => {
                ("libvirt's own record of a running domain", "`virsh dumpxml NAME` writes the domain itself")
            }
            "network" | "pool" | "volume" | "interface" | "device" | "secret" | "nwfilter" => {
                ("another thing of libvirt's", "`virsh dumpxml NAME` writes a domain")
            }
            "topology" => ("the topology of a host", "`vmprof plan --host FILE` takes it"),
            _ => ("no document of libvirt's", "`virsh dumpxml NAME` writes a domain"),
        };
        return Some(
            Problem::error(
                format!("{AREA}::not_a_domain"),
                format!("`<{element}>` is {what}, and no domain"),
            )
            .at(at, "a domain begins with `<domain>`")
            .help(help),
        );
    }
    match root.attribute("type") {
        None | Some("kvm" | "qemu" | "kqemu") => None,
        Some(other) => Some(
            Problem::error(
                format!("{AREA}::other_hypervisor"),
                format!("this domain is for `{other}`, and not for QEMU"),
            )
            .at(at, "its type is here")
            .help("vmprof reads domains of the types kvm and qemu"),
        ),
    }
}

/// One import.
#[derive(Debug)]
pub(super) struct Reading<'a, 'x> {
    document: &'a Document<'x>,
    left_out: Vec<LeftOut>,
}

/// A node of the XML.
pub(super) type Xml<'a, 'x> = Node<'a, 'x>;

impl<'a, 'x> Reading<'a, 'x> {
    /// The line of a node, counted from 1.
    pub(super) fn line(&self, node: Xml<'a, 'x>) -> u32 {
        self.document.text_pos_at(node.range().start).row
    }

    pub(super) fn origin(&self, node: Xml<'a, 'x>, what: impl Into<String>) -> Origin {
        Origin::new(what, self.line(node))
    }

    pub(super) fn leave(&mut self, node: Xml<'a, 'x>, what: impl Into<String>, why: impl Into<String>) {
        let line = self.line(node);
        self.left_out.push(LeftOut::at(line, what, why));
    }

    /// Lists a node that has no place in a profile.
    pub(super) fn leave_whole(&mut self, parent: &str, node: Xml<'a, 'x>) {
        let element = node.tag_name().name();
        let what = match node.attribute("type").or(node.attribute("model")) {
            Some(kind) => format!("{element} {kind}"),
            None => element.to_owned(),
        };
        self.leave(node, what, unsaid::why(parent, element));
    }

    /// Lists the attributes of `node` that are not in `known`.
    pub(super) fn leave_attributes(&mut self, parent: &str, node: Xml<'a, 'x>, known: &[&str]) {
        for attribute in node.attributes().filter(|attribute| !known.contains(&attribute.name())) {
            let what = format!("{parent}: {}='{}'", attribute.name(), attribute.value());
            self.leave(node, what, "a profile has no word for it");
        }
    }

    fn place_of_line(&self, line: u32) -> SourceSpan {
        let text = self.document.input_text();
        let start =
            text.split_inclusive('\n').take(line.saturating_sub(1) as usize).map(str::len).sum::<usize>();
        let length = text.get(start..).and_then(|rest| rest.lines().next()).map_or(0, str::len);
        (start.min(text.len()), length).into()
    }

    fn domain(&mut self, root: Xml<'a, 'x>) -> Result<Draft, Problem> {
        let (name, line) = match child(root, "name") {
            Some(node) => (text(node), self.line(node)),
            None => (String::new(), self.line(root)),
        };
        let plain = plain_name(&name, 64, "imported");
        if plain != name {
            self.left_out.push(LeftOut::at(
                line,
                format!("the name `{name}`"),
                format!("a profile's name has plain letters, digits, `.`, `_` and `-`: here it is `{plain}`"),
            ));
        }
        if root.attribute("type") == Some("qemu") {
            self.leave(root, "type='qemu'", "vmprof runs on KVM, never emulated");
        }
        let mut profile =
            Draft::new(format!("profile {}", string(&plain)), Origin::new("the domain", line)).needed();
        profile.comment(format!("Made of the libvirt domain `{name}`. What it has and this file does not say was listed by the import."));
        if let Some(node) = child(root, "description").or(child(root, "title")) {
            let said = text(node).split_whitespace().collect::<Vec<_>>().join(" ");
            if !said.is_empty() {
                profile.add(Draft::new(
                    format!("description {}", quoted(&said)),
                    self.origin(node, "the description"),
                ));
            }
        }
        let mut guest = Draft::new("guest \"guest.kdl\"", Origin::new("the guest", line)).needed();
        guest.comment("A domain has no recipe: name that of this guest (docs/guests.md).");
        profile.add(guest);
        self.left_out.push(LeftOut {
            line: None,
            what: "the guest's recipe".to_owned(),
            why: "a domain says nothing of what its disks hold: write a recipe and name it at `guest`"
                .to_owned(),
        });

        let tune = child(root, "cputune");
        let everyone =
            child(root, "vcpu").and_then(|node| node.attribute("cpuset")).and_then(quantities::cpus);
        let iothreads = Threads::read(self, root);
        let vcpus = self.vcpus(root, tune, everyone.as_ref())?;
        let emulator = self.emulator(tune, everyone.as_ref());
        let memory = self.memory(root)?;
        let threads = self.iothreads(root, tune, everyone.as_ref(), &iothreads);
        if let Some(host) = self.host(root) {
            profile.add(host);
        }
        profile.add(vcpus);
        emulator.into_iter().for_each(|emulator| profile.add(emulator));
        profile.add(memory);
        profile.add(threads);
        if let Some(node) = child(root, "devices") {
            devices::read(self, node, &iothreads, &mut profile);
        }
        self.rest(root);
        Ok(profile)
    }

    fn vcpus(
        &mut self,
        root: Xml<'a, 'x>,
        tune: Option<Xml<'a, 'x>>,
        everyone: Option<&CpuSet>,
    ) -> Result<Draft, Problem> {
        let node = child(root, "vcpu");
        let count = match node {
            // libvirt's own default.
            None => 1,
            Some(node) => text(node).parse::<u32>().map_err(|_| self.bad_number(node))?,
        };
        let at = node.unwrap_or(root);
        if let Some(node) = node {
            if let Some(current) = node.attribute("current").filter(|current| current.parse() != Ok(count)) {
                self.leave(node, format!("vcpu current='{current}'"), "all vCPUs are there from the start");
            }
            if node.attribute("placement") == Some("auto") {
                self.leave(node, "vcpu placement='auto'", "vmprof's planner places the vCPUs, not numad");
            }
        }
        let mut vcpus = Draft::new(format!("vcpu {count}"), self.origin(at, "vcpu")).needed();
        let mut pins = Draft::new("vcpupin", self.origin(at, "the vCPUs' pins")).container();
        let written = self.pins(tune, "vcpupin", "vcpu");
        for vcpu in 0..count {
            let (set, origin) = match (written.get(&vcpu), everyone) {
                (Some((set, origin)), _) => (set, origin.clone()),
                (None, Some(set)) => (set, self.origin(at, format!("vcpu cpuset, vCPU {vcpu}"))),
                (None, None) => continue,
            };
            pins.add(Draft::new(format!("vcpu {vcpu} cpuset={}", quoted(&set.to_string())), origin));
        }
        for (vcpu, (_, origin)) in written.range(count..) {
            self.left_out.push(LeftOut::at(
                origin.line,
                origin.what.clone(),
                format!("there is no vCPU {vcpu}"),
            ));
        }
        if pins.has_children() {
            vcpus.add(pins);
        }
        Ok(vcpus)
    }

    fn bad_number(&self, node: Xml<'a, 'x>) -> Problem {
        let element = node.tag_name().name();
        Problem::error(
            format!("{AREA}::bad_value"),
            format!("`<{element}>` holds no number that libvirt would take"),
        )
        .at(node.range().into(), "this")
        .help("`virsh dumpxml NAME` writes it as libvirt reads it")
    }

    /// The pins of one kind, by the number they are for.
    fn pins(
        &mut self,
        tune: Option<Xml<'a, 'x>>,
        element: &str,
        number: &str,
    ) -> BTreeMap<u32, (CpuSet, Origin)> {
        let mut pins = BTreeMap::new();
        for node in tune.into_iter().flat_map(|tune| children(tune, element)) {
            let id = node.attribute(number).and_then(|id| id.parse::<u32>().ok());
            let set = node.attribute("cpuset").and_then(quantities::cpus);
            match (id, set) {
                (Some(id), Some(set)) => {
                    let origin = self.origin(node, format!("{element} {id}"));
                    pins.insert(id, (set, origin));
                }
                _ => self.leave(node, element, "it names no thread, or no CPU"),
            }
        }
        pins
    }

    fn emulator(&mut self, tune: Option<Xml<'a, 'x>>, everyone: Option<&CpuSet>) -> Option<Draft> {
        let node = tune.and_then(|tune| child(tune, "emulatorpin"));
        let (set, origin) = match (node, everyone) {
            (Some(node), _) => match node.attribute("cpuset").and_then(quantities::cpus) {
                Some(set) => (set, self.origin(node, "emulatorpin")),
                None => {
                    self.leave(node, "emulatorpin", "it names no CPU");
                    return None;
                }
            },
            (None, Some(set)) => (set.clone(), Origin::new("vcpu cpuset, the emulator", 1)),
            (None, None) => return None,
        };
        Some(Draft::new(format!("emulatorpin cpuset={}", quoted(&set.to_string())), origin))
    }

    fn memory(&mut self, root: Xml<'a, 'x>) -> Result<Draft, Problem> {
        let Some(node) = child(root, "memory") else {
            return Err(Problem::error(
                format!("{AREA}::incomplete"),
                "the domain says nothing of its memory",
            )
            .at((root.range().start, 7).into(), "in this domain")
            .help("`virsh dumpxml NAME` writes a whole domain"));
        };
        let bytes = quantities::bytes(&text(node), node.attribute("unit"));
        let bytes = bytes.filter(|bytes| *bytes > 0).ok_or_else(|| self.bad_number(node))?;
        let whole = bytes.checked_next_multiple_of(MEMORY_STEP).ok_or_else(|| self.bad_number(node))?;
        if whole != bytes {
            self.leave(
                node,
                format!("memory of {}", format_size(bytes)),
                format!("memory comes in steps of 2MiB: here it is {}", format_size(whole)),
            );
        }
        let mut memory =
            Draft::new(format!("memory {}", quoted(&format_size(whole))), self.origin(node, "memory"))
                .needed();
        if let Some(current) = child(root, "currentMemory")
            && quantities::bytes(&text(current), current.attribute("unit")) != Some(bytes)
        {
            self.leave(current, "currentMemory", unsaid::why("domain", "currentMemory"));
        }
        let backing = child(root, "memoryBacking");
        for node in backing.into_iter().flat_map(elements) {
            match node.tag_name().name() {
                "hugepages" => self.hugepages(node, &mut memory),
                // How vmprof itself has it.
                "allocation"
                    if node.attribute("mode") == Some("immediate")
                        && backing.is_some_and(|b| child(b, "hugepages").is_some()) => {}
                "source" if node.attribute("type") == Some("memfd") => {}
                _ => self.leave_whole("memoryBacking", node),
            }
        }
        if let Some(numatune) = child(root, "numatune") {
            self.numatune(numatune, &mut memory);
        }
        Ok(memory)
    }

    fn hugepages(&mut self, node: Xml<'a, 'x>, memory: &mut Draft) {
        let pages: Vec<_> = children(node, "page").collect();
        let size = match pages.as_slice() {
            [] => {
                memory.comment("The domain names no size of its hugepages; the hosts' own default is 2 MiB.");
                Some("2MiB")
            }
            [page] => {
                match quantities::bytes(page.attribute("size").unwrap_or_default(), page.attribute("unit")) {
                    Some(0x20_0000) => Some("2MiB"),
                    Some(0x4000_0000) => Some("1GiB"),
                    _ => None,
                }
            }
            _ => None,
        };
        match size {
            Some(size) => memory.word(format!("hugepages={}", quoted(size)), self.origin(node, "hugepages")),
            None => self.leave(node, "hugepages", "the guest's memory has pages of one size, 2 MiB or 1 GiB"),
        }
    }

    fn numatune(&mut self, numatune: Xml<'a, 'x>, memory: &mut Draft) {
        for node in elements(numatune) {
            if node.tag_name().name() != "memory" {
                self.leave_whole("numatune", node);
                continue;
            }
            let mode = node.attribute("mode").unwrap_or("strict");
            match node.attribute("nodeset").and_then(quantities::cpus) {
                Some(nodes) if ["strict", "preferred", "interleave"].contains(&mode) => {
                    let origin = self.origin(node, format!("numatune mode='{mode}' nodeset='{nodes}'"));
                    memory.word(format!("nodes={}", quoted(&nodes.to_string())), origin.clone());
                    if mode != "strict" {
                        memory.word(format!("mode={mode}"), origin);
                    }
                }
                Some(_) => self.leave(
                    node,
                    format!("numatune mode='{mode}'"),
                    "memory is bound strict, preferred or interleave",
                ),
                None => self.leave(node, "numatune", "it names no nodes: the planner finds the node"),
            }
        }
    }

    /// Siblings that the guest sees.
    fn host(&mut self, root: Xml<'a, 'x>) -> Option<Draft> {
        let cpu = child(root, "cpu")?;
        if let Some(mode) =
            cpu.attribute("mode").filter(|mode| !["host-passthrough", "maximum"].contains(mode))
        {
            self.leave(cpu, format!("cpu mode='{mode}'"), unsaid::why("cpu", "mode"));
        }
        let mut siblings = None;
        for node in elements(cpu) {
            let threads = node.attribute("threads").and_then(|threads| threads.parse::<u32>().ok());
            match node.tag_name().name() {
                "topology" if threads.is_some_and(|threads| threads > 1) => siblings = Some(node),
                "topology" if node.attribute("sockets") == Some("1") => {}
                _ => self.leave_whole("cpu", node),
            }
        }
        let node = siblings?;
        let mut host = Draft::new("host", self.origin(node, "topology threads")).container();
        host.add(Draft::new("smt require", self.origin(node, "topology threads")));
        Some(host)
    }

    fn iothreads(
        &mut self,
        root: Xml<'a, 'x>,
        tune: Option<Xml<'a, 'x>>,
        everyone: Option<&CpuSet>,
        threads: &Threads,
    ) -> Draft {
        let at = child(root, "iothreads").or(child(root, "iothreadids")).unwrap_or(root);
        let count = threads.ids.len().max(1);
        let mut draft = Draft::new(format!("iothreads {count}"), self.origin(at, "iothreads"));
        if threads.ids.is_empty() {
            draft.comment("The domain has no IOThread: QEMU's emulator thread serves its disks.");
            draft.add(Draft::new("iothreadpin emulator", self.origin(at, "the emulator's disks")));
            draft.add(Draft::new("poll-max-ns 0", self.origin(at, "the emulator's disks")));
            return draft;
        }
        let renamed: Vec<String> = threads
            .ids
            .iter()
            .enumerate()
            .filter(|(at, id)| **id as usize != at + 1)
            .map(|(at, id)| format!("{id} is {at}"))
            .collect();
        if !renamed.is_empty() {
            draft.comment(format!(
                "IOThreads are counted from 0 here; of the domain's, {}.",
                renamed.join(", ")
            ));
        }
        let written = self.pins(tune, "iothreadpin", "iothread");
        let mut pins = Draft::new("iothreadpin", self.origin(at, "the IOThreads' pins")).container();
        for (ours, id) in threads.ids.iter().enumerate() {
            let (set, origin) = match (written.get(id), everyone) {
                (Some((set, origin)), _) => (set, origin.clone()),
                (None, Some(set)) => (set, self.origin(at, format!("vcpu cpuset, IOThread {id}"))),
                (None, None) => continue,
            };
            pins.add(Draft::new(format!("iothread {ours} cpuset={}", quoted(&set.to_string())), origin));
        }
        for (id, (_, origin)) in written.iter().filter(|(id, _)| !threads.ids.contains(id)) {
            self.left_out.push(LeftOut::at(
                origin.line,
                origin.what.clone(),
                format!("the domain has no IOThread {id}"),
            ));
        }
        if pins.has_children() {
            draft.add(pins);
        }
        match threads.polls.values().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().as_slice() {
            [(most, line)] if threads.polls.len() == threads.ids.len() => {
                draft.add(Draft::new(format!("poll-max-ns {most}"), Origin::new("poll max", *line)));
            }
            _ => {
                for (id, (most, line)) in &threads.polls {
                    self.left_out.push(LeftOut::at(*line, format!("IOThread {id}: poll max='{most}'"), "all IOThreads of a profile have one `poll-max-ns`, and these differ: the planner's is taken"));
                }
            }
        }
        draft
    }

    /// Lists whatever was not read above.
    fn rest(&mut self, root: Xml<'a, 'x>) {
        const READ: [&str; 13] = [
            "name",
            "title",
            "description",
            "vcpu",
            "cputune",
            "memory",
            "currentMemory",
            "memoryBacking",
            "numatune",
            "cpu",
            "iothreads",
            "iothreadids",
            "devices",
        ];
        for node in elements(root).filter(|node| !READ.contains(&node.tag_name().name())) {
            self.leave_whole("domain", node);
        }
        let tune = child(root, "cputune");
        for node in tune.into_iter().flat_map(elements) {
            if !["vcpupin", "emulatorpin", "iothreadpin"].contains(&node.tag_name().name()) {
                self.leave_whole("cputune", node);
            }
        }
    }
}

/// The IOThreads of a domain.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// libvirt's numbers, ascending: the n-th is ours n.
    pub(super) ids: Vec<u32>,
    /// `poll max` and its line, by libvirt's number.
    polls: BTreeMap<u32, (u64, u32)>,
}

impl Threads {
    /// As libvirt does it: the numbers that are written, then the lowest free ones until there are as many as asked for.
    fn read<'a, 'x>(reading: &mut Reading<'a, 'x>, root: Xml<'a, 'x>) -> Threads {
        let mut threads = Threads::default();
        let mut ids = BTreeSet::new();
        for node in child(root, "iothreadids").into_iter().flat_map(|list| children(list, "iothread")) {
            let Some(id) = node.attribute("id").and_then(|id| id.parse::<u32>().ok()).filter(|id| *id > 0)
            else {
                reading.leave(node, "iothread", "its id is no number above 0");
                continue;
            };
            ids.insert(id);
            reading.leave_attributes(&format!("IOThread {id}"), node, &["id"]);
            if let Some(poll) = child(node, "poll") {
                if let Some(most) = poll.attribute("max").and_then(|most| most.parse::<u64>().ok()) {
                    threads.polls.insert(id, (most, reading.line(poll)));
                }
                // vmprof's window doubles and closes at once, which are QEMU's defaults too.
                for (name, own) in [("grow", ["0", "2"].as_slice()), ("shrink", &["0"])] {
                    if let Some(value) = poll.attribute(name).filter(|value| !own.contains(value)) {
                        reading.leave(
                            poll,
                            format!("IOThread {id}: poll {name}='{value}'"),
                            "vmprof's polling window doubles, and closes at once",
                        );
                    }
                }
            }
        }
        if let Some(node) = child(root, "iothreads") {
            match text(node).parse::<usize>() {
                // As many as there are ids; a wrong count must not fill the memory.
                Ok(count) if count <= 1024 => {
                    for id in 1u32.. {
                        if ids.len() >= count {
                            break;
                        }
                        ids.insert(id);
                    }
                }
                _ => reading.leave(node, "iothreads", "this is no number of IOThreads"),
            }
        }
        threads.ids = ids.into_iter().collect();
        threads
    }

    /// Our number of libvirt's IOThread.
    pub(super) fn ours(&self, id: &str) -> Option<usize> {
        let id: u32 = id.parse().ok()?;
        self.ids.iter().position(|known| *known == id)
    }
}

/// Entries with one name and reason become one, with their number.
fn together(mut all: Vec<LeftOut>) -> Vec<LeftOut> {
    all.sort_by_key(|one| (one.line.is_none(), one.line));
    let mut kept: Vec<(LeftOut, usize)> = Vec::new();
    for one in all {
        match kept.iter_mut().find(|(known, _)| known.what == one.what && known.why == one.why) {
            Some((_, count)) => *count += 1,
            None => kept.push((one, 1)),
        }
    }
    let counted = |(one, count): (LeftOut, usize)| match count {
        1 => one,
        _ => LeftOut { what: format!("{} ({count} of them)", one.what), ..one },
    };
    kept.into_iter().map(counted).collect()
}

pub(super) fn elements<'a, 'x>(node: Xml<'a, 'x>) -> impl Iterator<Item = Xml<'a, 'x>> {
    node.children().filter(|child| child.is_element())
}

pub(super) fn children<'a, 'x>(node: Xml<'a, 'x>, name: &str) -> impl Iterator<Item = Xml<'a, 'x>> {
    elements(node).filter(move |child| child.tag_name().name() == name)
}

pub(super) fn child<'a, 'x>(node: Xml<'a, 'x>, name: &str) -> Option<Xml<'a, 'x>> {
    children(node, name).next()
}

/// The text of a node, without blanks around it.
pub(super) fn text(node: Xml<'_, '_>) -> String {
    node.text().unwrap_or_default().trim().to_owned()
}

/// The name with nothing in it that names of the language cannot have.
pub(super) fn plain_name(name: &str, longest: usize, otherwise: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let plain: String = name.chars().map(plain).collect();
    let plain: String = plain.trim_start_matches(['.', '-']).chars().take(longest).collect();
    if plain.is_empty() { otherwise.to_owned() } else { plain }
}
