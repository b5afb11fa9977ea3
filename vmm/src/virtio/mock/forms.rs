//! Every test of a device over every form of ring: the tests of this process run over one, and the test here runs them again
//! over each of the others, in processes of their own.

use std::process::Command;

use super::{FORM_VARIABLE, form};

/// Tests whose devices are served through rings.
const OVER_RINGS: [&str; 3] = ["virtio::blk::", "virtio::console::", "virtio::net::"];

#[test]
fn what_holds_over_split_rings_holds_over_every_form() {
    if std::env::var_os(FORM_VARIABLE).is_some() {
        panic!("{:?}: this test is not among those it runs", form());
    }
    for words in ["indirect", "packed", "packed indirect"] {
        let mut tests = Command::new(std::env::current_exe().unwrap());
        tests.args(OVER_RINGS).env(FORM_VARIABLE, words);
        let output = tests.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words}: {text}{}", String::from_utf8_lossy(&output.stderr));
        // A filter that no test has any more would make this one say nothing.
        for device in OVER_RINGS {
            assert!(text.lines().any(|line| line.starts_with(&format!("test {device}"))), "{device}");
        }
    }
}
