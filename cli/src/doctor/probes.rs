//! What is tried on this host: KVM, the engines, the limits of this process, the programs that builds need.

use std::env;

use rustix::process::{Resource, getrlimit};
use vmprof_vmm::config::Engine;
use vmprof_vmm::iothread;
use vmprof_vmm::kvm;

use super::Finding;

pub fn all() -> Vec<Finding> {
    let engines = [Engine::IoUring, Engine::Native, Engine::Threads];
    let mut findings = vec![kvm()];
    findings.extend(engines.map(|engine| {
        let found = iothread::probe(engine).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            cause.unwrap_or_else(|| error.to_string())
        });
        of_engine(engine, found)
    }));
    findings.push(memlock(getrlimit(Resource::Memlock).current));
    findings.push(open_files(getrlimit(Resource::Nofile).current));
    findings.push(apt(env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join("apt-get").is_file()))));
    findings
}

fn kvm() -> Finding {
    match kvm::probe() {
        Ok(usable) => {
            Finding::ok("kvm", format!("it runs stock kernels, with up to {} vCPUs", usable.most_vcpus))
        }
        Err(found) => Finding::problem("kvm", found.to_string(), crate::up::help_without_kvm(&found)),
    }
}

fn of_engine(engine: Engine, tried: Result<(), String>) -> Finding {
    let check = match engine {
        Engine::IoUring => "io_uring",
        Engine::Native => "linux-aio",
        Engine::Threads => "threads",
    };
    let Err(why) = tried else { return Finding::ok(check, format!("aio={engine} works")) };
    let fix = match engine {
        Engine::IoUring => {
            "`sudo sysctl kernel.io_uring_disabled=0`, a kernel from 5.19 on, and no filter of system calls around vmprof \
             (containers have one); until then `driver raw fallback=threads`"
        }
        Engine::Native => "`sudo sysctl fs.aio-max-nr=1048576`; until then another `aio=`",
        Engine::Threads => "raise the limits of processes (`ulimit -u`, the cgroup's pids.max)",
    };
    Finding::problem(check, format!("there is no aio={engine}: {why}"), fix)
}

/// A guest's memory is registered as a whole, and counts as locked.
fn memlock(limit: Option<u64>) -> Finding {
    const LITTLE: u64 = 1 << 30;
    match limit {
        None => Finding::ok("memlock", "any amount of memory may be locked"),
        Some(bytes) if bytes >= LITTLE => {
            Finding::ok("memlock", format!("up to {} MiB may be locked", bytes >> 20))
        }
        Some(bytes) => Finding::warning(
            "memlock",
            format!(
                "no more than {} KiB may be locked: `registered-memory` of a guest that has more is refused",
                bytes >> 10
            ),
            "`ulimit -l unlimited` by /etc/security/limits.conf, or LimitMEMLOCK=infinity in the unit; where no profile \
             asks for it, nothing",
        ),
    }
}

/// Each queue has two eventfds, and each disk its file.
fn open_files(limit: Option<u64>) -> Finding {
    const FEW: u64 = 1024;
    match limit {
        Some(files) if files < FEW => Finding::warning(
            "open-files",
            format!(
                "no more than {files} files may be open: a VM of many queues needs two for each and some"
            ),
            "`ulimit -n 4096`",
        ),
        Some(files) => Finding::ok("open-files", format!("up to {files} may be open")),
        None => Finding::ok("open-files", "any number may be open"),
    }
}

fn apt(found: bool) -> Finding {
    match found {
        true => Finding::ok("apt", "guests' packages can be fetched"),
        false => Finding::warning(
            "apt",
            "there is no apt-get on PATH: guests are built where one is, and their images carried here",
            "build on Debian or in a container of it, with VMPROF_STORE on a disk that both have",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn what_this_machine_has_is_found_and_what_it_lacks_comes_with_its_fix() {
        for finding in all() {
            assert_eq!(finding.state == State::Ok, finding.fix.is_empty(), "{finding:?}");
            assert!(!finding.found.is_empty());
        }
    }

    #[test]
    fn an_engine_that_is_not_there_is_a_problem_and_says_why() {
        let lacking = of_engine(Engine::IoUring, Err("Operation not permitted".to_owned()));
        assert_eq!((lacking.check, lacking.state), ("io_uring", State::Problem));
        assert!(lacking.found.contains("not permitted") && lacking.fix.contains("io_uring_disabled"));
        assert_eq!(of_engine(Engine::Native, Ok(())).state, State::Ok);
    }

    #[test]
    fn limits_are_told_in_their_unit() {
        let states = [Some(8 << 20), Some(2 << 30), None].map(|limit| memlock(limit).state);
        assert_eq!(states, [State::Warning, State::Ok, State::Ok]);
        assert!(memlock(Some(8 << 20)).found.contains("8192 KiB"));
        assert_eq!([Some(256), Some(1024), None].map(|limit| open_files(limit).state as u8), [1, 0, 0]);
        assert_eq!(apt(false).state, State::Warning);
    }
}
