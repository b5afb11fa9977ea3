//! Drives that fail, and one that hangs, beside one that is well. QEMU's `blkdebug` fails requests of a drive of the emulated host,
//! its `throttle` holds them back until the test lets go.
//!
//! `tests/faults` runs it.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};
use vmprof_tests::drives::{Drive, Drives, file_node};
use vmprof_tests::{Home, checkout, eventually, finish, spawn_with_log, the_lab};

const GUEST: &str = include_str!("../fixtures/proof/faults.sh");

/// Where `bad` fails: writes at 1 MiB, reads at 2 MiB.
const BAD_WRITE_SECTOR: u64 = 2048;
const BAD_READ_SECTOR: u64 = 4096;

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

#[test]
#[ignore = "a boot of its own: tests/faults runs it"]
fn a_drive_that_fails_or_hangs_is_told_of_and_the_others_go_on() {
    let _lab = the_lab();
    let home = Home::new();
    let (disks, guest) = (["good", "bad", "hung"], checkout().join("tests/fixtures/proof/proof.kdl"));
    let nodes: String = disks
        .iter()
        .map(|name| {
            format!("    disk {name} {{ source file=\"{name}.raw\" size=\"16MiB\"; driver raw cache=none; queues 1; }}\n")
        })
        .collect();
    let profile = home.path().join("faults.kdl");
    let text = format!(
        "/- kdl-version 2\nprofile faults {{\n    guest {guest:?}\n    vcpu 2\n    memory \"256MiB\"\n    iothreads 1\n\
         {nodes}}}\n"
    );
    std::fs::write(&profile, text).expect("the profile can be written");

    let file =
        |name: &str| file_node(&home.path().join(format!(".local/state/vmprof/disks/faults/{name}.raw")));
    let failing = |iotype: &str, sector: u64| json!({ "event": "none", "iotype": iotype, "errno": 5, "sector": sector, "once": false });
    let bad = json!({
        "driver": "blkdebug",
        "image": file("bad"),
        "inject-error": [failing("write", BAD_WRITE_SECTOR), failing("read", BAD_READ_SECTOR)],
    });
    let hung = json!({ "driver": "throttle", "throttle-group": "hang", "file": file("hung") });
    // Such a drive answers the driver, whatever the emulator's own policy for full disks is.
    let device = Some("virtio-blk-pci,werror=report,rerror=report".to_owned());
    let drive = |name: &str, node| Drive { name: name.to_owned(), node, device: device.clone() };
    let qmp = home.path().join("qmp");
    // One byte a second: the first write passes, the next one waits for an hour. Reads are free.
    let words = [
        "-object".to_owned(),
        "throttle-group,id=hang,x-bps-write=1".to_owned(),
        "-qmp".to_owned(),
        format!("unix:{},server=on,wait=off", qmp.display()),
    ];
    let drives = [drive("good", None), drive("bad", Some(bad)), drive("hung", Some(hung))];
    let drives = Drives::new(&drives, &words);

    let mut vmprof = home.vmprof(["up", "--on", "lab", "--lab", "nodes=4,nvme=0,memory=2GiB"]);
    vmprof.arg(&profile).args(["--", "sh", "-c", GUEST, "faults"]).env("PATH", drives.path());
    let told = home.path().join("told");
    let mut running = spawn_with_log(&mut vmprof, &told);
    let mut lines = running.output_lines();
    let mut said = Vec::new();
    // To the line that follows the hanging of `hung`.
    for line in lines.by_ref() {
        said.push(line);
        if said.last().is_some_and(|line| line == "good beside hung: written") {
            break;
        }
    }
    let queue_of = |stats: &Value, disk: &str| -> Value {
        let disks = stats["disks"].as_array().expect("a list of disks");
        disks.iter().find(|found| found["name"] == disk).expect("the disk")["virtqueues"][0].clone()
    };
    let oldest = eventually("a request of `hung` that is a second old", || {
        assert!(!running.has_ended(), "{said:?}\n{}", std::fs::read_to_string(&told).unwrap_or_default());
        let asked = finish(&mut home.vmprof(["stats", "faults", "--format", "json"]));
        let stats: Value = serde_json::from_str(&asked.stdout).ok()?;
        let (hung, good, bad) = (queue_of(&stats, "hung"), queue_of(&stats, "good"), queue_of(&stats, "bad"));
        assert_eq!(good["errors"], 0, "{good}");
        assert!(bad["errors"].as_u64() >= Some(2), "{bad}");
        (hung["in_flight"].as_u64() >= Some(1) && hung["oldest"]["age_ms"].as_u64() > Some(1000))
            .then_some(hung)
    });
    println!("stuck: {oldest}");
    assert_eq!(oldest["oldest"]["kind"], "write", "{oldest}");
    assert!(oldest["oldest"]["head"].is_u64(), "{oldest}");

    tell(
        &qmp,
        &json!({
            "execute": "qom-set",
            "arguments": { "path": "/objects/hang", "property": "limits", "value": { "bps-write": 0 } },
        }),
    );
    said.extend(lines);
    let finished = running.finish();
    assert_eq!(finished.status, Some(0), "{said:?}\n{}", std::fs::read_to_string(&told).unwrap_or_default());
    let expected = [
        "bad write: Input/output error",
        "bad read: Input/output error",
        "bad beside: written",
        "good beside bad: written",
        "good beside hung: written",
        "hung: written",
    ];
    assert_eq!(said, expected);
}
