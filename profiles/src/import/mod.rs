//! Profiles made of what other tools say: so far of libvirt's domain XML. Pure: text in, text out.
//!
//! What comes out is always a profile that [`crate::read_profile`] takes, and a list of everything it does not say. A value
//! that the language refuses is not written: its refusal is the reason in that list.

mod disk;
mod draft;
mod interface;
mod libvirt;
mod memory;
mod quantities;
mod refusals;
mod threads;
mod unsaid;
mod xml;

pub use libvirt::libvirt;

/// The prefix of every problem's code.
const AREA: &str = "vmprof::import";

/// A profile made of something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The profile's text.
    pub profile: String,
    /// What it does not say, in the order of the source.
    pub left_out: Vec<LeftOut>,
}

/// Something the profile does not say, or says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Its line in the source, counted from 1; `None` for what the source does not have and a profile needs.
    pub line: Option<u32>,
    /// What it is, in the source's words.
    pub what: String,
    /// Why it is left out, and what to do.
    pub why: String,
}

impl LeftOut {
    fn at(line: u32, what: impl Into<String>, why: impl Into<String>) -> Self {
        LeftOut { line: Some(line), what: what.into(), why: why.into() }
    }
}
