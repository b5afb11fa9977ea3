//! `host { cpuset …; smt …; numa … }`.

use vmprof_document::{Node, SourceSpan};

use super::Reading;
use crate::profile::{HostWish, Smt, Written};

impl<'a> Reading<'a> {
    /// What the profile asks of the host, and where it asks for siblings in pairs.
    pub(super) fn host(&self, node: Node<'a>) -> (HostWish, Option<SourceSpan>) {
        let block = node.children();
        let cpuset = block.only("cpuset").and_then(|node| {
            let set = node
                .required_arg("which CPUs", "write `cpuset \"2-7\"`")
                .and_then(|v| self.list_with_exclusions(v, "CPUs"));
            node.finish();
            set
        });
        let smt = block.only("smt").and_then(|node| self.smt(node));
        let node_wish = block.only("numa").and_then(|node| self.numa(node));
        block.finish();
        node.finish();
        let paired = smt.filter(|(smt, _)| *smt == Smt::Require).map(|(_, span)| span);
        let smt = smt.map_or(Smt::default(), |(smt, _)| smt);
        (HostWish { cpuset, smt, node: node_wish }, paired)
    }

    fn smt(&self, node: Node<'a>) -> Option<(Smt, SourceSpan)> {
        let words = [("prefer", Smt::Prefer), ("isolate", Smt::Isolate), ("require", Smt::Require)];
        let help = "write `smt prefer`, `smt isolate` or `smt require`";
        let value = node.required_arg("what to do with siblings", help);
        let smt = value.and_then(|v| Some((v.word(&words)?, v.span())));
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
