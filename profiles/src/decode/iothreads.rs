//! `iothreads N|auto min=… max=… { iothreadpin …; poll-max-ns …; poll-grow …; poll-shrink …; registered-memory; sqpoll … }`.

use vmprof_document::Node;

use super::{PinWord, Reading};
use crate::profile::{IoThreadCount, IoThreads, SqPoll, ThreadPins};

/// As many IOThreads as anyone has threads to spare for.
pub(crate) const MOST_IOTHREADS: u64 = 64;
/// Rule 4: 4 to 8 IOThreads saturate a drive, and `auto` goes no further unless the profile says so.
const AUTO_MAX: u32 = 8;
/// How long the kernel's thread looks in vain where nobody says: it wakes slowly, and burns its CPU while it looks.
const SQPOLL_IDLE_MS: u32 = 50;

impl<'a> Reading<'a> {
    pub(super) fn iothreads(&self, node: Option<Node<'a>>) -> Option<IoThreads> {
        let Some(node) = node else {
            let count = IoThreadCount::Auto { min: 1, max: AUTO_MAX };
            return Some(IoThreads {
                count,
                pin: ThreadPins::Auto,
                poll_max_ns: None,
                poll_grow: None,
                poll_shrink: None,
                registered_memory: false,
                sqpoll: None,
            });
        };
        let count = self.iothread_count(&node);
        let block = node.children();
        let pin = block.only("iothreadpin").map_or(ThreadPins::Auto, |pin| self.iothreadpin(pin));
        let poll_max_ns = block.only("poll-max-ns").and_then(|node| {
            let ns = node
                .required_arg("how long", "write nanoseconds: `poll-max-ns 32768`")
                .and_then(|v| v.u64(0..=1_000_000_000));
            node.finish();
            ns
        });
        let factor = |name: &'static str| {
            let node = block.only(name)?;
            let factor = node
                .required_arg("the factor", "write a whole number, such as 2")
                .and_then(|v| v.u64(0..=1_000_000))
                .and_then(|n| u32::try_from(n).ok());
            node.finish();
            factor
        };
        let (poll_grow, poll_shrink) = (factor("poll-grow"), factor("poll-shrink"));
        let registered_memory = block.only("registered-memory").and_then(|node| self.flag(node)).is_some();
        let sqpoll = block.only("sqpoll").and_then(|node| self.sqpoll(node));
        block.finish();
        node.finish();
        let count = count?;
        Some(IoThreads { count, pin, poll_max_ns, poll_grow, poll_shrink, registered_memory, sqpoll })
    }

    fn sqpoll(&self, node: Node<'a>) -> Option<SqPoll> {
        let cpus = node
            .required_prop(
                "cpuset",
                "name the CPUs of the kernel's threads, one for each IOThread: `cpuset=\"6\"`",
            )
            .and_then(|v| self.list_with_exclusions(v, "CPUs"));
        let idle_ms = match node.prop("idle-ms") {
            Some(v) => v.u64(1..=60_000).and_then(|ms| u32::try_from(ms).ok()),
            None => Some(SQPOLL_IDLE_MS),
        };
        node.finish();
        Some(SqPoll { cpus: cpus?, idle_ms: idle_ms? })
    }

    fn iothread_count(&self, node: &Node<'a>) -> Option<IoThreadCount> {
        let value = node.required_arg("how many", "write `iothreads 2` or `iothreads auto`")?;
        let (min, max) = (node.prop("min"), node.prop("max"));
        if value.raw().is_integer() {
            for bound in [min, max].into_iter().flatten() {
                self.findings.push(
                    bound
                        .problem(
                            "bound_without_auto",
                            format!("`{}` belongs to `iothreads auto`", bound.what()),
                        )
                        .help("remove it, or write `iothreads auto`"),
                );
            }
            let count = value.u64(1..=MOST_IOTHREADS)?;
            return Some(IoThreadCount::Fixed(self.written(value, u32::try_from(count).ok()?)));
        }
        value.word(&[("auto", ())])?;
        let bound = |v: Option<vmprof_document::Value<'a>>, unsaid: u32| match v {
            Some(v) => v.u64(1..=MOST_IOTHREADS).and_then(|n| u32::try_from(n).ok()),
            None => Some(unsaid),
        };
        let low = bound(min, 1)?;
        let high = bound(max, AUTO_MAX.max(low))?;
        if low > high {
            if let Some(at) = min.or(max) {
                self.findings.push(
                    at.problem("bounds_cross", format!("`min={low}` is more than `max={high}`"))
                        .help("write a `min` that is no larger than `max`"),
                );
            }
            return None;
        }
        Some(IoThreadCount::Auto { min: low, max: high })
    }

    fn iothreadpin(&self, node: Node<'a>) -> ThreadPins {
        let line = node.line();
        let words = [("auto", PinWord::Auto), ("none", PinWord::None), ("emulator", PinWord::Emulator)];
        let word = self.pin_word(&node, &words);
        let block = node.children();
        let pins = self.pins(&block, "iothread");
        block.finish();
        if matches!(word, Some(PinWord::None | PinWord::Emulator)) && !pins.is_empty() {
            self.findings.push(
                node.problem("pin_and_none", "`iothreadpin` says where all IOThreads go, and then pins some")
                    .help("write `iothreadpin auto { … }`: what is not pinned in the braces is placed"),
            );
        }
        node.finish();
        match word {
            Some(PinWord::None) => ThreadPins::Float { line },
            Some(PinWord::Emulator) => ThreadPins::Emulator { line },
            _ if pins.is_empty() => ThreadPins::Auto,
            _ => ThreadPins::Explicit(pins),
        }
    }
}
