//! Any text given as a lock is read or refused, and what is read is written as a text that says the same.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vmprof_guests::Lock;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(lock) = Lock::parse(Path::new("fuzz.lock.kdl"), text) else { return };
    let written = lock.to_text();
    let again = Lock::parse(Path::new("fuzz.lock.kdl"), &written);
    let again = again.unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(again, lock);
    assert_eq!(again.to_text(), written);
});
