//! What a profile may promise and this version's machine does not keep. `up` refuses all of it at once and by name, before
//! anything is built or booted; `plan` shows it, since a plan may be made for another program.

use miette::Diagnostic;
use vmprof_mac::MacAddress;
use vmprof_profiles::{NetBackend, NetPlan, Plan, Profile};
use vmprof_vmm::config::{FEWEST_QUEUE_ENTRIES, LARGEST_LOGICAL_BLOCK_BYTES, LARGEST_PHYSICAL_BLOCK_BYTES};

use crate::failure::{Failure, Kind};

/// Everything at once, each with what to write instead.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("this version of `up` cannot do {} that the profile asks for", counted(.promises.len()))]
#[diagnostic(
    code(vmprof::up::not_in_this_version),
    help("`vmprof plan` shows the plan of the profile all the same")
)]
struct NotInThisVersion {
    #[related]
    promises: Vec<Promise>,
}

/// One thing that is asked for.
#[derive(Debug, thiserror::Error, Diagnostic, PartialEq, Eq)]
#[error("{asked}")]
#[diagnostic(code(vmprof::up::not_in_this_version), help("{instead}"))]
struct Promise {
    asked: String,
    instead: String,
}

fn counted(count: usize) -> String {
    if count == 1 { "one thing".to_owned() } else { format!("{count} things") }
}

/// Looks at the profile: in milliseconds, and on any host. No condition of a profile changes its disks.
pub fn of_profile(profile: &Profile) -> Result<(), Failure> {
    let disks = profile.disks.iter().map(|disk| Wish {
        name: &disk.name.value,
        logical_block_bytes: disk.logical_block_bytes,
        physical_block_bytes: disk.physical_block_bytes,
        queue_size: disk.queue_size,
    });
    refuse(disks.flat_map(|wish| wish.unkept()).collect())
}

/// Looks at a plan, which another version may have made.
pub fn of_plan(plan: &Plan) -> Result<(), Failure> {
    let disks = plan.disks.iter().map(|disk| Wish {
        name: &disk.name,
        logical_block_bytes: disk.logical_block_bytes,
        physical_block_bytes: disk.physical_block_bytes,
        queue_size: disk.queue_size,
    });
    refuse(disks.flat_map(|wish| wish.unkept()).chain(plan.nets.iter().filter_map(net)).collect())
}

/// Looks at what the emulated host cannot have.
pub fn in_the_lab(profile: &Profile) -> Result<(), Failure> {
    let taps = profile.nets.iter().filter_map(|net| match &net.backend.value {
        NetBackend::Tap { name } => Some(Promise {
            asked: format!("`net tap name={name}`: the lab's emulated host has no tap devices, and those of this host are out of its reach"),
            instead: "write `net passt`, which runs on this host, or run it on a host with KVM (`--on kvm`)".to_owned(),
        }),
        NetBackend::Passt { .. } => None,
    });
    refuse(taps.collect())
}

fn refuse(promises: Vec<Promise>) -> Result<(), Failure> {
    match promises.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Kind::HostCannot, NotInThisVersion { promises })),
    }
}

/// The language knows no such profile; a plan may have been written by other means.
fn net(net: &NetPlan) -> Option<Promise> {
    if let Some(mac) = net.mac.as_deref().filter(|mac| mac.parse::<MacAddress>().is_err()) {
        return Some(Promise {
            asked: format!("{}: the hardware address \"{mac}\", which is none", net.name),
            instead: "plan it again".to_owned(),
        });
    }
    let passt = matches!(net.backend, NetBackend::Passt { .. });
    (passt && net.queues > 1).then(|| Promise {
        asked: format!(
            "{}: {} queue pairs over passt, which has one stream for all of them",
            net.name, net.queues
        ),
        instead: "plan it again with one".to_owned(),
    })
}

/// What a disk asks for, of a profile or of a plan.
struct Wish<'a> {
    name: &'a str,
    logical_block_bytes: Option<u32>,
    physical_block_bytes: Option<u32>,
    queue_size: u16,
}

impl Wish<'_> {
    fn unkept(&self) -> Vec<Promise> {
        let mut unkept = Vec::new();
        let mut promise = |asked: String, instead: &str| {
            unkept.push(Promise {
                asked: format!("disk `{}`: {asked}", self.name),
                instead: instead.to_owned(),
            });
        };
        let (most_logical, most_physical) = (LARGEST_LOGICAL_BLOCK_BYTES, LARGEST_PHYSICAL_BLOCK_BYTES);
        if let Some(bytes) = self.logical_block_bytes.filter(|bytes| *bytes > most_logical) {
            promise(
                format!("logical blocks of {bytes} bytes, and guests take {most_logical} at most"),
                "write `blockio logical=512` or `logical=4096`, or leave it out for 512",
            );
        }
        if let Some(bytes) = self.physical_block_bytes.filter(|bytes| *bytes > most_physical) {
            promise(
                format!(
                    "physical blocks of {bytes} bytes, and {most_physical} is the most that the device can tell"
                ),
                "write fewer in `blockio physical=`, or leave it out for those of the source",
            );
        }
        if self.queue_size < FEWEST_QUEUE_ENTRIES {
            promise(
                format!("queues of {} entries, and a request takes three", self.queue_size),
                "write `size=4` or more in `queues`; 256 is usual",
            );
        }
        unkept
    }
}

#[cfg(test)]
mod tests {
    use vmprof_profiles::{Aio, ErrorPolicy, Net, Written, read_profile};

    use super::*;

    fn profile() -> Profile {
        let text = "profile p {\n guest \"g.kdl\"\n vcpu 1\n memory \"1GiB\"\n iothreads 1\n \
                    disk data { source file=\"d.raw\"; driver raw; }\n disk log { source file=\"l.raw\"; driver raw; }\n}\n";
        read_profile("p.kdl", text).unwrap().0
    }

    /// What is told of the profile, outermost first.
    fn told(profile: &Profile) -> Vec<String> {
        let Err(failure) = of_profile(profile) else { return Vec::new() };
        assert_eq!(failure.kind, Kind::HostCannot);
        assert_eq!(failure.problem.code().unwrap().to_string(), "vmprof::up::not_in_this_version");
        let related: Vec<_> = failure.problem.related().unwrap().collect();
        assert!(related.iter().all(|one| one.help().is_some()));
        [failure.problem.to_string()].into_iter().chain(related.iter().map(|one| one.to_string())).collect()
    }

    #[test]
    fn what_is_kept_is_not_refused() {
        let mut profile = profile();
        assert_eq!(told(&profile), [""; 0]);
        let disk = &mut profile.disks[0];
        (disk.logical_block_bytes, disk.physical_block_bytes) = (Some(4096), Some(16384));
        (disk.aio, disk.aio_fallback) = (Aio::Native, Some(Aio::Threads));
        disk.discard = true;
        (disk.rerror, disk.werror) = (ErrorPolicy::Stop, ErrorPolicy::Enospc);
        assert_eq!(told(&profile), [""; 0]);
    }

    #[test]
    fn everything_is_refused_at_once_each_with_its_disk() {
        let mut profile = profile();
        (profile.disks[1].logical_block_bytes, profile.disks[1].physical_block_bytes) =
            (Some(65536), Some(4 << 20));
        profile.disks[1].queue_size = 2;
        let told = told(&profile);
        assert_eq!(told[0], "this version of `up` cannot do 3 things that the profile asks for");
        let expected = [
            ("`log`", "logical blocks of 65536"),
            ("`log`", "physical blocks of 4194304"),
            ("`log`", "queues of 2"),
        ];
        assert_eq!(told.len(), 1 + expected.len(), "{told:?}");
        for (message, (disk, what)) in told[1..].iter().zip(expected) {
            assert!(message.contains(disk) && message.contains(what), "{message}");
        }
    }

    #[test]
    fn a_tap_is_refused_in_the_lab_alone() {
        let mut profile = profile();
        let data = profile.disks[0].name.clone();
        let mut push = |value| {
            let backend = Written { value, span: data.span, line: data.line.clone() };
            profile.nets.push(Net { backend, queues: 1, queues_line: None, queue_size: 256, mac: None });
        };
        push(NetBackend::Passt { forwards: vec![] });
        push(NetBackend::Tap { name: "tap7".into() });
        assert_eq!(told(&profile), [""; 0]);
        let failure = in_the_lab(&profile).unwrap_err();
        assert_eq!(failure.kind, Kind::HostCannot);
        let related: Vec<_> = failure.problem.related().unwrap().map(|one| one.to_string()).collect();
        assert!(related.len() == 1 && related[0].contains("tap7"), "{related:?}");
    }
}
