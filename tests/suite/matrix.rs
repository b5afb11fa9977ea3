//! Every disk a profile can ask for, at work: cache modes × engines × queues × formats of rings, on drives of 512n, 512e and 4Kn. On
//! each `fio --verify` finds what it wrote, and ext4 and xfs are made, filled, compared and checked. What vmprof refuses is told
//! as refused, by its code, and never counts as run.
//!
//! Too long for every change: `tests/matrix` runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmprof_tests::drives::{Drive, Drives};
use vmprof_tests::{Finished, Home, checkout, finish, in_labs_of_its_own_for};

const GUEST: &str = include_str!("../fixtures/proof/matrix.sh");

/// Disks of one boot: each is a drive behind a port of its own in the emulated host, and a device of the guest.
const DISKS_A_BOOT: usize = 20;
/// Longer than such a boot ever took: a quarter of an hour beside other work.
const A_BOOT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    /// By which its guest finds it.
    serial: String,
    cache: &'static str,
    aio: &'static str,
    queues: u32,
    packed: bool,
    drive: &'static str,
}

impl Disk {
    fn title(&self) -> String {
        let ring = if self.packed { "packed" } else { "split" };
        format!("{} {} queues={} {ring} {}", self.cache, self.aio, self.queues, self.drive)
    }

    fn node(&self) -> String {
        let Disk { serial, cache, aio, queues, .. } = self;
        let packed = if self.packed { " ring=packed" } else { "" };
        let blockio = if self.drive == "4Kn-4096" { " blockio logical=4096;" } else { "" };
        // The least that mkfs.xfs takes is 300 MiB.
        format!(
            "    disk {serial} {{ source file=\"{serial}.raw\" size=\"320MiB\"; driver raw cache={cache} aio={aio}; \
             queues {queues}{packed};{blockio} }}\n"
        )
    }

    /// The block sizes that the guest must be shown: the logical one as the profile says, else 512; and what the drive writes at
    /// once.
    fn blocks(&self) -> (u32, u32) {
        match self.drive {
            "4Kn-4096" => (4096, 4096),
            "4Kn" | "512e" => (512, 4096),
            _ => (512, 512),
        }
    }

    fn device(&self) -> Option<String> {
        let device = match self.drive {
            // Of an NVMe drive Linux believes no more than what it writes whole when the power fails (AWUPF), and QEMU's says
            // one block: as NVMe this one would be shown as 512n.
            "512e" => "virtio-blk-pci,logical_block_size=512,physical_block_size=4096",
            "4Kn" | "4Kn-4096" => "nvme,logical_block_size=4096,physical_block_size=4096",
            _ => return None,
        };
        Some(device.to_owned())
    }
}

/// All combinations on a plain drive, and each cache mode on drives of other blocks.
fn all() -> Vec<Disk> {
    let mut disks = Vec::new();
    let mut add = |cache, aio, queues, packed, drive| {
        let serial = format!("m{}", disks.len());
        disks.push(Disk { serial, cache, aio, queues, packed, drive });
    };
    for cache in ["none", "directsync", "writeback", "writethrough", "unsafe"] {
        for aio in ["io_uring", "native", "threads"] {
            for queues in [1, 2, 4] {
                for packed in [false, true] {
                    add(cache, aio, queues, packed, "512n");
                }
            }
        }
        for drive in ["512e", "4Kn", "4Kn-4096"] {
            add(cache, "io_uring", 2, false, drive);
        }
    }
    disks
}

fn profile(home: &Home, disks: &[Disk]) -> PathBuf {
    let guest = checkout().join("tests/fixtures/proof/proof.kdl");
    let path = home.path().join("matrix.kdl");
    let nodes: String = disks.iter().map(Disk::node).collect();
    let text = format!(
        "/- kdl-version 2\nprofile matrix {{\n    guest {guest:?}\n    vcpu 4\n    memory \"768MiB\"\n    iothreads 2\n\
         {nodes}}}\n"
    );
    fs::write(&path, text).expect("the profile can be written");
    path
}

/// The codes of what was said, the outermost first.
fn codes(said: &str) -> String {
    let is_code = |word: &str| word.starts_with("vmprof::");
    let words = said.split(|c: char| c.is_whitespace() || "[]()`".contains(c)).filter(|word| is_code(word));
    words.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
}

/// Why the language does not know such a disk, if it does not.
fn refused_by_the_language(home: &Home, disk: &Disk) -> Option<String> {
    let profile = profile(home, std::slice::from_ref(disk));
    let checked = home.run([Path::new("check"), &profile]);
    (checked.status != Some(0)).then(|| codes(&checked.stderr))
}

/// Boots the disks; those that `up` refuses by name are left out, and told with the code.
fn boot(home: &Home, mut disks: Vec<Disk>, refused: &mut BTreeMap<String, String>) -> (Vec<Disk>, Finished) {
    loop {
        let drives: Vec<Drive> = disks
            .iter()
            .map(|disk| Drive { name: disk.serial.clone(), node: None, device: disk.device() })
            .collect();
        let drives = Drives::new(&drives, &[]);
        let profile = profile(home, &disks);
        let mut vmprof = home.vmprof(["up", "--on", "lab", "--lab", "nodes=8,nvme=0,memory=4GiB"]);
        vmprof.arg(profile).args(["--", "sh", "-c", GUEST, "matrix"]).env("PATH", drives.path());
        let ran = finish(vmprof.args(disks.iter().map(|disk| &disk.serial)));
        if ran.status != Some(4) {
            return (disks, ran);
        }
        let named = |disk: &Disk| ran.stderr.contains(&format!("disk `{}`", disk.serial));
        let before = disks.len();
        for disk in disks.iter().filter(|disk| named(disk)) {
            refused.insert(disk.title(), codes(&ran.stderr));
        }
        disks.retain(|disk| !named(disk));
        assert!(disks.len() < before, "refused without a disk's name: {}", ran.stderr);
        if disks.is_empty() {
            return (disks, Finished { status: Some(0), stdout: String::new(), stderr: ran.stderr });
        }
    }
}

#[test]
#[ignore = "tens of minutes: tests/matrix runs it"]
fn every_disk_keeps_what_is_written_to_it_or_is_refused() {
    in_labs_of_its_own_for(A_BOOT, || {
        let home = Home::new();
        let wanted = std::env::var("VMPROF_MATRIX").unwrap_or_default();
        let mut disks: Vec<Disk> = all()
            .into_iter()
            .filter(|disk| wanted.split_whitespace().all(|word| disk.title().contains(word)))
            .collect();
        assert!(!disks.is_empty(), "no combination has all of `{wanted}`");
        let total = disks.len();
        let mut refused = BTreeMap::new();
        disks.retain(|disk| match refused_by_the_language(&home, disk) {
            Some(code) => {
                refused.insert(disk.title(), code);
                false
            }
            None => true,
        });
        let (mut right, mut wrong) = (0, Vec::new());
        for group in disks.chunks(DISKS_A_BOOT) {
            let begun = Instant::now();
            let (ran, finished) = boot(&home, group.to_vec(), &mut refused);
            println!("{} disks in {:.0?}", ran.len(), begun.elapsed());
            for disk in &ran {
                let said: Vec<&str> = finished
                    .stdout
                    .lines()
                    .filter_map(|line| line.strip_prefix(&format!("{} ", disk.serial)))
                    .collect();
                let (logical, physical) = disk.blocks();
                let rings = if disk.packed { "packed" } else { "split" };
                let expected = [
                    format!("blocks {logical} {physical}"),
                    format!("queues {}", disk.queues),
                    format!("ring {rings}"),
                    "fio verified".to_owned(),
                    "ext4 compared".to_owned(),
                    "xfs compared".to_owned(),
                ];
                let mut told = format!("{:44}", disk.title());
                match expected.iter().all(|line| said.contains(&line.as_str())) {
                    true => right += 1,
                    false => {
                        write!(told, "  WRONG: {said:?}").expect("text grows");
                        wrong.push(disk.title());
                    }
                }
                println!("{told}");
            }
            if finished.status != Some(0) {
                wrong.push(format!("a boot ended with {:?}", finished.status));
            }
            if !wrong.is_empty() {
                println!("{}", finished.stderr);
            }
        }
        for (title, code) in &refused {
            println!("{title:44}  refused: {code}");
        }
        println!("{total} combinations: {right} right, {} refused, {} wrong", refused.len(), wrong.len());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}
