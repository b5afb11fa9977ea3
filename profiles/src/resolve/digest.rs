//! What a plan was made from, as digests. Three of them: the profile's text; the machine as threads are laid on it; and
//! everything that was decided upon, the rules included.
//!
//! The machine's digest is what `up --plan` compares. It holds what a reboot or another VM does not change: online CPUs
//! with their cores, caches and nodes; distances; which nodes have memory; isolation; the disks' devices and their
//! nodes. Left out is what comes and goes: CPUs that others hold, affinity and cgroup, free hugepages, the exact size
//! of memory, schedulers. Of those [`crate::Plan::check`] looks at the ones that a saved plan depends on.

use blake3::Hasher;

use crate::ledger::Ledger;
use crate::plan::RULES;
use crate::profile::Profile;
use crate::storage::Storage;
use crate::topology::{CoreKind, CpuSet, Topology};

/// blake3 of what was decided upon.
pub(super) struct Digests {
    pub(super) profile: String,
    pub(super) host: String,
    /// Of both, of all that comes and goes, and of the rules.
    pub(super) whole: String,
}

impl Digests {
    pub(super) fn of(profile: &Profile, topology: &Topology, storage: &Storage, ledger: &Ledger) -> Digests {
        let (profile, host) = (profile_digest(profile), host_digest(topology, storage));
        let mut facts = Facts::default();
        facts.text(RULES);
        facts.text(&profile);
        facts.text(&host);
        passing(&mut facts, topology, storage, ledger);
        Digests { whole: facts.digest(), profile, host }
    }
}

/// The digest of a profile's text, the files that it extends included, as a plan has it in `profile_digest`.
pub fn profile_digest(profile: &Profile) -> String {
    let mut text = Facts::default();
    let files = profile.source.files();
    text.count(files.len());
    files.iter().for_each(|file| text.text(&file.text));
    text.digest()
}

/// The digest of a machine and of what lies under a profile's disks, as a plan has it in `host.digest`. A saved plan is
/// for this host where the two are equal; whether its CPUs are free is [`crate::Plan::check`]'s to say.
pub fn host_digest(topology: &Topology, storage: &Storage) -> String {
    let mut facts = Facts::default();
    facts.text(topology.arch.as_deref().unwrap_or_default());
    facts.set(&topology.online);
    facts.set(&topology.isolated);
    facts.set(&topology.nohz_full);
    facts.count(topology.cpus.len());
    for (id, cpu) in &topology.cpus {
        facts.number(*id);
        facts.number(cpu.core);
        for place in [cpu.package, cpu.die, cpu.cluster, cpu.l2, cpu.l3, cpu.node] {
            facts.maybe(place);
        }
        facts.number(u32::from(cpu.kind == CoreKind::Efficiency));
    }
    facts.count(topology.nodes.len());
    for (id, node) in &topology.nodes {
        facts.number(*id);
        facts.number(u32::from(node.memory_bytes != Some(0)));
        facts.count(node.distance.len());
        for (other, distance) in &node.distance {
            facts.number(*other);
            facts.number(*distance);
        }
    }
    facts.count(storage.disks.len());
    for (name, place) in &storage.disks {
        facts.text(name);
        facts.text(&place.device);
        facts.maybe(place.node);
        let device = topology.block.get(&place.device);
        facts.maybe(device.and_then(|device| device.logical_block_bytes));
        facts.maybe(device.and_then(|device| device.physical_block_bytes));
    }
    facts.digest()
}

/// What comes and goes, and was looked at all the same. Free memory is shown and never decided upon.
fn passing(facts: &mut Facts, topology: &Topology, storage: &Storage, ledger: &Ledger) {
    for set in [&topology.affinity, &topology.cgroup_cpus, &topology.allowed_nodes] {
        facts.number(u32::from(set.is_some()));
        set.iter().for_each(|set| facts.set(set));
    }
    for node in topology.nodes.values() {
        facts.wide(node.memory_bytes.unwrap_or(u64::MAX));
        facts.count(node.free_hugepages.len());
        for (size, free) in &node.free_hugepages {
            facts.wide(*size);
            facts.wide(*free);
        }
    }
    for place in storage.disks.values() {
        facts.text(place.filesystem.as_deref().unwrap_or_default());
        facts.text(place.looks_like.as_deref().unwrap_or_default());
        facts.maybe(place.direct_io.map(|direct| direct.memory_bytes));
        facts.maybe(place.direct_io.map(|direct| direct.offset_bytes));
        let device = topology.block.get(&place.device);
        facts.text(device.and_then(|device| device.scheduler.as_deref()).unwrap_or_default());
        facts.maybe(device.and_then(|device| device.queues));
    }
    facts.count(ledger.held.len());
    for held in &ledger.held {
        facts.text(&held.holder);
        facts.set(&held.cpus);
    }
}

/// Facts on their way into a digest: each with its length or in a fixed width, so that no two lists read the same.
#[derive(Default)]
struct Facts {
    bytes: Vec<u8>,
}

impl Facts {
    fn number(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn wide(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.wide(count as u64);
    }

    fn maybe(&mut self, number: Option<u32>) {
        self.bytes.push(u8::from(number.is_some()));
        self.number(number.unwrap_or_default());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn set(&mut self, set: &CpuSet) {
        self.text(&set.to_string());
    }

    fn digest(self) -> String {
        Hasher::new().update(&self.bytes).finalize().to_hex().to_string()
    }
}
