//! A guest that sends its vsock device any packets, and callers outside who come and go: no one is told what is not so, nothing
//! is kept without end, and who keeps the rules is served.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| vmprof_vmm::virtio::vsock::hostile::run(data));
