//! Where the threads may run, and where they ran last.

use serde::{Deserialize, Serialize};
use vmprof_profiles::{CpuSet, IoThreadPlan};

use super::{Finding, What};
use crate::tasks::Task;

/// A thread as the plan has it: its name in the operating system, and its CPUs as a kernel list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedThread {
    pub name: String,
    pub cpus: String,
}

/// Looks every planned thread up among those of the process. As planned is one that is there, may run on the planned CPUs and
/// on no other.
pub(super) fn read_back(planned: &[PlannedThread], found: &[Task]) -> Vec<Finding> {
    let finding = |thread: &PlannedThread| {
        // The kernel keeps 15 bytes of a name.
        let comm = &thread.name.as_bytes()[..thread.name.len().min(15)];
        // Of several threads with one name (the emulator's) the one that strayed is worth a line.
        let mut named = found.iter().filter(|task| task.name.as_bytes() == comm);
        let task = named.clone().find(|task| task.allowed != thread.cpus).or_else(|| named.next());
        of_task(thread, task)
    };
    planned.iter().map(finding).collect()
}

/// The threads of the kernel's that take IOThreads' requests (SQPOLL).
pub(super) fn submitters(iothreads: &[IoThreadPlan], found: &[Task]) -> Vec<Finding> {
    let finding = |iothread: &IoThreadPlan| {
        let planned = PlannedThread {
            name: format!("{} sqpoll", iothread.name),
            cpus: CpuSet::of(iothread.sqpoll?.cpu).to_string(),
        };
        // The kernel's io_uring/sqpoll.c names them by the thread whose ring it is, with the id that it has outside all
        // containers: inside one, only their CPUs tell them apart.
        let mut theirs = found.iter().filter(|task| task.name.starts_with("iou-sqp-"));
        let task = theirs.clone().find(|task| task.allowed == planned.cpus).or_else(|| theirs.next());
        Some(of_task(&planned, task))
    };
    iothreads.iter().filter_map(finding).collect()
}

fn of_task(thread: &PlannedThread, task: Option<&Task>) -> Finding {
    let what = What::Thread {
        thread: thread.name.clone(),
        tid: task.map(|task| task.tid),
        allowed: task.map(|task| task.allowed.clone()),
        last_cpu: task.and_then(|task| task.last_cpu),
    };
    let found = task.map(|task| task.allowed.clone()).ok_or_else(|| "there is no such thread".to_owned());
    let finding = Finding::new(what, Some(thread.cpus.clone()), found);
    let note = task.filter(|task| ran_elsewhere(task));
    let note = note.map(|_| "it has not run since it was given these CPUs".to_owned());
    Finding { note: finding.note.or(note), ..finding }
}

/// The kernel runs a thread on its CPUs and on no other: one that ran last on another slept when it was given these, and
/// goes where it may when it wakes.
fn ran_elsewhere(task: &Task) -> bool {
    match (task.allowed.parse::<CpuSet>(), task.last_cpu) {
        (Ok(allowed), Some(cpu)) => !allowed.contains(cpu),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use vmprof_profiles::SqPollPlan;

    use super::*;

    fn planned(name: &str, cpus: &str) -> PlannedThread {
        PlannedThread { name: name.into(), cpus: cpus.into() }
    }

    #[test]
    fn this_very_thread_is_found_where_it_is() {
        let (ready, wait) = std::sync::mpsc::channel();
        let (done, hold) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("IO iothread99".into()).spawn(move || {
            ready.send(std::fs::read_to_string("/proc/thread-self/status").unwrap()).unwrap();
            let _ = hold.recv();
        });
        let status = wait.recv().unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let threads =
            [planned("IO iothread99", allowed), planned("IO iothread99", "4096"), planned("CPU 77/KVM", "0")];
        let findings = read_back(&threads, &crate::tasks::all("/proc/self/task".as_ref()));
        assert_eq!(
            findings.iter().map(|finding| finding.as_planned).collect::<Vec<_>>(),
            [true, false, false]
        );
        let tid_and_cpu = |finding: &Finding| match &finding.what {
            What::Thread { tid, last_cpu, .. } => (tid.is_some(), last_cpu.is_some()),
            other => panic!("{other:?}"),
        };
        assert_eq!((tid_and_cpu(&findings[0]), tid_and_cpu(&findings[2])), ((true, true), (false, false)));
        drop(done);
        thread.unwrap().join().unwrap();
    }

    fn task(name: &str, allowed: &str, last_cpu: u32) -> Task {
        Task {
            tid: 7,
            name: name.into(),
            allowed: allowed.into(),
            last_cpu: Some(last_cpu),
            cpu_ns: 0,
            waited_ns: 0,
            voluntary: 0,
            involuntary: 0,
        }
    }

    #[test]
    fn submission_threads_are_on_the_cpus_that_they_were_given_or_strays() {
        let iothread = |id: u32, cpu: u32| IoThreadPlan {
            id,
            name: format!("iothread{id}"),
            cpus: CpuSet::of(id),
            node: None,
            poll_max_ns: 0,
            poll_grow: 0,
            poll_shrink: 0,
            registered_memory: false,
            sqpoll: (cpu > 0).then_some(SqPollPlan { cpu, idle_ms: 50 }),
            because: String::new(),
            rejected: None,
        };
        let found = [task("iou-sqp-41", "6", 6), task("iou-sqp-42", "0-7", 1), task("iou-wrk-41", "7", 7)];
        let findings = submitters(&[iothread(0, 6), iothread(1, 7), iothread(2, 0)], &found);
        let verdicts: Vec<bool> = findings.iter().map(|finding| finding.as_planned).collect();
        assert_eq!(verdicts, [true, false], "{findings:?}");
        assert!(!submitters(&[iothread(0, 6)], &[])[0].as_planned);
    }

    #[test]
    fn where_a_thread_ran_before_it_was_pinned_is_told_and_is_no_fault() {
        let of = |allowed, last_cpu| {
            of_task(&planned("IO iothread0", "2-3"), Some(&task("IO iothread0", allowed, last_cpu)))
        };
        let (at_home, slept, strayed) = (of("2-3", 3), of("2-3", 5), of("0-7", 5));
        assert!(at_home.as_planned && at_home.note.is_none(), "{at_home:?}");
        assert!(slept.as_planned && slept.note.unwrap().contains("not run since"));
        assert!(!strayed.as_planned && strayed.note.is_none(), "{strayed:?}");
    }
}
