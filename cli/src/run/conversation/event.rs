//! What happens to a run, as its conversation hears of it.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use vmprof_job::{Bytes, DiskScheduler, FromGuest};

use super::questions::Ran;
use crate::run::artifacts::Collected;
use crate::run::events::Happening;
use crate::run::record::State;

/// Everything that can happen to a run.
#[derive(Debug)]
pub enum Event {
    Said(FromGuest),
    /// For the user, in a sentence: what becomes of the run is not decided by it.
    Notice(String),
    /// A line on the control channel that is none of ours.
    Garbled(String),
    InputEnded {
        bytes: u64,
    },
    /// Nobody reads our standard output or error any more.
    ReaderGone,
    /// SIGINT, SIGTERM or SIGHUP to this process, or Ctrl-A x on its console.
    Interrupted {
        signal: i32,
    },
    /// `vmprof stop`, or the SIGUSR1 by which the vmprof around an emulated host passes it on.
    StopAsked,
    /// Run this beside the command and hand over what came of it.
    RunAsked {
        argv: Vec<Bytes>,
        answer: Sender<Ran>,
    },
    /// Which block schedulers do the guest's disks have?
    SchedulersAsked {
        answer: Sender<Vec<DiskScheduler>>,
    },
    /// The machine stands still, because of a failure or because somebody asked.
    Paused {
        failure: Option<String>,
    },
    Resumed,
    /// What the vmprof inside an emulated host says of its own run.
    InsideIsAt(State),
    /// The same for programs.
    InsideSays(Happening),
    /// What was to be copied out of the guest has been, or could not be.
    Collected(Vec<Collected>),
    MachineEnded,
}

/// Reads the control channel until it ends, each line an event.
pub fn listen(control: &UnixStream, events: Sender<Event>) -> io::Result<JoinHandle<()>> {
    let control = BufReader::new(control.try_clone()?);
    thread::Builder::new().name("control".into()).spawn(move || {
        for line in control.split(b'\n').map_while(Result::ok) {
            let event = match serde_json::from_slice(&line) {
                Ok(said) => Event::Said(said),
                Err(_) => Event::Garbled(String::from_utf8_lossy(&line).into_owned()),
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })
}
