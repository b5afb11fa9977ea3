//! A plan as one self-contained SVG picture: the host's nodes, caches and cores as nested boxes with the threads on them,
//! and for each disk its virtqueues tied to the IOThreads that serve them. Every box tells its reason as a tooltip.
//!
//! Nothing in it is loaded from elsewhere, and the same plan gives the same bytes.

mod canvas;
mod colours;
mod host;
mod queues;

use crate::plan::{Plan, Severity};

use super::Backdrop;
use super::marks::Marks;
use super::plan::memory_words;
use super::prose::{count, wrap};
use canvas::{Area, Canvas, Type, number, width_of};

/// Boxes flow into lines of this width.
const WIDEST: f64 = 1200.0;
/// A page is never narrower.
const NARROWEST: f64 = 640.0;
const MARGIN: f64 = 24.0;
const GAP: f64 = 12.0;

/// A size before it has a place.
#[derive(Debug, Clone, Copy)]
struct Size {
    width: f64,
    height: f64,
}

/// Places boxes in lines of at most `room`, and says how large all of them are together.
fn flow(sizes: &[Size], room: f64) -> (Vec<(f64, f64)>, Size) {
    let (mut x, mut y, mut tallest, mut widest) = (0.0, 0.0, 0.0_f64, 0.0_f64);
    let mut places = Vec::new();
    for size in sizes {
        if x > 0.0 && x + size.width > room {
            (x, y, tallest) = (0.0, y + tallest + GAP, 0.0);
        }
        places.push((x, y));
        widest = widest.max(x + size.width);
        tallest = tallest.max(size.height);
        x += size.width + GAP;
    }
    (places, Size { width: widest, height: y + tallest })
}

/// The plan as a picture.
pub fn plan_svg(plan: &Plan, on: Backdrop<'_>) -> String {
    let marks = Marks::of(plan, on);
    let nodes = host::nodes(plan, on.topology, &marks);
    let panels = queues::panels(plan);
    let node_sizes: Vec<Size> = nodes.iter().map(host::NodeBox::size).collect();
    let (node_places, nodes_size) = flow(&node_sizes, WIDEST);
    let panel_sizes: Vec<Size> = panels.iter().map(queues::Panel::size).collect();
    let room = WIDEST.max(nodes_size.width);
    let (panel_places, panels_size) = flow(&panel_sizes, room);
    let width = nodes_size.width.max(panels_size.width).max(NARROWEST);
    let legend = host::legend(&marks, on.topology);
    let legend_lines = host::legend_lines(&legend, width);
    let remarks = remarks(plan, width);

    let nodes_top = MARGIN + 62.0;
    let legend_top = nodes_top + nodes_size.height + GAP;
    let panels_top = legend_top + legend_lines.len() as f64 * 20.0 + GAP;
    let below_panels = if panels.is_empty() { 0.0 } else { panels_size.height + GAP * 2.0 };
    let remarks_top = panels_top + below_panels;
    let height = remarks_top + remarks.len() as f64 * 17.0 + MARGIN;
    let whole = Size { width: width + 2.0 * MARGIN, height };

    let mut canvas = Canvas::new();
    open(&mut canvas, plan, whole);
    head(&mut canvas, plan);
    for (node, (x, y)) in nodes.iter().zip(&node_places) {
        node.draw(&mut canvas, MARGIN + x, nodes_top + y);
    }
    for (number, line) in legend_lines.iter().enumerate() {
        host::draw_legend(&mut canvas, line, MARGIN, legend_top + number as f64 * 20.0);
    }
    for (panel, (x, y)) in panels.iter().zip(&panel_places) {
        panel.draw(&mut canvas, MARGIN + x, panels_top + y);
    }
    for (number, (set, words)) in remarks.iter().enumerate() {
        canvas.text(MARGIN, remarks_top + 12.0 + number as f64 * 17.0, *set, words);
    }
    canvas.close("svg");
    let mut text = canvas.finish();
    text.push('\n');
    text
}

fn open(canvas: &mut Canvas, plan: &Plan, size: Size) {
    let (width, height) = (number(size.width), number(size.height));
    let view = format!("0 0 {width} {height}");
    canvas.open(
        "svg",
        &[
            ("xmlns", "http://www.w3.org/2000/svg"),
            ("width", &width),
            ("height", &height),
            ("viewBox", &view),
            ("font-family", "system-ui, 'DejaVu Sans', Verdana, sans-serif"),
            ("role", "img"),
        ],
    );
    canvas.words("title", &[], &format!("vmprof: where the threads of {} run", plan.profile));
    // What other VMs hold is hatched.
    canvas.open("defs", &[]);
    canvas.open(
        "pattern",
        &[
            ("id", "held"),
            ("width", "6"),
            ("height", "6"),
            ("patternUnits", "userSpaceOnUse"),
            ("patternTransform", "rotate(45)"),
        ],
    );
    let ground = Area { x: 0.0, y: 0.0, width: 6.0, height: 6.0 };
    canvas.rect(ground, canvas::Paint { round: 0.0, ..canvas::Paint::of("#fdf3f3", "none") });
    canvas.line((0.0, 0.0), (0.0, 6.0), "#d79a9a");
    canvas.close("pattern");
    canvas.close("defs");
    canvas.rect(Area { x: 0.0, y: 0.0, width: size.width, height: size.height }, colours::PAGE);
}

fn head(canvas: &mut Canvas, plan: &Plan) {
    let title = Type::of(22.0, colours::INK).bold();
    canvas.text(MARGIN, MARGIN + 18.0, title, &plan.profile);
    let x = MARGIN + width_of(&plan.profile, 22.0) * 1.12 + 14.0;
    let (cpus, nodes) = (count(plan.host.cpus, "CPU"), count(plan.host.nodes, "node"));
    let what = format!(
        "{}, {}, {} on {cpus} in {nodes}",
        count(plan.vcpus.len(), "vCPU"),
        count(plan.iothreads.len(), "IOThread"),
        count(plan.disks.len(), "disk"),
    );
    canvas.text(x, MARGIN + 18.0, Type::of(14.0, colours::QUIET), &what);
    let digest: String = plan.digest.chars().take(16).collect();
    let below = format!("memory {}  ·  plan {digest}", memory_words(plan));
    canvas.group(&plan.memory.because, |canvas| {
        canvas.text(MARGIN, MARGIN + 42.0, Type::of(12.0, colours::QUIET), &below);
    });
}

/// The remarks' lines, warnings first.
fn remarks(plan: &Plan, width: f64) -> Vec<(Type, String)> {
    let columns = (width / width_of("m", 12.0)) as usize;
    let mut lines = Vec::new();
    for severity in [Severity::Warning, Severity::Note] {
        for remark in plan.diagnostics.iter().filter(|remark| remark.severity == severity) {
            let (word, fill) = match severity {
                Severity::Warning => ("warning", "#9a3412"),
                Severity::Note => ("note", "#1f5f85"),
            };
            let said = format!("{word}: {}", remark.message);
            let set = Type::of(12.0, fill);
            lines.extend(wrap(&said, columns).into_iter().map(|line| (set, line)));
            let help = Type::of(12.0, colours::QUIET);
            lines.extend(wrap(&remark.help, columns).into_iter().map(|line| (help, line)));
        }
    }
    lines
}
