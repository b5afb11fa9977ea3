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
        .args(["on-terminal", &path, "31", "97", "", "", "", "/bin/sh", "sh", "-c", script])
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
    let of = |terminal: &str, guise: [&str; 3], program: &str| {
        let mut role = init();
        role.args(["on-terminal", terminal, "24", "80"]).args(guise).args([program, "x"]);
        String::from_utf8(role.output().unwrap().stdout).unwrap()
    };
    let report = |terminal: &str, program: &str| of(terminal, ["", "", ""], program);
    let (_ours, path) = terminal();
    assert_eq!(of(&path, [&own_ids(), "", "/nonexistent"], "/bin/true"), "user 2\n");
    let (_ours, path) = terminal();
    assert_eq!(report(&path, "/nonexistent/program"), "program 2\n");
    assert_eq!(report("/dev/null", "/bin/true"), "terminal 25\n");
    assert_eq!(report("/nonexistent/terminal", "/bin/true"), "terminal 2\n");
}

/// In the role of a service: what it reports, how it ended, and what it wrote.
fn as_user(ids: &str, groups: &str, directory: &str, argv: &[&str]) -> (String, Option<i32>, String) {
    let (mut report, reporting) = std::io::pipe().unwrap();
    let mut command = init();
    command.args(["as-user", ids, groups, "", directory]).args(argv);
    let child = command.stdin(reporting).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut words = String::new();
    report.read_to_string(&mut words).unwrap();
    let output = child.wait_with_output().unwrap();
    (words, output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn own_ids() -> String {
    format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

#[test]
fn a_service_finds_its_directory_no_input_and_the_usual_umask() {
    let script = "pwd; umask; cat; echo end of input; exit 7";
    let (report, status, wrote) = as_user(&own_ids(), "", "/usr", &["sh", "-c", script]);
    assert_eq!(report, "", "silence on the report is success");
    assert_eq!((status, wrote.as_str()), (Some(7), "/usr\n0022\nend of input\n"));
}

#[test]
fn a_service_that_cannot_start_says_why() {
    let (report, status, _) = as_user(&own_ids(), "", "/", &["no-such-daemon"]);
    assert_eq!(
        (report.as_str(), status),
        ("starting no-such-daemon: No such file or directory (os error 2)\n", Some(127))
    );
    let (report, status, _) = as_user(&own_ids(), "", "/", &["/etc/passwd"]);
    assert_eq!(
        (report.as_str(), status),
        ("starting /etc/passwd: Permission denied (os error 13)\n", Some(126))
    );
    let (report, status, _) = as_user(&own_ids(), "", "/nonexistent", &["true"]);
    assert!(report.starts_with("entering the directory /nonexistent: No such file"), "{report}");
    assert_eq!(status, Some(126));
}

#[test]
fn a_service_runs_as_its_user_with_its_groups_and_no_way_back() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: a_service_runs_as_its_user_with_its_groups_and_no_way_back: only root may become a user"
        );
        return;
    }
    let script = "id -u; id -g; id -G; grep -E '^(Uid|Gid|CapEff):' /proc/self/status";
    let (report, status, wrote) = as_user("12345:23456", "34567,45678", "/", &["sh", "-c", script]);
    assert_eq!((report.as_str(), status), ("", Some(0)));
    assert_eq!(
        wrote,
        "12345\n23456\n23456 34567 45678\nUid:\t12345\t12345\t12345\t12345\nGid:\t23456\t23456\t23456\t23456\n\
         CapEff:\t0000000000000000\n"
    );
}

/// As a command of `exec --user`, whose standard input is the file `input`.
fn with_streams_as(
    ids: &str,
    groups: &str,
    directory: &str,
    program: &str,
    script: &str,
) -> (String, Option<i32>, String) {
    let input = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(input.path(), "its input\n").unwrap();
    let (mut report, reporting) = std::io::pipe().unwrap();
    let mut command = init();
    command
        .arg("with-streams-as")
        .arg(input.path())
        .args([ids, groups, directory, program, "sh", "-c", script]);
    let child = command.stdin(reporting).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut words = String::new();
    report.read_to_string(&mut words).unwrap();
    let output = child.wait_with_output().unwrap();
    (words, output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_command_of_a_user_has_its_own_input_and_says_what_keeps_it_from_starting() {
    let ids = own_ids();
    let (report, status, wrote) = with_streams_as(&ids, "", "/usr", "/bin/sh", "pwd; cat; exit 7");
    assert_eq!(report, "", "silence on the report is success");
    assert_eq!((status, wrote.as_str()), (Some(7), "/usr\nits input\n"));
    let report = |directory: &str, program: &str| with_streams_as(&ids, "", directory, program, "").0;
    assert_eq!(report("/", "/nonexistent/program"), "program 2\n");
    assert_eq!(report("/", "/etc/passwd"), "program 13\n");
    assert!(report("/nonexistent", "/bin/sh").ends_with(" in /nonexistent 2\n"));
}

#[test]
fn a_command_of_a_user_has_its_groups_and_its_terminal_and_no_way_back() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "skipped: a_command_of_a_user_has_its_groups_and_its_terminal_and_no_way_back: only root may become a user"
        );
        return;
    }
    let script = "id -u; id -g; id -G; grep -E '^(Uid|Gid|CapEff):' /proc/self/status";
    let same =
        "Uid:\t12345\t12345\t12345\t12345\nGid:\t23456\t23456\t23456\t23456\nCapEff:\t0000000000000000\n";
    let (report, status, wrote) = with_streams_as("12345:23456", "34567,45678", "/", "/bin/sh", script);
    assert_eq!((report.as_str(), status), ("", Some(0)));
    assert_eq!(wrote, format!("12345\n23456\n23456 34567 45678\n{same}"));

    let (ours, path) = terminal();
    let _theirs = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let script = "id -u; id -G; echo again > $(tty)";
    let status = init()
        .args(["on-terminal", &path, "24", "80", "12345:23456", "34567", "/", "/bin/sh", "sh", "-c", script])
        .stdin(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let lines: Vec<String> = BufReader::new(ours).lines().take(3).map(Result::unwrap).collect();
    assert_eq!(lines, ["12345", "23456 34567", "again"]);
}
