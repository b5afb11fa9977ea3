//! QEMU's monitor (QMP, docs/interop/qmp-spec.rst of QEMU): drives are plugged into the ports that an emulated host keeps free,
//! and pulled. A command at a time; of events only the one that says that a device has gone.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// QEMU answers at once, unless the machine that runs it has much else to do.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Qmp {
    commands: UnixStream,
    answers: Receiver<Value>,
    gone: Arc<Gone>,
}

/// Devices that were pulled, by their id.
#[derive(Debug, Default)]
struct Gone {
    devices: Mutex<HashSet<String>>,
    changed: Condvar,
}

impl Qmp {
    /// Begins with QEMU's greeting, which comes when it has started.
    pub fn begin(stream: UnixStream) -> io::Result<Qmp> {
        let reader = BufReader::new(stream.try_clone()?);
        let gone = Arc::<Gone>::default();
        let (heard, answers) = mpsc::channel();
        let noted = gone.clone();
        thread::Builder::new().name("QMP".into()).spawn(move || listen(reader, &heard, &noted))?;
        let mut qmp = Qmp { commands: stream, answers, gone };
        qmp.answer()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; an error has QEMU's own words.
    pub fn run(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.commands.write_all(line.as_bytes())?;
        let answer = self.answer()?;
        match answer.get("error").and_then(|error| error.get("desc")).and_then(Value::as_str) {
            Some(why) => Err(io::Error::other(why.to_owned())),
            None => Ok(answer),
        }
    }

    fn answer(&mut self) -> io::Result<Value> {
        self.answers.recv_timeout(ANSWER_WITHIN).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// What waits for a device to go, for use without the monitor.
    pub fn departures(&self) -> Departures {
        Departures(self.gone.clone())
    }
}

/// Devices as they go.
#[derive(Debug, Clone)]
pub struct Departures(Arc<Gone>);

impl Departures {
    /// Whether the device went within that time.
    pub fn wait(&self, device: &str, within: Duration) -> bool {
        let devices = self.0.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(devices, within, |devices| !devices.contains(device));
        let (mut devices, _) = waited.unwrap_or_else(PoisonError::into_inner);
        devices.remove(device)
    }
}

fn listen(reader: BufReader<UnixStream>, answers: &Sender<Value>, gone: &Gone) {
    for line in reader.lines().map_while(Result::ok) {
        let Ok(said) = serde_json::from_str::<Value>(&line) else { continue };
        let device = said.pointer("/data/device").and_then(Value::as_str);
        match (said.get("event").and_then(Value::as_str), device) {
            (Some("DEVICE_DELETED"), Some(device)) => {
                gone.devices.lock().unwrap_or_else(PoisonError::into_inner).insert(device.to_owned());
                gone.changed.notify_all();
            }
            (Some(_), _) => {}
            (None, _) => {
                if answers.send(said).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that says these lines, each after a command, the first one unasked.
    fn monitor(says: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut commands = BufReader::new(theirs.try_clone().unwrap()).lines();
            for line in says {
                (&theirs).write_all(format!("{line}\r\n").as_bytes()).unwrap();
                if !line.contains("event") {
                    let Some(Ok(_)) = commands.next() else { return };
                }
            }
        });
        ours
    }

    #[test]
    fn events_come_between_answers_and_a_refusal_has_qemus_words() {
        let says = &[
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "NIC_RX_FILTER_CHANGED"}"#,
            r#"{"event": "DEVICE_DELETED", "data": {"device": "drive1"}}"#,
            r#"{"return": {"a": 1}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no such node"}}"#,
        ];
        let mut qmp = Qmp::begin(monitor(says)).unwrap();
        assert_eq!(qmp.run("query", json!({})).unwrap()["return"]["a"], 1);
        assert_eq!(qmp.run("blockdev-del", json!({})).unwrap_err().to_string(), "no such node");
        let departures = qmp.departures();
        assert!(departures.wait("drive1", Duration::from_secs(60)));
        assert!(!departures.wait("drive1", Duration::ZERO), "it is told once");
    }

    #[test]
    fn a_monitor_that_is_gone_is_an_error() {
        let mut qmp = Qmp::begin(monitor(&[r#"{"QMP": {}}"#, r#"{"return": {}}"#])).unwrap();
        assert!(qmp.run("query", json!({})).is_err());
    }
}
