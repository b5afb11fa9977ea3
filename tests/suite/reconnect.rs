//! A guest of QEMU's whose disk comes from `vmprof vhost-user-blk`, while that server is killed and started again under it:
//! QEMU connects anew by itself, the next server goes on with what the killed one had begun, and the guest sees a drive that
//! pauses now and then.
//!
//! Too long for every change: `tests/killed-server` runs it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use vmprof_guests::append_archive;
use vmprof_job::{
    Command, DeviceLink, Disk, FromGuest, Init, JOB_PATH, JOB_SCHEMA, Job, Root, Streams, line, port,
};
use vmprof_tests::qemu::Machine;
use vmprof_tests::server::{Server, blocks};
use vmprof_tests::writelog::mixed;
use vmprof_tests::{Home, eventually};

const GUEST: &str = include_str!("../fixtures/proof/rewriter.sh");

/// The name of the served file, which makes the serial.
const SERIAL: &str = "db.raw";
const ROOT_SERIAL: &str = "vmprof-root";

/// How long the guest is looked at for a moment with many requests in flight.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// When to kill: as random as a number of the tester's, or of the moment.
struct Moments {
    seed: u64,
    drawn: u64,
}

impl Moments {
    fn below(&mut self, end: u64) -> u64 {
        self.drawn += 1;
        mixed(self.seed ^ mixed(self.drawn)) % end
    }

    /// How long a server lives, and then until how many requests are in flight. QEMU looks for it every 100 ms, so that of the
    /// short lives some end before it has found it, some while the two agree, and some while the requests of the one before
    /// are done again. Later the guest has none in flight at most moments: fio starts, or computes, or the drive is faster.
    fn life(&mut self) -> (Duration, usize) {
        match self.below(2) {
            0 => (Duration::from_millis(self.below(300)), 0),
            _ => (Duration::from_millis(300 + self.below(2_200)), self.below(24) as usize),
        }
    }

    /// How long there is none.
    fn gap(&mut self) -> Duration {
        Duration::from_millis([0, 0, 300][self.below(3) as usize])
    }
}

/// What a guest did in its rounds, as fio told it.
#[derive(Default)]
struct Account {
    rounds: usize,
    verified: u64,
    bytes: u64,
}

impl Account {
    /// One round, which must be whole and right.
    fn take(&mut self, told: &str) {
        let told: Value = serde_json::from_str(told).unwrap_or_else(|error| panic!("{error}: {told}"));
        let jobs = told["jobs"].as_array().expect("a list of jobs");
        assert_eq!(jobs.len(), 2, "{told}");
        for job in jobs {
            let (write, read) = (&job["write"], &job["read"]);
            assert_eq!(job["error"], 0, "{told}");
            assert!(write["total_ios"].as_u64() > Some(0), "{told}");
            assert_eq!((&write["io_bytes"], &write["total_ios"]), (&read["io_bytes"], &read["total_ios"]));
            self.verified += read["total_ios"].as_u64().unwrap();
            self.bytes += read["io_bytes"].as_u64().unwrap();
        }
        self.rounds += 1;
    }
}

/// QEMU's own file of the inflight buffer.
struct Inflight(File);

impl Inflight {
    /// How many requests it names.
    fn count(&self) -> usize {
        let mut bytes = vec![0; self.0.metadata().unwrap().len() as usize];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        // `QueueRegionSplit` of the vhost-user specification, one for each queue at a multiple of 64: a header with the
        // number of entries, then the entries, 16 bytes each, whose first one says whether it is in flight.
        let entries = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        let queues = bytes.chunks_exact((16 + 16 * entries).next_multiple_of(64));
        let heads = queues.flat_map(|queue| queue[16..].chunks_exact(16).take(entries));
        heads.filter(|head| head[0] == 1).count()
    }
}

/// A machine of QEMU's that boots the proofs' guest, whose command is the rewriter. Nobody stands at the other end of the
/// channels of its first process: they are files, which hold what it says.
struct Guest {
    machine: Machine,
    stdout: BufReader<File>,
    /// Of a line, what has come so far.
    partial: String,
    begun: bool,
    account: Account,
    complaints: Vec<String>,
    home: Home,
}

impl Guest {
    /// The documented command, smaller, with what boots the guest.
    fn boot(server: &Server) -> Guest {
        let home = Home::new();
        let guest = ["build", "tests/fixtures/proof/proof.kdl", "--format", "json"];
        let built: Value = serde_json::from_str(&home.run(guest).expect(0).stdout).unwrap();
        let place = |what: &str| built[what].as_str().unwrap().to_owned();
        let mut initramfs = fs::read(place("initramfs")).unwrap();
        // The kernel looks for the next archive at a multiple of four.
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(append_archive(&[(JOB_PATH, 0o600, line(&job(&place("root_format"))))]).unwrap());
        let directory = home.path();
        fs::write(directory.join("initramfs"), initramfs).unwrap();

        let documented = blocks("sh").into_iter().find(|block| block.starts_with("qemu-system")).unwrap();
        let mut command = documented
            .trim_end()
            .replace("path=/run/vm/db.sock", &format!("path={},reconnect-ms=100", server.socket().display()))
            .replace("num-queues=4", "num-queues=2")
            .replace("-smp 4", "-smp 2")
            .replace("4G", "512M");
        command += &format!(
            " -nodefaults -no-reboot -serial file:{0}/console -kernel {1} -initrd {0}/initramfs \
             -append 'console=ttyS0 panic=-1 quiet' -drive if=none,id=root,file={2},format=raw,readonly=on \
             -device virtio-blk-pci,drive=root,serial={ROOT_SERIAL} -device virtio-serial-pci,id=channels",
            directory.display(),
            place("kernel"),
            place("root"),
        );
        for name in [port::CONTROL, port::STDIN, port::STDOUT, port::STDERR] {
            command += &format!(
                " -chardev file,id={name},path={}/{name} \
                 -device virtserialport,bus=channels.0,chardev={name},name={name}",
                directory.display()
            );
        }
        let mut machine = Machine::start(&command, directory);
        let stdout = BufReader::new(File::open(directory.join(port::STDOUT)).unwrap());
        machine.ask("cont", json!({}));
        let (account, complaints) = (Account::default(), Vec::new());
        Guest { machine, stdout, partial: String::new(), begun: false, account, complaints, home }
    }

    /// Takes what the guest has said since; fails where it, or QEMU, is not well.
    fn listen(&mut self) {
        while self.stdout.read_line(&mut self.partial).unwrap() > 0 && self.partial.ends_with('\n') {
            let line = std::mem::take(&mut self.partial);
            match line.trim_end().split_once(' ') {
                None if line == "begun\n" => self.begun = true,
                Some(("kernel", complaint)) => self.complaints.push(complaint.to_owned()),
                Some(("fio", told)) => self.account.take(told),
                _ => panic!("the guest said {line:?}"),
            }
        }
        assert_eq!(self.complaints, [""; 0], "the guest's kernel complains");
        for message in self.told(port::CONTROL).lines() {
            match serde_json::from_str(message) {
                // Half a line.
                Err(_) | Ok(FromGuest::Hello { .. } | FromGuest::Ready { .. }) => {}
                Ok(other) => panic!("the guest does not go on: {other:?}"),
            }
        }
        assert!(!self.machine.has_ended(), "QEMU has ended");
    }

    fn listen_until(&mut self, what: &str, is_true: impl Fn(&Guest) -> bool) {
        eventually(what, || {
            self.listen();
            is_true(self).then_some(())
        });
    }

    /// The inflight buffer, which outlives servers with QEMU. None where no server has offered one.
    fn inflight(&self) -> Option<Inflight> {
        let is_buffer = |fd: &PathBuf| {
            fs::read_link(fd).is_ok_and(|file| file.to_string_lossy().contains("vmprof requests in flight"))
        };
        let fds = fs::read_dir(format!("/proc/{}/fd", self.machine.pid())).unwrap();
        // One that has been closed since is not looked for.
        let mut fds = fds.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        Some(Inflight(File::open(fds.find(is_buffer)?).unwrap()))
    }

    fn told(&self, name: &str) -> String {
        fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Guest {
    /// A test that fails shows the last of what was said; all of it would hide its own message.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("rounds of the guest that had ended: {}", self.account.rounds);
            let told = [port::CONTROL, port::STDERR, "console"].map(|name| (name, self.told(name)));
            for (name, told) in told.into_iter().chain([("QEMU", self.machine.said())]) {
                let lines: Vec<&str> = told.lines().collect();
                eprintln!("--- {name}\n{}", lines[lines.len().saturating_sub(12)..].join("\n"));
            }
        }
    }
}

/// What the first process of the guest is told.
fn job(root: &str) -> Job {
    let serial = SERIAL.to_owned();
    let root = Root::Disk { serial: ROOT_SERIAL.to_owned(), filesystem: root.to_owned(), writable: false };
    Job {
        schema: JOB_SCHEMA.to_owned(),
        hostname: "reconnect".to_owned(),
        online_cpus: false,
        root,
        disks: vec![Disk { name: serial.clone(), serial: serial.clone(), scheduler: None, format: None }],
        links: vec![DeviceLink { path: "/dev/served".to_owned(), serial }],
        nets: Vec::new(),
        sysctl: Vec::new(),
        mounts: Vec::new(),
        init: Init::Vmprof,
        services: Vec::new(),
        stop_within_ms: 5_000,
        env: vec![("PATH".into(), "/usr/bin:/bin:/usr/sbin:/sbin".into())],
        directory: "/".to_owned(),
        command: Some(Command {
            argv: ["/bin/sh", "-c", GUEST, "rewriter", "/dev/served"].map(Into::into).into(),
            streams: Streams::Ports,
        }),
    }
}

/// One guest, whose server is killed this often.
fn pass(kills: usize, moments: &mut Moments) -> String {
    let mut server = Server::start(&["--queues", "2", "--iothreads", "2"]);
    let mut guest = Guest::boot(&server);
    guest.listen_until("the guest to begin", |guest| guest.begun);
    let (mut at_work, mut in_flight) = (0, 0);
    for _ in 0..kills {
        let (life, wanted) = moments.life();
        sleep(life);
        let (inflight, begun) = (guest.inflight(), Instant::now());
        let count = || inflight.as_ref().map_or(0, Inflight::count);
        while count() < wanted && begun.elapsed() < LONGEST_LOOK {}
        let killed = server.kill();
        let requests = count();
        (at_work, in_flight) = (at_work + usize::from(requests > 0), in_flight + requests);
        // A client that it turned away or that went by itself would be one line more.
        let is_expected =
            |line: &str| line.contains("listening at") || line.contains("a client has connected");
        assert!(killed.said.lines().all(is_expected), "a server said\n{}", killed.said);
        sleep(moments.gap());
        server = killed.start_again();
        guest.listen();
    }
    // That of the last kill, and one that knew none.
    let rounds = guest.account.rounds + 2;
    guest.listen_until("two more rounds of the guest, which a lost request keeps from ending", |guest| {
        guest.account.rounds >= rounds
    });
    assert!(at_work > 0, "no inflight buffer named a request at any kill: nothing is shown");
    let Account { rounds, verified, bytes } = guest.account;
    let told = format!(
        "{kills} kills, {at_work} of them with {in_flight} requests in flight; {rounds} rounds of fio, {verified} requests and \
         {} MiB verified; {} errors in the guest's kernel log",
        bytes >> 20,
        guest.complaints.len()
    );
    drop(guest);
    let said = server.stop(Signal::TERM);
    assert!(said.contains(", 0 of all requests failed"), "{said}");
    told
}

#[test]
#[ignore = "a minute a pass: tests/killed-server runs it"]
fn a_guest_whose_server_is_killed_again_and_again_loses_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let kills = number("VMPROF_SERVER_KILLS").unwrap_or(15) as usize;
    let passes = number("VMPROF_SERVER_PASSES").unwrap_or(2);
    let seed = number("VMPROF_SERVER_SEED").unwrap_or_else(|| mixed(std::process::id().into()));
    println!("the moments of seed {seed}");
    let mut moments = Moments { seed, drawn: 0 };
    for number in 1..=passes {
        println!("pass {number}: {}", pass(kills, &mut moments));
    }
}
