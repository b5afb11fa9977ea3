//! An XML document while it grows.

use quick_xml::events::{BytesDecl, BytesText, Event};
use quick_xml::writer::Writer;

/// An element with its attributes, text or children.
#[derive(Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: Option<String>,
    children: Vec<Element>,
}

impl Element {
    pub(super) fn new(name: &'static str) -> Self {
        Element { name, attributes: Vec::new(), text: None, children: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    pub(super) fn text(mut self, text: impl ToString) -> Self {
        self.text = Some(text.to_string());
        self
    }

    pub(super) fn add(&mut self, child: Element) {
        self.children.push(child);
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_none() && self.children.is_empty()
    }

    fn replace_unwritable(&mut self, unwritable: &mut Vec<String>) {
        for value in self.attributes.iter_mut().map(|(_, value)| value).chain(&mut self.text) {
            if value.contains(no_xml) {
                unwritable.push(value.clone());
                *value = value.replace(no_xml, "\u{fffd}");
            }
        }
        self.children.iter_mut().for_each(|child| child.replace_unwritable(unwritable));
    }

    /// Adds an element that holds text.
    pub(super) fn leaf(&mut self, name: &'static str, text: &str) {
        self.add(Element::new(name).text(text));
    }
}

/// The whole document, and the values that no XML can hold: their control characters (XML 1.0, 2.2) became U+FFFD.
pub(super) fn document(mut root: Element) -> (String, Vec<String>) {
    let mut unwritable = Vec::new();
    root.replace_unwritable(&mut unwritable);
    (text(&root), unwritable)
}

fn text(root: &Element) -> String {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    // Writing into a vector cannot fail.
    let _ = writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)));
    let _ = write(&mut writer, root);
    let mut text = String::from_utf8_lossy(&writer.into_inner()).into_owned();
    text.push('\n');
    text
}

/// Whether no XML 1.0 may hold it, not even as a reference.
fn no_xml(c: char) -> bool {
    (c.is_ascii_control() && !"\t\n\r\u{7f}".contains(c)) || matches!(c, '\u{fffe}' | '\u{ffff}')
}

fn write(writer: &mut Writer<Vec<u8>>, element: &Element) -> std::io::Result<()> {
    let attributes = element.attributes.iter().map(|(name, value)| (*name, value.as_str()));
    let start = writer.create_element(element.name).with_attributes(attributes);
    match &element.text {
        Some(text) => start.write_text_content(BytesText::new(text)),
        None if element.children.is_empty() => start.write_empty(),
        None => start
            .write_inner_content(|inner| element.children.iter().try_for_each(|child| write(inner, child))),
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let mut outer = Element::new("a").with("b", "<\"&'>");
        outer.leaf("c", "1 < 2 & 3");
        outer.leaf("d", "lines\nand\ttabs");
        let (text, unwritable) = document(outer);
        assert!(unwritable.is_empty());
        let read = roxmltree::Document::parse(&text).unwrap();
        assert_eq!(read.root_element().attribute("b"), Some("<\"&'>"));
        assert_eq!(read.root_element().first_element_child().and_then(|c| c.text()), Some("1 < 2 & 3"));
    }

    #[test]
    fn what_no_xml_can_hold_is_told_and_the_document_stays_one() {
        let bad = "/srv/a\u{1}b\nc\u{ffff}.raw";
        let mut outer = Element::new("a").with("file", bad);
        outer.leaf("b", "\u{1b}[31m");
        let (text, unwritable) = document(outer);
        assert_eq!(unwritable, [bad, "\u{1b}[31m"]);
        let read = roxmltree::Document::parse(&text).unwrap();
        assert_eq!(read.root_element().attribute("file"), Some("/srv/a\u{fffd}b\nc\u{fffd}.raw"));
    }
}
