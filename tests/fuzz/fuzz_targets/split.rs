//! A split ring of a hostile driver: whatever is in it, taking ends, heads are below the size, and the device writes nothing
//! but its own part.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod hostile;

fuzz_target!(|data: &[u8]| hostile::run(false, data, &mut |_, _, _| {}));
