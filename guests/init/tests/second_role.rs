//! The program when it is not process 1: with the helper's word, on a terminal; with anything else, not at all.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Asked for at run time: the compiler is started by a shell, which passes on no variable with a hyphen in its name.
fn init() -> Command {
    Command::new(std::env::var_os("CARGO_BIN_EXE_vmprof-init").unwrap())
}

/// Our end of a new terminal, and the path of the other.
fn terminal() -> (File, String) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    (ours.into(), path)
}

#[test]
fn anyone_but_the_kernel_is_told_what_it_is() {
    let output = init().arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(
        String::from_utf8(output.stderr).unwrap().starts_with("vmprof-init is the first process of a guest")
    );
}

#[test]
fn the_command_has_the_terminal_for_its_own() {
    let (ours, path) = terminal();
    // Held open, so that output waits for us after the command has gone.
    let _theirs = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let script = "tty; stty size; ps -o sid= -p $$ | grep -qw $$ && : </dev/tty && echo leads";
    let mut child = init()
        .args(["on-terminal", &path, "31", "97", "/bin/sh", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut report = String::new();
    child.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(report, "", "silence on the report is success");
    assert!(child.wait().unwrap().success());
    let lines: Vec<String> = BufReader::new(ours).lines().take(3).map(Result::unwrap).collect();
    assert_eq!(lines, [path.as_str(), "31 97", "leads"]);
}

#[test]
fn what_cannot_be_done_is_reported_by_kind_and_errno() {
    let report = |terminal: &str, program: &str| {
        let output = init().args(["on-terminal", terminal, "24", "80", program, "x"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (_ours, path) = terminal();
    assert_eq!(report(&path, "/nonexistent/program"), "program 2\n");
    assert_eq!(report("/dev/null", "/bin/true"), "terminal 25\n");
    assert_eq!(report("/nonexistent/terminal", "/bin/true"), "terminal 2\n");
}
