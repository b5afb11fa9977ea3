//! The same as `split` for a packed ring.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod hostile;

fuzz_target!(|data: &[u8]| hostile::run(true, data, &mut |_, _, _| {}));
