//! System calls per request, which no load of the machine can blur: perf counts those of the server's threads while a client
//! runs, in a pass of its own, since counting slows them down.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing as _, Error};

const EVENT: &str = "raw_syscalls:sys_enter";

/// System calls of the process `pid` while `with` runs; `None` where perf may not count them.
pub fn count<T>(
    perf: &Path,
    pid: u32,
    with: impl FnOnce() -> Result<T, Error>,
) -> Result<(T, Option<u64>), Error> {
    let doing = || "perf could not be set up".to_owned();
    let directory = tempfile::tempdir().doing(doing)?;
    let path = |name: &str| directory.path().join(name);
    let (orders, answers, counted) = (path("orders"), path("answers"), path("counted"));
    for fifo in [&orders, &answers] {
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .doing(doing)?;
    }
    // Open for both, so that neither end waits for the other.
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).doing(doing);
    let (mut orders_end, mut answers_end) = (open(&orders)?, open(&answers)?);
    let mut child = Command::new(perf)
        .args(["stat", "-x", ",", "-e", EVENT, "-D", "-1", "-p", &pid.to_string(), "-o"])
        .arg(&counted)
        .arg("--control")
        .arg(format!("fifo:{},{}", orders.display(), answers.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .doing(doing)?;
    let counts = order(&mut orders_end, &mut answers_end, "enable")?;
    let outcome = with();
    if counts {
        order(&mut orders_end, &mut answers_end, "disable")?;
    }
    if let Some(perf) = Pid::from_raw(child.id() as i32) {
        // One that could not count has ended.
        let _ = kill_process(perf, Signal::INT);
    }
    let _ = child.wait();
    let text = std::fs::read_to_string(&counted).unwrap_or_default();
    Ok((outcome?, parse(&text)))
}

/// Tells perf and waits for its `ack`; `false` when it is not there to answer.
fn order(orders: &mut File, answers: &mut File, word: &str) -> Result<bool, Error> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    orders.write_all(format!("{word}\n").as_bytes()).doing(|| "perf could not be told".to_owned())?;
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(answers, PollFlags::IN)], Some(&patience));
    if ready.doing(|| "perf could not be heard".to_owned())? == 0 {
        return Ok(false);
    }
    let mut answer = [0; 16];
    let bytes = answers.read(&mut answer).doing(|| "perf could not be heard".to_owned())?;
    Ok(answer[..bytes].starts_with(b"ack"))
}

fn parse(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_first_field_of_its_line() {
        assert_eq!(parse("# started on x\n\n1234,,raw_syscalls:sys_enter,99,100.00,,\n"), Some(1234));
        assert_eq!(parse("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(parse(""), None);
    }
}
