//! The thread that looks for running VMs and asks the one that is shown.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::screen::Screen;
use crate::places::Places;
use crate::run::record::{self, Run};
use crate::running::read_stats;
use crate::stats::Stats;

/// What was found: the running VMs, and of one its answer, or why there is none.
#[derive(Debug)]
pub struct Heard {
    pub runs: Vec<Run>,
    pub asked: Option<(String, Result<Box<Stats>, String>)>,
}

/// This side of it. The thread ends with the process, or when nobody hears it.
#[derive(Debug)]
pub struct Asking {
    about: Sender<Option<String>>,
    heard: Receiver<Heard>,
    name: Option<String>,
}

impl Asking {
    pub fn start(places: Places, every: Duration) -> io::Result<Asking> {
        let (about, chosen) = mpsc::channel();
        let (tell, heard) = mpsc::channel();
        thread::Builder::new().name("asking".into()).spawn(move || ask(&places, every, &chosen, &tell))?;
        Ok(Asking { about, heard, name: None })
    }

    /// Whether there was anything new for the screen.
    pub fn hear(&mut self, screen: &mut Screen) -> bool {
        let mut is_new = false;
        for heard in self.heard.try_iter().collect::<Vec<_>>() {
            screen.hear(heard);
            is_new = true;
        }
        self.about(screen.name());
        is_new
    }

    /// Which VM is shown from now on; it is asked at once.
    pub fn about(&mut self, name: Option<&str>) {
        if self.name.as_deref() != name {
            self.name = name.map(str::to_owned);
            // A thread that is gone was told of by its panic.
            let _ = self.about.send(self.name.clone());
        }
    }
}

fn ask(places: &Places, every: Duration, chosen: &Receiver<Option<String>>, tell: &Sender<Heard>) {
    let mut name: Option<String> = None;
    loop {
        let next = Instant::now() + every;
        let runs = record::running(places);
        let is_there = |name: &String| runs.iter().any(|run| run.name == *name);
        let asked = name.clone().filter(is_there).map(|name| {
            let stats =
                read_stats(places, &name).map(Box::new).map_err(|failure| failure.problem.to_string());
            (name, stats)
        });
        if tell.send(Heard { runs, asked }).is_err() {
            return;
        }
        match chosen.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(other) => name = chosen.try_iter().last().unwrap_or(other),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}
