//! How recipes lie over each other, as data: `extends` lays a file over those it names.

use vmprof_document::{Key, Layering, Over, Rule};

const fn rule(within: &'static str, node: &'static str, key: Key, over: Over) -> Rule {
    Rule { within, node, key, over, drops: &[] }
}

const GUEST: &str = "guest";

/// The rules that `docs/guests.md` tells under `extends`.
pub(super) static LAYERING: Layering = Layering {
    root: GUEST,
    extends: "extends",
    accumulated: &["packages", "modules"],
    // A description and a lock are about the file that they stand in.
    own: &["description", "lock"],
    paths: &[],
    path_properties: &[
        ("file", "from"),
        ("root", "oci"),
        ("root", "tar"),
        ("kernel", "path"),
        ("kernel", "modules"),
    ],
    rules: &[
        rule(GUEST, "file", Key::Argument, Over::Whole),
        rule(GUEST, "directory", Key::Argument, Over::Whole),
        rule(GUEST, "link", Key::Argument, Over::Whole),
        rule(GUEST, "user", Key::Argument, Over::Whole),
        rule(GUEST, "group", Key::Argument, Over::Whole),
        rule(GUEST, "service", Key::Argument, Over::Whole),
        rule(GUEST, "mount", Key::Argument, Over::Whole),
        rule(GUEST, "root", Key::Name, Over::Whole),
        rule(GUEST, "init", Key::Name, Over::WordOrBraces),
        rule("init", "enable", Key::Name, Over::Beside),
        rule("init", "mask", Key::Name, Over::Beside),
        rule(GUEST, "image", Key::Name, Over::WordOrBraces),
        rule("image", "format", Key::Name, Over::Whole),
        rule("image", "exclude", Key::Name, Over::Beside),
        Rule {
            within: GUEST,
            node: "kernel",
            key: Key::Name,
            over: Over::Pieces,
            drops: &[("package", &["path", "modules"]), ("path", &["package", "modules"])],
        },
    ],
};
