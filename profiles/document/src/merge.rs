//! One layer of nodes over another: what a file says over what it extends, and a condition's nodes over the rest. The
//! language gives the rules as data ([`Layering`]); nothing here knows a node by name.

use std::collections::{BTreeMap, BTreeSet};

use kdl::{KdlDocument, KdlEntry, KdlNode};

/// How the nodes of a language lie over each other.
#[derive(Debug, Clone, Copy)]
pub struct Layering {
    /// The node that a file is about.
    pub root: &'static str,
    /// The node in it that names other files.
    pub extends: &'static str,
    /// Nodes directly in it that add up: those of the lower layer stay as they are.
    pub accumulated: &'static [&'static str],
    /// Nodes directly in it that a file does not take from those it extends.
    pub own: &'static [&'static str],
    /// Nodes directly in it whose first argument is a path, relative to the file that it stands in.
    pub paths: &'static [&'static str],
    /// Properties of nodes directly in it that are such paths: node, key.
    pub path_properties: &'static [(&'static str, &'static str)],
    /// What is not merged piece by piece.
    pub rules: &'static [Rule],
}

/// How one kind of node merges.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The name of the node it stands in.
    pub within: &'static str,
    /// Its name.
    pub node: &'static str,
    /// What else must be equal for two nodes to be the same one: the first argument, and properties.
    pub key: Key,
    /// What happens to what the lower one says.
    pub over: Over,
    /// A property of the upper one → properties of the lower one that go.
    pub drops: &'static [(&'static str, &'static [&'static str])],
}

/// What makes two nodes of one name the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The name is enough.
    Name,
    /// And the first argument.
    Argument,
    /// And the first argument and this property. A node with the argument `none` stands for having none of them: it
    /// takes the others away, and they take it away.
    ArgumentAnd(&'static str),
}

/// What happens to what the lower node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Arguments replace arguments, properties replace those of the same key, children merge.
    Pieces,
    /// The upper node stands in its place.
    Whole,
    /// It stays, and the upper node stands beside it: lists that add up.
    Beside,
    /// As pieces, and an argument takes the lower one's properties away.
    ArgumentOverProperties,
    /// As pieces, and an argument takes the lower one's braces away, braces its argument.
    WordOrBraces,
}

const PIECES: Rule = Rule { within: "", node: "", key: Key::Name, over: Over::Pieces, drops: &[] };

impl Layering {
    fn rule(&self, within: &str, node: &str) -> Rule {
        self.rules.iter().find(|r| r.within == within && r.node == node).copied().unwrap_or(PIECES)
    }

    /// Lays the nodes of `upper` over those of `lower`, both standing in a node named `within`. What stands twice in one
    /// layer stays there twice, so that the reader refuses it.
    pub(crate) fn merge(&self, within: &str, lower: &mut Vec<KdlNode>, upper: &[KdlNode]) {
        self.clear_none(within, lower, upper);
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (at, node) in lower.iter().enumerate() {
            places.entry(self.key(within, node)).or_insert(at);
        }
        let mut seen = BTreeSet::new();
        for node in upper {
            let name = node.name().value();
            let adds = within == self.root && self.accumulated.contains(&name)
                || self.rule(within, name).over == Over::Beside;
            let key = self.key(within, node);
            let place = places.get(&key).copied().filter(|_| !adds && seen.insert(key));
            match place.and_then(|at| lower.get_mut(at)) {
                Some(under) => self.merge_node(self.rule(within, name), under, node),
                None => lower.push(node.clone()),
            }
        }
    }

    fn key(&self, within: &str, node: &KdlNode) -> String {
        let name = node.name().value();
        let argument = || arguments(node).next().map_or(String::new(), |entry| entry.value().to_string());
        match self.rule(within, name).key {
            Key::Name => name.to_owned(),
            Key::Argument => format!("{name} {}", argument()),
            Key::ArgumentAnd(property) => {
                let value = node.entries().iter().find(|e| is(e, property)).map(|e| e.value().to_string());
                format!("{name} {} {}", argument(), value.unwrap_or_default())
            }
        }
    }

    fn clear_none(&self, within: &str, lower: &mut Vec<KdlNode>, upper: &[KdlNode]) {
        let stands_alone = self
            .rules
            .iter()
            .filter(|r| r.within == within && matches!(r.key, Key::ArgumentAnd(_)) && r.over == Over::Pieces);
        for rule in stands_alone {
            let of = |node: &&KdlNode| node.name().value() == rule.node;
            if !upper.iter().any(|node| of(&node)) {
                continue;
            }
            let only_none = upper.iter().filter(of).all(is_none);
            lower.retain(|node| node.name().value() != rule.node || (!only_none && !is_none(node)));
        }
    }

    fn merge_node(&self, rule: Rule, lower: &mut KdlNode, upper: &KdlNode) {
        if rule.over == Over::Whole {
            *lower = upper.clone();
            return;
        }
        let argued = arguments(upper).next().is_some();
        let braced = upper.children().is_some_and(|children| !children.is_empty());
        let old = std::mem::take(lower.entries_mut());
        let dropped: Vec<&str> = rule
            .drops
            .iter()
            .filter(|(key, _)| has(upper, key))
            .flat_map(|(_, gone)| *gone)
            .copied()
            .collect();
        let no_argument = argued || (rule.over == Over::WordOrBraces && braced);
        let no_property = argued && rule.over == Over::ArgumentOverProperties;
        let goes = |entry: &KdlEntry| match entry.name() {
            None => no_argument,
            Some(key) => no_property || has(upper, key.value()) || dropped.contains(&key.value()),
        };
        let mut entries: Vec<KdlEntry> =
            upper.entries().iter().filter(|e| e.name().is_none()).cloned().collect();
        entries.extend(old.into_iter().filter(|entry| !goes(entry)));
        entries.extend(upper.entries().iter().filter(|e| e.name().is_some()).cloned());
        *lower.entries_mut() = entries;
        if rule.over == Over::WordOrBraces && argued && !braced {
            lower.clear_children();
        }
        if let Some(children) = upper.children() {
            let name = upper.name().value().to_owned();
            let within = lower.children_mut().get_or_insert_with(KdlDocument::new);
            self.merge(&name, within.nodes_mut(), children.nodes());
        }
        if let Some(ty) = upper.ty() {
            *lower.ty_mut() = Some(ty.clone());
        }
        // Whoever points at the node means the file that was asked for, which is the one to change.
        let span = upper.name().span();
        lower.name_mut().set_span(span);
        lower.set_span(upper.span());
    }
}

fn arguments(node: &KdlNode) -> impl Iterator<Item = &KdlEntry> {
    node.entries().iter().filter(|entry| entry.name().is_none())
}

fn is(entry: &KdlEntry, key: &str) -> bool {
    entry.name().is_some_and(|name| name.value() == key)
}

fn has(node: &KdlNode, key: &str) -> bool {
    node.entries().iter().any(|entry| is(entry, key))
}

fn is_none(node: &KdlNode) -> bool {
    arguments(node).next().is_some_and(|entry| entry.value().as_string() == Some("none"))
}

/// Moves every span of a document `by` further on, into its stretch of the common space.
pub(crate) fn shift(document: &mut KdlDocument, by: usize) {
    let moved = |span: miette::SourceSpan| miette::SourceSpan::from((span.offset() + by, span.len()));
    document.set_span(moved(document.span()));
    for node in document.nodes_mut() {
        node.set_span(moved(node.span()));
        let span = moved(node.name().span());
        node.name_mut().set_span(span);
        if let Some(ty) = node.ty_mut() {
            ty.set_span(moved(ty.span()));
        }
        for entry in node.entries_mut() {
            entry.set_span(moved(entry.span()));
            if let Some(ty) = entry.ty_mut() {
                ty.set_span(moved(ty.span()));
            }
            if let Some(name) = entry.name_mut() {
                name.set_span(moved(name.span()));
            }
        }
        if let Some(children) = node.children_mut() {
            shift(children, by);
        }
    }
}
