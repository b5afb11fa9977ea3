//! vCPUs, emulator and IOThreads of a domain: how many, their numbers, their pins.

use std::collections::{BTreeMap, BTreeSet};

use vmprof_document::Problem;

use super::draft::{Draft, Origin, quoted};
use super::libvirt::Reading;
use super::xml::{Xml, child, children, text};
use super::{LeftOut, quantities};
use crate::topology::CpuSet;

/// What `<poll>` says, and the profile's words for it.
const POLL: [(&str, &str); 3] = [("max", "poll-max-ns"), ("grow", "poll-grow"), ("shrink", "poll-shrink")];

/// The IOThreads of a domain.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// libvirt's numbers, ascending: the n-th is ours n.
    pub(super) ids: Vec<u32>,
    /// What `poll` says of each window, with its line, by the profile's word and libvirt's number.
    polls: BTreeMap<&'static str, BTreeMap<u32, (u64, u32)>>,
}

impl Threads {
    /// As libvirt does it: the numbers that are written, then the lowest free ones until there are as many as asked for.
    pub(super) fn read<'a, 'x>(reading: &mut Reading<'a, 'x>, root: Xml<'a, 'x>) -> Threads {
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
                for (name, word) in POLL {
                    match poll.attribute(name).map(|said| (said, said.parse::<u64>())) {
                        Some((_, Ok(value))) => {
                            let place = (value, reading.line(poll));
                            threads.polls.entry(word).or_default().insert(id, place);
                        }
                        Some((said, Err(_))) => {
                            reading.leave(
                                poll,
                                format!("IOThread {id}: poll {name}='{said}'"),
                                "this is no number",
                            );
                        }
                        None => {}
                    }
                }
                reading.leave_attributes(&format!("IOThread {id}: poll"), poll, &POLL.map(|(name, _)| name));
            }
            reading.leave_children(&format!("IOThread {id}"), node, &["poll"]);
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

impl<'a, 'x> Reading<'a, 'x> {
    pub(super) fn vcpus(
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
            self.leave_attributes("vcpu", node, &["current", "placement", "cpuset"]);
            if node.attribute("placement") == Some("auto") {
                self.leave(node, "vcpu placement='auto'", "vmprof's planner places the vCPUs, not numad");
            }
        }
        let mut vcpus = Draft::new(format!("vcpu {count}"), self.origin(at, "vcpu")).needed();
        let mut pins = Draft::new("vcpupin", self.origin(at, "the vCPUs' pins")).container();
        let written = self.pins(tune, "vcpupin", "vcpu");
        // A count beyond anything is refused further on, and must not fill the memory before.
        for vcpu in 0..count.min(1024) {
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

    /// The pins of one kind, by the number they are for.
    pub(super) fn pins(
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

    pub(super) fn emulator(&mut self, tune: Option<Xml<'a, 'x>>, everyone: Option<&CpuSet>) -> Option<Draft> {
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

    pub(super) fn iothreads(
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
        for (name, word) in POLL {
            let Some(said) = threads.polls.get(word) else { continue };
            let values: BTreeSet<u64> = said.values().map(|(value, _)| *value).collect();
            match (said.values().next(), values.len()) {
                (Some((value, line)), 1) if said.len() == threads.ids.len() => {
                    draft.add(Draft::new(
                        format!("{word} {value}"),
                        Origin::new(format!("poll {name}"), *line),
                    ));
                }
                _ => {
                    for (id, (value, line)) in said {
                        let why = format!(
                            "all IOThreads of a profile have one `{word}`, and these differ: the planner's is taken"
                        );
                        self.left_out.push(LeftOut::at(
                            *line,
                            format!("IOThread {id}: poll {name}='{value}'"),
                            why,
                        ));
                    }
                }
            }
        }
        draft
    }
}
