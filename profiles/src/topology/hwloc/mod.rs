//! A machine as hwloc's tools describe it in XML (`lstopo --of xml`), versions 1 and 2 and what version 3 writes alike →
//! [`Topology`].
//!
//! Most objects carry the CPUs they stand for as a mask, so that it hardly matters how the tree nests them: version 1
//! puts cores into NUMA nodes, later ones hang nodes beside what they are local to. What the format does not have is
//! unknown: which CPUs are isolated, how many hugepages are free, a drive's queues.

mod distances;
mod text;

use std::collections::BTreeMap;

use roxmltree::{Document, Node as Element};

use super::{BlockDevice, CoreKind, Cpu, CpuSet, Node, Topology};
pub use text::HwlocError;
pub(super) use text::parse;

/// The topology of a parsed file.
pub(super) fn read(document: &Document<'_>) -> Result<Topology, HwlocError> {
    let root = document.root_element();
    let mut objects: BTreeMap<Kind, Vec<Object<'_, '_>>> = BTreeMap::new();
    let mut words_left = MOST_WORDS;
    for element in root.descendants().filter(|node| node.has_tag_name("object")) {
        let type_name = element.attribute("type").unwrap_or_default();
        if let Some(kind) = Kind::of(type_name, element) {
            objects.entry(kind).or_default().push(Object::of(element, kind, &mut words_left)?);
        }
    }
    let of = |kind: Kind| objects.get(&kind).map_or(&[][..], Vec::as_slice);
    let machine = of(Kind::Machine).first();
    let Some(machine) = machine else {
        return Err(HwlocError::of(root, "no object of type `Machine`"));
    };
    let online: CpuSet = of(Kind::Pu).iter().filter_map(|pu| pu.id).collect();
    if online.is_empty() {
        return Err(HwlocError::of(root, "no object of type `PU`, so no CPU"));
    }
    let mut doubts = Vec::new();
    let nodes = nodes(of(Kind::NumaNode), root, &online, &mut doubts);
    let ids: CpuSet = nodes.keys().copied().collect();
    let mask = |name: &str| mask(machine.element, name);
    let allowed_nodes = mask("allowed_nodeset")?.map(|set| set.and(&ids)).filter(|set| !set.is_empty());
    let online_too = mask("online_cpuset")?;
    let offline = match (mask("complete_cpuset")?, online_too) {
        // Version 1 says which are switched off; later ones leave that and what is forbidden in one set.
        (Some(all), Some(on)) if all.len() < CpuSet::LIMIT as usize / 2 => all.minus(&on).minus(&online),
        _ => CpuSet::new(),
    };
    Ok(Topology {
        arch: info(root, machine.element, "Architecture"),
        offline,
        affinity: mask("allowed_cpuset")?.map(|set| set.and(&online)).filter(|set| !set.is_empty()),
        allowed_nodes,
        cpus: cpus(&of, &online, &nodes, root)?,
        block: drives(root, &ids),
        nodes,
        online,
        doubts,
        ..Topology::default()
    })
}

/// Of 64 bits, in the masks of all objects: those of 4,096 CPUs need a tenth.
const MOST_WORDS: usize = 4 << 20;
/// Kinds of core in one machine.
const MOST_KINDS: usize = 64;
/// Block devices in one machine.
const MOST_DRIVES: usize = 4096;

/// The objects that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Machine,
    Package,
    Die,
    Cluster,
    L3,
    L2,
    Core,
    Pu,
    NumaNode,
}

impl Kind {
    fn of(name: &str, element: Element<'_, '_>) -> Option<Kind> {
        let depth = element.attribute("depth");
        let unified = element.attribute("cache_type").is_none_or(|kind| kind == "0");
        Some(match name {
            "Machine" => Kind::Machine,
            "Package" | "Socket" => Kind::Package,
            "Die" => Kind::Die,
            "Group" if element.attribute("subtype") == Some("Cluster") => Kind::Cluster,
            "L3Cache" => Kind::L3,
            "L2Cache" => Kind::L2,
            "Cache" if unified && depth == Some("3") => Kind::L3,
            "Cache" if unified && depth == Some("2") => Kind::L2,
            "Core" => Kind::Core,
            "PU" => Kind::Pu,
            "NUMANode" => Kind::NumaNode,
            _ => return None,
        })
    }
}

/// An object, its number and its CPUs.
#[derive(Debug, Clone)]
struct Object<'d, 'i> {
    element: Element<'d, 'i>,
    /// The operating system's number.
    id: Option<u32>,
    cpus: CpuSet,
}

impl<'d, 'i> Object<'d, 'i> {
    fn of(element: Element<'d, 'i>, kind: Kind, words_left: &mut usize) -> Result<Self, HwlocError> {
        let id = match element.attribute("os_index") {
            Some(text) => match text.parse::<u32>() {
                // -1 as an unsigned number is hwloc's word for unknown.
                Ok(u32::MAX) => None,
                // Numbers of packages and cores are the firmware's, and may be any.
                Ok(id) if id < CpuSet::LIMIT || !matches!(kind, Kind::Pu | Kind::NumaNode) => Some(id),
                _ => return Err(HwlocError::of(element, format!("`os_index=\"{text}\"` is no id"))),
            },
            None => None,
        };
        // A PU is one CPU, which its number says.
        let cpus = if kind == Kind::Pu { None } else { mask(element, "cpuset")? }.unwrap_or_default();
        let words = cpus.last().map_or(0, |last| last as usize / 64 + 1);
        let Some(left) = words_left.checked_sub(words) else {
            return Err(HwlocError::of(element, "the masks up to here are larger than any machine's"));
        };
        *words_left = left;
        Ok(Object { element, id, cpus })
    }
}

fn mask(element: Element<'_, '_>, name: &str) -> Result<Option<CpuSet>, HwlocError> {
    let Some(text) = element.attribute(name) else { return Ok(None) };
    let set = CpuSet::from_mask(text);
    set.map(Some).map_err(|error| HwlocError::of(element, format!("`{name}` is no mask: {error}")))
}

/// A fact by name: of the whole topology (version 3), or of its machine.
fn info(root: Element<'_, '_>, machine: Element<'_, '_>, name: &str) -> Option<String> {
    let infos = root.children().chain(machine.children()).filter(|node| node.has_tag_name("info"));
    let mut named = infos.filter(|node| node.attribute("name") == Some(name));
    named.next()?.attribute("value").map(str::to_owned)
}

fn nodes(
    objects: &[Object<'_, '_>],
    root: Element<'_, '_>,
    online: &CpuSet,
    doubts: &mut Vec<String>,
) -> BTreeMap<u32, Node> {
    // hwloc gives a node without CPUs of its own those that it is near to. A CPU is on the node that is nearest to it
    // alone, of equals on the one with the lowest id, which is the kernel's choice for DRAM.
    let mut nearest: Vec<(&Object<'_, '_>, u32)> = objects.iter().filter_map(|o| Some((o, o.id?))).collect();
    let special = |object: &Object<'_, '_>| object.element.attribute("subtype").is_some_and(|s| s != "DRAM");
    nearest.sort_by_key(|(object, id)| (special(object), object.cpus.len(), *id));
    let ids: Vec<u32> = objects.iter().filter_map(|object| object.id).collect();
    let mut distances = distances::distances(root, &ids).unwrap_or_default();
    let mut taken = CpuSet::new();
    let mut nodes = BTreeMap::new();
    let mut counted = CpuSet::new();
    for (object, id) in nearest {
        let cpus = object.cpus.and(online).minus(&taken);
        taken.extend_with(&cpus);
        let mut free_hugepages = BTreeMap::new();
        for page in object.element.children().filter(|node| node.has_tag_name("page_type")) {
            let number = |name: &str| page.attribute(name)?.parse::<u64>().ok();
            // The file has how many pages there are, not how many are free: of none, none is.
            match (number("size"), number("count")) {
                (Some(size), Some(0)) if size > BASE_PAGE_MOST => _ = free_hugepages.insert(size, 0),
                (Some(size), Some(_)) if size > BASE_PAGE_MOST => counted.insert(id),
                _ => {}
            }
        }
        let memory = object.element.attribute("local_memory");
        let distance = distances.remove(&id).unwrap_or_default();
        // A node without memory has no such attribute.
        let memory_bytes = memory.map_or(Some(0), |bytes| bytes.parse().ok());
        nodes.insert(id, Node { cpus, distance, memory_bytes, free_bytes: None, free_hugepages });
    }
    if !counted.is_empty() {
        doubts.push(format!("how many hugepages of nodes {counted} are free"));
    }
    nodes
}

/// The largest page that is an ordinary one on some machine: 64 KiB on arm64 and POWER.
const BASE_PAGE_MOST: u64 = 64 << 10;

fn cpus<'o>(
    of: &dyn Fn(Kind) -> &'o [Object<'o, 'o>],
    online: &CpuSet,
    nodes: &BTreeMap<u32, Node>,
    root: Element<'_, '_>,
) -> Result<BTreeMap<u32, Cpu>, HwlocError> {
    // Each CPU's group, named by its lowest CPU. The first object to name a CPU has it.
    let named = |kind: Kind| -> BTreeMap<u32, u32> {
        let mut names = BTreeMap::new();
        let mut left = online.clone();
        for object in of(kind) {
            let own = object.cpus.and(&left);
            left = left.minus(&own);
            names.extend(own.first().into_iter().flat_map(|name| own.iter().map(move |cpu| (cpu, name))));
        }
        names
    };
    let (cores, dies, clusters) = (named(Kind::Core), named(Kind::Die), named(Kind::Cluster));
    let (l2, l3) = (named(Kind::L2), named(Kind::L3));
    let mut packages: BTreeMap<u32, Option<u32>> = BTreeMap::new();
    let mut left = online.clone();
    for object in of(Kind::Package) {
        let own = object.cpus.and(&left);
        left = left.minus(&own);
        packages.extend(own.iter().map(|cpu| (cpu, object.id)));
    }
    let node_of: BTreeMap<u32, u32> =
        nodes.iter().flat_map(|(id, node)| node.cpus.iter().map(move |cpu| (cpu, *id))).collect();
    let kinds = kinds(root)?;
    let cpus = online.iter().map(|cpu| {
        let core = cores.get(&cpu).copied().unwrap_or(cpu);
        let (kind, capacity) = kinds.get(&cpu).copied().unwrap_or((CoreKind::Performance, None));
        let own = Cpu {
            package: packages.get(&core).copied().flatten(),
            die: dies.get(&core).copied(),
            cluster: clusters.get(&core).copied(),
            core,
            l2: l2.get(&core).copied(),
            l3: l3.get(&core).copied(),
            node: node_of.get(&cpu).copied(),
            kind,
            capacity,
        };
        (cpu, own)
    });
    Ok(cpus.collect())
}

/// What each CPU is built for, of machines with more than one kind.
fn kinds(root: Element<'_, '_>) -> Result<BTreeMap<u32, (CoreKind, Option<u32>)>, HwlocError> {
    struct Found {
        cpus: CpuSet,
        core_type: Option<String>,
        capacity: Option<u32>,
        efficiency: Option<i64>,
    }
    let mut found = Vec::new();
    for element in root.children().filter(|n| n.has_tag_name("cpukind")).take(MOST_KINDS) {
        let info = |name: &str| {
            let mut infos = element.children().filter(|node| node.has_tag_name("info"));
            infos.find(|node| node.attribute("name") == Some(name))?.attribute("value").map(str::to_owned)
        };
        found.push(Found {
            cpus: mask(element, "cpuset")?.unwrap_or_default(),
            core_type: info("CoreType"),
            capacity: info("LinuxCapacity").and_then(|text| text.parse().ok()),
            efficiency: element.attribute("forced_efficiency").and_then(|text| text.parse().ok()),
        });
    }
    if found.len() < 2 {
        return Ok(BTreeMap::new());
    }
    let most = found.iter().filter_map(|kind| kind.capacity).max().unwrap_or(0);
    let best = found.iter().filter_map(|kind| kind.efficiency).max();
    let mut kinds = BTreeMap::new();
    for one in &found {
        let economy = match (&one.core_type, one.capacity, one.efficiency) {
            (Some(name), ..) => name.contains("Atom") || name.contains("LowPower"),
            (_, Some(own), _) => u64::from(own) * 4 < u64::from(most) * 3,
            // hwloc's word for fast is a high efficiency; it ranks kinds and measures nothing.
            (_, _, Some(own)) => own >= 0 && Some(own) < best,
            _ => false,
        };
        let kind = if economy { CoreKind::Efficiency } else { CoreKind::Performance };
        for cpu in one.cpus.iter() {
            kinds.entry(cpu).or_insert((kind, one.capacity));
        }
    }
    Ok(kinds)
}

/// Block devices, each on the node of the nearest object around it that is local to one node.
fn drives(root: Element<'_, '_>, ids: &CpuSet) -> BTreeMap<String, BlockDevice> {
    let devices = root.descendants().filter(|node| {
        // Version 3 counts kinds of devices in other numbers, and writes them as a mask.
        let block = node.attribute("osdev_type") == Some("0") || node.attribute("osdev_type") == Some("1");
        let named = node.attribute("type") == Some("OSDev") && node.attribute("name").is_some();
        let has = |name: &str| node.children().any(|info| info.attribute("name") == Some(name));
        let sized = has("SectorSize") || has("LinuxDeviceID") && has("Size");
        named && (block || node.attribute("osdev_type").is_none()) && sized
    });
    let mut masks = BTreeMap::new();
    let drives = devices.take(MOST_DRIVES).filter_map(|device| {
        let info = |name: &str| {
            device.children().find(|info| info.attribute("name") == Some(name))?.attribute("value")
        };
        let mut around = device.ancestors().skip(1).take(text::DEPTH);
        let local = around.find(|object| object.has_attribute("nodeset")).and_then(|object| {
            // Devices stand next to each other: one mask serves many.
            let known =
                masks.entry(object.id().get()).or_insert_with(|| mask(object, "nodeset").ok().flatten());
            known.as_ref().map(|nodes| nodes.and(ids)).filter(|nodes| nodes.len() == 1)
        });
        let drive = BlockDevice {
            node: local.and_then(|nodes| nodes.first()),
            logical_block_bytes: info("SectorSize").and_then(|text| text.parse().ok()),
            numbers: info("LinuxDeviceID").map(str::to_owned),
            ..BlockDevice::default()
        };
        Some((device.attribute("name")?.to_owned(), drive))
    });
    drives.collect()
}
