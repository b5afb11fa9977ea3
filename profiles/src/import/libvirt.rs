//! A domain of libvirt as a profile: `virsh dumpxml NAME`, running or not, or the file that defines it.
//!
//! libvirt counts IOThreads as it likes, from 1 upwards and with gaps; here they are 0, 1, 2 in the order of their numbers.
//! What a domain leaves to QEMU is written as what QEMU does, so that the profile is the machine one has, and what a
//! domain leaves open is left to the planner.

use std::collections::BTreeSet;
use std::sync::Arc;

use miette::{NamedSource, SourceSpan};
use roxmltree::{Document, ParsingOptions};
use vmprof_document::{Problem, Problems};

use super::disk::disk;
use super::draft::{Draft, Origin, plain_name, quoted, string};
use super::interface::interface;
use super::refusals::{not_a_domain, not_xml};
use super::threads::Threads;
use super::xml::{Xml, child, elements, text};
use super::{AREA, Imported, LeftOut, quantities, unsaid};

/// More elements than any domain has.
const MOST_NODES: u32 = 200_000;

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

/// One import.
#[derive(Debug)]
pub(super) struct Reading<'a, 'x> {
    document: &'a Document<'x>,
    pub(super) left_out: Vec<LeftOut>,
}

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

    /// Lists the children of `node` that are not in `known`.
    pub(super) fn leave_children(&mut self, parent: &str, node: Xml<'a, 'x>, known: &[&str]) {
        let element = node.tag_name().name();
        for child in elements(node).filter(|child| !known.contains(&child.tag_name().name())) {
            let name = child.tag_name().name();
            self.leave(child, format!("{parent}: {name}"), unsaid::why(element, name));
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
            self.devices(node, &iothreads, &mut profile);
        }
        self.rest(root);
        Ok(profile)
    }

    pub(super) fn bad_number(&self, node: Xml<'a, 'x>) -> Problem {
        let element = node.tag_name().name();
        Problem::error(
            format!("{AREA}::bad_value"),
            format!("`<{element}>` holds no number that libvirt would take"),
        )
        .at(node.range().into(), "this")
        .help("`virsh dumpxml NAME` writes it as libvirt reads it")
    }

    /// Siblings that the guest sees.
    fn host(&mut self, root: Xml<'a, 'x>) -> Option<Draft> {
        let cpu = child(root, "cpu")?;
        if let Some(mode) =
            cpu.attribute("mode").filter(|mode| !["host-passthrough", "maximum"].contains(mode))
        {
            self.leave(cpu, format!("cpu mode='{mode}'"), unsaid::why("cpu", "mode"));
        }
        self.leave_attributes("cpu", cpu, &["mode", "match", "check"]);
        let mut siblings = None;
        for node in elements(cpu) {
            let threads = node.attribute("threads").and_then(|threads| threads.parse::<u32>().ok());
            match node.tag_name().name() {
                "topology" => {
                    if threads.is_some_and(|threads| threads > 1) {
                        siblings = Some(node);
                    }
                    for part in ["sockets", "dies", "clusters", "modules"] {
                        if let Some(number) = node.attribute(part).filter(|number| *number != "1") {
                            let what = format!("topology: {part}='{number}'");
                            self.leave(node, what, unsaid::why("cpu", "topology"));
                        }
                    }
                }
                _ => self.leave_whole("cpu", node),
            }
        }
        let node = siblings?;
        let mut host = Draft::new("host", self.origin(node, "topology threads")).container();
        host.add(Draft::new("smt require", self.origin(node, "topology threads")));
        Some(host)
    }

    /// Disks and networks; all other devices are left out by name.
    fn devices(&mut self, devices: Xml<'a, 'x>, threads: &Threads, profile: &mut Draft) {
        let mut names = BTreeSet::new();
        for node in elements(devices) {
            match node.tag_name().name() {
                "disk" => {
                    disk(self, node, threads, &mut names).into_iter().for_each(|disk| profile.add(disk))
                }
                "interface" => interface(self, node).into_iter().for_each(|net| profile.add(net)),
                // Nothing is lost where there is none.
                "memballoon" if node.attribute("model") == Some("none") => {}
                "rng" if is_plain_rng(node) => {}
                "vsock" if is_plain_vsock(node) => {}
                _ => self.leave_whole("devices", node),
            }
        }
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
        let kind = child(root, "os").and_then(|os| child(os, "type"));
        if let Some((node, arch)) = kind.and_then(|node| Some((node, node.attribute("arch")?)))
            && arch != "x86_64"
        {
            let why = "vmprof's guests are x86-64: this guest does not run there, only its layout is kept";
            self.leave(node, format!("type arch='{arch}'"), why);
        }
        let tune = child(root, "cputune");
        for node in tune.into_iter().flat_map(elements) {
            if !["vcpupin", "emulatorpin", "iothreadpin"].contains(&node.tag_name().name()) {
                self.leave_whole("cputune", node);
            }
        }
    }
}

/// Entries with one name and reason become one, with their number.
/// What every guest of vmprof has: random numbers of the host's kernel, as many as it asks for.
fn is_plain_rng(node: Xml) -> bool {
    let is_the_kernels = |backend: Xml| match backend.attribute("model") {
        Some("builtin") => true,
        Some("random") => matches!(&*text(backend), "/dev/urandom" | "/dev/random" | ""),
        _ => false,
    };
    is_virtio(node) && child(node, "rate").is_none() && child(node, "backend").is_some_and(is_the_kernels)
}

/// Nobody counts on the address of one that libvirt gave it.
fn is_plain_vsock(node: Xml) -> bool {
    is_virtio(node) && child(node, "cid").is_some_and(|cid| cid.attribute("auto") == Some("yes"))
}

fn is_virtio(node: Xml) -> bool {
    matches!(node.attribute("model"), None | Some("virtio"))
}

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
