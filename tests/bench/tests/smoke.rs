//! The benchmarks run, and say what they lack. Nothing here looks at a time.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The program lies beside the directory of this test. Cargo's variable for it has a hyphen in its name, and does not get through
/// the shell that the compiler is wrapped in.
fn bench(arguments: &[&str]) -> Output {
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("vmprof-bench");
    Command::new(program).args(arguments).output().unwrap()
}

/// A directory on the filesystem of the build, which knows O_DIRECT where /tmp may not.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_engine_is_measured_against_both_loops_and_every_read_is_right() {
    let directory = directory();
    let (file, json) = (directory.path().join("disk"), directory.path().join("out.json"));
    let few = ["--quick", "--size", "8", "--seconds", "0.05", "--rounds", "1", "--depths", "1,32"];
    let places = ["engine", "--file", text(&file), "--json", text(&json)];
    let output = bench(&[&places[..], &few[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let measurements = report["measurements"].as_array().unwrap();
    assert_eq!(measurements.len(), 2 * 5, "two depths, five subjects");
    for measurement in measurements {
        assert!(measurement["requests"].as_u64().unwrap() > 0, "{measurement}");
        assert!(measurement["cpu_us"].as_f64().unwrap() > 0.0, "{measurement}");
        assert!(measurement["syscalls"].as_f64().unwrap() > 0.0, "{measurement}");
    }
    let shown = String::from_utf8_lossy(&output.stdout);
    for word in [
        "epoll loop",
        "bare io_uring",
        "IOThread, timed",
        "CPU / untimed",
        "IOPS / bare",
        "governor",
        "io scheduler",
    ] {
        assert!(shown.contains(word), "{shown}");
    }
}

#[test]
fn a_program_that_is_missing_is_named_before_anything_is_measured() {
    let directory = directory();
    let file = directory.path().join("disk");
    let common = ["vhost-user-blk", "--quick", "--file", text(&file)];
    let output = bench(&[&common[..], &["--vmprof", "/no/such/vmprof"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("vmprof is not here"), "{said}");
    let servers = ["--vmprof", "/bin/sh", "--qemu-storage-daemon", "/no/such/daemon"];
    let output = bench(&[&common[..], &servers[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("qemu-utils"), "{said}");
    assert!(!file.exists(), "nothing was measured");
}
