//! Tests that boot emulated hosts: one at a time, and once more where the emulator lost what it emulates.
//!
//! QEMU's SVM is not a processor: now and then a nested guest of whichever VMM resets on a triple fault or stands still, or its
//! host falls silent or panics (docs/testing.md says what is known). A test that ends so has shown nothing about vmprof, so it
//! begins anew. It is never anew for anything else, it is said aloud, and the third loss in a row fails. A rare fault of vmprof's
//! own may look the same: so losses are counted.

mod standing;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often a test may begin.
const ATTEMPTS: u32 = 3;

/// What vmprof says when it is the machine that broke, and not anything in it.
const LOSSES: [&str; 5] = [
    "shut down on a triple fault",
    // A guest that stands still.
    "` does not answer",
    "the emulated host ended before its work was done",
    "the emulated host has stalled",
    "its first process did not say hello in time",
];

/// How long a run of vmprof may take in the lab: twice what the longest of the suite does on two busy CPUs.
const LIMIT: Duration = Duration::from_secs(300);

/// The last loss that a run of vmprof told of.
static SEEN: Mutex<Option<String>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The line that tells of a loss, if one does.
fn loss(messages: &str) -> Option<&str> {
    messages.lines().find(|line| LOSSES.iter().any(|loss| line.contains(loss)))
}

/// Takes down what a run of vmprof said on its standard error.
pub(crate) fn heard(messages: &str) {
    if let Some(line) = loss(messages) {
        *locked(&SEEN) = Some(line.to_owned());
    }
}

thread_local! {
    /// How long what this thread starts may run.
    static LIMITED: Cell<Option<Duration>> = const { Cell::new(None) };
    /// The lab that it joins.
    static JOINED: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Watches a child that was just started, where its test is in the lab: one that stands still is killed, which ends whatever the
/// test waits for, and counts as lost.
pub(crate) fn started(child: &Child) {
    let Some(limit) = LIMITED.get() else { return };
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("a child has a pidfd");
    std::thread::spawn(move || {
        let limit = Timespec::try_from(limit).expect("a limit is some minutes");
        // Readable is a process that has ended.
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
        if ended == Ok(0) {
            *locked(&SEEN) = Some(format!("a run of vmprof had not ended after {} s", limit.tv_sec));
            // It may have ended by now.
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    });
}

/// Runs a test whose VMs run in the lab: an emulated host that stays for all of them, of which one has it at a time. Two would only
/// take the processors from each other, and their plans.
pub fn in_the_lab(test: impl Fn()) {
    one_at_a_time(LIMIT, true, test);
}

/// The same for a test whose runs of vmprof boot an emulated host each.
pub fn in_labs_of_its_own(test: impl Fn()) {
    one_at_a_time(LIMIT, false, test);
}

/// The same where the runs may take as long as this each.
pub fn in_labs_of_its_own_for(limit: Duration, test: impl Fn()) {
    one_at_a_time(limit, false, test);
}

fn one_at_a_time(limit: Duration, joins: bool, test: impl Fn()) {
    static LAB: Mutex<()> = Mutex::new(());
    let _lab = locked(&LAB);
    LIMITED.set(Some(limit));
    let test = || {
        if joins {
            JOINED.set(Some(standing::up()));
        }
        test();
    };
    begin(&test, ATTEMPTS, |line| {
        standing::end();
        // Past the capture of a test's output, which shows nothing of a test that passes in the end.
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let told = format!("LOST IN THE LAB  {name}: {line}\n");
        // Where neither can be written the test goes on all the same.
        let _ = std::io::stderr().write_all(told.as_bytes());
        let _ = record().and_then(|mut file| file.write_all(told.as_bytes()));
    });
    LIMITED.set(None);
    JOINED.set(None);
}

/// The directory of the lab that runs of this test join, if they do.
pub(crate) fn joined() -> Option<PathBuf> {
    JOINED.with_borrow(Clone::clone)
}

/// Where losses are counted over many runs: below the target directory.
fn record() -> std::io::Result<File> {
    let path: PathBuf = crate::target().join("vmprof-tests/lost-in-the-lab");
    File::options().create(true).append(true).open(path)
}

fn begin(test: &impl Fn(), attempts: u32, mut lost: impl FnMut(&str)) {
    for attempt in 1.. {
        *locked(&SEEN) = None;
        let Err(panic) = catch_unwind(AssertUnwindSafe(test)) else { return };
        // A test may have read the messages itself, and then they are in what it says.
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let seen = locked(&SEEN).take().or_else(|| loss(text).map(str::to_owned));
        match seen {
            Some(line) if attempt < attempts => lost(&line),
            _ => resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{finish, spawn};

    const TRIPLE: &str = "vmprof: the guest's vCPU 0 shut down on a triple fault at rip=0xf000:0xfff0";

    /// What was seen is one for all tests.
    static ALONE: Mutex<()> = Mutex::new(());

    /// How often a test began that does this at each of its beginnings, whether it passed, and what was told.
    fn begun(test: impl Fn(u32)) -> (u32, bool, Vec<String>) {
        let (count, mut told) = (Cell::new(0), Vec::new());
        let counted = || {
            count.set(count.get() + 1);
            test(count.get());
        };
        let ended = catch_unwind(AssertUnwindSafe(|| begin(&counted, 3, |line| told.push(line.to_owned()))));
        (count.get(), ended.is_ok(), told)
    }

    #[test]
    fn only_a_lost_machine_begins_a_test_anew_and_never_for_good() {
        let _alone = locked(&ALONE);
        assert_eq!(begun(|_| ()), (1, true, vec![]));
        assert_eq!(begun(|_| panic!("1 is not 2")), (1, false, vec![]));
        // It says so itself, or a run of vmprof did.
        let once = begun(|time| assert!(time > 1, "status 125\n{TRIPLE}\nvmprof: the lab was up"));
        assert_eq!(once, (2, true, vec![TRIPLE.to_owned()]));
        let heard_of = begun(|time| {
            heard(if time == 1 { TRIPLE } else { "vmprof: the guest's kernel panicked" });
            assert!(time > 2, "waited for a guest");
        });
        assert_eq!(heard_of, (2, false, vec![TRIPLE.to_owned()]));
        assert_eq!(begun(|_| panic!("{TRIPLE}")), (3, false, vec![TRIPLE.to_owned(); 2]));
    }
    #[test]
    fn what_stands_still_is_killed_and_counts_as_lost() {
        let _alone = locked(&ALONE);
        LIMITED.set(Some(Duration::from_secs(2)));
        let begun = begun(|time| {
            let length = if time == 1 { "600" } else { "0" };
            finish(Command::new("sleep").arg(length)).expect(0);
            let mut lines = spawn(Command::new("sleep").arg(if time == 2 { "600" } else { "0" }));
            assert_eq!((lines.output_lines().count(), time), (0, 3));
        });
        let lost = "a run of vmprof had not ended after 2 s".to_owned();
        assert_eq!(begun, (3, true, vec![lost.clone(), lost]));
    }
}
