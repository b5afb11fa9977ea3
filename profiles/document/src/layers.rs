//! A file and the files that it extends, read into one [`Document`]. Files are asked of the caller by their path relative
//! to the first file's directory; nothing here opens one.

use std::io;

use kdl::{KdlDocument, KdlEntry, KdlNode, KdlValue};
use miette::SourceSpan;

use crate::Document;
use crate::cursor::Node;
use crate::merge::{Layering, shift};
use crate::problem::{Problem, Problems};
use crate::sources::Sources;
use crate::syntax;

/// Gives the text of a file, named by its path relative to the first file's directory.
pub type Load<'l> = dyn Fn(&str) -> io::Result<String> + 'l;

/// A file that extends one that extends one, and so on.
const DEEPEST: usize = 16;
/// Files in all: two at each of sixteen levels would be 65,536.
const MOST_FILES: usize = 32;

impl Document {
    /// Reads `text` and the files that it extends, each over the ones that it names. Without `load` a file that extends
    /// another is refused. Fails where a text is not KDL at all, or a file cannot be had.
    pub fn parse_layered(
        area: &'static str,
        name: &str,
        text: &str,
        layering: &'static Layering,
        load: Option<&Load<'_>>,
    ) -> Result<Self, Problems> {
        let (directory, file) = name.rsplit_once('/').map_or(("", name), |(dir, file)| (dir, file));
        let directory = if name.starts_with('/') && directory.is_empty() { "/" } else { directory };
        let mut loading = Loading {
            area,
            layering,
            load,
            directory,
            sources: Sources::one(name, text),
            problems: Vec::new(),
            failed: false,
        };
        let mut chain = vec![file.to_owned()];
        let kdl = loading.layer(0, text, &mut chain);
        let Loading { sources, problems, failed, .. } = loading;
        match kdl.filter(|_| !failed) {
            Some(kdl) => Ok(Document { area, sources, kdl, slips: problems, layering: Some(layering) }),
            None => Err(Problems::new(area, sources, problems)),
        }
    }

    /// This document with the nodes between the braces of each of `overlays` laid over those of its root node, in order.
    pub fn overlaid(&self, overlays: &[&Node<'_>]) -> Document {
        let mut kdl = self.kdl.clone();
        if let Some(layering) = self.layering {
            let root = kdl.nodes_mut().iter_mut().find(|node| node.name().value() == layering.root);
            if let Some(lower) = root.and_then(|node| node.children_mut().as_mut()) {
                for upper in overlays.iter().filter_map(|node| node.kdl().children()) {
                    layering.merge(layering.root, lower.nodes_mut(), upper.nodes());
                }
            }
        }
        Document {
            area: self.area,
            sources: self.sources.clone(),
            kdl,
            slips: self.slips.clone(),
            layering: self.layering,
        }
    }
}

struct Loading<'l> {
    area: &'static str,
    layering: &'static Layering,
    load: Option<&'l Load<'l>>,
    /// The first file's, as its name gives it.
    directory: &'l str,
    sources: Sources,
    problems: Vec<Problem>,
    /// Whether a file could not be had or read: what is left would be full of false alarms.
    failed: bool,
}

/// One path that an `extends` names.
struct Named {
    path: String,
    span: SourceSpan,
}

impl Loading<'_> {
    /// The text that begins at `start`, over those it extends. `chain` holds the paths from the first file to this one.
    fn layer(&mut self, start: usize, text: &str, chain: &mut Vec<String>) -> Option<KdlDocument> {
        let mut own = match syntax::parse(self.area, text) {
            Ok((kdl, slips)) => {
                self.problems.extend(slips.into_iter().map(|slip| slip.shifted(start)));
                kdl
            }
            Err(problems) => {
                self.problems.extend(problems.into_iter().map(|problem| problem.shifted(start)));
                self.failed = true;
                return None;
            }
        };
        if start > 0 {
            shift(&mut own, start);
        }
        let here = directory_of(chain.last().map_or("", String::as_str)).to_owned();
        let named = self.take_extends(&mut own);
        if !here.is_empty() {
            self.rebase(&mut own, &here);
        }
        let mut lower: Option<KdlDocument> = None;
        for named in named {
            let Some(mut base) = self.base(&named, &here, chain) else { continue };
            self.strip(&mut base);
            match &mut lower {
                None => lower = Some(base),
                Some(lower) => self.layering.merge("", lower.nodes_mut(), base.nodes()),
            }
        }
        let Some(mut lower) = lower else { return Some(own) };
        self.layering.merge("", lower.nodes_mut(), own.nodes());
        Some(lower)
    }

    fn base(&mut self, named: &Named, here: &str, chain: &mut Vec<String>) -> Option<KdlDocument> {
        let path = join(here, &named.path);
        let refused = match self.text_of(&path, named, chain) {
            Ok(text) => {
                let name = join(self.directory, &path);
                let start = self.sources.add(&name, &path, text.as_str());
                chain.push(path.clone());
                let base = self.layer(start, &text, chain);
                chain.pop();
                let base = base?;
                let root = self.layering.root;
                if base.nodes().iter().any(|node| node.name().value() == root) {
                    return Some(base);
                }
                self.error("extends_other", format!("{path} has no `{root}` node"))
                    .at(named.span, "extended here")
                    .help(format!("only a file with a `{root}` node can be extended"))
            }
            Err(problem) => problem,
        };
        self.problems.push(refused);
        self.failed = true;
        None
    }

    fn text_of(&self, path: &str, named: &Named, chain: &[String]) -> Result<String, Problem> {
        let Some(load) = self.load else {
            let message =
                format!("`extends \"{}\"` cannot be followed: this text lies in no directory", named.path);
            return Err(self
                .error("extends_nowhere", message)
                .at(named.span, "relative to nothing")
                .help("read it from its file"));
        };
        if named.path.starts_with('/') {
            return Err(self
                .error("extends_absolute", format!("\"{}\" is an absolute path", named.path))
                .at(named.span, "here")
                .help("write the path relative to this file, so that the two can move together"));
        }
        if chain.iter().any(|one| *one == path) {
            let round = [chain, &[path.to_owned()]].concat().join(" → ");
            return Err(self
                .error("extends_cycle", format!("the files extend each other in a circle: {round}"))
                .at(named.span, "closes the circle")
                .help("move what they share into a file that extends neither"));
        }
        if chain.len() > DEEPEST {
            return Err(self
                .error("extends_too_deep", format!("more than {DEEPEST} files extend each other in a row"))
                .at(named.span, "one too many")
                .help("join some of them"));
        }
        if self.sources.files().len() >= MOST_FILES {
            return Err(self
                .error("extends_too_many", format!("more than {MOST_FILES} files are extended"))
                .at(named.span, "one too many")
                .help("join some of them"));
        }
        load(path).map_err(|error| {
            let shown = join(self.directory, path);
            self.error("extends_unreadable", format!("{shown} cannot be read: {error}"))
                .at(named.span, "extended here")
                .help("the path is relative to the file that names it")
        })
    }

    fn error(&self, code: &str, message: String) -> Problem {
        Problem::error(format!("{}::{code}", self.area), message)
    }

    /// Takes the `extends` nodes out of a file's root node and gives what they name, in order.
    fn take_extends(&mut self, own: &mut KdlDocument) -> Vec<Named> {
        let mut named = Vec::new();
        let layering = self.layering;
        for root in own.nodes_mut().iter_mut().filter(|node| node.name().value() == layering.root) {
            let Some(children) = root.children_mut() else { continue };
            for node in children.nodes().iter().filter(|node| node.name().value() == layering.extends) {
                self.read_extends(node, &mut named);
            }
            children.nodes_mut().retain(|node| node.name().value() != layering.extends);
        }
        named
    }

    fn read_extends(&mut self, node: &KdlNode, named: &mut Vec<Named>) {
        let name = self.layering.extends;
        let help = format!("write `{name} \"base.kdl\"`");
        if node.entries().is_empty() || node.children().is_some_and(|c| !c.is_empty()) {
            let message = format!("`{name}` takes the paths of files, and nothing else");
            self.problems
                .push(self.error("bad_extends", message).at(node.name().span(), "here").help(help.clone()));
        }
        for entry in node.entries() {
            match (entry.name(), entry.value()) {
                (None, KdlValue::String(path)) if !path.trim().is_empty() => {
                    named.push(Named { path: path.clone(), span: entry.span() });
                }
                _ => {
                    let message = format!(
                        "`{name}` takes the path of a file, and is given `{entry}`",
                        entry = entry.value()
                    );
                    self.problems.push(
                        self.error("bad_extends", message).at(entry.span(), "no path").help(help.clone()),
                    );
                }
            }
        }
    }

    /// What a file does not hand on: its root's own arguments, and the nodes that are about itself.
    fn strip(&self, base: &mut KdlDocument) {
        let layering = self.layering;
        for root in base.nodes_mut().iter_mut().filter(|node| node.name().value() == layering.root) {
            root.entries_mut().retain(|entry| entry.name().is_some());
            if let Some(children) = root.children_mut() {
                children.nodes_mut().retain(|node| !layering.own.contains(&node.name().value()));
            }
        }
    }

    /// Makes the paths of a file that lies in `here` relative to the first file's directory.
    fn rebase(&self, own: &mut KdlDocument, here: &str) {
        let layering = self.layering;
        for root in own.nodes_mut().iter_mut().filter(|node| node.name().value() == layering.root) {
            let Some(children) = root.children_mut() else { continue };
            for node in children.nodes_mut().iter_mut() {
                let name = node.name().value().to_owned();
                let is_path = |entry: &KdlEntry, first: bool| match entry.name() {
                    None => first && layering.paths.contains(&name.as_str()),
                    Some(key) => layering.path_properties.contains(&(name.as_str(), key.value())),
                };
                let mut first = true;
                for entry in node.entries_mut() {
                    let here_is = is_path(entry, first);
                    first &= entry.name().is_some();
                    let path = entry.value().as_string().filter(|p| !p.is_empty() && !p.starts_with('/'));
                    if let Some(path) = path.filter(|_| here_is) {
                        let joined = join(here, path);
                        entry.set_value(joined);
                    }
                }
            }
        }
    }
}

fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// `path`, relative to `directory`, with `.` and `..` taken out where that can be told from the names.
fn join(directory: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let root = if path.starts_with('/') || directory.starts_with('/') { "/" } else { "" };
    let directory = if path.starts_with('/') { "" } else { directory };
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if parts.is_empty() && !root.is_empty() => {}
            part => parts.push(part),
        }
    }
    format!("{root}{}", parts.join("/"))
}
