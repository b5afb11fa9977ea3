//! Guests: from a recipe to an image whose bytes depend on nothing but the recipe, its lock and this crate.
//!
//! ```text
//! NAME.kdl ──► Recipe ──► Lock ──► packages in the Store ──► Tree ──► image ────┐
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
mod accounts;
mod apt;
mod archive;
mod builder;
mod cpio;
mod deb;
mod digest;
mod elf;
pub mod emulator;
mod erofs;
mod error;
mod ext4;
mod fetch;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod image;
mod init;
mod initramfs;
mod kernel;
mod lab;
mod lock;
mod modules;
mod oci;
mod packed;
mod parallel;
pub mod passt;
mod progress;
mod recipe;
mod root;
mod squashfs;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(all(test, not(feature = "testing")))]
mod testing;
mod toolset;
mod tree;

pub use abilities::Abilities;
pub use apt::AptError;
pub use builder::{Builder, GuestImage, Locked, RootImage, Update};
pub use cpio::append_archive;
pub use digest::{Inputs, NotASha256, Sha256};
pub use elf::MissingLibrary;
pub use emulator::{Emulator, EmulatorError};
pub use error::{FailureClass, GuestError, Result};
pub use fetch::FetchError;
pub use image::ImageError;
pub use kernel::KernelError;
pub use lab::{LabHost, lab_host};
pub use lock::{Asked, Change, Lock, LockError, LockedPackage, Release};
pub use oci::OciError;
pub use passt::{Passt, PasstError};
pub use progress::{Progress, Silent, Stage, Total};
pub use recipe::{
    Compression, Conduct, Distribution, Format, Group, GuestMount, Image, ImageConfig, Init, Kernel,
    Packages, Place, Placed, Recipe, Root, User,
};
pub use root::RootError;
pub use store::{
    Chain, Claim, Collected, Entry, Fault, FoundRoot, Hold, Keeper, Listed, Listing, Record, RecordEntry,
    Root as StoreRoot, Store, StoreError, Sweep, TempDir, TempFile, Using, Verified,
};
pub use toolset::{Realised, Toolset};
pub use tree::TreeError;
