//! A helper beside the command: started on the outside's word, its output kept and sent back in one answer.

use std::io;

use rustix::process::Pid;
use vmprof_job::{Bytes, CAPTURE_LIMIT, Ended, FromGuest};

use crate::command::{self, Surroundings};
use crate::pump::PipeOut;
use crate::wait::Wait;

#[derive(Debug)]
pub(crate) struct Captured {
    id: u64,
    process: Process,
    stdout: Kept,
    stderr: Kept,
}

#[derive(Debug, Clone, Copy)]
enum Process {
    Running(Pid),
    Over(Ended),
}

#[derive(Debug)]
struct Kept {
    pipe: PipeOut,
    bytes: Vec<u8>,
}

impl Captured {
    /// Without input: the helper's standard input is at its end.
    pub(crate) fn start(id: u64, surroundings: &Surroundings, argv: &[Bytes]) -> io::Result<Self> {
        let (started, pipes) = command::start(surroundings, argv)?;
        let kept = |pipe| Ok::<_, io::Error>(Kept { pipe: PipeOut::new(pipe)?, bytes: Vec::new() });
        let (stdout, stderr) = (kept(pipes.stdout)?, kept(pipes.stderr)?);
        let process = started.map_or_else(Process::Over, Process::Running);
        Ok(Captured { id, process, stdout, stderr })
    }

    pub(crate) fn is(&self, pid: Pid) -> bool {
        matches!(self.process, Process::Running(running) if running == pid)
    }

    /// Its process group, as long as it runs.
    pub(crate) fn running(&self) -> Option<Pid> {
        match self.process {
            Process::Running(pid) => Some(pid),
            Process::Over(_) => None,
        }
    }

    pub(crate) fn ended(&mut self, status: Ended) {
        self.process = Process::Over(status);
        self.stdout.pipe.writer_ended();
        self.stderr.pipe.writer_ended();
    }

    /// Takes in what is there. True once the helper has ended and all its output is here.
    pub(crate) fn step(&mut self) -> bool {
        self.stdout.step();
        self.stderr.step();
        matches!(self.process, Process::Over(_))
            && self.stdout.pipe.is_closed()
            && self.stderr.pipe.is_closed()
    }

    /// `None` while it runs.
    pub(crate) fn into_answer(self) -> Option<FromGuest> {
        let Process::Over(status) = self.process else { return None };
        let (stdout, stderr) = (self.stdout.bytes.as_slice().into(), self.stderr.bytes.as_slice().into());
        Some(FromGuest::Ran { id: self.id, status, stdout, stderr })
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        self.stdout.pipe.expect(wait);
        self.stderr.pipe.expect(wait);
    }
}

impl Kept {
    fn step(&mut self) {
        let mut buffer = [0; 32 * 1024];
        while let Some(bytes) = self.pipe.read(&mut buffer) {
            let room = CAPTURE_LIMIT.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            if bytes.len() > room {
                // The status then tells: it died of SIGPIPE, or complained about it.
                self.pipe.close();
            }
        }
    }
}
