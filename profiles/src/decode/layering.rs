//! How profiles lie over each other, as data: `extends` lays a file over those it names, `when` its nodes over the rest.

use vmprof_document::{Key, Layering, Over, Rule};

const fn rule(within: &'static str, node: &'static str, key: Key, over: Over) -> Rule {
    Rule { within, node, key, over, drops: &[] }
}

const PROFILE: &str = "profile";

/// The rules that `docs/profile.md` tells under `extends`.
pub(super) static LAYERING: Layering = Layering {
    root: PROFILE,
    extends: "extends",
    accumulated: &["when", "assert"],
    // A description is about the file that it stands in.
    own: &["description"],
    paths: &["guest"],
    path_properties: &[],
    rules: &[
        rule(PROFILE, "disk", Key::Argument, Over::Pieces),
        rule(PROFILE, "net", Key::ArgumentAnd("name"), Over::Pieces),
        // Two ports are two forwards, so the protocol alone does not tell which one is meant.
        rule("net", "forward", Key::ArgumentAnd("host"), Over::Pieces),
        rule("vcpupin", "vcpu", Key::Argument, Over::Pieces),
        rule("iothreadpin", "iothread", Key::Argument, Over::Pieces),
        rule("iothread-vq-mapping", "iothread", Key::Argument, Over::Pieces),
        rule("vcpu", "vcpupin", Key::Name, Over::WordOrBraces),
        rule("iothreads", "iothreadpin", Key::Name, Over::WordOrBraces),
        rule("disk", "iothread-vq-mapping", Key::Name, Over::WordOrBraces),
        rule(PROFILE, "emulatorpin", Key::Name, Over::Whole),
        // `iothreads 1` over `iothreads auto max=8`: the bounds belong to `auto`.
        rule(PROFILE, "iothreads", Key::Name, Over::ArgumentOverProperties),
        Rule {
            within: "disk",
            node: "source",
            key: Key::Name,
            over: Over::Pieces,
            drops: &[("file", &["dev"]), ("dev", &["file", "size"])],
        },
        Rule {
            within: "disk",
            node: "driver",
            key: Key::Name,
            over: Over::Pieces,
            drops: &[("aio", &["io"]), ("io", &["aio"])],
        },
    ],
};
