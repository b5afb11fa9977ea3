//! Images of our own writers with some bytes changed: read or refused, and what is read can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| vmprof_guests::fuzzing::changed_image(data));
