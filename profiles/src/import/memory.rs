//! A domain's memory: how much, on which pages and nodes.

use vmprof_document::{Problem, format_size};

use super::draft::{Draft, quoted};
use super::libvirt::Reading;
use super::xml::{Xml, child, children, elements, text};
use super::{AREA, quantities, unsaid};

/// Guest memory comes in steps of this.
const MEMORY_STEP: u64 = 2 << 20;

impl<'a, 'x> Reading<'a, 'x> {
    pub(super) fn memory(&mut self, root: Xml<'a, 'x>) -> Result<Draft, Problem> {
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
        self.leave_attributes("memory", node, &["unit"]);
        let backing = child(root, "memoryBacking");
        for node in backing.into_iter().flat_map(elements) {
            match node.tag_name().name() {
                "hugepages" => self.hugepages(node, &mut memory),
                // How vmprof itself has it.
                "allocation"
                    if node.attribute("mode") == Some("immediate")
                        && backing.is_some_and(|b| child(b, "hugepages").is_some()) =>
                {
                    self.leave_attributes("allocation", node, &["mode"]);
                }
                "source" if node.attribute("type") == Some("memfd") => {}
                _ => self.leave_whole("memoryBacking", node),
            }
        }
        if let Some(numatune) = child(root, "numatune") {
            self.numatune(numatune, &mut memory);
        }
        Ok(memory)
    }

    pub(super) fn hugepages(&mut self, node: Xml<'a, 'x>, memory: &mut Draft) {
        let pages: Vec<_> = children(node, "page").collect();
        let size = match pages.as_slice() {
            [] => {
                memory.comment("The domain names no size of its hugepages; the hosts' own default is 2 MiB.");
                Some("2MiB")
            }
            [page] => {
                self.leave_attributes("page", *page, &["size", "unit"]);
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

    pub(super) fn numatune(&mut self, numatune: Xml<'a, 'x>, memory: &mut Draft) {
        for node in elements(numatune) {
            if node.tag_name().name() != "memory" {
                self.leave_whole("numatune", node);
                continue;
            }
            let mode = node.attribute("mode").unwrap_or("strict");
            if let Some(placement) = node.attribute("placement").filter(|placement| *placement != "static") {
                self.leave(
                    node,
                    format!("numatune placement='{placement}'"),
                    "vmprof's planner finds the node, not numad",
                );
            }
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
}
