//! `ready`: how a service shows that it can be used.

use vmprof_document::Node;
use vmprof_job::{Ready, ServiceKind};

use super::services::Surroundings;
use super::{LONGEST_MS, absolute, argv};
use crate::recipe::conduct::DEFAULT_READY_MS;

/// sun_path, less the closing zero: unix(7).
const LONGEST_SOCKET_PATH: usize = 107;
const WAYS: &str = "write one of `ready started`, `ready notify`, `ready command \"/usr/bin/program\"`, \
                    `ready unix=\"/run/name\"` and `ready tcp=5432`";

#[derive(Debug, Clone, Copy)]
enum Word {
    Started,
    Notify,
    Command,
}

/// The way, and how long it may take in milliseconds; `None` for what was reported.
pub(super) fn ready(
    node: Node<'_>,
    kind: Option<ServiceKind>,
    surroundings: &Surroundings,
) -> (Option<Ready>, Option<u64>) {
    let found = node.findings();
    let (unix, tcp) = (node.prop("unix"), node.prop("tcp"));
    let within = match node.prop("timeout") {
        None => Some(DEFAULT_READY_MS),
        Some(value) => value.duration_ms(1..=LONGEST_MS),
    };
    let word = node.arg("the way");
    let ways = usize::from(unix.is_some()) + usize::from(tcp.is_some()) + usize::from(word.is_some());
    let ready = if ways > 1 {
        let message = "`ready` is told several ways to know it";
        found.push(node.problem("contradiction", message).help(WAYS));
        drop(node.args("a word of the command"));
        None
    } else if let Some(value) = unix {
        absolute(found, value).and_then(|path| {
            if path.len() > LONGEST_SOCKET_PATH {
                let message = format!("a socket's path ends at {LONGEST_SOCKET_PATH} bytes");
                found.push(value.problem("bad_path", message).help("choose a shorter path"));
                return None;
            }
            Some(Ready::Unix { path })
        })
    } else if let Some(value) = tcp {
        value.u64(1..=65535).and_then(|port| u16::try_from(port).ok()).map(|port| Ready::Tcp { port })
    } else if let Some(value) = word {
        let words = [("started", Word::Started), ("notify", Word::Notify), ("command", Word::Command)];
        value.word(&words).map(|word| match word {
            Word::Started => Ready::Started,
            Word::Notify => Ready::Notify,
            Word::Command => Ready::Command(surroundings.step(argv(&node))),
        })
    } else if node.has_entries() {
        // A time alone, or a misspelt property that is reported when the node is finished.
        Some(Ready::Started)
    } else {
        let problem = node.problem("missing_argument", "`ready` does not say how the service shows it");
        found.push(problem.help(WAYS));
        None
    };
    if let (Some(ready), Some(ServiceKind::Once)) = (&ready, kind)
        && *ready != Ready::Started
    {
        let problem = node.problem("contradiction", "what runs once is ready when it has ended well");
        found.push(problem.help("leave the way out; `ready timeout=\"5m\"` alone says how long it may take"));
    }
    node.finish();
    (ready, within)
}
