//! `host { cpuset …; smt …; numa … }`.

use vmprof_document::Node;

use super::Reading;
use crate::profile::{HostWish, Smt, Written};

impl<'a> Reading<'a> {
    pub(super) fn host(&self, node: Node<'a>) -> HostWish {
        let block = node.children();
        let cpuset = block.only("cpuset").and_then(|node| {
            let set = node
                .required_arg("which CPUs", "write `cpuset \"2-7\"`")
                .and_then(|v| self.id_list(v, "CPUs"));
            node.finish();
            set
        });
        let smt = block.only("smt").and_then(|node| self.smt(node)).unwrap_or_default();
        let node_wish = block.only("numa").and_then(|node| self.numa(node));
        block.finish();
        node.finish();
        HostWish { cpuset, smt, node: node_wish }
    }

    fn smt(&self, node: Node<'a>) -> Option<Smt> {
        #[derive(Clone, Copy)]
        enum Word {
            Known(Smt),
            Require,
        }
        let words = [
            ("prefer", Word::Known(Smt::Prefer)),
            ("isolate", Word::Known(Smt::Isolate)),
            ("require", Word::Require),
        ];
        let value = node.required_arg("what to do with siblings", "write `smt prefer` or `smt isolate`");
        let smt = value.and_then(|v| match v.word(&words)? {
            Word::Known(smt) => Some(smt),
            Word::Require => {
                // Pairing guest threads on siblings without showing the guest that they are siblings would be half of
                // what the word promises.
                self.findings.push(
                    v.problem("not_supported_yet", "`smt require` is not supported yet")
                        .help("write `smt prefer`: it takes siblings when whole cores run out"),
                );
                None
            }
        });
        node.finish();
        smt
    }

    fn numa(&self, node: Node<'a>) -> Option<Written<u32>> {
        let value = node.required_prop("node", "write `numa node=auto` or `numa node=0`");
        let wish = value.and_then(|v| {
            if v.raw().is_integer() {
                let id = v.u64(0..=1023)?;
                return Some(self.written(v, u32::try_from(id).ok()?));
            }
            v.word(&[("auto", ())])?;
            None
        });
        node.finish();
        wish
    }
}
