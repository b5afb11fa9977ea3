//! QEMU with an exported or a documented command, and its monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use vmprof_guests::{Builder, Emulator, Silent, Store};

use crate::{Running, eventually, finish, shared_store, spawn_with_log};

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let store = Store::open(shared_store()).expect("the tests' store opens");
        vmprof_guests::emulator::find(&Builder::new(&store, &Silent))
            .expect("a QEMU is on PATH or comes from Debian's trixie-backports")
    })
}

/// The words that a shell makes of a command.
fn words(command: &str) -> Vec<String> {
    let mut echo = Command::new("sh");
    let finished =
        finish(echo.args(["-c", &format!("words() {{ printf '%s\\0' \"$@\"; }}; words {command}")]));
    let said = finished.expect(0).stdout;
    said.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

/// The command, started and stopped before the guest's first instruction.
#[derive(Debug)]
pub struct Machine {
    running: Running,
    /// What QEMU says; a pipe that nobody reads would stop it some day.
    log: PathBuf,
    commands: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Machine {
    pub fn start(exported: &str, directory: &Path) -> Machine {
        let mut words = words(exported);
        assert_eq!(words.remove(0), "qemu-system-x86_64");
        for word in &mut words {
            // The machines of CI have no KVM, and what is asked here does not depend on it.
            match word.as_str() {
                "host" => "max".clone_into(word),
                machine if machine.contains("accel=kvm") => *word = machine.replace("accel=kvm", "accel=tcg"),
                _ => {}
            }
        }
        let socket = directory.join("qmp");
        let mut command = Command::new(&emulator().argv[0]);
        command.args(&emulator().argv[1..]).args(&words);
        command
            .args(["-S", "-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        let log = directory.join("qemu.log");
        let mut running = spawn_with_log(command.stdin(Stdio::null()), &log);
        let commands = eventually("QEMU's monitor", || {
            if running.has_ended() {
                return Some(None);
            }
            UnixStream::connect(&socket).ok().map(Some)
        });
        let Some(commands) = commands else {
            panic!("QEMU does not start:\n{}\n{exported}", std::fs::read_to_string(&log).unwrap());
        };
        let answers = BufReader::new(commands.try_clone().unwrap());
        let mut machine = Machine { running, log, commands, answers };
        machine.line();
        machine.ask("qmp_capabilities", json!({}));
        machine
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let asked = json!({ "execute": command, "arguments": arguments });
        // In one piece: QEMU obeys `quit` at its last brace and hears no line's end after it.
        if let Err(error) = self.commands.write_all(asked.to_string().as_bytes()) {
            panic!("QEMU does not hear {asked}: {error}\n{}", self.said());
        }
        loop {
            let answer = self.line();
            assert_eq!(answer.get("error"), None, "{asked}");
            if let Some(said) = answer.get("return") {
                return said.clone();
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub fn has_ended(&mut self) -> bool {
        self.running.has_ended()
    }

    /// What QEMU has said.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn property(&mut self, device: &str, property: &str) -> Value {
        self.ask("qom-get", json!({ "path": format!("/machine/peripheral/{device}"), "property": property }))
    }

    /// The guest runs and ends QEMU by itself, with this status.
    pub fn runs_until(mut self, status: i32) {
        self.ask("cont", json!({}));
        self.running.finish().expect(status);
    }

    pub fn quit(mut self) {
        self.ask("quit", json!({}));
        self.running.finish().expect(0);
    }
}
