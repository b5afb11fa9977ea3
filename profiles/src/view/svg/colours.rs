//! The picture's colours, for a light background.

use super::canvas::Paint;
use crate::view::marks::{Idle, Who};

pub(super) const INK: &str = "#1d2530";
pub(super) const QUIET: &str = "#5b6673";
pub(super) const FAINT: &str = "#8a94a0";

pub(super) const PAGE: Paint = Paint { round: 0.0, ..Paint::of("#ffffff", "none") };
pub(super) const NODE: Paint = Paint { round: 8.0, ..Paint::of("#f4f6f9", "#b9c2cd") };
pub(super) const HOME: Paint = Paint { round: 8.0, ..Paint::of("#eef5ee", "#6f9c76") };
pub(super) const CACHE: Paint = Paint { round: 6.0, ..Paint::of("#ffffff", "#d3dae2") };
pub(super) const CORE: Paint = Paint::of("#f8fafc", "#dde3ea");
pub(super) const ECONOMY: Paint = Paint { dashed: true, ..Paint::of("#fbf7ea", "#cdb566") };

/// An IOThread's colours, in turn: all dark enough for white letters.
const HUES: [&str; 8] =
    ["#1a6fb5", "#c2410c", "#7e3fb0", "#0b8073", "#a16207", "#be1e5a", "#4d6d12", "#4f52c9"];

pub(super) fn hue(iothread: u32) -> &'static str {
    HUES[iothread as usize % HUES.len()]
}

/// How a thread's CPU is painted, and the letters on it.
pub(super) fn of_thread(who: Who) -> (Paint, &'static str) {
    match who {
        Who::Vcpu(_) => (Paint::of("#cfe6cf", "#4f8a57"), "#1c4a24"),
        Who::IoThread(id) => (Paint::of(hue(id), hue(id)), "#ffffff"),
        Who::Emulator => (Paint::of("#3f4752", "#3f4752"), "#ffffff"),
    }
}

pub(super) fn of_idle(idle: Idle) -> Paint {
    match idle {
        Idle::Free => Paint::of("#ffffff", "#c9d1da"),
        Idle::Isolated => Paint { dashed: true, ..Paint::of("#ffffff", "#3d7ea6") },
        Idle::Held => Paint::of("url(#held)", "#c78080"),
        Idle::NotUsable => Paint::of("#e6e9ed", "#d5dae0"),
    }
}
