//! A guest's serial console for all who attach to it. One thread serves them: each takes what is printed at its own pace, and
//! one of them types. Nobody of them holds up the guest, which goes on printing whether they read or not, nor another one.
//!
//! The console is the run's, and the machines of a run are plugged into it one after the other.

use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::attached::{Attached, Heard};
use super::printed::Printed;
use crate::run::copy::write_patiently;

/// How many may be attached at once; whoever comes then waits in the socket's queue.
const MOST_ATTACHED: usize = 32;
/// How long those who are attached may take for the last of it, when the run is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The console of a run. Dropping it ends it for all who are attached.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Where those meet who print, who type and who serve.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// For those who wait to type: a guest is ready, or none will be.
    may_type: Condvar,
    /// Wakes the serving thread.
    bell: OwnedFd,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) printed: Printed,
    /// The place of the slowest who is attached.
    pub(super) slowest: Option<u64>,
    /// The other end of the serial port's input, while there is a machine.
    guest: Option<Arc<UnixStream>>,
    /// It listens.
    ready: bool,
    over: bool,
}

impl Console {
    /// Serves whoever connects to `listener`. `typed_by` is a process that has the keyboard to the end of the run.
    pub fn start(listener: UnixListener, typed_by: Option<u32>) -> io::Result<Console> {
        listener.set_nonblocking(true)?;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { state: Mutex::default(), may_type: Condvar::new(), bell });
        let serving = Serving {
            shared: shared.clone(),
            listener,
            attached: Vec::new(),
            next_id: 0,
            keyboard: typed_by.map(|pid| Keyboard { holder: None, pid }),
            typed: Vec::new(),
        };
        let thread = thread::Builder::new().name("console socket".into()).spawn(move || serving.serve())?;
        Ok(Console { shared, thread: Some(thread) })
    }

    /// The next machine's serial port: what it writes to, which shows it on `to` as well, and its input.
    pub fn plug(&self, to: Box<dyn Write + Send>) -> io::Result<(Printing, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let mut state = self.shared.lock();
        (state.guest, state.ready) = (Some(Arc::new(ours)), false);
        drop(state);
        self.shared.ring();
        Ok((Printing { shared: self.shared.clone(), to: Some(to), told: 0 }, theirs.into()))
    }

    /// The machine has ended.
    pub fn unplug(&self) {
        let mut state = self.shared.lock();
        (state.guest, state.ready) = (None, false);
    }

    /// A handle for whoever hears that the guest is ready.
    pub fn readiness(&self) -> impl Fn() + Send + use<> {
        let shared = self.shared.clone();
        move || {
            shared.lock().ready = true;
            shared.may_type.notify_all();
        }
    }

    /// The keys of whoever has the keyboard from the beginning. Each waits until the guest is ready: a serial line that nobody
    /// listens to yet forgets them.
    pub fn keys(&self) -> Keys {
        Keys(self.shared.clone())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.may_type.notify_all();
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics; were it so, nobody is served any more.
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // Only a counter that is full refuses, and then the thread is being woken.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// What a machine's serial port writes to. It must be given again what it refused, as `Write` has it.
pub struct Printing {
    shared: Arc<Shared>,
    /// `None` once nobody is there any more; those who attach are told all the same.
    to: Option<Box<dyn Write + Send>>,
    /// Of the bytes that come next, those that who is attached has been given already.
    told: usize,
}

impl std::fmt::Debug for Printing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Printing")
    }
}

impl Printing {
    fn tell(&mut self, bytes: &[u8]) {
        let new = bytes.get(self.told..).unwrap_or_default();
        self.told = bytes.len();
        let mut state = self.shared.lock();
        let slowest = state.slowest;
        state.printed.add(new, slowest);
        drop(state);
        if slowest.is_some() && !new.is_empty() {
            self.shared.ring();
        }
    }

    /// Lets go of a reader that is gone; errors that pass are the caller's.
    fn passing(&mut self, error: io::Error) -> io::Result<()> {
        if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) {
            return Err(error);
        }
        self.to = None;
        Ok(())
    }
}

impl Write for Printing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Before a reader that may take its time.
        self.tell(bytes);
        let taken = match self.to.as_mut().map(|to| to.write(bytes)) {
            None => bytes.len(),
            Some(Ok(taken)) => taken,
            Some(Err(error)) => self.passing(error).map(|()| bytes.len())?,
        };
        self.told = self.told.saturating_sub(taken);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.to.as_mut().map(|to| to.flush()) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) => self.passing(error),
        }
    }
}

/// Types into whichever machine is plugged in. Broken once the run is over.
#[derive(Debug)]
pub struct Keys(Arc<Shared>);

impl Write for Keys {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let waits = |state: &mut State| !(state.over || state.ready && state.guest.is_some());
        let state = self.0.may_type.wait_while(self.0.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let guest = state.guest.clone();
        drop(state);
        if let Some(guest) = guest
            && write_patiently(&*guest, bytes).is_err()
        {
            // With the machine what was typed into it is gone.
            self.0.lock().forget(&guest);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    fn forget(&mut self, guest: &Arc<UnixStream>) {
        if self.guest.as_ref().is_some_and(|found| Arc::ptr_eq(found, guest)) {
            self.guest = None;
        }
    }
}

/// Who types.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyboard {
    /// `None`: none of the clients.
    holder: Option<u64>,
    pid: u32,
}

/// The thread's own side.
struct Serving {
    shared: Arc<Shared>,
    listener: UnixListener,
    attached: Vec<Attached>,
    next_id: u64,
    keyboard: Option<Keyboard>,
    /// What the guest has not taken yet; until it has, no more is read.
    typed: Vec<u8>,
}

impl Serving {
    fn serve(mut self) {
        let mut last_words = None;
        loop {
            let (over, guest) = {
                let state = self.shared.lock();
                (state.over, state.guest.clone())
            };
            let guest = self.type_in(guest);
            let keyboard = &mut self.keyboard;
            self.attached.retain_mut(|one| {
                let stays = one.advance(&self.shared, over);
                if !stays {
                    Keyboard::release(keyboard, one.id());
                }
                stays
            });
            let mut state = self.shared.lock();
            state.slowest = self.attached.iter().filter_map(Attached::place).min();
            drop(state);
            if over {
                let until = *last_words.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if self.attached.is_empty() || Instant::now() >= until {
                    return;
                }
            }
            if self.wait(guest.as_ref(), last_words).is_err() {
                // Without poll nobody can be served, and the run goes on.
                return;
            }
        }
    }

    /// Passes on what is typed; gives the guest where it is to be waited for.
    fn type_in(&mut self, guest: Option<Arc<UnixStream>>) -> Option<Arc<UnixStream>> {
        let guest = guest?;
        while !self.typed.is_empty() {
            match (&*guest).write(&self.typed) {
                Ok(taken) => drop(self.typed.drain(..taken)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(guest),
                Err(_) => {
                    self.typed.clear();
                    self.shared.lock().forget(&guest);
                }
            }
        }
        None
    }

    /// Until something can be done, which is what can be done at once.
    fn wait(&mut self, guest: Option<&Arc<UnixStream>>, until: Option<Instant>) -> io::Result<()> {
        let types = |one: &Attached, keyboard: Option<Keyboard>| {
            keyboard.is_some_and(|keyboard| keyboard.is_of(one.id()))
        };
        let has_room = self.typed.is_empty();
        let accepts = self.attached.len() < MOST_ATTACHED && until.is_none();
        let mut watched = vec![PollFd::new(&self.shared.bell, PollFlags::IN)];
        watched.push(PollFd::new(&self.listener, if accepts { PollFlags::IN } else { PollFlags::empty() }));
        watched.extend(self.attached.iter().map(|one| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, one.is_asking() || (has_room && types(one, self.keyboard)));
            flags.set(PollFlags::OUT, one.has_more());
            PollFd::new(one.stream(), flags)
        }));
        watched.extend(guest.map(|guest| PollFd::new(guest, PollFlags::OUT)));
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut watched, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let happened: Vec<PollFlags> = watched.iter().map(PollFd::revents).collect();
        drop(watched);
        let [bell, comes, attached @ ..] = &happened[..] else { return Ok(()) };
        if !bell.is_empty() {
            // Whatever it counted: all is looked at.
            let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
        }
        for (one, flags) in self.attached.iter_mut().zip(attached) {
            let is_gone = flags.intersects(PollFlags::HUP | PollFlags::ERR);
            let heard = if flags.contains(PollFlags::IN) { one.read() } else { Heard::Nothing };
            match heard {
                Heard::Bytes(bytes) if one.is_asking() => {
                    self.typed.extend(one.ask(&bytes, &self.shared, &mut self.keyboard));
                }
                Heard::Bytes(bytes) => self.typed.extend(bytes),
                Heard::End if one.is_asking() || is_gone => one.is_gone(),
                // It types no more, and may watch on.
                Heard::End => Keyboard::release(&mut self.keyboard, one.id()),
                Heard::Nothing if is_gone => one.is_gone(),
                Heard::Nothing => {}
            }
        }
        if comes.contains(PollFlags::IN) {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        match self.listener.accept().and_then(|(stream, _)| Attached::new(self.next_id, stream)) {
            Ok(one) => {
                self.next_id += 1;
                self.attached.push(one);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Out of descriptors: whoever comes stays in the socket's queue, and this is no reason to turn in circles.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

impl Keyboard {
    /// Gives the keyboard to the one who asks for it, where it is free; and who has it then.
    pub(super) fn ask(keyboard: &mut Option<Keyboard>, id: u64, pid: u32) -> Keyboard {
        *keyboard.get_or_insert(Keyboard { holder: Some(id), pid })
    }

    pub(super) fn is_of(self, id: u64) -> bool {
        self.holder == Some(id)
    }

    pub(super) fn pid(self) -> u32 {
        self.pid
    }

    fn release(keyboard: &mut Option<Keyboard>, id: u64) {
        keyboard.take_if(|keyboard| keyboard.is_of(id));
    }
}

#[cfg(test)]
mod tests;
