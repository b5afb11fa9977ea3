//! The guest's first process, built by `build.rs` and embedded: the binary brings its own, so it works wherever it is
//! copied, and a debug build boots the same bytes as a release build.

pub(crate) static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmprof-init"));
