//! Archives: tar in all its forms, packages, and what packs them. Nothing panics, hangs or takes memory without end, and
//! what a tree takes of a tar comes back out of an image.
//!
//! The first byte says what the rest is: `t` lines of a tar, `T` its bytes, `d` a package's bytes, `D` the lines of a
//! package's files, `p` packed bytes, `k` a program. The second says which formats a tree makes a round trip through.

#![no_main]

mod tarball;

use libfuzzer_sys::fuzz_target;
use vmprof_guests::fuzzing;

fuzz_target!(|data: &[u8]| {
    let [kind, formats, rest @ ..] = data else { return };
    match kind {
        b't' => fuzzing::tar(&tarball::tar(rest), *formats),
        b'T' => fuzzing::tar(rest, *formats),
        b'd' => fuzzing::deb(rest),
        b'D' => {
            let control = tarball::tar(b"0 644 - control\t\tPackage: fuzz\\nReplaces: a (<< 1), b\\n");
            let parts = [
                ("debian-binary", b"2.0\n".to_vec()),
                ("control.tar", control),
                ("data.tar", tarball::tar(rest)),
            ];
            fuzzing::deb(&ar(&parts));
        }
        b'p' => fuzzing::packed(rest),
        b'k' => fuzzing::program(rest),
        _ => {}
    }
});

fn ar(parts: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in parts {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", bytes.len()).into_bytes(),
        );
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    out
}
