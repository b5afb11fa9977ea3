//! KDL text → [`Recipe`]: every node of the language, its rules, and what to write instead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmprof_document::{Block, Document, Findings, Node, Problems, Value};

use super::words::{Form, HOST_NAME, MODULE, PACKAGE, PLAIN_NAME, SUITE, VARIABLE};
use super::{
    Compression, Conduct, Distribution, Format, Image, Init, Kernel, Packages, Place, Placed, Recipe, Root,
};

pub(crate) const AREA: &str = "vmprof::guest";

/// The environment of everything that runs in a guest, unless the recipe says otherwise.
const DEFAULT_ENV: [(&str, &str); 3] = [
    ("HOME", "/root"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TERM", "linux"),
];

/// How long a clean stop may take unless the recipe says otherwise.
const DEFAULT_STOP_MS: u64 = 5_000;

/// Mounted over when the guest starts: what lies there in the image cannot be seen.
const MOUNTED_OVER: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

pub(super) fn recipe(path: &Path, text: &str) -> Result<Recipe, Problems> {
    let document = Document::parse(AREA, &path.display().to_string(), text)?;
    let findings = document.findings();
    let root = document.root(&findings);
    let recipe =
        root.required("guest", "start with `guest NAME { … }`").and_then(|node| guest(path, text, node));
    root.finish();
    let (mut recipe, warnings) = document.conclude(findings, recipe)?;
    recipe.warnings = warnings;
    Ok(recipe)
}

fn guest(path: &Path, text: &str, node: Node<'_>) -> Option<Recipe> {
    let found = node.findings();
    let directory = path.parent().unwrap_or(Path::new(""));
    let name =
        node.required_arg("its name", "write `guest NAME { … }`").and_then(|v| formed(found, v, &PLAIN_NAME));
    let body = node.children();
    body.not_yet(&[
        ("user", "write /etc/passwd and /etc/group with `file`"),
        ("service", "start what is needed from the program that `run` names"),
        ("mount", "mount from the program that `run` names"),
        ("overlay", "remove it: the root is always writable, in memory"),
        ("ready", "remove it"),
    ]);
    let description =
        body.only("description").map(|n| sole(n, "a description", |v| v.text().map(str::to_owned)));
    let distribution = body
        .required("distribution", "write `distribution debian suite=bookworm arch=amd64`")
        .and_then(distribution);
    let lock = body.only("lock").map(|n| sole(n, "a file name", |v| v.text().map(str::to_owned)));
    let hostname = body.only("hostname").map(|n| sole(n, "a host name", |v| formed(found, v, &HOST_NAME)));
    let packages = packages(&body);
    let kernel = body.required("kernel", "write `kernel package=linux-image-cloud-amd64`").and_then(kernel);
    let modules = modules(&body);
    let env = environment(&body);
    let run = body.only("run").map(run);
    let placed = placed(&body, text, directory);
    let image = match body.only("image") {
        None => Some(Image::Root {
            format: Format::Squashfs { compression: Compression::Lz4 },
            exclude: Vec::new(),
        }),
        Some(node) => image(node),
    };
    match image {
        Some(Image::Root { .. }) if run.is_none() => {
            let problem = node.problem("missing_node", "the guest does not say what it runs");
            found.push(
                problem.help("write `run \"/usr/bin/program\"`: what it does when `up` is given no command"),
            );
        }
        Some(Image::None) if run.is_some() || !placed.is_empty() || !packages.names.is_empty() => {
            let message = "with `image none` there is nothing that packages, paths or a program could be in";
            let problem = node.problem("no_image", message);
            found.push(
                problem
                    .help("remove `packages`, `file`, `directory`, `link` and `run`, or write `image root`"),
            );
        }
        _ => {}
    }
    body.finish();
    node.finish();

    let name = name?;
    let (kernel_package, cmdline) = kernel?;
    let lock = match lock {
        Some(written) => written?,
        None => {
            let stem = path.file_stem().map_or(name.clone(), |stem| stem.to_string_lossy().into_owned());
            format!("{stem}.lock.kdl")
        }
    };
    Some(Recipe {
        path: path.to_owned(),
        extended: Vec::new(),
        description: description.flatten(),
        distribution: Some(distribution?),
        lock_path: directory.join(lock),
        packages,
        root: Root::Packages,
        kernel: Kernel::Package(kernel_package),
        cmdline,
        modules,
        users: Vec::new(),
        groups: Vec::new(),
        conduct: Conduct {
            hostname: hostname.unwrap_or_else(|| Some(name.replace(['_', '.', '+'], "-")))?,
            env,
            sysctl: Vec::new(),
            mounts: Vec::new(),
            init: Init::Vmprof,
            services: Vec::new(),
            stop_within_ms: DEFAULT_STOP_MS,
            run: run.unwrap_or_default(),
        },
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

fn distribution(node: Node<'_>) -> Option<Distribution> {
    let found = node.findings();
    let debian = node
        .required_arg("whose packages", "write `distribution debian suite=bookworm arch=amd64`")
        .and_then(|v| v.word(&[("debian", ())]));
    let suite = node
        .required_prop("suite", "write `suite=bookworm`, or another suite of Debian")
        .and_then(|v| formed(found, v, &SUITE));
    let arch = match node.prop("arch") {
        None => Some("amd64"),
        Some(value) => value.word(&[("amd64", "amd64")]),
    };
    node.finish();
    debian?;
    Some(Distribution { suite: suite?, arch: arch?.to_owned() })
}

fn packages(body: &Block<'_>) -> Packages {
    let found = body.findings();
    let mut packages = Packages::default();
    let Some(node) = body.only("packages") else { return packages };
    let mut names = Vec::new();
    let mut without = Vec::new();
    for value in node.args("a package's name") {
        names.extend(formed(found, value, &PACKAGE));
    }
    packages.recommends = node.prop("recommends").and_then(|v| v.bool()).unwrap_or(false);
    let children = node.children();
    for left_out in children.all("without") {
        for value in left_out.args("a package's name") {
            without.extend(formed(found, value, &PACKAGE));
        }
        left_out.finish();
    }
    for child in children.rest() {
        if PACKAGE.fits(child.name()) {
            names.push(child.name().to_owned());
        } else {
            let problem = child.problem("bad_name", format!("`{}` cannot be {}", child.name(), PACKAGE.what));
            found.push(problem.help(format!("it is made of {}", PACKAGE.made_of)));
        }
        child.finish();
    }
    for twice in sorted_once(&mut names).into_iter().chain(sorted_once(&mut without)) {
        let problem = node.problem("duplicate_package", format!("package `{twice}` is named twice"));
        found.push(problem.help("keep one of them"));
    }
    for both in names.iter().filter(|name| without.contains(name)) {
        let problem =
            node.problem("contradiction", format!("package `{both}` is asked for and left out at once"));
        found.push(problem.help("keep it in one of the two lists"));
    }
    children.finish();
    node.finish();
    packages.names = names;
    packages.without = without;
    packages
}

/// Sorts, keeps each once, and returns those that stood there more than once.
fn sorted_once(names: &mut Vec<String>) -> BTreeSet<String> {
    names.sort();
    let twice = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone()).collect();
    names.dedup();
    twice
}

fn kernel(node: Node<'_>) -> Option<(String, Option<String>)> {
    let found = node.findings();
    let package = node
        .required_prop("package", "write `kernel package=linux-image-cloud-amd64`")
        .and_then(|v| formed(found, v, &PACKAGE));
    let cmdline = node.prop("cmdline").map(|v| (v, v.text()));
    if let Some((value, Some(text))) = cmdline
        && text.chars().any(|c| c.is_control())
    {
        let problem = value.problem("bad_cmdline", "the kernel's command line is one line");
        found.push(problem.help("write the words in one string, with blanks between them"));
    }
    node.finish();
    Some((package?, cmdline.and_then(|(_, text)| text).map(str::to_owned)))
}

fn modules(body: &Block<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for node in body.all("modules") {
        for value in node.args("a module's name") {
            names.extend(formed(body.findings(), value, &MODULE));
        }
        node.finish();
    }
    names
}

fn environment(body: &Block<'_>) -> Vec<(String, String)> {
    let found = body.findings();
    let mut env: BTreeMap<String, String> =
        DEFAULT_ENV.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let Some(node) = body.only("env") else { return env.into_iter().collect() };
    let children = node.children();
    let mut named = BTreeSet::new();
    for variable in children.rest() {
        let name = variable.name();
        if !VARIABLE.fits(name) {
            let problem = variable.problem("bad_name", format!("`{name}` cannot be {}", VARIABLE.what));
            found.push(problem.help(format!("it is made of {}", VARIABLE.made_of)));
        }
        if !named.insert(name) {
            let problem = variable.problem("duplicate_node", format!("variable `{name}` is set twice"));
            found.push(problem.help("keep one of them"));
        }
        let value = variable.required_arg("its value", "write `NAME \"value\"`").and_then(|v| v.string());
        if let Some(value) = value {
            env.insert(name.to_owned(), value.to_owned());
        }
        variable.finish();
    }
    children.finish();
    node.finish();
    env.into_iter().collect()
}

fn run(node: Node<'_>) -> Vec<String> {
    let argv: Vec<String> =
        node.args("a word of the command").iter().filter_map(|v| v.string().map(str::to_owned)).collect();
    if argv.first().is_none_or(|program| program.trim().is_empty()) {
        let problem = node.problem("empty_run", "`run` names no program");
        node.findings().push(problem.help("write `run \"/usr/bin/program\" \"argument\"`"));
    }
    node.finish();
    argv
}

fn image(node: Node<'_>) -> Option<Image> {
    let kind = node
        .required_arg("which image", "write `image root { … }` or `image none`")
        .and_then(|v| v.word(&[("root", true), ("none", false)]));
    if kind == Some(false) {
        node.finish();
        return Some(Image::None);
    }
    let found = node.findings();
    let body = node.children();
    body.not_yet(&[
        ("epoch", "remove it: all times in the image are 0"),
        ("owner", "remove it: owners are the packages' own"),
    ]);
    let mut compression = Some(Compression::Lz4);
    if let Some(format) = body.only("format") {
        let squashfs = format
            .required_arg("a format", "write `format squashfs compression=lz4`")
            .and_then(|v| v.word(&[("squashfs", ())]));
        if let Some(value) = format.prop("compression") {
            compression = value.word(&[("lz4", Compression::Lz4), ("zstd", Compression::Zstd)]);
        }
        compression = squashfs.and(compression);
        format.finish();
    }
    let mut exclude = Vec::new();
    for left_out in body.all("exclude") {
        for value in left_out.args("a path") {
            exclude.extend(absolute(found, value));
        }
        left_out.finish();
    }
    exclude.sort();
    exclude.dedup();
    body.finish();
    node.finish();
    kind?;
    Some(Image::Root { format: Format::Squashfs { compression: compression? }, exclude })
}

fn placed(body: &Block<'_>, text: &str, directory: &Path) -> Vec<Placed> {
    let found = body.findings();
    let mut placed = Vec::new();
    let mut taken = BTreeSet::new();
    let mut place = |node: Node<'_>, read: &dyn Fn(&Node<'_>) -> Option<Place>| {
        let path = node
            .required_arg("a path", "write an absolute path of the guest in double quotes")
            .and_then(|v| absolute(found, v).map(|path| (v, path)));
        let what = read(&node);
        if let Some((value, path)) = path {
            if let Some(over) = MOUNTED_OVER.iter().find(|over| covers(over, &path)) {
                let problem =
                    value.problem("hidden_path", format!("the guest mounts over {over} when it starts"));
                found.push(
                    problem.help("choose another path; what is made there must be made by the running guest"),
                );
            }
            if !taken.insert(path.clone()) {
                let problem = value.problem("duplicate_path", format!("{path} is declared twice"));
                found.push(problem.help("keep one of them"));
            }
            placed.extend(what.map(|what| Placed { path, owner: "root:root".to_owned(), what }));
        }
        node.finish();
    };
    for node in body.all("directory") {
        place(node, &|node| Some(Place::Directory { mode: mode(node, text, 0o755)? }));
    }
    for node in body.all("link") {
        place(node, &|node| {
            let target = node.required_prop("to", "write `link \"/path\" to=\"target\"`")?.text()?;
            Some(Place::Link { target: target.to_owned() })
        });
    }
    for node in body.all("file") {
        place(node, &|node| file(node, text, directory));
    }
    placed
}

fn file(node: &Node<'_>, recipe: &str, directory: &Path) -> Option<Place> {
    let mode = mode(node, recipe, 0o644);
    let from = node.prop("from");
    let text = node.arg("the file's text");
    let place = match (text, from) {
        (Some(text), None) => Place::Text { mode: mode?, text: with_newline(text.string()?) },
        (None, Some(from)) => {
            Place::From { mode: mode?, source: directory.join(PathBuf::from(from.text()?)) }
        }
        (None, None) => {
            let problem = node.problem("empty_file", "the file has neither text nor a source");
            node.findings().push(problem.help("write its text as second argument, or `from=\"path\"`"));
            return None;
        }
        (Some(_), Some(from)) => {
            let problem = from.problem("contradiction", "the file has both text and a source");
            node.findings().push(problem.help("keep one of them"));
            return None;
        }
    };
    Some(place)
}

/// KDL's multi-line strings do not end with a newline, text files do.
fn with_newline(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// `text` is the whole recipe: only there does it stand how the number was written.
fn mode(node: &Node<'_>, text: &str, default: u16) -> Option<u16> {
    let Some(value) = node.prop("mode") else { return Some(default) };
    // Whoever writes `mode=755` or `mode=0755` means octal; KDL reads the decimal number, another mode.
    let span = value.span();
    let written = text.get(span.offset()..span.offset() + span.len()).unwrap_or_default();
    let digits = written.rsplit('=').next().unwrap_or_default().trim();
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
