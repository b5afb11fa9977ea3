//! Getting a kernel to run: into memory with it, its initramfs and its command line, the tables that describe the machine,
//! and the state of the processors that PVH's boot protocol asks for.

pub mod cpuid;
pub mod kernel;
pub mod pvh;
pub mod registers;
