//! Drives that fail, and one that hangs, beside one that is well. QEMU's `blkdebug` fails requests of a drive of the emulated host,
//! its throttling holds them back until the test lets go.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vmprof_tests::drives::{Drive, Drives, file_node};
use vmprof_tests::{Home, Running, checkout, eventually, finish, in_the_lab, spawn_with_log};

const GUEST: &str = include_str!("../fixtures/proof/faults.sh");

/// Where drives fail: writes at 1 MiB, reads at 2 MiB.
const BAD_WRITE_SECTOR: u64 = 2048;
const BAD_READ_SECTOR: u64 = 4096;
const EIO: i64 = 5;

/// Says one thing to QEMU and waits for its answer.
fn tell(socket: &Path, command: &Value) {
    let mut stream = UnixStream::connect(socket).expect("QEMU listens");
    let mut answers = BufReader::new(stream.try_clone().expect("a socket has two ends")).lines();
    for said in [json!({ "execute": "qmp_capabilities" }), command.clone()] {
        writeln!(stream, "{said}").expect("QEMU hears");
        let answer = answers
            .by_ref()
            .map(|line| line.expect("QEMU answers in lines"))
            .find(|line| line.contains("\"return\"") || line.contains("\"error\""))
            .expect("QEMU answers");
        assert!(answer.contains("\"return\""), "{said}: {answer}");
    }
}

/// Each with the policies of its driver.
const DISKS: [(&str, &str); 6] = [
    ("good", ""),
    ("bad", ""),
    ("ignored", "rerror=ignore werror=ignore"),
    ("enospc", "werror=enospc"),
    ("stopped", "rerror=stop werror=stop"),
    ("hung", ""),
];

/// Lets through so many bytes a second that `hung` writes; 0: all, those that have waited included.
fn limit_writes(qmp: &Path, bytes: u64) {
    let mut limits = json!({ "id": "/machine/peripheral/hung/virtio-backend", "bps": 0, "bps_rd": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0 });
    limits["bps_wr"] = bytes.into();
    tell(qmp, &json!({ "execute": "block_set_io_throttle", "arguments": limits }));
}

/// The profile: all disks on one IOThread.
fn profile(home: &Home) -> PathBuf {
    let guest = checkout().join("tests/fixtures/proof/proof.kdl");
    let mut nodes = String::new();
    for (name, policies) in DISKS {
        writeln!(
            nodes,
            "    disk {name} {{ source file=\"{name}.raw\" size=\"16MiB\"; driver raw cache=none {policies}; queues 1; }}"
        )
        .expect("text grows");
    }
    let path = home.path().join("faults.kdl");
    let text = format!(
        "/- kdl-version 2\nprofile faults {{\n    guest {guest:?}\n    vcpu 2\n    memory \"256MiB\"\n    iothreads 1\n\
         {nodes}}}\n"
    );
    fs::write(&path, text).expect("the profile can be written");
    path
}

/// The emulated host's drives, and QEMU's ear.
fn drives(home: &Home, qmp: &Path) -> Drives {
    let drive = |(name, _): (&str, &str)| {
        let file = file_node(&home.path().join(format!(".local/state/vmprof/disks/faults/{name}.raw")));
        let failing = |iotype: &str, sector: u64| {
            // What has stopped the machine is well when it is tried again.
            let once = name == "stopped";
            json!({ "event": "none", "iotype": iotype, "errno": EIO, "sector": sector, "once": once })
        };
        let node = match name {
            "good" | "hung" => None,
            _ => Some(json!({
                "driver": "blkdebug",
                "image": file,
                "inject-error": [failing("write", BAD_WRITE_SECTOR), failing("read", BAD_READ_SECTOR)],
            })),
        };
        // Such a drive answers the driver, whatever the emulator's own policy for full disks is. One with few tags makes the
        // requests beyond them wait in the host's kernel, wherever that waits.
        let tags = if name == "hung" { ",id=hung,num-queues=1,queue-size=16" } else { "" };
        let device = Some(format!("virtio-blk-pci,werror=report,rerror=report{tags}"));
        Drive { name: name.to_owned(), node, device }
    };
    let words = ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", qmp.display())];
    Drives::new(&DISKS.map(drive), &words)
}

/// The guest, its lines as they come, and what vmprof says of it.
struct Observed {
    home: Home,
    running: Running,
    told: PathBuf,
    lines: Box<dyn Iterator<Item = String>>,
    said: Vec<String>,
}

impl Observed {
    /// Waits for the next line of the guest.
    #[track_caller]
    fn expect(&mut self, line: &str) {
        let said = self.lines.next();
        let told = || fs::read_to_string(&self.told).unwrap_or_default();
        assert_eq!(said.as_deref(), Some(line), "after {:?}\n{}", self.said, told());
        self.said.extend(said);
    }

    /// Asks for the stats until `look` finds something.
    #[track_caller]
    fn stats<T>(&mut self, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        eventually(what, || {
            assert!(!self.running.has_ended(), "{:?}\n{:?}", self.said, fs::read_to_string(&self.told));
            let asked = finish(&mut self.home.vmprof(["stats", "faults", "--format", "json"]));
            look(&serde_json::from_str(&asked.stdout).ok()?)
        })
    }

    /// Waits until `stopped` has stopped the machine, and lets it go on.
    #[track_caller]
    fn resume_from(&mut self, kind: &str, sector: u64) {
        let paused = |stats: &Value| (!stats["paused"].is_null()).then(|| stats["paused"].clone());
        let paused = self.stats("a pause", paused);
        let failures = paused["failures"].as_array().expect("a list of failures");
        let [failure] = &failures[..] else { panic!("one request failed: {paused}") };
        assert_eq!((failure["disk"].as_str(), failure["kind"].as_str()), (Some("stopped"), Some(kind)));
        assert_eq!((failure["sector"].as_u64(), failure["errno"].as_i64()), (Some(sector), Some(EIO)));
        assert_eq!((failure["vq"].as_u64(), failure["head"].is_u64()), (Some(0), true), "{failure}");
        self.home.run(["resume", "faults"]).expect(0);
    }
}

fn queue_of(stats: &Value, disk: &str) -> Value {
    let disks = stats["disks"].as_array().expect("a list of disks");
    disks.iter().find(|found| found["name"] == disk).expect("the disk")["virtqueues"][0].clone()
}

/// All disks are one IOThread's.
#[test]
fn a_drive_that_fails_or_hangs_is_treated_as_the_profile_says_and_the_others_go_on() {
    in_the_lab(|| {
        let home = Home::new();
        let (profile, qmp, told) = (profile(&home), home.path().join("qmp"), home.path().join("told"));
        let drives = drives(&home, &qmp);
        let mut vmprof =
            home.vmprof(["up", "--on", "lab", "--lab", "nodes=4,nvme=0,memory=2GiB", "--timeout", "5m"]);
        vmprof.arg(&profile).args(["--", "sh", "-c", GUEST, "faults"]).env("PATH", drives.path());
        let mut running = spawn_with_log(&mut vmprof, &told);
        let lines = Box::new(running.output_lines());
        let mut observed = Observed { home, running, told, lines, said: Vec::new() };

        // One byte a second: the first write passes, the next one waits for an hour.
        observed.expect("ready");
        limit_writes(&qmp, 1);
        observed.expect("bad write: Input/output error");
        observed.expect("bad read: Input/output error");
        observed.expect("bad beside: done");
        observed.expect("ignored write: done");
        observed.expect("ignored read: done");
        // Only ENOSPC would stop the machine.
        observed.expect("enospc write: Input/output error");
        observed.expect("good beside bad: done");
        observed.resume_from("write", BAD_WRITE_SECTOR);
        observed.expect("stopped write: done");
        observed.resume_from("read", BAD_READ_SECTOR);
        observed.expect("stopped read: done");

        observed.expect("good beside hung: done");
        observed.expect("good flushed beside hung: done");
        observed.expect("good read beside hung: done");
        let stuck = observed.stats("requests of `hung` that are a second old", |stats| {
            let hung = queue_of(stats, "hung");
            // What was well when it was tried again is no error.
            for (disk, errors) in [("good", 0), ("bad", 2), ("ignored", 2), ("enospc", 1), ("stopped", 0)] {
                assert_eq!(queue_of(stats, disk)["errors"], errors, "{disk}: {stats}");
            }
            (hung["oldest"]["age_ms"].as_u64() > Some(1000)).then_some(hung)
        });
        println!("stuck: {stuck}");
        assert!(stuck["in_flight"].as_u64() > Some(100), "{stuck}");
        assert_eq!(
            (stuck["vq"].as_u64(), stuck["oldest"]["kind"].as_str()),
            (Some(0), Some("write")),
            "{stuck}"
        );
        assert!(stuck["oldest"]["head"].is_u64() && stuck["oldest"]["sector"].is_u64(), "{stuck}");
        limit_writes(&qmp, 0);
        observed.expect("hung: done");
        let finished = observed.running.finish();
        assert_eq!(finished.status, Some(0), "{}", fs::read_to_string(&observed.told).unwrap_or_default());
        println!("{}", observed.said.join("\n"));
    });
}
