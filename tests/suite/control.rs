//! The control socket of a VM that serves: what it tells in QEMU's shapes, an IOThread that is changed while it works, and where
//! requests spend their time. The VM runs in the lab, and is asked from outside.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};
use vmprof_tests::terminal::OnTerminal;
use vmprof_tests::{Finished, Home, checkout, eventually, in_the_lab};

/// Reads and writes without the page cache, over and over.
const WORK: &str = "for serial in /sys/block/*/serial; do grep -q data $serial && disk=/dev/$(b=${serial%/serial}; echo ${b##*/}); done; \
    while :; do dd if=$disk of=/dev/null bs=4096 count=64 iflag=direct; \
    dd if=/dev/zero of=$disk bs=4096 count=16 oflag=direct conv=fsync; done 2>/dev/null";

struct Vm {
    home: Home,
}

impl Vm {
    fn up() -> Vm {
        let home = Home::new();
        let (path, guest) = (home.path().join("busy.kdl"), checkout().join("guests/hello.kdl"));
        let text = format!(
            "/- kdl-version 2\nprofile busy {{\n    guest {guest:?}\n    vcpu 1 {{ vcpupin auto }}\n    memory \"256MiB\"\n    \
             iothreads 2 {{ iothreadpin auto }}\n    disk data {{ source file=\"data.raw\" size=\"16MiB\"; \
             driver raw cache=none; queues 2; }}\n}}\n"
        );
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        home.run(["up", "--detach", "--wait", "--on", "lab", path, "--", "sh", "-c", WORK]).expect(0);
        Vm { home }
    }

    fn run(&self, words: &[&str]) -> Finished {
        self.home.run(words)
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.run(words).expect(0).stdout).unwrap()
    }

    #[track_caller]
    fn ask(&self, request: &str) -> Value {
        self.json(&["ask", "busy", request])
    }

    fn stats(&self) -> Value {
        self.json(&["stats", "busy", "--format", "json"])
    }

    /// The first virtqueue of the data disk, as `stats` has it.
    fn queue(&self) -> Value {
        of_data(&self.stats()["disks"], "name")["virtqueues"][0].clone()
    }
}

/// What is said of the data disk, which stands beside the root's.
#[track_caller]
fn of_data<'a>(disks: &'a Value, key: &str) -> &'a Value {
    disks.as_array().unwrap().iter().find(|disk| disk[key] == "data").expect("there is a data disk")
}

impl Drop for Vm {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        self.run(&["stop", "--all"]);
    }
}

#[test]
fn a_vm_that_works_is_asked_changed_and_timed_from_outside() {
    in_the_lab(|| {
        let vm = Vm::up();
        tells_how_it_is(&vm);
        counts_as_qemu_does(&vm);
        changes_an_iothread(&vm);
        times_requests(&vm);
        is_shown_live(&vm);
        // Paused and resumed, as `status` has it.
        vm.run(&["pause", "busy"]).expect(0);
        let status = vm.ask("status");
        assert_eq!(
            (&status["running"], &status["paused"]["asked"]),
            (&false.into(), &true.into()),
            "{status}"
        );
        vm.run(&["resume", "busy"]).expect(0);
        assert_eq!(vm.ask("status")["running"], true);
        vm.run(&["stop", "busy"]).expect(0);
    });
}

/// What it said of an error, on one line: it wraps its messages.
fn complaint(finished: Finished) -> String {
    finished.stderr.split_whitespace().filter(|word| *word != "|").collect::<Vec<_>>().join(" ")
}

fn tells_how_it_is(vm: &Vm) {
    let (status, listed) = (vm.ask("status"), vm.json(&["ps", "--format", "json"]));
    for field in ["name", "pid", "on", "profile", "started", "state"] {
        assert_eq!(status[field], listed[0][field], "{field}");
    }
    assert_eq!(
        (&status["ready"], &status["running"], &status["paused"]),
        (&true.into(), &true.into(), &Value::Null)
    );
    assert_eq!(status["plan_digest"], vm.ask("plan")["digest"]);
    for (words, named) in [
        (&["ask", "busy", "statistics"][..], "`statistics` is nothing"),
        (&["ask", "busy", "stats", "{\"all\":true}"], "takes no arguments"),
        (&["ask", "busy", "iothread-set", "{\"id\":\"0\",\"pin\":\"1\"}"], "unknown field `pin`"),
        (&["ask", "busy", "iothread-set", "{"], "are no JSON"),
    ] {
        let said = complaint(vm.run(words).expect(1));
        assert!(said.contains(named), "{said}");
    }
}

fn counts_as_qemu_does(vm: &Vm) {
    let stats =
        |field: &str| of_data(&vm.ask("query-blockstats"), "device")["stats"][field].as_u64().unwrap();
    let before = (stats("rd_bytes"), stats("wr_operations"), stats("flush_operations"));
    eventually("the counts to rise", || {
        let now = (stats("rd_bytes"), stats("wr_operations"), stats("flush_operations"));
        (now.0 > before.0 && now.1 > before.1 && now.2 > before.2).then_some(())
    });
    let told = vm.ask("query-blockstats");
    let told = of_data(&told, "node-name");
    assert_eq!(told["stats"]["failed_rd_operations"], 0);
    assert!(told["stats"].get("rd_total_time_ns").is_none(), "nobody counts it: {told}");
}

fn changes_an_iothread(vm: &Vm) {
    let plan = vm.ask("plan");
    let cpus = |threads: &str| -> Vec<String> {
        plan[threads]
            .as_array()
            .unwrap()
            .iter()
            .map(|thread| thread["cpus"].as_str().unwrap().to_owned())
            .collect()
    };
    let taken =
        [cpus("vcpus"), cpus("iothreads"), vec![plan["emulator"]["cpus"].as_str().unwrap().to_owned()]]
            .concat();
    let free = (0..plan["host"]["cpus"].as_u64().unwrap())
        .map(|cpu| cpu.to_string())
        .find(|cpu| !taken.contains(cpu));
    let free = free.expect("the lab has more CPUs than this VM needs");
    let is = vm.json(&["iothread", "busy", "0", "--format", "json"]);
    assert_eq!((&is["before"], &is["before"]["cpuset"]), (&is["after"], &plan["iothreads"][0]["cpus"]));

    let set = ["iothread", "busy", "0", "--cpuset", &free, "--poll-max-ns", "32768", "--format", "json"];
    let changed = vm.json(&set);
    let mut expected = is["before"].clone();
    (expected["cpuset"], expected["poll-max-ns"]) = (free.clone().into(), 32_768.into());
    assert_eq!(
        (&changed["id"], &changed["before"], &changed["after"]),
        (&"iothread0".into(), &is["before"], &expected)
    );
    let findings = vm.json(&["verify", "busy", "--format", "json"]);
    let own = findings.as_array().unwrap().iter().find(|found| found["thread"] == "IO iothread0").unwrap();
    assert_eq!((&own["planned"], &own["allowed"]), (&json!(free), &json!(free)), "{own}");
    let told = vm.ask("query-iothreads");
    assert_eq!(
        (&told[0]["poll-max-ns"], &told[1]["poll-max-ns"]),
        (&32_768.into(), &is["before"]["poll-max-ns"])
    );
    assert_eq!(vm.ask("plan")["iothreads"][0]["cpus"], json!(free));
    eventually("it to run there, and to look before it sleeps", || {
        let stats = vm.stats();
        let thread =
            stats["threads"].as_array()?.iter().find(|thread| thread["name"] == "IO iothread0")?.clone();
        let own = &stats["iothreads"][0];
        let polls = own["poll_hits"].as_u64()? + own["poll_misses"].as_u64()?;
        let cpu = thread["cpu"].as_u64()?.to_string();
        (cpu == free && polls > 0).then_some(())
    });

    let refused = |words: &[&str]| complaint(vm.run(words).expect(1));
    let said = refused(&["iothread", "busy", "0", "--cpuset", "4000", "--poll-max-ns", "0"]);
    assert!(said.contains("CPU 4000 is none that this VM's process may use"), "{said}");
    assert_eq!(said.matches("could not answer").count(), 1, "as if nobody had passed it on: {said}");
    let said = refused(&["iothread", "busy", "7"]);
    assert!(said.contains("no IOThread `7`, but iothread0, iothread1"), "{said}");
    vm.run(&["iothread", "busy", "0", "--cpuset", "x"]).expect(64);
    vm.run(&["verify", "busy"]).expect(0);
    let shown = vm.run(&["iothread", "busy", "iothread0", "--poll-max-ns", "0"]).expect(0).stdout;
    assert!(
        shown.contains(&format!("cpuset       {free}\n")) && shown.contains("poll-max-ns  32768 → 0\n"),
        "{shown}"
    );
}

fn times_requests(vm: &Vm) {
    assert!(vm.queue()["latency"].is_null());
    vm.run(&["stats", "busy", "--latency", "on"]).expect(0);
    eventually("requests to be timed in all of their parts", || {
        let latency = vm.queue()["latency"].take();
        ["queue", "device", "completion"]
            .iter()
            .all(|part| latency[part]["sum_ns"].as_u64() > Some(0))
            .then_some(())
    });
    let shown = vm.run(&["stats", "busy"]).expect(0).stdout;
    let row = |part: &str| shown.lines().any(|line| line.starts_with("data") && line.contains(part));
    assert!(row(" queue ") && row(" device ") && row(" completion "), "{shown}");
    let scraped = vm.run(&["stats", "busy", "--format", "prometheus"]).expect(0).stdout;
    let bucket =
        r#"vmprof_queue_latency_seconds_bucket{vm="busy",disk="data",vq="0",stage="device",le="+Inf"} "#;
    let count = scraped.lines().find_map(|line| line.strip_prefix(bucket)).expect("a histogram");
    assert!(count.parse::<u64>().unwrap() > 0, "{count}");
    vm.run(&["stats", "busy", "--latency", "off"]).expect(0);
    let counted = || vm.queue()["latency"]["device"].clone();
    let (before, iothreads) = (counted(), vm.stats()["iothreads"].clone());
    assert!(iothreads.as_array().unwrap().iter().all(|iothread| iothread["latency"] == false), "{iothreads}");
    assert_eq!(counted(), before, "none is timed any more");
}

fn is_shown_live(vm: &Vm) {
    let mut top = OnTerminal::start(&mut vm.home.vmprof(["top", "busy"]));
    for text in ["busy", "0/KVM", "iothread1", "reads/s"] {
        top.expect(text);
    }
    top.type_keys("q");
    assert_eq!(top.finish(), (Some(0), true));
}

#[test]
fn top_gives_the_terminal_back_and_needs_one() {
    let home = Home::new();
    let top = || {
        let top = OnTerminal::start(&mut home.vmprof(["top"]));
        top.expect("--detach`");
        top
    };
    for keys in ["q", "\x1b", "\x03"] {
        let mut top = top();
        top.type_keys(keys);
        assert_eq!(top.finish(), (Some(0), true), "{keys:?}");
    }
    for signal in [Signal::TERM, Signal::HUP] {
        let top = top();
        top.signal(signal);
        assert_eq!(top.finish(), (Some(0), true), "{signal:?}");
    }
    let refused = home.run(["top"]).expect(1);
    assert!(refused.stderr.contains("vmprof::top::no_terminal"), "{}", refused.stderr);
    assert!(refused.stderr.contains("stats NAME --watch"), "{}", refused.stderr);
    let none = home.run(["top", "nobody"]).expect(1);
    assert!(none.stderr.contains("vmprof::run::not_running"), "{}", none.stderr);
    for verb in [
        &["iothread", "nobody", "0"][..],
        &["stats", "nobody", "--latency", "on"],
        &["ask", "nobody", "status"],
    ] {
        assert!(home.run(verb).expect(1).stderr.contains("vmprof::run::not_running"), "{verb:?}");
    }
}
