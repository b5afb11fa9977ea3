//! The devices' half of the picture: a panel for each disk and network device, with its virtqueues above, the IOThreads that
//! serve them below, and a line from each to each.

use crate::plan::{Plan, Virtqueue};
use crate::topology::CpuSet;
use crate::view::disks::{backend, lies, served, source, transfer};
use crate::view::prose::wrap;

use super::canvas::{Area, Canvas, Paint, Type, width_of};
use super::{Size, WIDEST, colours};

const PAD: f64 = 12.0;
const HEAD: f64 = 40.0;
const LINE: f64 = 15.0;
const LINES: f64 = 56.0;
const CHIP: f64 = 22.0;
/// A virtqueue's box, where there is room.
const QUEUE: f64 = 24.0;
/// No virtqueue's box is smaller.
const SMALLEST: f64 = 7.0;

/// One device.
pub(super) struct Panel {
    name: String,
    first: String,
    /// Wrapped.
    below: Vec<String>,
    virtqueues: Vec<Virtqueue>,
    chips: Vec<Chip>,
}

/// One IOThread of a device.
struct Chip {
    id: u32,
    words: String,
    title: String,
}

impl Chip {
    fn width(&self) -> f64 {
        width_of(&self.words, 10.5) + 18.0
    }
}

pub(super) fn panels(plan: &Plan) -> Vec<Panel> {
    let chips = |virtqueues: &[Virtqueue]| {
        let served = served(virtqueues);
        // With many, their CPUs are in the picture above and in the tooltips.
        let short = served.len() > 6;
        let chip = |(id, vqs): (u32, CpuSet)| {
            let thread = plan.iothreads.iter().find(|iothread| iothread.id == id);
            let cpus = thread.map_or(String::new(), |t| format!("  CPU {}", t.cpus));
            let words = if short { format!("i{id}") } else { format!("iothread{id}{cpus}") };
            let why = thread.map_or(String::new(), |t| t.because.clone());
            Chip { id, words, title: format!("iothread{id}{cpus} serves {vqs}\n{why}") }
        };
        served.into_iter().map(chip).collect::<Vec<_>>()
    };
    let disks = plan.disks.iter().map(|disk| Panel {
        name: disk.name.clone(),
        first: format!("{}, {}", source(disk), lies(disk)),
        below: below(&transfer(disk), &disk.because, disk.virtqueues.len()),
        virtqueues: disk.virtqueues.clone(),
        chips: chips(&disk.virtqueues),
    });
    let nets = plan.nets.iter().map(|net| Panel {
        name: net.name.clone(),
        first: backend(&net.backend),
        below: below(
            "receive and transmit queues in turn, then the control queue",
            &net.because,
            net.virtqueues.len(),
        ),
        virtqueues: net.virtqueues.clone(),
        chips: chips(&net.virtqueues),
    });
    disks.chain(nets).collect()
}

/// Texts in lines that are no wider than a panel needs to be anyway.
fn below(first: &str, second: &str, queues: usize) -> Vec<String> {
    let columns = (queues * 4).clamp(64, 180);
    [first, second].into_iter().flat_map(|text| wrap(text, columns)).collect()
}

impl Panel {
    /// How wide a virtqueue's box is, its gap included.
    fn step(&self) -> f64 {
        let room = WIDEST - 2.0 * PAD;
        (room / self.virtqueues.len().max(1) as f64).clamp(SMALLEST, QUEUE + 4.0)
    }

    fn queues_width(&self) -> f64 {
        self.virtqueues.len() as f64 * self.step()
    }

    /// Between IOThreads: spread as wide as the virtqueues are.
    fn chip_gap(&self) -> f64 {
        let chips: f64 = self.chips.iter().map(Chip::width).sum();
        let gaps = self.chips.len().saturating_sub(1).max(1) as f64;
        ((self.queues_width() * 0.92 - chips) / gaps).max(8.0)
    }

    fn chips_width(&self) -> f64 {
        let gaps = self.chips.len().saturating_sub(1) as f64;
        self.chips.iter().map(Chip::width).sum::<f64>() + gaps * self.chip_gap()
    }

    fn queues_top(&self) -> f64 {
        HEAD - 4.0 + self.below.len() as f64 * LINE
    }

    pub(super) fn size(&self) -> Size {
        let head = width_of(&self.name, 14.0) * 1.1 + 12.0 + width_of(&self.first, 11.0);
        let texts = self.below.iter().map(|line| width_of(line, 10.5)).fold(head, f64::max);
        let width = self.queues_width().max(self.chips_width()).max(texts) + 2.0 * PAD;
        Size { width: width.max(300.0), height: self.queues_top() + QUEUE + LINES + CHIP + PAD }
    }

    pub(super) fn draw(&self, canvas: &mut Canvas, x: f64, y: f64) {
        let size = self.size();
        canvas.rect(Area { x, y, width: size.width, height: size.height }, colours::NODE);
        canvas.text(x + PAD, y + 20.0, Type::of(14.0, colours::INK).bold(), &self.name);
        let after = x + PAD + width_of(&self.name, 14.0) * 1.1 + 12.0;
        canvas.text(after, y + 20.0, Type::of(11.0, colours::QUIET), &self.first);
        let small = Type::of(10.5, colours::QUIET);
        for (number, line) in (0..).zip(&self.below) {
            canvas.text(x + PAD, y + 36.0 + f64::from(number) * LINE, small, line);
        }
        let queues_top = y + self.queues_top();
        let chips_top = queues_top + QUEUE + LINES;
        let left = x + (size.width - self.queues_width()) / 2.0;
        let middle = |at: usize| left + (at as f64 + 0.5) * self.step();
        let mut chip_left = x + (size.width - self.chips_width().max(0.0)) / 2.0;
        let mut centres = Vec::new();
        for chip in &self.chips {
            centres.push((chip.id, chip_left + chip.width() / 2.0));
            chip_left += chip.width() + self.chip_gap();
        }
        // Lines first: the boxes lie on their ends.
        for (at, queue) in self.virtqueues.iter().enumerate() {
            if let Some((_, centre)) = centres.iter().find(|(id, _)| *id == queue.iothread) {
                let (from, to) = ((middle(at), queues_top + QUEUE), (*centre, chips_top));
                canvas.curve(from, to, colours::hue(queue.iothread), 1.6);
            }
        }
        for (at, queue) in self.virtqueues.iter().enumerate() {
            self.draw_queue(canvas, *queue, middle(at), queues_top);
        }
        for (chip, (_, centre)) in self.chips.iter().zip(&centres) {
            let hue = colours::hue(chip.id);
            let area =
                Area { x: centre - chip.width() / 2.0, y: chips_top, width: chip.width(), height: CHIP };
            canvas.group(&chip.title, |canvas| {
                canvas.rect(area, Paint { round: 11.0, ..Paint::of(hue, hue) });
                let words = Type::of(10.5, "#ffffff").bold().anchored("middle");
                canvas.text(*centre, chips_top + 15.0, words, &chip.words);
            });
        }
    }

    fn draw_queue(&self, canvas: &mut Canvas, queue: Virtqueue, middle: f64, y: f64) {
        let width = (self.step() - if self.step() > 10.0 { 4.0 } else { 2.0 }).min(QUEUE);
        let area = Area { x: middle - width / 2.0, y, width, height: QUEUE };
        let title = format!("virtqueue {} is served by iothread{}", queue.vq, queue.iothread);
        canvas.group(&title, |canvas| {
            let paint = Paint { round: 3.0, ..Paint::of("#ffffff", colours::hue(queue.iothread)) };
            canvas.rect(area, paint);
            if width >= 14.0 {
                let id = Type::of(9.5, colours::INK).anchored("middle");
                canvas.text(middle, y + 15.5, id, &queue.vq.to_string());
            }
        });
    }
}
