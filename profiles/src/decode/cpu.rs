//! `vcpu N { vcpupin … }` and `emulatorpin …`.

use vmprof_document::{Node, SourceSpan, Value};

use super::{PinWord, Reading};
use crate::profile::{EmulatorPin, ThreadPins, Vcpus};

/// More vCPUs than this need interrupt hardware that vmprof's guests do not have.
pub(crate) const MOST_VCPUS: u64 = 254;

impl<'a> Reading<'a> {
    /// `paired` is where the profile asks for siblings in pairs.
    pub(super) fn vcpus(&self, node: Node<'a>, paired: Option<SourceSpan>) -> Option<Vcpus> {
        let count = node
            .required_arg("how many", "write `vcpu 4`")
            .and_then(|v| v.u64(1..=MOST_VCPUS).filter(|count| self.paired(*count, v.span(), paired)));
        let block = node.children();
        let pin = block.only("vcpupin").map_or(ThreadPins::Auto, |pin| self.vcpupin(pin));
        block.finish();
        node.finish();
        Some(Vcpus { count: u32::try_from(count?).ok()?, pin })
    }

    /// With `smt require` every vCPU has a sibling, so their number is even.
    fn paired(&self, count: u64, at: SourceSpan, paired: Option<SourceSpan>) -> bool {
        let Some(require) = paired.filter(|_| !count.is_multiple_of(2)) else { return true };
        self.findings.push(
            self.findings
                .error("odd_vcpus", format!("`smt require` pairs vCPUs on siblings, and {count} is odd"))
                .at(at, "one is left over")
                .at(require, "pairs them")
                .help(format!("write `vcpu {}`, or `smt prefer`", count + 1)),
        );
        false
    }

    fn vcpupin(&self, node: Node<'a>) -> ThreadPins {
        let word = self.pin_word(&node, &[("auto", PinWord::Auto), ("none", PinWord::None)]);
        let block = node.children();
        let pins = self.pins(&block, "vcpu");
        block.finish();
        let line = node.line();
        if word == Some(PinWord::None) && !pins.is_empty() {
            self.findings.push(
                node.problem("pin_and_none", "`vcpupin none` lets every vCPU float, and then pins some")
                    .help("write `vcpupin auto { … }`: what is not pinned in the braces is placed"),
            );
        }
        node.finish();
        match word {
            Some(PinWord::None) => ThreadPins::Float { line },
            _ if pins.is_empty() => ThreadPins::Auto,
            _ => ThreadPins::Explicit(pins),
        }
    }

    pub(super) fn emulator(&self, node: Option<Node<'a>>) -> EmulatorPin {
        let Some(node) = node else { return EmulatorPin::Auto };
        let line = node.line();
        // A list can stand alone: `emulatorpin "0-1"`.
        let lone = |v: &Value<'a>| {
            v.raw().is_integer()
                || v.raw()
                    .as_string()
                    .is_some_and(|s| s.starts_with(|c: char| c.is_ascii_digit() || c == '^'))
        };
        let arg = node.arg("the pinning");
        let list = arg.filter(lone);
        let words = [("auto", PinWord::Auto), ("none", PinWord::None)];
        let word = arg.filter(|v| !lone(v)).and_then(|v| v.word(&words));
        let prop = node.prop("cpuset");
        if let (Some(_), Some(prop)) = (list, &prop) {
            self.findings.push(
                prop.problem("pin_and_word", "`emulatorpin` is given two lists of CPUs")
                    .help("keep one of them"),
            );
        }
        let set = prop.or(list);
        if let (Some(_), Some(set)) = (word, &set) {
            self.findings.push(
                set.problem("pin_and_word", "`emulatorpin` is given a word and a `cpuset`")
                    .help("keep one of them"),
            );
        }
        let set = set.and_then(|v| self.list_with_exclusions(v, "CPUs"));
        node.finish();
        match (word, set) {
            (_, Some(set)) => EmulatorPin::Explicit(set),
            (Some(PinWord::None), None) => EmulatorPin::Float { line },
            _ => EmulatorPin::Auto,
        }
    }
}
