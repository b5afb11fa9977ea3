//! `iothread-vq-mapping round-robin` or `locality`, or children `iothread 0 vqs="0,2"`.

use vmprof_document::Node;

use super::Reading;
use crate::profile::{IoThreads, Mapping};
use crate::topology::CpuSet;
use crate::validate::{self, Entry};

impl<'a> Reading<'a> {
    /// Reads a mapping and checks it against the disk's queues and the profile's IOThreads, where those are known.
    pub(super) fn mapping(
        &self,
        node: Node<'a>,
        queues: Option<u32>,
        iothreads: Option<&IoThreads>,
    ) -> Option<Mapping> {
        let value = node.arg("the mapping");
        let local = value.map(|v| v.word(&[("round-robin", false), ("locality", true)]));
        let word = local.map(|local| Some(if local? { Mapping::Locality } else { Mapping::RoundRobin }));
        let block = node.children();
        let nodes = block.all("iothread");
        let wanted = nodes.len();
        let entries: Vec<Entry> = nodes.into_iter().filter_map(|node| self.entry(node)).collect();
        block.finish();
        let span = node.name_span();
        if value.is_some() && wanted > 0 {
            self.findings.push(
                node.problem("mapping_twice", "the mapping is a word and a list of IOThreads")
                    .help("keep the word, or the braces with `iothread` in them"),
            );
        } else if value.is_none() && wanted == 0 && !node.has_props() {
            // It knows no properties: where there are some, they are refused with what to write.
            self.findings
                .push(node.problem("missing_argument", "`iothread-vq-mapping` does not say how").help(
                "write `iothread-vq-mapping round-robin`, or `iothread 0 vqs=\"0,2\"` and so on in braces",
            ));
        }
        node.finish();
        match word {
            Some(word) => word,
            None if wanted == 0 || entries.len() != wanted => None,
            None => validate::mapping(self.findings, span, &entries, queues, iothreads),
        }
    }

    fn entry(&self, node: Node<'a>) -> Option<Entry> {
        let id = node
            .required_arg("which one", "write its number, counted from 0")
            .and_then(|v| Some((v.u64(0..=1023)?, v.span())));
        let vqs = node.prop("vqs");
        let list = match vqs {
            Some(value) => {
                let set = self.id_list(value, "virtqueues");
                // Inside one list, too, a queue may stand once.
                if let (Some(set), Some(text)) = (&set, value.raw().as_string()) {
                    let each: usize =
                        text.split(',').filter_map(|p| p.parse::<CpuSet>().ok()).map(|s| s.len()).sum();
                    if each > set.value.len() {
                        self.findings.push(
                            value
                                .problem(
                                    "vq_used_twice",
                                    format!("the list \"{text}\" names a virtqueue twice"),
                                )
                                .help(format!("write \"{}\"", set.value)),
                        );
                    }
                }
                Some(set?)
            }
            None => None,
        };
        let place = node.name_span();
        node.finish();
        let (iothread, span) = id?;
        Some(Entry {
            iothread: u32::try_from(iothread).ok()?,
            span,
            place,
            vqs: list.map(|l| (l.value.iter().collect(), l.span)),
        })
    }
}
