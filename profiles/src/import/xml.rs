//! The XML of a domain: its elements by name, and where they stand.

use roxmltree::Node;

/// A node of the XML.
pub(super) type Xml<'a, 'x> = Node<'a, 'x>;

pub(super) fn elements<'a, 'x>(node: Xml<'a, 'x>) -> impl Iterator<Item = Xml<'a, 'x>> {
    node.children().filter(|child| child.is_element())
}

pub(super) fn children<'a, 'x>(node: Xml<'a, 'x>, name: &str) -> impl Iterator<Item = Xml<'a, 'x>> {
    elements(node).filter(move |child| child.tag_name().name() == name)
}

pub(super) fn child<'a, 'x>(node: Xml<'a, 'x>, name: &str) -> Option<Xml<'a, 'x>> {
    children(node, name).next()
}

/// The text of a node, without blanks around it.
pub(super) fn text(node: Xml<'_, '_>) -> String {
    node.text().unwrap_or_default().trim().to_owned()
}
