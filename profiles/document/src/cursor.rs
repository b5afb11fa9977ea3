//! Cursors that remember what was read: [`Block`] over the nodes of a file or of a node's braces, [`Node`] over one
//! node's arguments, properties and children. `finish` reports what nobody asked for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use kdl::{KdlDocument, KdlEntry, KdlNode};
use miette::SourceSpan;

use crate::foreign::{self, Kind};
use crate::problem::{Findings, Problem};
use crate::sources::Line;
use crate::suggest::{closest, one_of};
use crate::value::Value;

/// The nodes between two braces, or of a whole file.
#[derive(Debug)]
#[must_use = "a block that is not finished hides unknown nodes"]
pub struct Block<'a> {
    findings: &'a Findings,
    nodes: &'a [KdlNode],
    read: Vec<Cell<bool>>,
    asked: Rc<RefCell<Vec<&'static str>>>,
    missing: RefCell<Vec<(&'static str, Problem)>>,
    place: SourceSpan,
    /// The name of the node whose braces these are; empty for a file.
    of: &'a str,
    within: String,
}

impl<'a> Block<'a> {
    pub(crate) fn new(
        findings: &'a Findings,
        document: Option<&'a KdlDocument>,
        place: SourceSpan,
        of: &'a str,
        within: String,
    ) -> Self {
        let nodes = document.map_or(&[] as &[KdlNode], KdlDocument::nodes);
        let read = vec![Cell::new(false); nodes.len()];
        Block { findings, nodes, read, asked: Rc::default(), missing: RefCell::default(), place, of, within }
    }

    /// The same block, which tells the node around it what it was asked for.
    fn telling(self, asked: Rc<RefCell<Vec<&'static str>>>) -> Self {
        Block { asked, ..self }
    }

    /// Every node of this name, in order.
    pub fn all(&self, name: &'static str) -> Vec<Node<'a>> {
        self.asked.borrow_mut().push(name);
        let mut found = Vec::new();
        for (node, read) in self.nodes.iter().zip(&self.read) {
            if node.name().value() == name {
                read.set(true);
                found.push(Node::new(self.findings, node));
            }
        }
        found
    }

    /// The node of this name, which may stand here once at most.
    pub fn only(&self, name: &'static str) -> Option<Node<'a>> {
        let mut found = self.all(name).into_iter();
        let first = found.next()?;
        for again in found {
            self.findings.push(
                self.findings
                    .error("duplicate_node", format!("`{name}` stands twice in {}", self.within))
                    .at(again.name_span(), "again here")
                    .at(first.name_span(), "first here")
                    .help(format!("keep one `{name}`")),
            );
        }
        Some(first)
    }

    /// The node of this name, which must stand here once; `help` says what to write.
    pub fn required(&self, name: &'static str, help: &str) -> Option<Node<'a>> {
        let node = self.only(name);
        if node.is_none() {
            let problem = self
                .findings
                .error("missing_node", format!("{} has no `{name}`", self.within))
                .at(self.place, format!("`{name}` is missing here"))
                .help(help);
            self.missing.borrow_mut().push((name, problem));
        }
        node
    }

    /// Refuses nodes that belong to the language but not to this version of vmprof: `(name, what to do instead)`.
    pub fn not_yet(&self, names: &[(&'static str, &str)]) {
        for (name, instead) in names {
            for node in self.all(name) {
                self.findings.push(
                    self.findings
                        .error("not_supported_yet", format!("`{name}` is not supported yet"))
                        .at(node.name_span(), "this version of vmprof cannot do this")
                        .help(*instead),
                );
            }
        }
    }

    /// The gatherer, for the reader's own problems.
    pub fn findings(&self) -> &'a Findings {
        self.findings
    }

    /// The nodes' names and places, in order, for readers whose node names are not fixed.
    pub fn rest(&self) -> Vec<Node<'a>> {
        let mut rest = Vec::new();
        for (node, read) in self.nodes.iter().zip(&self.read) {
            if !read.replace(true) {
                rest.push(Node::new(self.findings, node));
            }
        }
        rest
    }

    /// Whether no node stands here.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Reports every node that nobody asked for, and every required one that is missing. A missing node whose name
    /// was misspelt is one problem, not two.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        let mut missing = self.missing.borrow_mut();
        for (node, read) in self.nodes.iter().zip(&self.read) {
            if read.get() {
                continue;
            }
            if self.findings.is_full() {
                self.findings.skip();
                continue;
            }
            let name = node.name().value();
            let foreign = foreign::instead(self.findings.foreign(), Kind::Node, self.of, name);
            let near = closest(name, missing.iter().map(|(name, _)| *name));
            let near = near.or_else(|| closest(name, asked.iter().copied())).filter(|_| foreign.is_none());
            let help = match (near, foreign) {
                (_, Some(foreign)) => {
                    // `vcpus 4` is the `vcpu` that is missing.
                    missing.retain(|(name, _)| foreign::names(foreign) != Some(*name));
                    foreign.to_owned()
                }
                (Some(near), _) => {
                    missing.retain(|(name, _)| *name != near);
                    format!("did you mean `{near}`?")
                }
                (None, None) if asked.is_empty() => format!("{} takes no nodes", self.within),
                (None, None) => format!("{} takes {}", self.within, one_of(&asked)),
            };
            self.findings.push(
                self.findings
                    .error("unknown_node", format!("{} knows no node `{name}`", self.within))
                    .at(node.name().span(), "unknown node")
                    .help(help),
            );
        }
        missing.drain(..).for_each(|(_, problem)| self.findings.push(problem));
    }
}

/// One node: name, arguments, properties, children.
#[derive(Debug)]
#[must_use = "a node that is not finished hides unknown properties"]
pub struct Node<'a> {
    findings: &'a Findings,
    node: &'a KdlNode,
    read: Vec<Cell<bool>>,
    asked: RefCell<Vec<&'static str>>,
    missing: RefCell<Vec<(&'static str, Problem)>>,
    /// The argument that was reported missing, which may stand there in another shape.
    argument_missing: RefCell<Option<Problem>>,
    children_read: Cell<bool>,
    /// The names asked for between its braces.
    asked_inside: Rc<RefCell<Vec<&'static str>>>,
}

impl<'a> Node<'a> {
    fn new(findings: &'a Findings, node: &'a KdlNode) -> Self {
        let read = vec![Cell::new(false); node.entries().len()];
        Node {
            findings,
            node,
            read,
            asked: RefCell::default(),
            missing: RefCell::default(),
            argument_missing: RefCell::default(),
            children_read: Cell::new(false),
            asked_inside: Rc::default(),
        }
    }

    /// The node's name.
    pub fn name(&self) -> &'a str {
        self.node.name().value()
    }

    /// Where the name stands: the place to point at when the whole node is meant.
    pub fn name_span(&self) -> SourceSpan {
        self.node.name().span()
    }

    /// The line of the name.
    pub fn line(&self) -> Line {
        self.findings.line(self.name_span())
    }

    /// The gatherer, for the reader's own problems.
    pub fn findings(&self) -> &'a Findings {
        self.findings
    }

    /// The next positional argument. `what` names it in messages.
    pub fn arg(&self, what: &'a str) -> Option<Value<'a>> {
        let (entry, read) = self.unread().find(|(e, _)| e.name().is_none())?;
        read.set(true);
        Some(Value::new(self.findings, entry, what).of(self.name()))
    }

    /// The next positional argument, reported as missing when there is none.
    pub fn required_arg(&self, what: &'a str, help: &str) -> Option<Value<'a>> {
        let value = self.arg(what);
        if value.is_none() {
            let message = format!("`{}` does not say {what}", self.name());
            let problem = self.problem("missing_argument", message).help(help);
            self.findings.push(problem.clone());
            self.argument_missing.replace(Some(problem));
        }
        value
    }

    /// All arguments that are left.
    pub fn args(&self, what: &'a str) -> Vec<Value<'a>> {
        std::iter::from_fn(|| self.arg(what)).collect()
    }

    /// The property of this key, which may be given once at most. The key names it in messages.
    pub fn prop(&self, key: &'static str) -> Option<Value<'a>> {
        self.asked.borrow_mut().push(key);
        let mut found: Option<&KdlEntry> = None;
        for (entry, read) in self.node.entries().iter().zip(&self.read) {
            if entry.name().is_none_or(|n| n.value() != key) {
                continue;
            }
            read.set(true);
            match found {
                None => found = Some(entry),
                Some(first) => self.findings.push(
                    self.findings
                        .error("duplicate_property", format!("`{}` is given `{key}` twice", self.name()))
                        .at(entry.span(), "again here")
                        .at(first.span(), "first here")
                        .help("KDL would let the last one win in silence; keep the one you mean"),
                ),
            }
        }
        found.map(|entry| Value::new(self.findings, entry, key))
    }

    /// The property of this key, reported as missing when it is not given.
    pub fn required_prop(&self, key: &'static str, help: &str) -> Option<Value<'a>> {
        let value = self.prop(key);
        if value.is_none() {
            let message = format!("`{}` has no `{key}=`", self.name());
            let problem = self.problem("missing_property", message).help(help);
            self.missing.borrow_mut().push((key, problem));
        }
        value
    }

    /// The nodes between this node's braces; empty where it has none.
    pub fn children(&self) -> Block<'a> {
        self.children_read.set(true);
        let within = match self.node.entries().iter().find(|e| e.name().is_none()) {
            Some(arg) => format!(
                "`{} {}`",
                self.name(),
                arg.value().as_string().map_or_else(|| arg.value().to_string(), str::to_owned)
            ),
            None => format!("`{}`", self.name()),
        };
        Block::new(self.findings, self.node.children(), self.name_span(), self.name(), within)
            .telling(Rc::clone(&self.asked_inside))
    }

    pub(crate) fn kdl(&self) -> &'a KdlNode {
        self.node
    }

    /// The first argument, where it is a string; looked at, not read.
    pub fn first_text(&self) -> Option<&'a str> {
        self.node.entries().iter().find(|e| e.name().is_none())?.value().as_string()
    }

    /// Whether the node has any property.
    pub fn has_props(&self) -> bool {
        self.node.entries().iter().any(|entry| entry.name().is_some())
    }

    /// Whether the node has a property that nobody asked for so far: perhaps a misspelt one, which is reported when the
    /// node is finished.
    pub fn has_unread_props(&self) -> bool {
        self.unread().any(|(entry, _)| entry.name().is_some())
    }

    /// Whether the node has braces with something in them.
    pub fn has_children(&self) -> bool {
        self.node.children().is_some_and(|c| !c.is_empty())
    }

    /// Whether the node has any argument or property.
    pub fn has_entries(&self) -> bool {
        !self.node.entries().is_empty()
    }

    /// A problem that points at this node's name, for the reader's own rules; record it with [`Findings::push`].
    pub fn problem(&self, code: &str, message: impl Into<String>) -> Problem {
        self.findings.error(code, message).at(self.name_span(), "here")
    }

    /// Reports every property and argument that nobody asked for, and children where none are taken.
    pub fn finish(self) {
        self.report_rest();
    }

    /// What [`Node::finish`] does, for a node whose braces are read again later.
    pub fn report_rest(&self) {
        let name = self.name();
        // Problems that are mended by writing the same thing are one, which points at all their places.
        let mut rest: Vec<Problem> = Vec::new();
        for (entry, _) in self.unread() {
            if self.findings.is_full() {
                self.findings.skip();
                continue;
            }
            let (problem, place, label) = match entry.name() {
                Some(key) => {
                    let message = format!("`{name}` knows no property `{}`", key.value());
                    let problem = self.findings.error("unknown_property", message);
                    (problem.help(self.property_help(entry, key.value())), key.span(), "unknown property")
                }
                None => {
                    let message = format!("`{name}` takes no further argument");
                    let problem = self.findings.error("extra_argument", message);
                    (problem.help(self.extra_help(entry)), entry.span(), "one too many")
                }
            };
            let argument = entry.name().is_none();
            match rest.last_mut() {
                Some(last)
                    if last.code() == problem.code()
                        && (argument || last.help_text() == problem.help_text()) =>
                {
                    last.point(place, label);
                }
                _ => rest.push(problem.at(place, label)),
            }
        }
        rest.into_iter().for_each(|problem| self.findings.push(problem));
        self.missing.borrow_mut().drain(..).for_each(|(_, problem)| self.findings.push(problem));
        for entry in self.node.entries() {
            // A typed number that is read as a size was refused there, with what to write.
            if let Some(ty) = entry.ty().filter(|_| !entry.value().is_integer()) {
                self.annotation(ty.value(), ty.span());
            }
        }
        if let Some(ty) = self.node.ty() {
            self.annotation(ty.value(), ty.span());
        }
        if self.has_children() && !self.children_read.get() {
            self.findings.push(
                self.problem("unexpected_children", format!("`{name}` takes no nodes in braces"))
                    .help("remove the braces"),
            );
        }
    }

    /// What to write instead of a property that is not there. Where it stands for something else that was reported
    /// missing, that report is taken back.
    fn property_help(&self, entry: &KdlEntry, key: &str) -> String {
        let name = self.name();
        let asked = self.asked.borrow();
        let foreign = foreign::instead(self.findings.foreign(), Kind::Property, name, key);
        let missing = self.argument_missing.borrow();
        let argument = missing.as_ref().and_then(Problem::help_text);
        if let Some(foreign) = foreign {
            if argument.is_some_and(|help| help.strip_prefix("write ").is_some_and(|it| foreign.contains(it)))
            {
                missing.iter().for_each(|problem| self.findings.retract(problem));
            }
            return foreign.to_owned();
        }
        let inside = self.asked_inside.borrow();
        if let Some(node) = inside.iter().find(|node| **node == key) {
            return format!("write it as a node in braces: `{name} … {{ {node} {} }}`", entry.value());
        }
        if let Some(near) = closest(key, asked.iter().copied()) {
            self.missing.borrow_mut().retain(|(name, _)| *name != near);
            return format!("did you mean `{near}=`?");
        }
        if let Some(help) = argument {
            missing.iter().for_each(|problem| self.findings.retract(problem));
            return help.to_owned();
        }
        match asked.as_slice() {
            [] => format!("`{name}` takes no properties"),
            asked => format!("`{name}` takes {}", one_of(asked)),
        }
    }

    fn extra_help(&self, entry: &KdlEntry) -> String {
        let word = entry.value().as_string().unwrap_or_default();
        let asked = self.asked.borrow();
        let meant = closest(word, asked.iter().copied());
        match (meant.or_else(|| asked.iter().copied().find(|key| *key == word)), asked.as_slice()) {
            (Some(key), _) => format!("a property is written `{key}=…`, as one word"),
            (None, [only]) => format!("write `{only}={}`, or remove it", entry.value()),
            (None, []) => "remove it; a list goes into one quoted string".to_owned(),
            (None, asked) => format!("remove it, or write it as a property: {} and `=`", one_of(asked)),
        }
    }

    fn annotation(&self, ty: &str, span: SourceSpan) {
        self.findings.push(
            self.findings
                .error("type_annotation", format!("vmprof gives the annotation `({ty})` no meaning"))
                .at(span, "annotation")
                .help("remove it; a unit goes into the quoted value, such as \"16GiB\""),
        );
    }

    fn unread(&self) -> impl Iterator<Item = (&'a KdlEntry, &Cell<bool>)> {
        self.node.entries().iter().zip(&self.read).filter(|(_, read)| !read.get())
    }
}
