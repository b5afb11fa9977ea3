//! What is done inside a running guest from outside: `exec` and `cp`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use vmprof_tests::terminal::OnTerminal;
use vmprof_tests::{Finished, Home, eventually, finish, finish_with_input, in_the_lab, spawn};

/// A guest that is ready and has nothing to do.
fn idle_guest() -> Home {
    let home = Home::new();
    home.run(["up", "--detach", "--wait", "--on", "lab", "profiles/hello.kdl", "--", "sleep", "900"])
        .expect(0);
    home
}

fn exec(home: &Home, words: &[&str]) -> Finished {
    home.run(["exec", "hello", "--"].iter().chain(words))
}

/// With this on its standard input.
fn exec_with(home: &Home, input: &[u8], words: &[&str]) -> Finished {
    finish_with_input(&mut home.vmprof(["exec", "hello", "--"].iter().chain(words)), input)
}

#[test]
fn commands_and_files_go_into_a_running_guest_and_come_out_of_it() {
    in_the_lab(|| {
        let home = idle_guest();
        // At once: a guest that is ready is listening.
        let told = exec(&home, &["sh", "-c", "echo out; echo err >&2; exit 7"]).expect(7);
        assert_eq!((told.stdout.as_str(), told.stderr.as_str()), ("out\n", "err\n"));
        statuses(&home);
        streams(&home);
        signals(&home);
        users(&home);
        at_once(&home);
        copies(&home);
        keys(&home);
        refusals(&home);
        let watching = spawn(&mut home.vmprof(["console", "hello"]));
        let left = exec(&home, &["ps"]).expect(0).stdout;
        let commands = left.lines().filter(|line| line.contains("sleep 7")).count();
        assert_eq!(commands, 0, "{left}");
        home.run(["stop", "hello"]).expect(0);
        let watched = watching.finish().expect(0);
        assert!(watched.stdout.contains("reboot: Power down"), "{}", watched.stdout);
        assert!(watched.stderr.contains("hello has ended"), "{}", watched.stderr);
    });
}

#[test]
fn what_the_guest_made_is_here_when_it_is_gone_and_what_it_did_not_make_is_missed() {
    in_the_lab(|| {
        let home = Home::new();
        let (made, none) = (home.path().join("made/of/it"), home.path().join("none"));
        let artifacts = [format!("/tmp/out={}", made.display()), format!("/nope={}", none.display())];
        let script = "echo words > /tmp/out; echo done";
        let up = ["up", "--on", "lab", "profiles/hello.kdl"].map(String::from).into_iter();
        let events = home.path().join("events");
        let flags = artifacts.into_iter().flat_map(|artifact| ["--artifact".to_owned(), artifact]);
        let flags = flags.chain(["--events".to_owned(), events.display().to_string()]);
        let command = ["--", "sh", "-c", script].map(String::from);
        let ran = home.run(up.chain(flags).chain(command)).expect(125);
        assert_eq!(ran.stdout, "done\n");
        assert_eq!(fs::read_to_string(made.join("out")).unwrap(), "words\n");
        assert!(ran.stderr.contains(&format!("/tmp/out is in {}", made.display())), "{}", ran.stderr);
        assert!(ran.stderr.contains("/nope cannot be read"), "{}", ran.stderr);
        assert!(!none.exists());
        let events = fs::read_to_string(&events).unwrap();
        let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let words: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
        assert_eq!(words, ["started", "ready", "artifact", "ended"]);
        assert_eq!((&events[0]["on"], &events[3]["status"]), (&"lab".into(), &125.into()));
        assert_eq!((&events[2]["path"], &events[2]["error"]), (&"/tmp/out".into(), &Value::Null));
    });
    let home = Home::new();
    let events = home.path().join("events");
    let up = ["up", "--events", events.to_str().unwrap(), "nowhere.kdl"];
    home.run(up).expect(3);
    let ended: Value = serde_json::from_str(fs::read_to_string(&events).unwrap().trim()).unwrap();
    assert_eq!((&ended["event"], &ended["status"]), (&"ended".into(), &3.into()));
    assert!(ended["code"].is_string() && ended["message"].is_string(), "{ended}");
    home.run(["up", "--artifact", "relative=here", "profiles/hello.kdl"]).expect(64);
}

#[test]
fn what_a_command_made_is_here_when_it_was_interrupted_and_had_to_be_killed() {
    in_the_lab(|| {
        let home = Home::new();
        let artifact = format!("/tmp/out={}", home.path().join("made").display());
        let script = "trap '' TERM; echo words > /tmp/out; echo there; while :; do sleep 1; done";
        let up =
            ["up", "--on", "lab", "--artifact", &artifact, "profiles/hello.kdl", "--", "sh", "-c", script];
        let mut up = spawn(&mut home.vmprof(up));
        assert_eq!(up.output_lines().next().as_deref(), Some("there"));
        up.signal(Signal::INT);
        up.finish().expect(137);
        assert_eq!(fs::read_to_string(home.path().join("made/out")).unwrap(), "words\n");
    });
}

fn statuses(home: &Home) {
    exec(home, &["true"]).expect(0);
    exec(home, &["sh", "-c", "kill -9 $$"]).expect(137);
    let none = exec(home, &["nosuch"]).expect(127);
    assert!(none.stderr.contains("nosuch cannot be run in hello: No such file"), "{}", none.stderr);
    exec(home, &["/etc/passwd"]).expect(126);
    let around =
        home.run(["exec", "-e", "A=b c", "-w", "/tmp", "hello", "--", "sh", "-c", "echo \"$A\" $PWD"]);
    assert_eq!(around.expect(0).stdout, "b c /tmp\n");
}

fn streams(home: &Home) {
    let text: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    let back = exec_with(home, text.as_bytes(), &["cat"]).expect(0);
    assert!(back.stdout == text, "{} of {} bytes came back", back.stdout.len(), text.len());
    // One that reads nothing of it, and one that has nothing to read.
    exec_with(home, text.as_bytes(), &["true"]).expect(0);
    let empty = home.run(["exec", "-n", "hello", "--", "cat"]).expect(0);
    assert_eq!(empty.stdout, "");
    // What stays behind with the streams open does not keep the command's end from being told.
    exec(home, &["sh", "-c", "sleep 3 & exit 5"]).expect(5);
}

fn signals(home: &Home) {
    let mut trapped = spawn(&mut home.vmprof([
        "exec",
        "hello",
        "--",
        "sh",
        "-c",
        "trap 'echo heard; exit 9' TERM; echo there; while true; do sleep 1; done",
    ]));
    let mut lines = trapped.output_lines();
    assert_eq!(lines.next().as_deref(), Some("there"));
    trapped.signal(Signal::TERM);
    assert_eq!(lines.next().as_deref(), Some("heard"));
    trapped.finish().expect(9);

    // Killed, it takes the command along.
    let mut killed =
        spawn(&mut home.vmprof(["exec", "hello", "--", "sh", "-c", "echo there; exec sleep 777"]));
    assert_eq!(killed.output_lines().next().as_deref(), Some("there"));
    killed.signal(Signal::KILL);
    eventually("the command to hear that its host has gone", || {
        (!exec(home, &["ps"]).expect(0).stdout.contains("sleep 777")).then_some(())
    });
}

fn users(home: &Home) {
    let accounts = "echo web:x:33:34::/tmp/web:/bin/web >> /etc/passwd; echo web:x:34: >> /etc/group; \
                    echo logs:x:50:web >> /etc/group; busybox mkdir -m 700 /tmp/web; busybox chown 33:34 /tmp/web";
    exec(home, &["sh", "-c", accounts]).expect(0);
    let as_user = |flags: &[&str], script: &str| {
        let command = ["hello", "--", "sh", "-c", script];
        finish_with_input(&mut home.vmprof(["exec"].iter().chain(flags).chain(&command)), b"its input\n")
    };
    let told =
        as_user(&["-u", "web"], "id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL $PWD; cat; exit 3");
    assert_eq!(told.expect(3).stdout, "33\n34\n34 50\n/tmp/web web web /bin/web /tmp/web\nits input\n");
    let told = as_user(
        &["--user", "33:logs", "-w", "/", "-e", "HOME=/x"],
        "id -u; id -G; echo $HOME $PWD; cat /proc/1/environ",
    );
    let told = told.expect(1);
    assert_eq!(told.stdout, "33\n50\n/x /\n");
    assert!(told.stderr.contains("Permission denied"), "{}", told.stderr);
    assert_eq!(as_user(&["-u", "1234"], "id -u; id -G; echo $HOME $PWD").expect(0).stdout, "1234\n0\n/ /\n");
    let none = as_user(&["-u", "stranger"], "true").expect(125);
    assert!(none.stderr.contains("no user `stranger` in /etc/passwd"), "{}", none.stderr);
    let closed = as_user(&["-u", "1234", "-w", "/tmp/web"], "true").expect(125);
    assert!(
        closed.stderr.contains("user 1234 and group 0 in /tmp/web: Permission denied"),
        "{}",
        closed.stderr
    );
    home.run(["exec", "-u", "web", "hello", "--", "nosuch"]).expect(127);
    home.run(["exec", "-u", "web", "hello", "--", "/etc/passwd"]).expect(126);
}

/// Many at once, each with its own streams and status.
fn at_once(home: &Home) {
    thread::scope(|scope| {
        for number in 0..64 {
            scope.spawn(move || {
                let text = format!("{number}\n").repeat(1000);
                let script = format!("cat; exit {number}");
                let back = exec_with(home, text.as_bytes(), &["sh", "-c", &script]).expect(number);
                assert_eq!(back.stdout, text);
            });
        }
    });
}

fn copies(home: &Home) {
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    let cp = |from: &str, to: &str| finish(home.vmprof(["cp", from, to]).current_dir(here.path()));
    let bytes: Vec<u8> = (0..1_000_003_u32).map(|number| (number * 7 / 3) as u8).collect();
    fs::write(at("file"), &bytes).unwrap();
    fs::set_permissions(at("file"), PermissionsExt::from_mode(0o750)).unwrap();
    cp("file", "hello:/tmp/").expect(0);
    assert!(
        exec(home, &["ls", "-l", "/tmp/file"])
            .expect(0)
            .stdout
            .starts_with("-rwxr-x---    1 root     root  ")
    );
    cp("hello:/tmp/file", "back").expect(0);
    assert!(fs::read(at("back")).unwrap() == bytes);

    fs::create_dir_all(at("tree/below/empty")).unwrap();
    fs::write(at("tree/below/text"), "words\n").unwrap();
    symlink("below/text", at("tree/link")).unwrap();
    cp("tree", "hello:/tmp/tree").expect(0);
    assert_eq!(exec(home, &["cat", "/tmp/tree/link"]).expect(0).stdout, "words\n");
    cp("hello:/tmp/tree", "again").expect(0);
    assert_eq!(fs::read_link(at("again/link")).unwrap().to_str(), Some("below/text"));
    assert!(at("again/below/empty").is_dir());

    let none = cp("hello:/nowhere", "x").expect(1);
    assert!(none.stderr.contains("/nowhere cannot be read"), "{}", none.stderr);
    let none = cp("nowhere", "hello:/tmp/").expect(1);
    assert!(none.stderr.contains("nowhere cannot be read"), "{}", none.stderr);
    let full = cp("file", "hello:/proc/here").expect(1);
    assert!(full.stderr.contains("vmprof::run::guest_refused"), "{}", full.stderr);
}

/// What is typed on the console here is read from it there, and shown as the guest's terminal shows it.
fn keys(home: &Home) {
    let reading = spawn(&mut home.vmprof(["exec", "-n", "hello", "--", "head", "-n", "1", "/dev/console"]));
    let mut console = OnTerminal::start(&mut home.vmprof(["console", "hello"]));
    console.expect("Ctrl-A x leaves it");
    console.type_keys("some tyq\x7fped words\r");
    assert_eq!(reading.finish().expect(0).stdout, "some typed words\n");
    console.expect("ped words");
    console.type_keys("\x01x");
    assert_eq!(console.finish_in_place(), (Some(0), true));
}

fn refusals(home: &Home) {
    for (words, status, code) in [
        (&["exec", "nobody", "--", "true"][..], 125, "vmprof::run::not_running"),
        (&["exec", "-t", "hello", "--", "true"], 125, "vmprof::exec::no_terminal"),
        (&["exec", "hello"], 64, "CMD"),
        (&["exec", "-e", "A", "hello", "--", "true"], 64, "NAME=VALUE"),
        (&["cp", "a", "nobody:/tmp"], 1, "cannot be read"),
        (&["cp", "README.md", "nobody:/tmp"], 1, "vmprof::run::not_running"),
        (&["cp", "a", "b"], 64, "NAME:PATH"),
        (&["cp", "hello:/a", "hello:/b"], 64, "only one of both"),
    ] {
        let refused = home.run(words).expect(status);
        assert!(refused.stderr.contains(code), "{words:?}: {}", refused.stderr);
    }
}
