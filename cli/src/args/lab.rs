//! The verbs about the lab.

use std::path::PathBuf;

use clap::Subcommand;

use super::Format;
use crate::lab::Shape;

#[derive(Debug, Subcommand)]
pub enum LabVerb {
    /// Start an emulated host that stays: `up --on lab` joins it, several VMs at a time
    #[command(after_help = "Examples:\n  \
        vmprof lab start                                      of the default shape\n  \
        vmprof lab start --lab nodes=16+16,memory=24GiB       with room for several VMs\n  \
        vmprof up --on lab profiles/ci.kdl -- make check      joins it\n\n\
        Its log is lab.log in the state directory. VMPROF_LAB moves its own directory, and so says which lab is meant.")]
    Start {
        /// Its shape, such as nodes=8+4,threads=2,nvme=2,memory=6GiB; what is left out keeps its default
        #[arg(long, value_name = "SHAPE")]
        lab: Option<Shape>,
    },
    /// Stop it, and first all VMs in it, each cleanly
    Stop,
    /// Say whether it is up, and which VMs are in it; ends with 1 where it is not
    Status {
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
}

/// What the vmprof inside an emulated host that stays is to do for one outside.
#[derive(Debug, Subcommand)]
pub enum Errand {
    /// Be there
    Stay,
    /// Make a place for a run
    Prepare {
        name: String,
        /// SERIAL=PATH of a drive that was plugged in
        #[arg(long = "link")]
        links: Vec<String>,
        /// Say whether this file is there
        #[arg(long)]
        has: Vec<String>,
    },
    /// Print what is said to this socket
    Relay { socket: PathBuf },
    /// Wait for the end of a run, and clear away what is left of it
    Leave {
        name: String,
        /// Of its drives
        slots: Vec<u32>,
    },
}
