//! The one way a thread of the VMM comes to life: named, pinned, the pin read back, before it runs any of its work.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use vmprof_sys::affinity;

/// Why a thread is not there as planned. Always fatal for the run: the placement is the product.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    #[error("thread `{name}` could not be started")]
    Spawn { name: String, source: io::Error },
    #[error("thread `{name}` was to run on cpus {asked:?} alone, and the kernel refused")]
    Pin { name: String, asked: Vec<u32>, source: io::Error },
    #[error("thread `{name}` was to run on cpus {asked:?} alone, but the kernel has it on {found:?}")]
    Drifted { name: String, asked: Vec<u32>, found: Vec<u32> },
}

/// A running thread and where it was put.
#[derive(Debug)]
pub struct Thread<T> {
    pub name: String,
    /// The kernel's thread id, as in /proc/PID/task.
    pub tid: i32,
    handle: JoinHandle<Option<T>>,
}

impl<T> Thread<T> {
    /// Waits for the thread's end; a panic in it comes back as its message.
    pub fn join(self) -> Result<T, String> {
        match self.handle.join() {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err("it ended before its work began".into()),
            Err(panic) => Err(panic_text(panic.as_ref())),
        }
    }

    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// Starts `body` on a new thread called `name` (the kernel keeps 15 bytes of it) that may run on `cpus` alone; an empty
/// list leaves the affinity of the caller. Returns once the thread is where it belongs and its body begins.
pub fn spawn<T, F>(name: &str, cpus: &[u32], body: F) -> Result<Thread<T>, ThreadError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (placed, placement) = mpsc::channel();
    let (own_name, own_cpus) = (name.to_owned(), cpus.to_owned());
    let handle = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let outcome = pin(&own_name, &own_cpus).map(|()| rustix::thread::gettid().as_raw_nonzero().get());
            let well = outcome.is_ok();
            // The starter waits below; were it gone, nobody would want this thread.
            let heard = placed.send(outcome).is_ok();
            (well && heard).then(body)
        })
        .map_err(|source| ThreadError::Spawn { name: name.to_owned(), source })?;
    match placement.recv().expect("a thread reports its placement before anything in it can end") {
        Ok(tid) => Ok(Thread { name: name.to_owned(), tid, handle }),
        Err(error) => {
            // It ends at once; nothing of it is left when its error is heard.
            let _ = handle.join();
            Err(error)
        }
    }
}

/// Pins the calling thread and reads the pin back.
pub fn pin(name: &str, cpus: &[u32]) -> Result<(), ThreadError> {
    pin_other(name, 0, cpus)
}

/// The same for the thread `tid` of this process.
pub fn pin_other(name: &str, tid: i32, cpus: &[u32]) -> Result<(), ThreadError> {
    if cpus.is_empty() {
        return Ok(());
    }
    let refused = |source| ThreadError::Pin { name: name.to_owned(), asked: cpus.to_owned(), source };
    affinity::pin_thread(tid, cpus).map_err(refused)?;
    let found = affinity::cpus_of_thread(tid).map_err(refused)?;
    let mut asked = cpus.to_owned();
    asked.sort_unstable();
    asked.dedup();
    if found == asked { Ok(()) } else { Err(ThreadError::Drifted { name: name.to_owned(), asked, found }) }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without text".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_starts_on_its_cpu_and_gives_its_value_back() {
        let last = *affinity::cpus_of_thread(0).unwrap().last().unwrap();
        let thread = spawn("IO iothread0", &[last], || affinity::cpus_of_thread(0).unwrap()).unwrap();
        assert_eq!(thread.join().unwrap(), [last]);
    }

    #[test]
    fn a_pin_that_cannot_be_had_names_the_thread() {
        let error = spawn("CPU 0/KVM", &[60_000], || ()).unwrap_err();
        assert!(error.to_string().contains("`CPU 0/KVM`"), "{error}");
    }

    #[test]
    fn a_panic_comes_back_as_its_message() {
        let thread = spawn("doomed", &[], || panic!("no ring")).unwrap();
        let outcome: Result<(), String> = thread.join();
        assert_eq!(outcome.unwrap_err(), "no ring");
    }
}
