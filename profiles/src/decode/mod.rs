//! Text → [`Profile`]. One file per kind of node; each reads its node through a cursor and finishes it, so that what
//! this version does not know is refused at its place. Rules between nodes are in `validate.rs`.

mod asserts;
mod conditions;
mod cpu;
mod disk;
mod driver;
mod exclusions;
mod foreign;
mod host;
mod iothreads;
mod layering;
mod mapping;
mod memory;
mod net;

use std::collections::BTreeMap;

use vmprof_document::{Block, Document, Findings, Load, Node, Problem, Problems, Value};

use crate::asserts::broken_by_profile;
use crate::conditions::When;
use crate::profile::{Conditional, Profile, Written};
use crate::topology::CpuSet;
use crate::validate;

pub(crate) use cpu::MOST_VCPUS;
pub(crate) use iothreads::MOST_IOTHREADS;
pub(crate) use memory::{LEAST_MEMORY_BYTES, MEMORY_STEP_BYTES};

/// The prefix of every problem's code.
pub(crate) const AREA: &str = "vmprof::profile";

/// Reads a profile that extends no other. `name` is what diagnostics call the file. Gives the profile and its warnings
/// (perhaps none), or every problem of the file at once.
pub fn read_profile(name: &str, text: &str) -> Result<(Profile, Problems), Problems> {
    read(name, text, None)
}

/// Reads a profile and the files that it extends. `load` gives the text of one, named by its path relative to the
/// directory of the first file, which may begin with `..`.
pub fn read_profile_with(name: &str, text: &str, load: &Load<'_>) -> Result<(Profile, Problems), Problems> {
    read(name, text, Some(load))
}

fn read(name: &str, text: &str, load: Option<&Load<'_>>) -> Result<(Profile, Problems), Problems> {
    let document = Document::parse_layered(AREA, name, text, &layering::LAYERING, load)?;
    let findings = document.findings().knowing(foreign::WORDS);
    let root = document.root(&findings);
    let reading = Reading { findings: &findings };
    let read =
        root.required("profile", "write `profile NAME { … }`").map(|node| reading.profile(node, &document));
    root.finish();
    let (mut profile, whens) = read.unwrap_or_default();
    if let Some(profile) = &mut profile {
        profile.conditional = conditional(&document, &findings, whens);
    }
    let (mut profile, warnings) = document.conclude(findings, profile)?;
    profile.warnings = warnings.iter().cloned().collect();
    Ok((profile, warnings))
}

/// Reads what the file comes to for each set of its conditions, the smaller sets first, and reports what is wrong with any
/// of them and was not reported before.
fn conditional(document: &Document, findings: &Findings, whens: Vec<(When, Node<'_>)>) -> Conditional {
    let mut variants: Vec<(usize, Profile)> = Vec::new();
    let bytes: usize = document.sources().files().iter().map(|file| file.text.len()).sum();
    if let Some((last, _)) = whens.last().filter(|_| bytes << whens.len() > MOST_BYTES_OF_SETS) {
        let message = format!("{} `when`s are too many for a profile of {bytes} bytes", whens.len());
        let most = (MOST_BYTES_OF_SETS / bytes.max(1)).checked_ilog2().unwrap_or(0);
        findings.push(findings.error("too_many_whens", message).at(last.span, "the last of them").help(
            format!("each set of them is read as a profile of its own; {most} can stand in one of this size"),
        ));
        return Conditional::default();
    }
    let mut sets: Vec<usize> = (1..1usize << whens.len()).collect();
    sets.sort_by_key(|set| set.count_ones());
    let mut known: std::collections::BTreeSet<_> =
        findings.recorded().iter().map(Problem::identity).collect();
    for set in sets {
        let holding: Vec<&(When, Node<'_>)> =
            (0..).zip(&whens).filter(|(bit, _)| set & 1 << bit != 0).map(|(_, when)| when).collect();
        let nodes: Vec<&Node<'_>> = holding.iter().map(|(_, node)| node).collect();
        let overlaid = document.overlaid(&nodes);
        let inner = overlaid.findings().knowing(foreign::WORDS);
        let root = overlaid.root(&inner);
        let reading = Reading { findings: &inner };
        let profile = root.only("profile").and_then(|node| reading.profile(node, &overlaid).0);
        let (wrong, remarks): (Vec<Problem>, Vec<Problem>) =
            inner.recorded().into_iter().partition(Problem::is_error);
        for mut problem in wrong {
            if known.insert(problem.identity()) {
                for (when, _) in &holding {
                    problem = problem.at(when.span, "where this holds");
                }
                findings.push(problem);
            }
        }
        if let Some(mut profile) = profile {
            profile.applied = holding.iter().map(|(when, _)| when.clone()).collect();
            profile.warnings = remarks;
            variants.push((set, profile));
        }
        if findings.count() > PROBLEMS_ENOUGH {
            break;
        }
    }
    variants.sort_by_key(|(set, _)| *set);
    Conditional {
        whens: whens.into_iter().map(|(when, _)| when).collect(),
        variants: variants.into_iter().map(|(_, profile)| profile).collect(),
    }
}

/// What all sets of conditions may come to together: about half a second of reading.
const MOST_BYTES_OF_SETS: usize = 4 << 20;
/// More than are shown: the other sets of conditions need not be read.
const PROBLEMS_ENOUGH: usize = 100;

/// What every decoder needs: the gatherer.
#[derive(Debug, Clone, Copy)]
struct Reading<'a> {
    findings: &'a Findings,
}

impl<'a> Reading<'a> {
    /// Reads the profile without its conditions, and gives these with their nodes.
    fn profile(&self, node: Node<'a>, document: &'a Document) -> (Option<Profile>, Vec<(When, Node<'a>)>) {
        let name = node.required_arg("its name", "write `profile NAME { … }`").and_then(|v| self.name(v, 64));
        let block = node.children();
        let description = block.only("description").and_then(|node| self.text_of(node));
        let guest = block.required("guest", "name the guest's recipe: `guest \"../guests/hello.kdl\"`");
        let guest = guest.and_then(|node| self.guest(node));
        let (host, smt_require) = block.only("host").map(|node| self.host(node)).unwrap_or_default();
        let strict = block.only("strict").and_then(|node| self.flag(node));
        let vcpus =
            block.required("vcpu", "say how many: `vcpu 4`").and_then(|node| self.vcpus(node, smt_require));
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
        let nets = self.nets(block.all("net"));
        validate::disks(self.findings, &disks, iothreads.as_ref());
        validate::mounts(self.findings, &disks);
        validate::iopoll_and_sqpoll(self.findings, &disks, iothreads.as_ref());
        validate::pins(self.findings, &host, vcpus.as_ref(), iothreads.as_ref(), &emulator);
        if let Some(memory) = &memory {
            validate::nodes(self.findings, &host, memory);
        }
        let names: Vec<&str> = names.keys().map(String::as_str).collect();
        let asserts = self.asserts(block.all("assert"), &names);
        let whens = self.whens(block.all("when"), &names);
        // Read before the nodes were; asked for here so that a misspelling finds it.
        let _ = block.all("extends");
        self.export(&block);
        block.finish();
        node.finish();
        let whole = disks.len() == wanted;
        let profile = || {
            Some(Profile {
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
                nets: nets?,
                warnings: Vec::new(),
                asserts,
                applied: Vec::new(),
                conditional: Conditional::default(),
                source: document.sources().clone(),
            })
        };
        let profile = profile().filter(|_| whole);
        if let Some(profile) = &profile {
            self.kept(profile);
        }
        (profile, whens)
    }

    /// The asserts that this profile breaks on every host.
    fn kept(&self, profile: &Profile) {
        let remarks: Vec<String> = self.findings.recorded().iter().map(|p| p.code().to_owned()).collect();
        for broken in broken_by_profile(profile, &remarks) {
            self.findings.push(
                self.findings
                    .error("assert_failed", format!("{}: {}", broken.text, broken.found))
                    .at(broken.span, "claimed here")
                    .help("change what it is about, or the `assert`"),
            );
        }
    }

    fn export(&self, block: &Block<'a>) {
        block.not_yet(&[("export", "remove it; `vmprof plan --format` says what to export to")]);
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
        self.list(value, what, str::parse)
    }

    /// A list of CPUs or nodes, in which `^3` takes an id out again, as in libvirt.
    fn list_with_exclusions(&self, value: Value<'a>, what: &str) -> Option<Written<CpuSet>> {
        self.list(value, what, exclusions::parse)
    }

    fn list<E: std::fmt::Display>(
        &self,
        value: Value<'a>,
        what: &str,
        parse: fn(&str) -> Result<CpuSet, E>,
    ) -> Option<Written<CpuSet>> {
        if value.poisoned() {
            return None;
        }
        if value.raw().is_integer() {
            let id = value.u64(0..=u64::from(CpuSet::LIMIT - 1))?;
            return Some(self.written(value, CpuSet::of(u32::try_from(id).ok()?)));
        }
        let text = value.string()?;
        let problem = match parse(text) {
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
                .and_then(|v| self.list_with_exclusions(v, "CPUs"));
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
