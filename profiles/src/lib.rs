//! Profiles: the KDL language, the host's topology, and the planner between them.
//!
//! ```text
//! text ──read_profile──► Profile ─────────────┐
//! /sys, /proc ──Topology::read──► Topology ───┼──plan──► Plan ──view──► text, JSON
//! the disks' paths ──Storage::read──► Storage ┘
//! other VMs ──► Ledger
//! ```
//!
//! Reading and deciding are apart: [`read_profile`] is pure, [`Topology::read`] and [`Storage::read`] look at the host,
//! and [`plan`] sees only what they found, so every decision can be replayed from a capture. The library prints
//! nothing; `vmprof` renders what it returns. It knows neither guests nor the machine monitor.

mod asserts;
mod conditions;
mod decode;
pub mod export;
pub mod import;
mod ledger;
mod plan;
mod profile;
mod reason;
mod resolve;
mod schema;
mod storage;
mod topology;
mod validate;
pub mod view;

pub use vmprof_document::{Line, Load, Problem, Problems, SourceFile, Sources, format_size};

pub use asserts::Assert;
pub use conditions::{Comparison, Fact, FactValue, Facts, When};
pub use decode::{read_profile, read_profile_with};
pub use ledger::{Held, Ledger};
pub use plan::{
    Diagnostic, DiskPlan, EmulatorPlan, GuestCpus, HomePlan, HostSize, IoThreadCountPlan, IoThreadPlan,
    LadderStep, MemoryPlan, NetPlan, Plan, Rejected, Scheduler, Severity, SqPollPlan, VcpuPlan, Virtqueue,
};
pub use profile::{
    Aio, CacheMode, Disk, DiskSource, EmulatorPin, ErrorPolicy, Format, Forward, HostWish, Hugepages,
    IoThreadCount, IoThreads, Mapping, Memory, MemoryMode, Net, NetBackend, PageSize, Profile, Protocol, Smt,
    SqPoll, ThreadPins, Vcpus, Written,
};
pub use reason::Reason;
pub use resolve::{HostCannot, PlanFault, host_digest, plan, profile_digest};
pub use schema::plan_schema;
pub use storage::{DirectIoAlignment, Storage, StoragePlace};
pub use topology::{
    BlockDevice, Capture, CaptureError, CoreKind, Cpu, CpuSet, HostFileError, HwlocError, ListError, Node,
    NodeSet, Source, Topology,
};
