//! KDL text → [`Recipe`]: one file per kind of node below, each with its rules and what to write instead; here the guest as
//! a whole, the rules between its nodes, and what several nodes read alike.

mod beside;
mod environment;
mod files;
mod foreign;
mod image;
mod layering;
mod mounts;
mod probes;
mod services;
mod sources;
mod systemd;
mod users;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmprof_document::{Block, Document, Findings, Load, Node, Problems, Value};

use self::beside::Beside;
use super::conduct::Said;
use super::words::{Form, HOST_NAME, MODULE, PLAIN_NAME};
use super::{Conduct, Image, ImageConfig, Init, Kernel, Recipe, Root};

pub(crate) const AREA: &str = "vmprof::guest";

/// Mounted over when the guest starts: what lies there in the image cannot be seen.
const MOUNTED_OVER: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// The longest time anything may be told to wait: a week.
const LONGEST_MS: u64 = 7 * 24 * 3_600_000;

/// `looked_at`: files that the recipe names must be there.
pub(super) fn recipe(
    path: &Path,
    text: &str,
    load: Option<&Load<'_>>,
    looked_at: bool,
) -> Result<Recipe, Problems> {
    let name = path.display().to_string();
    let document = Document::parse_layered(AREA, &name, text, &layering::LAYERING, load)?;
    let findings = document.findings().knowing(foreign::WORDS);
    let root = document.root(&findings);
    let recipe =
        root.required("guest", "start with `guest NAME { … }`").and_then(|node| guest(path, node, looked_at));
    root.finish();
    let (mut recipe, warnings) = document.conclude(findings, recipe)?;
    recipe.warnings = warnings;
    for file in document.sources().files().iter().skip(1) {
        let extended = PathBuf::from(&*file.name);
        if !recipe.extended.contains(&extended) {
            recipe.extended.push(extended);
        }
    }
    Ok(recipe)
}

fn guest(path: &Path, node: Node<'_>, looked_at: bool) -> Option<Recipe> {
    let found = node.findings();
    let directory = path.parent().unwrap_or(Path::new(""));
    let beside = Beside { directory, looked_at };
    let name =
        node.required_arg("its name", "write `guest NAME { … }`").and_then(|v| formed(found, v, &PLAIN_NAME));
    let body = node.children();
    // Read before the nodes were; asked for here so that a misspelling finds it.
    let _ = body.all("extends");
    let description =
        body.only("description").map(|n| sole(n, "a description", |v| v.text().map(str::to_owned)));
    let lock = body.only("lock").map(|n| sole(n, "a file name", |v| v.text().map(str::to_owned)));
    let hostname = body.only("hostname").map(|n| sole(n, "a host name", |v| formed(found, v, &HOST_NAME)));
    let root = body.only("root").map(|node| sources::root(node, beside));
    let packages = sources::packages(&body, root.is_some());
    let kernel = body
        .required("kernel", "write `kernel package=linux-image-cloud-amd64`")
        .and_then(|node| sources::kernel(node, beside));
    let needs_no_archive = root.is_some() && matches!(kernel, Some((Kernel::File { .. }, _)) | None);
    let help = "write `distribution debian suite=bookworm arch=amd64`";
    let distribution = match needs_no_archive {
        true => body.only("distribution"),
        false => body.required("distribution", help),
    };
    let distribution = distribution.map(sources::distribution);
    let modules = modules(&body);
    let people = users::people(&body);
    let env = body.only("env").map(environment::variables).unwrap_or_default();
    let sysctl = environment::sysctl(&body);
    let init = systemd::init(&body);
    let mounts = mounts::mounts(&body, &people);
    let placed = files::placed(&body, beside, &people, &mounts);
    let (services, declared) = services::services(&body, &people, &init);
    // An archive may know anybody, and so may a file of the recipe's own.
    if root.is_none() && !placed.iter().any(|placed| files::ACCOUNTS.contains(&placed.path.as_str())) {
        people.check(found);
    }
    let stop_within_ms = stop(&body, &services);
    let run = body.only("run").map(run);
    let image = match body.only("image") {
        None => Some(image::default()),
        Some(node) => image::image(node),
    };
    let serves = declared > 0 || init != Init::Vmprof || matches!(root, Some(Some(Root::Oci { .. })));
    match image {
        Some(Image::Root { .. }) if run.is_none() && !serves => {
            let problem = node.problem("missing_node", "the guest does not say what it runs");
            found.push(problem.help(
                "write `run \"/usr/bin/program\"`, what it does when `up` is given no command, or a `service`",
            ));
        }
        Some(Image::None)
            if run.is_some()
                || serves
                || root.is_some()
                || !(placed.is_empty()
                    && packages.names.is_empty()
                    && mounts.is_empty()
                    && people.is_empty()) =>
        {
            let message =
                "with `image none` there is nothing that packages, paths, users or a program could be in";
            let problem = node.problem("no_image", message);
            found.push(problem.help("keep `kernel`, `modules` and `hostname` alone, or write `image root`"));
        }
        _ => {}
    }
    body.finish();
    node.finish();

    let name = name?;
    let (kernel, cmdline) = kernel?;
    let lock = match lock {
        Some(written) => written?,
        None => {
            let stem = path.file_stem().map_or(name.clone(), |stem| stem.to_string_lossy().into_owned());
            format!("{stem}.lock.kdl")
        }
    };
    let distribution = match distribution {
        Some(read) => Some(read?),
        None if needs_no_archive => None,
        None => return None,
    };
    let conduct = Conduct {
        hostname: hostname.unwrap_or_else(|| Some(name.replace(['_', '.', '+'], "-")))?,
        env,
        sysctl,
        mounts,
        init,
        services,
        stop_within_ms: 0,
        run: run.unwrap_or_default(),
    };
    let said = Said { conduct, stop_within_ms };
    Some(Recipe {
        path: path.to_owned(),
        extended: Vec::new(),
        description: description.flatten(),
        distribution,
        lock_path: directory.join(lock),
        packages,
        root: root.unwrap_or(Some(Root::Packages))?,
        kernel,
        cmdline,
        modules,
        conduct: said.completed(&ImageConfig::default(), &people.users),
        said,
        users: people.users,
        groups: people.groups,
        image: image?,
        placed,
        warnings: Problems::new(AREA, miette::NamedSource::new("", Arc::from("")), Vec::new()),
        name,
    })
}

/// The one argument of a node that takes nothing else.
fn sole<'a, T>(node: Node<'a>, what: &'a str, read: impl FnOnce(Value<'a>) -> Option<T>) -> Option<T> {
    let value = node.required_arg(what, "write it behind the node's name").and_then(read);
    node.finish();
    value
}

/// A text of a known form.
fn formed(found: &Findings, value: Value<'_>, form: &Form) -> Option<String> {
    let text = value.text()?;
    if form.fits(text) {
        return Some(text.to_owned());
    }
    let problem = value.problem("bad_name", format!("`{text}` cannot be {}", form.what));
    found.push(problem.help(format!("it is made of {}", form.made_of)));
    None
}

/// A string that a program can be given: the kernel ends one at a zero byte.
fn handed(found: &Findings, value: Value<'_>) -> Option<String> {
    let text = value.string()?;
    if text.contains('\0') {
        let problem = value.problem("forbidden_character", "the text has a zero byte in it");
        found.push(problem.help("take it out: a program sees the text only up to there"));
        return None;
    }
    Some(text.to_owned())
}

/// Sorts, keeps each once, and returns those that stood there more than once.
fn sorted_once(names: &mut Vec<String>) -> BTreeSet<String> {
    names.sort();
    let twice = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone()).collect();
    names.dedup();
    twice
}

fn modules(body: &Block<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for node in body.all("modules") {
        for value in node.args("a module's name") {
            let name = formed(body.findings(), value, &MODULE);
            names.extend(name.filter(|name| !names.contains(name)));
        }
        node.finish();
    }
    names
}

fn run(node: Node<'_>) -> Vec<String> {
    let argv = argv(&node);
    node.finish();
    argv
}

/// A program and its arguments: all arguments that are left of a node.
fn argv(node: &Node<'_>) -> Vec<String> {
    let found = node.findings();
    let values = node.args("a word of the command");
    let silent = values.iter().any(Value::poisoned);
    let argv: Vec<String> = values.into_iter().filter_map(|v| handed(found, v)).collect();
    if argv.first().is_none_or(|program| program.trim().is_empty()) && !silent {
        let name = node.name();
        let problem = node.problem("empty_run", format!("`{name}` names no program"));
        let head = if name == "ready" { "ready command" } else { name };
        found.push(problem.help(format!("write `{head} \"/usr/bin/program\" \"argument\"`")));
    }
    argv
}

/// How long a clean stop may take in all, where the guest says it.
fn stop(body: &Block<'_>, services: &[vmprof_job::Service]) -> Option<u64> {
    let node = body.only("stop")?;
    let found = node.findings();
    let value = node.required_prop("timeout", "write `stop timeout=\"60s\"`");
    let within = value.and_then(|v| v.duration_ms(1..=LONGEST_MS));
    let longest = services.iter().max_by_key(|service| service.stop.within_ms);
    if let (Some(value), Some(within), Some(service)) = (value, within, longest)
        && within < service.stop.within_ms
    {
        let message = format!(
            "the guest stops within {}, and its service `{}` alone may take {}",
            vmprof_document::format_duration(within),
            service.name,
            vmprof_document::format_duration(service.stop.within_ms),
        );
        let problem =
            found.warning("short_stop", message).at(value.span(), "everything is killed after this");
        found.push(problem.help("give the guest as long as its services, or the service less"));
    }
    node.finish();
    within
}

/// An octal mode such as `0o755`.
fn mode(node: &Node<'_>, default: u16) -> Option<u16> {
    let Some(value) = node.prop("mode") else { return Some(default) };
    // Whoever writes `mode=755` or `mode=0755` means octal; KDL reads the decimal number, another mode.
    let digits = value.written().rsplit('=').next().unwrap_or_default().trim();
    if digits.len() > 1 && digits.bytes().all(|digit| digit.is_ascii_digit()) {
        let octal = digits.trim_start_matches('0');
        let octal = if octal.bytes().all(|digit| digit < b'8') && octal.len() <= 4 { octal } else { "755" };
        let problem = value.problem("bad_mode", format!("mode {digits} is not written in octal"));
        node.findings().push(problem.help(format!("write `mode=0o{octal:0>3}`")));
        return None;
    }
    value.u64(0..=0o7777).and_then(|mode| u16::try_from(mode).ok())
}

/// An absolute path without detours.
fn absolute(found: &Findings, value: Value<'_>) -> Option<String> {
    let text = value.text()?;
    let plain = text.strip_prefix('/').is_some_and(|below| {
        !below.is_empty()
            && below
                .split('/')
                .all(|part| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control))
    });
    if plain {
        return Some(text.to_owned());
    }
    let problem = value.problem("bad_path", format!("`{text}` is not a plain absolute path"));
    found.push(problem.help("start with `/`, without `.`, `..`, doubled or closing slashes"));
    None
}

fn covers(over: &str, path: &str) -> bool {
    path.strip_prefix(over).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
