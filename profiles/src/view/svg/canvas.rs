//! SVG elements on a page, escaped and well formed. Sizes are in CSS pixels.

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Type {
    pub size: f64,
    pub bold: bool,
    pub fill: &'static str,
    /// `start`, `middle` or `end`.
    pub anchor: &'static str,
}

impl Type {
    pub(super) const fn of(size: f64, fill: &'static str) -> Type {
        Type { size, bold: false, fill, anchor: "start" }
    }

    pub(super) const fn bold(self) -> Type {
        Type { bold: true, ..self }
    }

    pub(super) const fn anchored(self, anchor: &'static str) -> Type {
        Type { anchor, ..self }
    }
}

/// A rectangle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// How a shape is painted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub fill: &'static str,
    pub stroke: &'static str,
    /// The radius of its corners.
    pub round: f64,
    pub dashed: bool,
}

impl Paint {
    pub(super) const fn of(fill: &'static str, stroke: &'static str) -> Paint {
        Paint { fill, stroke, round: 4.0, dashed: false }
    }
}

/// Where elements are written, in their order.
pub(super) struct Canvas {
    writer: Writer<Vec<u8>>,
}

impl Canvas {
    pub(super) fn new() -> Canvas {
        Canvas { writer: Writer::new_with_indent(Vec::new(), b' ', 1) }
    }

    fn event(&mut self, event: Event<'_>) {
        // Writing into memory does not fail.
        let _ = self.writer.write_event(event);
    }

    pub(super) fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        let start = BytesStart::new(name).with_attributes(attributes.iter().copied());
        self.event(Event::Start(start));
    }

    pub(super) fn close(&mut self, name: &str) {
        self.event(Event::End(BytesEnd::new(name)));
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        let start = BytesStart::new(name).with_attributes(attributes.iter().copied());
        self.event(Event::Empty(start));
    }

    /// An element that holds text alone.
    pub(super) fn words(&mut self, name: &str, attributes: &[(&str, &str)], words: &str) {
        let element = self.writer.create_element(name).with_attributes(attributes.iter().copied());
        let _ = element.write_text_content(BytesText::new(&plain(words)));
    }

    /// A group with a tooltip.
    pub(super) fn group(&mut self, title: &str, draw: impl FnOnce(&mut Canvas)) {
        self.open("g", &[]);
        self.words("title", &[], title);
        draw(self);
        self.close("g");
    }

    pub(super) fn rect(&mut self, area: Area, paint: Paint) {
        let (x, y) = (number(area.x), number(area.y));
        let (width, height, round) = (number(area.width), number(area.height), number(paint.round));
        let mut attributes = vec![
            ("x", x.as_str()),
            ("y", &y),
            ("width", &width),
            ("height", &height),
            ("rx", &round),
            ("fill", paint.fill),
            ("stroke", paint.stroke),
        ];
        if paint.dashed {
            attributes.push(("stroke-dasharray", "3 2"));
        }
        self.empty("rect", &attributes);
    }

    pub(super) fn text(&mut self, x: f64, y: f64, set: Type, words: &str) {
        let (x, y, size) = (number(x), number(y), number(set.size));
        let mut attributes = vec![("x", x.as_str()), ("y", &y), ("font-size", &size), ("fill", set.fill)];
        if set.bold {
            attributes.push(("font-weight", "bold"));
        }
        if set.anchor != "start" {
            attributes.push(("text-anchor", set.anchor));
        }
        self.words("text", &attributes, words);
    }

    /// A curve that leaves and arrives upright.
    pub(super) fn curve(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, width: f64) {
        let middle = number((from.1 + to.1) / 2.0);
        let path = format!(
            "M{} {} C{} {middle} {} {middle} {} {}",
            number(from.0),
            number(from.1),
            number(from.0),
            number(to.0),
            number(to.0),
            number(to.1)
        );
        let width = number(width);
        let attributes = [
            ("d", path.as_str()),
            ("fill", "none"),
            ("stroke", stroke),
            ("stroke-width", &width),
            ("opacity", "0.75"),
        ];
        self.empty("path", &attributes);
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str) {
        let (x1, y1, x2, y2) = (number(from.0), number(from.1), number(to.0), number(to.1));
        self.empty("line", &[("x1", x1.as_str()), ("y1", &y1), ("x2", &x2), ("y2", &y2), ("stroke", stroke)]);
    }

    pub(super) fn finish(self) -> String {
        String::from_utf8_lossy(&self.writer.into_inner()).into_owned()
    }
}

/// Coordinates with at most one decimal: the same on every machine.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Without the characters that XML 1.0 cannot hold (section 2.2), which names and paths may have.
fn plain(text: &str) -> String {
    let fits =
        |c: char| matches!(c, '\t' | '\n' | '\r') || (c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'));
    text.chars().map(|c| if fits(c) { c } else { '\u{fffd}' }).collect()
}

/// About how wide a text is: no font is at hand to measure with, so on the wide side.
pub(super) fn width_of(words: &str, size: f64) -> f64 {
    words.chars().count() as f64 * size * 0.58
}
