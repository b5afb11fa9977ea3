//! Text → [`Profile`]. One file per kind of node; each reads its node through a cursor and finishes it, so that what
//! this version does not know is refused at its place. Rules between nodes are in `validate.rs`.

mod cpu;
mod disk;
mod host;
mod iothreads;
mod mapping;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use miette::NamedSource;
use vmprof_document::{Block, Document, Findings, Node, Problems, Value};

use crate::profile::{Profile, Written};
use crate::topology::CpuSet;
use crate::validate;

/// The prefix of every problem's code.
pub(crate) const AREA: &str = "vmprof::profile";

/// Nodes of the full language that this version refuses, with what to do instead.
const NOT_YET: [(&str, &str); 5] = [
    ("extends", "write out what the base profile says"),
    ("when", "write one profile per kind of host"),
    ("assert", "remove it; `vmprof plan` shows what was decided"),
    ("net", "remove it; guests have no network in this version"),
    ("export", "remove it"),
];

/// Reads a profile. `name` is what diagnostics call the file. Gives the profile and its warnings (perhaps none), or
/// every problem of the file at once.
pub fn read_profile(name: &str, text: &str) -> Result<(Profile, Problems), Problems> {
    let document = Document::parse(AREA, name, text)?;
    let findings = document.findings();
    let root = document.root(&findings);
    let reading = Reading { findings: &findings };
    let profile = root
        .required("profile", "write `profile NAME { … }`")
        .and_then(|node| reading.profile(node, document.source()));
    root.finish();
    let (mut profile, warnings) = document.conclude(findings, profile)?;
    profile.warnings = warnings.iter().cloned().collect();
    Ok((profile, warnings))
}

/// What every decoder needs: the gatherer.
#[derive(Debug, Clone, Copy)]
struct Reading<'a> {
    findings: &'a Findings,
}

impl<'a> Reading<'a> {
    fn profile(&self, node: Node<'a>, source: NamedSource<Arc<str>>) -> Option<Profile> {
        let name = node.required_arg("its name", "write `profile NAME { … }`").and_then(|v| self.name(v, 64));
        let block = node.children();
        let description = block.only("description").and_then(|node| self.text_of(node));
        let guest = block.required("guest", "name the guest's recipe: `guest \"../guests/hello.kdl\"`");
        let guest = guest.and_then(|node| self.guest(node));
        let host = block.only("host").map(|node| self.host(node)).unwrap_or_default();
        let strict = block.only("strict").and_then(|node| self.flag(node));
        let vcpus = block.required("vcpu", "say how many: `vcpu 4`").and_then(|node| self.vcpus(node));
        let emulator = self.emulator(block.only("emulatorpin"));
        let memory = block.required("memory", "say how much: `memory \"2GiB\"`");
        let memory = memory.and_then(|node| self.memory(node));
        let iothreads = self.iothreads(block.only("iothreads"));
        let count = vcpus.as_ref().map(|v| v.count);
        let nodes = block.all("disk");
        let wanted = nodes.len();
        let mut names = BTreeMap::new();
        let read = |node| self.disk(node, count, iothreads.as_ref(), &mut names);
        let disks: Vec<_> = nodes.into_iter().filter_map(read).collect();
        validate::disks(self.findings, &disks, iothreads.as_ref());
        validate::pins(self.findings, &host, vcpus.as_ref(), iothreads.as_ref(), &emulator);
        block.not_yet(&NOT_YET);
        block.finish();
        node.finish();
        let whole = disks.len() == wanted;
        let profile = Profile {
            name: name?,
            description,
            guest: guest?,
            host,
            strict,
            vcpus: vcpus?,
            emulator,
            memory: memory?,
            iothreads: iothreads?,
            disks,
            nets: Vec::new(),
            warnings: Vec::new(),
            source,
        };
        whole.then_some(profile)
    }

    fn guest(&self, node: Node<'a>) -> Option<Written<String>> {
        let value = node.required_arg("the recipe's path", "write `guest \"../guests/hello.kdl\"`");
        let guest = value.and_then(|v| v.text().map(|path| self.written(v, path.to_owned())));
        node.finish();
        guest
    }

    fn text_of(&self, node: Node<'a>) -> Option<String> {
        let text = node.required_arg("its text", "put it in double quotes").and_then(|v| v.text());
        node.finish();
        text.map(str::to_owned)
    }

    /// A node that is a switch: there, or `#true`, or `#false`. Gives its place when on.
    fn flag(&self, node: Node<'a>) -> Option<Written<()>> {
        let on = node.arg("the switch").is_none_or(|v| v.bool() == Some(true));
        let (line, span) = (node.line(), node.name_span());
        node.finish();
        on.then_some(Written { value: (), span, line })
    }

    fn written<T>(&self, value: Value<'a>, inner: T) -> Written<T> {
        let span = value.span();
        Written { value: inner, span, line: self.findings.line(span) }
    }

    /// A name that becomes a file name, a directory and a serial: plain letters, digits and `. _ -`.
    fn name(&self, value: Value<'a>, longest: usize) -> Option<String> {
        let name = value.text()?;
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        let problem = if name.len() > longest {
            let found = name.len();
            value
                .problem(
                    "bad_name",
                    format!("the name `{name}` has {found} bytes, and {longest} is the most"),
                )
                .help("choose a shorter one")
        } else if !plain || name.starts_with(['.', '-']) {
            value
                .problem("bad_name", format!("`{name}` cannot be a name"))
                .help("use letters, digits, `.`, `_` and `-`, and start with a letter or a digit")
        } else {
            return Some(name.to_owned());
        };
        self.findings.push(problem);
        None
    }

    /// A list of ids: a quoted list, or one bare number. `what` names the ids in messages.
    fn id_list(&self, value: Value<'a>, what: &str) -> Option<Written<CpuSet>> {
        if value.poisoned() {
            return None;
        }
        if value.raw().is_integer() {
            let id = value.u64(0..=u64::from(CpuSet::LIMIT - 1))?;
            return Some(self.written(value, CpuSet::of(u32::try_from(id).ok()?)));
        }
        let text = value.string()?;
        let problem = match text.parse::<CpuSet>() {
            Ok(set) if !set.is_empty() => return Some(self.written(value, set)),
            Ok(_) => value.problem("bad_list", format!("the list of {what} is empty")),
            Err(error) => value.problem("bad_list", format!("\"{text}\" is not a list of {what}: {error}")),
        };
        self.findings
            .push(problem.help("write numbers and ranges with commas between them, such as \"0-3,8\""));
        None
    }

    /// `auto` or `none` of a pin node, or nothing where neither stands there.
    fn pin_word(&self, node: &Node<'a>, words: &[(&str, PinWord)]) -> Option<PinWord> {
        node.arg("the pinning")?.word(words)
    }

    /// The children `NAME ID cpuset="…"` of a pin node, each id once.
    fn pins(&self, block: &Block<'a>, name: &'static str) -> BTreeMap<u32, Written<CpuSet>> {
        let mut pins = BTreeMap::new();
        let mut places = BTreeMap::new();
        for node in block.all(name) {
            let id = node
                .required_arg("which one", "write its number, counted from 0")
                .and_then(|v| v.u64(0..=1023))
                .and_then(|id| u32::try_from(id).ok());
            let set = node
                .required_prop("cpuset", "name its CPUs: `cpuset=\"2\"`")
                .and_then(|v| self.id_list(v, "CPUs"));
            if let Some(id) = id {
                if let Some(first) = places.insert(id, node.name_span()) {
                    self.findings.push(
                        self.findings
                            .error("duplicate_pin", format!("{name} {id} is pinned twice"))
                            .at(node.name_span(), "again here")
                            .at(first, "first here")
                            .help("keep one of them"),
                    );
                } else if let Some(set) = set {
                    pins.insert(id, set);
                }
            }
            node.finish();
        }
        pins
    }
}

/// The words a pin node can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PinWord {
    Auto,
    None,
    Emulator,
}
