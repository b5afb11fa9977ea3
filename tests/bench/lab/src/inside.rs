//! In the emulated host: the devices, the pairs of machines, and in turns what one and the other take for the same work.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use rustix::mount::MountFlags;
use serde_json::Value;

use crate::counters::{Memory, Role, Snapshot};
use crate::machine::{Machine, Shape};
use crate::record::{Pair, Record, Window};
use crate::settings::{BACKING_MIB, Backing, Point, Settings, Vmm, place};
use crate::work::Work;
use crate::{Outcome, trace};

/// The word that makes this program the driver.
pub const WORD: &str = "inside";

pub fn run() -> Outcome<()> {
    let settings: Settings = serde_json::from_slice(&fs::read(place::SETTINGS)?)?;
    let devices = Devices::make(&settings)?;
    tell(&host()?)?;
    for (index, work) in settings.work.iter().enumerate() {
        match *work {
            Work::Measure { pair, from, to, memory } => {
                // Neither is always the first to boot.
                let mut left = Left { rounds: from..to, memory };
                again(pair, || measure(&settings, &devices, pair, order(index as u32), &mut left))?;
            }
            Work::Boot { pair, from, to } => {
                for round in from..to {
                    again(pair, || boot(&settings, &devices, pair, order(round)))?;
                    tell(&Record::Booted { pair, round })?;
                }
            }
            Work::Trace { pair } => {
                again(pair, || trace_pair(&settings, &devices, pair, order(index as u32)))?;
            }
        }
    }
    Ok(())
}

fn order(round: u32) -> [Vmm; 2] {
    let [one, other] = Vmm::BOTH;
    if round.is_multiple_of(2) { [one, other] } else { [other, one] }
}

fn tell(record: &Record) -> Outcome<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(io::stdout().lock().write_all(&line)?)
}

/// Each VMM has its own of each kind, for either locks what it opens.
struct Devices(BTreeMap<(Vmm, Backing), String>);

impl Devices {
    fn make(settings: &Settings) -> Outcome<Devices> {
        for (what, at) in [
            ("debugfs", "/sys/kernel/debug"),
            ("tracefs", "/sys/kernel/tracing"),
            ("configfs", "/sys/kernel/config"),
        ] {
            mount(what, at, what)?;
        }
        let mut devices = BTreeMap::new();
        let needed = |backing| settings.work.iter().any(|work| work.pair().backing == backing);
        for vmm in Vmm::BOTH {
            if needed(Backing::Null) {
                devices.insert((vmm, Backing::Null), null_block(vmm)?);
            }
        }
        fs::create_dir_all(place::FILES)?;
        mount(place::FILES_DISK, place::FILES, "ext4")?;
        io::copy(&mut File::open(place::ROOT_DISK)?, &mut File::create(place::ROOT)?)?;
        if needed(Backing::File) {
            for vmm in Vmm::BOTH {
                devices.insert((vmm, Backing::File), cached_file(vmm)?);
            }
        }
        Ok(Devices(devices))
    }
}

fn mount(source: &str, at: &str, kind: &str) -> Outcome<()> {
    match rustix::mount::mount(source, at, kind, MountFlags::empty(), c"") {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(format!("{kind} cannot be mounted at {at}: {error}").into()),
    }
}

/// A null_blk device that completes in its softirq, a queue for each of two CPUs, and room for all that is in flight.
fn null_block(vmm: Vmm) -> Outcome<String> {
    let directory = format!("/sys/kernel/config/nullb/bench-{vmm}");
    fs::create_dir(&directory)?;
    let set = |name: &str, value: &str| {
        fs::write(format!("{directory}/{name}"), value)
            .map_err(|error| format!("null_blk: {name}={value}: {error}"))
    };
    set("size", "4096")?;
    set("submit_queues", "2")?;
    set("hw_queue_depth", "1024")?;
    set("power", "1")?;
    // Newer kernels name the device as the directory, older ones number it.
    let index = fs::read_to_string(format!("{directory}/index"))?;
    let nodes = [format!("/dev/bench-{vmm}"), format!("/dev/nullb{}", index.trim())];
    let made = nodes.iter().find(|node| Path::new(node).exists());
    made.cloned().ok_or_else(|| format!("null_blk made neither {}", nodes.join(" nor ")).into())
}

/// Written, flushed and read again: all of it is in the page cache, and clean.
fn cached_file(vmm: Vmm) -> Outcome<String> {
    let path = format!("{}/{vmm}.raw", place::FILES);
    let mut file = File::create(&path)?;
    let mut piece = vec![0_u8; 1 << 20];
    for mib in 0..BACKING_MIB {
        piece.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at as u32 ^ mib) as u8);
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    io::copy(&mut File::open(&path)?, &mut io::sink())?;
    Ok(path)
}

fn host() -> Outcome<Record> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let version = Command::new(place::VMPROF).arg("--version").output()?;
    Ok(Record::Host {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        processor: processor.map_or_else(String::new, |(_, name)| name.to_owned()),
        cpus: std::thread::available_parallelism()?.get(),
        vmprof: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
        cmdline: crate::machine::cmdline(),
    })
}

fn start(settings: &Settings, devices: &Devices, pair: Pair, vmm: Vmm) -> Outcome<Machine> {
    let source = devices.0.get(&(vmm, pair.backing)).ok_or("no such device was made")?;
    let shape = Shape { vmm, iothreads: pair.iothreads, backing: pair.backing, source };
    let machine = Machine::start(shape, settings)?;
    let ms = machine.init_after.as_secs_f64() * 1e3;
    eprintln!("{vmm}, {}, {} IOThreads: /init after {ms:.0} ms", pair.backing, pair.iothreads);
    tell(&Record::Boot { vmm, pair, ms })?;
    Ok(machine)
}

/// What the guest's shell can do: find the disk; add up its requests, and the interrupts of its queues on the four CPUs; run fio, wait until it really runs and until it is told to count, and say
/// what the disk has done at the beginning and at the end of the seconds that count.
const WORDS: &str = r#"
for s in /sys/block/*/serial; do x=; read -r x <$s || :; if [ "$x" = data ]; then dev=${s%/serial}; dev=${dev##*/}; fi; done
vio=$(cd -P /sys/block/$dev/device && pwd -P); vio=${vio##*/}
n() {
    i=0
    while read -r _ a b c d rest; do case $rest in *" $vio-req."*) i=$((i + a + b + c + d)); esac; done </proc/interrupts
    read -r r _ _ _ w _ </sys/block/$dev/stat; n=$((r + w))
}
go() {
    n; before=$n
    fio --name=w --filename=/dev/$dev --ioengine=libaio --rw=$1 --bs=4k --direct=1 --numjobs=$2 --iodepth=$3 --cpus_allowed=0-$(($2 - 1)) --cpus_allowed_policy=split --time_based --runtime=600 --size=$4m --randrepeat=0 --norandommap --group_reporting --output=/dev/null </dev/null &
    fio=$!
    until n; [ $n -gt $((before + 100)) ]; do sleep 0.1; done
    sleep 1
    echo "steady"; read -r _
    n; echo "A $n $i"
    sleep $5
    n; echo "B $n $i"
    kill -INT $fio; wait $fio; echo "C"
}
read -r line </proc/cmdline
echo "up $line"
"#;

/// How often a piece of work is begun.
const ATTEMPTS: u32 = 3;

/// An emulated host may lose an interrupt of one of its guests, which then stalls or panics: that is told and counted, what is
/// left is done with new machines, and a pair that is lost again and again ends the run.
fn again(pair: Pair, mut work: impl FnMut() -> Outcome<()>) -> Outcome<()> {
    for _ in 1..ATTEMPTS {
        let Err(error) = work() else { return Ok(()) };
        let why = error.to_string();
        eprintln!("{}, {} IOThreads: begun again: {why}", pair.backing, pair.iothreads);
        // What counts may be in the middle of something.
        let _ = trace::stop();
        tell(&Record::Lost { pair: Some(pair), why })?;
    }
    work()
}

/// What of a pair is not measured yet.
struct Left {
    rounds: Range<u32>,
    memory: bool,
}

/// Both machines up, their guests ready for the points.
fn machines(settings: &Settings, devices: &Devices, pair: Pair, order: [Vmm; 2]) -> Outcome<[Machine; 2]> {
    let ready = |vmm| -> Outcome<Machine> {
        let mut machine = start(settings, devices, pair, vmm)?;
        machine.tell(WORDS)?;
        let given = machine.hear("up ")?;
        if given != crate::machine::cmdline() {
            return Err(format!("{vmm} gave its guest another command line: {given}").into());
        }
        Ok(machine)
    };
    let [first, second] = order;
    Ok([ready(first)?, ready(second)?])
}

fn boot(settings: &Settings, devices: &Devices, pair: Pair, order: [Vmm; 2]) -> Outcome<()> {
    for vmm in order {
        drop(start(settings, devices, pair, vmm)?);
    }
    Ok(())
}

fn measure(
    settings: &Settings,
    devices: &Devices,
    pair: Pair,
    order: [Vmm; 2],
    left: &mut Left,
) -> Outcome<()> {
    let mut machines = machines(settings, devices, pair, order)?;
    while let Some(round) = left.rounds.clone().next() {
        let mut windows = Vec::new();
        for point in &settings.points {
            for index in [round as usize % 2, (round as usize + 1) % 2] {
                let Some(machine) = machines.get_mut(index) else { continue };
                let window = window(machine, settings, pair, point, round)?;
                eprintln!(
                    "{}, {}, {} IOThreads, {point}, round {}: {} requests",
                    window.vmm,
                    pair.backing,
                    pair.iothreads,
                    round + 1,
                    window.requests
                );
                windows.push(Record::Window(window));
            }
        }
        // A round counts whole or not at all: its ratios need both machines.
        windows.iter().try_for_each(tell)?;
        left.rounds.start = round + 1;
    }
    if left.memory {
        for machine in &mut machines {
            let memory = Memory::of(machine.pid())?;
            tell(&Record::Memory { vmm: machine.vmm, pair, memory })?;
        }
        left.memory = false;
    }
    Ok(())
}

fn trace_pair(settings: &Settings, devices: &Devices, pair: Pair, order: [Vmm; 2]) -> Outcome<()> {
    let mut machines = machines(settings, devices, pair, order)?;
    trace::start()?;
    let mut records = Vec::new();
    for point in &settings.points {
        for machine in &mut machines {
            records.push(traced(machine, settings, pair, point)?);
        }
    }
    trace::stop()?;
    records.iter().try_for_each(tell)
}

/// What the guest has seen so far.
struct Seen {
    requests: u64,
    interrupts: u64,
}

fn seen(machine: &mut Machine, word: &str) -> Outcome<Seen> {
    let said = machine.hear(word)?;
    let numbers = said.split_once(' ').and_then(|(requests, interrupts)| {
        Some(Seen { requests: requests.parse().ok()?, interrupts: interrupts.parse().ok()? })
    });
    numbers.ok_or_else(|| format!("its guest said `{word}{said}`, which is not two numbers").into())
}

/// Returns when fio runs in the guest, which waits for a line to begin counting.
fn begin(machine: &mut Machine, settings: &Settings, point: &Point) -> Outcome<()> {
    let Point { rw, jobs, depth } = point;
    machine.tell(&format!("go {rw} {jobs} {depth} {BACKING_MIB} {}", settings.seconds))?;
    machine.hear("steady").map(drop)
}

fn window(
    machine: &mut Machine,
    settings: &Settings,
    pair: Pair,
    point: &Point,
    round: u32,
) -> Outcome<Window> {
    let pid = machine.pid();
    begin(machine, settings, point)?;
    // Asking vmprof is work for it: outside of what is counted.
    let own_before = own(machine.vmm, pair.iothreads)?;
    machine.tell("now")?;
    let before = seen(machine, "A ")?;
    let first = Snapshot::take(pid)?;
    let after = seen(machine, "B ")?;
    let last = Snapshot::take(pid)?;
    let own_after = own(machine.vmm, pair.iothreads)?;
    machine.hear("C")?;
    let own = own_after.into_iter().map(|(name, now)| {
        let then = own_before.get(&name).copied().unwrap_or(0);
        (name, now.saturating_sub(then))
    });
    Ok(Window {
        vmm: machine.vmm,
        pair,
        point: point.clone(),
        round,
        requests: after.requests.saturating_sub(before.requests),
        interrupts: after.interrupts.saturating_sub(before.interrupts),
        counts: last.since(&first),
        own: own.collect(),
    })
}

fn traced(machine: &mut Machine, settings: &Settings, pair: Pair, point: &Point) -> Outcome<Record> {
    let mut roles = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", machine.pid()))? {
        let task = task?;
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if let Ok(tid) = task.file_name().to_string_lossy().parse::<u32>() {
            roles.insert(tid, Role::of(name.trim_end()));
        }
    }
    begin(machine, settings, point)?;
    machine.tell("now")?;
    let before = seen(machine, "A ")?;
    trace::clear()?;
    let after = seen(machine, "B ")?;
    let counts = trace::read(&roles)?;
    machine.hear("C")?;
    let requests = after.requests.saturating_sub(before.requests);
    eprintln!("{}, {}, {} IOThreads, {point}, traced", machine.vmm, pair.backing, pair.iothreads);
    Ok(Record::Trace { vmm: machine.vmm, pair, point: point.clone(), requests, counts })
}

/// vmprof's own counters of the disk `data` and of its IOThreads.
fn own(vmm: Vmm, iothreads: u32) -> Outcome<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    // What answers costs memory: a machine that shares nothing is not asked, as QEMU is not.
    if vmm != Vmm::Vmprof || iothreads < 2 {
        return Ok(counts);
    }
    let mut command = Command::new(place::VMPROF);
    command.args(["stats", "bench", "--format", "json"]).env("VMPROF_RUNTIME", "/run/vmprof");
    let output = command.env("VMPROF_STATE", "/vmprof/state").output()?;
    let stats: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("vmprof stats: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64).unwrap_or(0);
    for disk in list(&stats["disks"]).iter().filter(|disk| disk["name"] == "data") {
        for queue in list(&disk["virtqueues"]) {
            let requests = number(&queue, "reads") + number(&queue, "writes");
            *counts.entry(format!("iothread{}.requests", queue["iothread"])).or_default() += requests;
            for name in ["kicks", "interrupts"] {
                *counts.entry(name.to_owned()).or_default() += number(&queue, name);
            }
        }
    }
    for iothread in list(&stats["iothreads"]) {
        for name in ["enters", "wakeups"] {
            let of = iothread["name"].as_str().unwrap_or_default();
            counts.insert(format!("{of}.{name}"), number(&iothread, name));
        }
    }
    Ok(counts)
}
