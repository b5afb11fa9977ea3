//! The engine that tests of IOThreads and disks are run over: io_uring by themselves, the others through tables.

use std::cell::Cell;

use crate::config::{CacheMode, Engine, IoThread, RingOptions, SqPoll};

/// What IOThreads of this test's are started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    IoUring,
    /// With a thread of the kernel's that submits.
    SqPoll,
    Native,
    Threads,
}

thread_local! {
    static OVER: Cell<Over> = const { Cell::new(Over::IoUring) };
}

/// Has the rest of this test run over an engine.
pub(crate) fn run_over(over: Over) {
    OVER.set(over);
}

/// An IOThread with the engine that this test is run over, and waiting in epoll where that is not io_uring.
pub(crate) fn iothread(id: u32, name: &str) -> IoThread {
    let plain = IoThread::named(id, name);
    match OVER.get() {
        Over::IoUring => plain,
        Over::SqPoll => {
            let cpu = vmprof_sys::affinity::cpus_of_thread(0).unwrap()[0];
            let sqpoll = Some(SqPoll { cpu, idle_ms: 1 });
            IoThread { ring: RingOptions { sqpoll, ..RingOptions::default() }, ..plain }
        }
        Over::Native => IoThread { engines: vec![Engine::Native, Engine::Threads], ..plain },
        Over::Threads => IoThread { engines: vec![Engine::Threads], ..plain },
    }
}

/// The engine for a disk of this test's: Linux AIO takes no files of the page cache.
pub(crate) fn engine_for(cache: CacheMode) -> Engine {
    match OVER.get() {
        Over::IoUring | Over::SqPoll => Engine::IoUring,
        Over::Native if cache.is_direct() => Engine::Native,
        Over::Native | Over::Threads => Engine::Threads,
    }
}

/// Runs tests again over each engine but the usual one.
pub(crate) fn over_other_engines(tests: &[(&str, fn())]) {
    for over in [Over::SqPoll, Over::Native, Over::Threads] {
        for (name, test) in tests {
            // Shown when it fails.
            eprintln!("{name}, over {over:?}");
            OVER.set(over);
            test();
        }
    }
    OVER.set(Over::IoUring);
}
