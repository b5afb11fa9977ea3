//! `memory "2GiB" hugepages=auto nodes="0-1" mode=interleave`.

use vmprof_document::{Node, format_size};

use super::Reading;
use crate::profile::{Hugepages, Memory, MemoryMode, PageSize};

/// Less than this boots no kernel that vmprof builds.
pub(crate) const LEAST_MEMORY_BYTES: u64 = 64 << 20;
/// Sizes are whole multiples of this, so that any guest can be backed by hugepages.
pub(crate) const MEMORY_STEP_BYTES: u64 = 2 << 20;

impl<'a> Reading<'a> {
    pub(super) fn memory(&self, node: Node<'a>) -> Option<Memory> {
        let value = node.required_arg("how much", "write `memory \"2GiB\"`");
        let bytes = value.and_then(|v| {
            let bytes = v.bytes()?;
            if bytes < LEAST_MEMORY_BYTES || !bytes.is_multiple_of(MEMORY_STEP_BYTES) {
                let least = format_size(LEAST_MEMORY_BYTES);
                self.findings.push(
                    v.problem("bad_memory", format!("a guest cannot have {} of memory", format_size(bytes)))
                        .help(format!(
                            "write {least} or more, in whole multiples of {}",
                            format_size(MEMORY_STEP_BYTES)
                        )),
                );
                return None;
            }
            Some(self.written(v, bytes))
        });
        let words = [
            ("none", None),
            ("auto", Some(None)),
            ("2MiB", Some(Some(PageSize::Mib2))),
            ("1GiB", Some(Some(PageSize::Gib1))),
        ];
        let hugepages = node.prop("hugepages").and_then(|v| {
            Some(match v.word(&words)? {
                None => Hugepages::None,
                Some(None) => Hugepages::Auto,
                Some(Some(size)) => Hugepages::Required(self.written(v, size)),
            })
        });
        let nodes = node.prop("nodes").and_then(|v| self.list_with_exclusions(v, "nodes"));
        let modes = [
            ("strict", MemoryMode::Strict),
            ("preferred", MemoryMode::Preferred),
            ("interleave", MemoryMode::Interleave),
        ];
        let mode = node.prop("mode").and_then(|v| v.word(&modes));
        node.finish();
        let memory = Memory {
            bytes: bytes?,
            hugepages: hugepages.unwrap_or(Hugepages::None),
            nodes,
            mode: mode.unwrap_or_default(),
        };
        if let Hugepages::Required(size) = &memory.hugepages
            && !memory.bytes.value.is_multiple_of(size.value.bytes())
        {
            let page = format_size(size.value.bytes());
            self.findings.push(
                self.findings
                    .error(
                        "bad_memory",
                        format!("{} is not a whole number of {page} pages", format_size(memory.bytes.value)),
                    )
                    .at(memory.bytes.span, "this much")
                    .at(size.span, "in these pages")
                    .help(format!("write a multiple of {page}")),
            );
        }
        Some(memory)
    }
}
