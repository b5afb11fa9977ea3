//! Guests: from a recipe to an image whose bytes depend on nothing but the recipe, its lock and this crate.
//!
//! ```text
//! NAME.kdl ──► Recipe ──► Lock ──► packages in the Store ──► Tree ──► squashfs ─┐
//!               words      which      by hash, through         sorted,          ├─► GuestImage
//!                          exactly    the host's apt           no times         │
//!                          kernel package ──► vmlinux, modules ──► initramfs ───┘
//! ```
//!
//! What lives here: the recipe language, locks, the store, the image builder, the emulator and other tools, the first process's
//! bytes. What does not: topologies, plans and VMs. `cli` calls this; nothing here prints.
//!
//! The promise: the same recipe and lock give the same digests in any store, directory, locale and time zone, for any
//! user, with any umask and any number of CPUs.

mod abilities;
mod apt;
mod builder;
mod cpio;
mod deb;
mod digest;
mod elf;
pub mod emulator;
mod error;
mod fetch;
mod image;
mod init;
mod initramfs;
mod kernel;
mod lab;
mod lock;
mod modules;
mod progress;
mod recipe;
mod root;
mod squashfs;
mod store;
#[cfg(test)]
mod testing;
mod toolset;
mod tree;

pub use abilities::Abilities;
pub use builder::{Builder, GuestImage, RootImage};
pub use cpio::append_archive;
pub use digest::{Inputs, NotASha256, Sha256};
pub use emulator::Emulator;
pub use error::{FailureClass, GuestError, MissingLibrary, Result};
pub use lab::{LabHost, lab_host};
pub use lock::{Asked, Lock, LockedPackage, Release};
pub use progress::{Progress, Silent};
pub use recipe::{
    Compression, Conduct, Distribution, Format, Group, GuestMount, Image, Init, Kernel, Packages, Place,
    Placed, Recipe, Root, User,
};
pub use store::{Claim, Entry, Record, RecordEntry, Store, TempDir, TempFile};
pub use toolset::{Realised, Toolset};
