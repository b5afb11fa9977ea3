//! Guests that really boot: in the lab, or on this host where its KVM can. Each leaves proof that is read back from outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use vmprof_tests::{
    Finished, Home, checkout, eventually, finish, finish_with_input, in_the_lab, spawn, spawn_with_log,
};

/// Words before the profile: where to run.
const LAB: [&str; 3] = ["up", "--on", "lab"];

fn up(home: &Home, profile: &str, command: &[&str]) -> Finished {
    let words = LAB.iter().chain([&profile, &"--"]).chain(command);
    home.run(words)
}

#[test]
fn a_command_has_its_own_streams_and_its_own_status() {
    in_the_lab(|| {
        let home = Home::new();
        let finished =
            up(&home, "profiles/hello.kdl", &["sh", "-c", "echo out; echo err >&2; exit 7"]).expect(7);
        assert_eq!(finished.stdout, "out\n");
        assert!(
            finished.stderr.contains("err\n") && finished.stderr.contains("vcpu 0"),
            "{}",
            finished.stderr
        );
    });
}

#[test]
fn input_reaches_the_command_and_a_signal_is_its_status() {
    in_the_lab(|| {
        let home = Home::new();
        // Larger than every buffer on the way, and not text.
        let input: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let sum = |text: &str| text.split_whitespace().next().map(str::to_owned);
        let expected = finish_with_input(&mut std::process::Command::new("md5sum"), &input);
        let script = "md5sum; kill -9 $$";
        let mut command = home.vmprof(LAB.iter().chain(&["profiles/hello.kdl", "--", "sh", "-c", script]));
        let finished = finish_with_input(&mut command, &input).expect(128 + 9);
        assert_eq!(sum(&finished.stdout), sum(&expected.stdout));
    });
}

#[test]
fn what_the_recipe_names_runs_without_a_command_and_missing_commands_are_127() {
    in_the_lab(|| {
        let home = Home::new();
        let greeted = home.run(LAB.iter().chain(&["profiles/hello.kdl"])).expect(0);
        assert!(greeted.stdout.to_lowercase().contains("hello"), "{}", greeted.stdout);
        let missing = up(&home, "profiles/hello.kdl", &["no-such-program"]).expect(127);
        assert!(missing.stdout.is_empty());
    });
}

#[test]
fn a_kernel_panic_is_a_failure_that_says_so() {
    in_the_lab(|| {
        let script = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60";
        let finished = up(&Home::new(), "profiles/hello.kdl", &["sh", "-c", script]).expect(125);
        assert!(finished.stderr.contains("panic"), "{}", finished.stderr);
    });
}

#[test]
fn a_timeout_is_124() {
    in_the_lab(|| {
        let words = LAB.iter().chain(&["--timeout", "20s", "profiles/hello.kdl", "--", "sleep", "1000"]);
        Home::new().run(words).expect(124);
    });
}

/// The heart of it: every thread on the CPUs that the plan printed and on no other, every virtqueue served by its IOThread
/// and by no other, both read on the machine where it runs; and the disk's lock, from outside.
#[test]
fn threads_and_queues_are_where_the_plan_has_them() {
    in_the_lab(|| {
        let home = Home::new();
        // Every queue is used: each job on a CPU of its own has that CPU's queue.
        let script = "set -e; cat /sys/block/vdb/queue/scheduler; ls /sys/block/vdb/mq | wc -l; \
                  blkdiscard -o 64M -l 1M /dev/vdb; blkdiscard -z -o 65M -l 1M /dev/vdb; for cpu in 0 1 2 3; do \
                  taskset -c $cpu dd if=/dev/vdb of=/dev/null bs=4096 count=64 skip=$((cpu * 64)) iflag=direct; \
                  done; sleep 1000";
        // And before that, what is written to the disk that is looked at comes back from it.
        let script = format!(
            "dd if=/dev/urandom of=/tmp/there bs=64k count=16; dd if=/tmp/there of=/dev/vdc bs=64k oflag=direct conv=fsync; \
         dd if=/dev/vdc of=/tmp/back bs=64k count=16 iflag=direct; test \"$(md5sum < /tmp/there)\" = \"$(md5sum < /tmp/back)\" || exit 9; {script}"
        );
        let named = |serial| format!("$(basename $(dirname $(grep -lx {serial} /sys/block/*/serial)))");
        let script = script.replace("vdb", &named("data")).replace("vdc", &named("polled"));
        let drive = ["--name", "drive", "tests/fixtures/polled.kdl", "--"];
        let mut running = spawn(&mut home.vmprof(LAB.iter().chain(&drive).chain(&["sh", "-c", &script])));
        let ask = |words: &[&str]| -> Option<Value> {
            let answer = finish(&mut home.vmprof(words));
            (answer.status == Some(0)).then(|| serde_json::from_str(&answer.stdout).expect("JSON on stdout"))
        };
        let reads = |stats: &Value| -> BTreeMap<u64, u64> {
            let disks = stats["disks"].as_array().unwrap();
            let data = disks.iter().find(|disk| disk["name"] == "data").unwrap();
            let virtqueues = data["virtqueues"].as_array().unwrap().iter();
            virtqueues.map(|vq| (vq["vq"].as_u64().unwrap(), vq["reads"].as_u64().unwrap())).collect()
        };
        let stats = eventually("64 reads on each of four virtqueues", || {
            assert!(!running.has_ended(), "the run ended early");
            ask(&["stats", "drive", "--format", "json"])
                .filter(|stats| reads(stats).values().filter(|reads| **reads >= 64).count() == 4)
        });

        let erasures: (u64, u64) = stats["disks"].as_array().unwrap().iter().fold((0, 0), |sum, disk| {
            let count = |what: &str| -> u64 {
                disk["virtqueues"].as_array().unwrap().iter().filter_map(|vq| vq[what].as_u64()).sum()
            };
            (sum.0 + count("discards"), sum.1 + count("write_zeroes"))
        });
        assert_eq!(erasures, (1, 1), "{stats}");

        let polled = stats["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == "polled").unwrap();
        let polled = &polled["virtqueues"][0];
        let count = |what: &str| polled[what].as_u64().unwrap();
        // Requests of the guest's own, such as its partition tables, may come on top.
        assert!(count("reads") >= 16 && count("writes") >= 16 && count("flushes") >= 1, "{polled}");
        assert_eq!(count("errors"), 0, "{polled}");
        let iothreads = stats["iothreads"].as_array().unwrap();
        let looked = |iothread: &Value| iothread["looks"].as_u64().unwrap() > 0;
        let looked: Vec<bool> = iothreads.iter().map(looked).collect();
        assert_eq!(looked, [true, false], "the one that serves it looks, and no other: {stats}");

        // A guest that stands still goes on as if nothing had been.
        home.run(["pause", "drive"]).expect(0);
        let paused = ask(&["stats", "drive", "--format", "json"]).expect("a paused VM answers");
        assert_eq!(paused["paused"]["asked"], true, "{paused}");
        home.run(["pause", "drive"]).expect(1);
        // What only the guest can say is not known now, and that is said.
        let unknown = home.run(["verify", "drive"]).expect(1);
        assert!(unknown.stderr.contains("vmprof::verify::strayed"), "{}", unknown.stderr);
        let line = unknown.stdout.lines().find(|line| line.starts_with("data: scheduler in the guest"));
        assert!(
            line.is_some_and(|line| line.contains("paused") && line.ends_with("NOT AS PLANNED")),
            "{line:?}"
        );
        assert_eq!(unknown.stdout.matches("NOT AS PLANNED").count(), 1, "{}", unknown.stdout);
        home.run(["resume", "drive"]).expect(0);
        assert!(ask(&["stats", "drive", "--format", "json"]).expect("it goes on")["paused"].is_null());

        let plan = ask(&["ask", "drive", "plan"]).expect("the plan in force");
        assert_eq!(plan["host"]["nodes"], 2, "the lab has two nodes");
        for planned in plan["disks"][0]["virtqueues"].as_array().unwrap() {
            let disks = stats["disks"].as_array().unwrap();
            let data = disks.iter().find(|disk| disk["name"] == "data").unwrap();
            let counted =
                data["virtqueues"].as_array().unwrap().iter().find(|vq| vq["vq"] == planned["vq"]).unwrap();
            // Counted by the thread that served the request.
            assert_eq!(counted["iothread"], planned["iothread"], "virtqueue {}", planned["vq"]);
        }

        let findings =
            ask(&["verify", "drive", "--format", "json"]).expect("every thread is where the plan has it");
        let of_kind = |kind: &str| -> Vec<&Value> {
            findings.as_array().unwrap().iter().filter(|finding| finding["kind"] == kind).collect()
        };
        // Memory that the guest has touched is on its node; and the disks are what the profile says, on both sides.
        let memory = &of_kind("memory")[0];
        assert_eq!(memory["found"], "strict 0", "{memory}");
        assert!(memory["pages"][0]["pages"].as_u64().unwrap() > 1000, "{memory}");
        for (kind, found) in [("huge-pages", "4KiB"), ("engine", "io_uring"), ("direct-io", "yes")] {
            assert_eq!(of_kind(kind)[0]["found"], found, "{kind}: {findings}");
        }
        for kind in ["host-scheduler", "guest-scheduler"] {
            assert_eq!(
                (&of_kind(kind)[0]["disk"], &of_kind(kind)[0]["found"]),
                (&"data".into(), &"none".into())
            );
        }
        let findings = of_kind("thread");
        assert_eq!(findings.len(), 4 + 2 + 1);
        let mut seen = Vec::new();
        for finding in findings.iter().copied() {
            let name = finding["thread"].as_str().unwrap();
            let planned = match name {
                "vmprof" => &plan["emulator"]["cpus"],
                _ => {
                    let (list, prefix, suffix) = if name.starts_with("CPU ") {
                        ("vcpus", "CPU ", "/KVM")
                    } else {
                        ("iothreads", "IO iothread", "")
                    };
                    let id: usize =
                        name.strip_prefix(prefix).unwrap().strip_suffix(suffix).unwrap().parse().unwrap();
                    &plan[list][id]["cpus"]
                }
            };
            assert_eq!(&finding["allowed"], planned, "{name}");
            assert_eq!(
                finding["last_cpu"].as_u64().unwrap().to_string(),
                planned.as_str().unwrap(),
                "{name}"
            );
            seen.push(planned.clone());
        }
        // Large enough a host: nobody shares.
        seen.sort_by_key(|cpus| cpus.to_string());
        seen.dedup();
        assert_eq!(seen.len(), 7, "two threads share a CPU: {findings:?}");
        // The data drive hangs from node 0, and so does everything else.
        assert_eq!((&plan["disks"][0]["node"], &plan["memory"]["nodes"]), (&0.into(), &"0".into()));

        let second = home
            .run(LAB.iter().chain(&["--name", "other", "tests/fixtures/polled.kdl", "--", "true"]))
            .expect(125);
        assert!(second.stderr.contains("`data`") && second.stderr.contains("`drive`"), "{}", second.stderr);
        let clash = home.run(LAB.iter().chain(&drive).chain(&["true"])).expect(125);
        assert!(clash.stderr.contains("`drive` is running already"), "{}", clash.stderr);

        home.run(["stop", "drive"]).expect(0);
        let finished = running.finish();
        // CMD was asked to end with SIGTERM, and did.
        assert_eq!(finished.status, Some(128 + 15), "{}", finished.stderr);
        assert!(
            finished.stdout.contains("[none]") && finished.stdout.contains("\n4\n"),
            "{}",
            finished.stdout
        );
    });
}

/// vCPUs 2k and 2k+1 are on the siblings of one core of the host, and the guest sees them as the siblings of one core: as
/// the plan says that was saved before.
#[test]
fn a_saved_plan_is_obeyed_and_required_siblings_are_siblings_on_the_host_and_in_the_guest() {
    in_the_lab(|| {
        let home = Home::new();
        let profile = home.path().join("paired.kdl");
        let guest = checkout().join("guests/hello.kdl");
        let text = format!(
            "profile paired {{\n    guest {guest:?}\n    host {{ smt require; }}\n    vcpu 4\n    memory \"256MiB\"\n    \
         iothreads 1\n}}\n"
        );
        fs::write(&profile, text).unwrap();
        let shape = ["--lab", "nodes=12,threads=2"];
        // A plan of one boot is obeyed in another of the same shape, as it was saved and not as it would be made anew.
        let planned =
            home.run(LAB.iter().chain(&shape).chain(&["--dry-run", profile.to_str().unwrap()])).expect(0);
        let mut saved: Value = serde_json::from_str(&planned.stdout).expect("JSON on stdout");
        assert_ne!(saved["emulator"]["cpus"], "11");
        saved["emulator"]["cpus"] = "11".into();
        let plan_file = home.path().join("saved.json");
        fs::write(&plan_file, saved.to_string()).unwrap();
        let saved_words = ["--plan", plan_file.to_str().unwrap(), profile.to_str().unwrap(), "--"];

        // Another shape is another host: refused before the guest boots.
        let small =
            home.run(LAB.iter().chain(&["--lab", "nodes=4"]).chain(&saved_words).chain(&["true"])).expect(4);
        assert!(small.stderr.contains("vmprof::plan::host_changed"), "{}", small.stderr);

        // What the guest sees goes to stdout once the plan was read.
        let script = "read go; cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list";
        let command = ["sh", "-c", script];
        let mut command = home.vmprof(LAB.iter().chain(&shape).chain(&saved_words).chain(&command));
        let mut running = spawn(command.stdin(std::process::Stdio::piped()));
        let plan: Value = eventually("the plan in force", || {
            assert!(!running.has_ended(), "the run ended early");
            let answer = finish(&mut home.vmprof(["ask", "paired", "plan"]));
            (answer.status == Some(0)).then(|| serde_json::from_str(&answer.stdout).expect("JSON on stdout"))
        });
        assert_eq!(plan, saved);
        let findings = home.run(["verify", "paired", "--format", "json"]).expect(0).stdout;
        let findings: Value = serde_json::from_str(&findings).expect("JSON on stdout");
        let emulator =
            findings.as_array().unwrap().iter().find(|finding| finding["thread"] == "vmprof").unwrap();
        assert_eq!(emulator["allowed"], "11");
        assert_eq!(plan["guest"]["threads_per_core"], 2);
        // CPUs 2k and 2k+1 of the emulated host are core k.
        let core = |thread: &Value| thread["cpus"].as_str().unwrap().parse::<u32>().expect("one CPU") / 2;
        let cores: Vec<u32> = plan["vcpus"].as_array().unwrap().iter().map(core).collect();
        assert!(cores[0] == cores[1] && cores[2] == cores[3] && cores[0] != cores[2], "{plan}");
        running.type_line("go");
        let finished = running.finish();
        assert_eq!(finished.status, Some(0), "{}", finished.stderr);
        assert_eq!(finished.stdout, "0-1\n0-1\n2-3\n2-3\n");
    });
}

#[test]
fn the_tour_verifies_the_disk_and_finds_its_content_again() {
    in_the_lab(|| {
        let home = Home::new();
        for run in 1..=2 {
            let tour = home.run(LAB.iter().chain(&["tests/fixtures/drive.kdl"])).expect(0).stdout;
            for (what, value) in
                [("kernel", "6."), ("queues", "4"), ("scheduler", "none"), ("run", &run.to_string())]
            {
                let line = tour.lines().find(|line| line.split_whitespace().next() == Some(what));
                let found = line.and_then(|line| line.split_whitespace().nth(1));
                assert!(found.is_some_and(|found| found.starts_with(value)), "{what}: {line:?}\n{tour}");
            }
        }
        let disk = home.path().join(".local/state/vmprof/disks/drive/db-data.raw");
        let mut start = vec![0; 64];
        std::io::Read::read_exact(&mut fs::File::open(disk).unwrap(), &mut start).unwrap();
        assert!(start.starts_with(b"vmprof tour, run 2"), "the content is the host's file's");
    });
}

/// A guest with two services, of which the second needs the first, and a root that is written to; its packages are those of
/// the shipped `hello`.
const SERVING: &str = r#"
guest serving {
    distribution debian suite=bookworm arch=amd64
    lock "CHECKOUT/guests/hello.lock.kdl"
    packages busybox-static
    kernel package=linux-image-cloud-amd64
    link "/usr/bin/sh" to="busybox"
    link "/usr/bin/cat" to="busybox"
    link "/usr/bin/sleep" to="busybox"
    link "/usr/bin/test" to="busybox"
    user app uid=300 home="/srv"
    env { GREETING "here"; }
    mount "/scratch" tmpfs="8MiB" owner=app mode=0o700
    image root { format ext4 size="64MiB"; }
    file "/usr/bin/daemon" mode=0o755 """
        #!/bin/sh
        trap 'echo "$1 ends"; exit 0' TERM INT
        test "$1" = first || cat /scratch/first || exit 1
        echo "$1 was $GREETING, in $PWD" > /scratch/$1
        while :; do sleep 1; done
        """
    service first {
        exec "/usr/bin/daemon" "first"
        user app
        working-directory "/srv"
        ready command "/usr/bin/test" "-s" "/scratch/first"
        stop signal=SIGINT
    }
    service second {
        after first
        exec "/usr/bin/daemon" "second"
        ready command "/usr/bin/test" "-s" "/scratch/second"
    }
}
"#;

/// Services start in the order of their needs, end in the reverse one, and are ready before a command runs, whose output
/// stays its own. The root that they write to is a copy, whole when the guest has stopped, and gone with the run.
#[test]
fn a_guest_serves_until_it_is_interrupted_and_a_command_finds_its_services_ready() {
    in_the_lab(|| {
        let home = Home::new();
        let (guest, profile) = (home.path().join("serving.kdl"), home.path().join("profile.kdl"));
        fs::write(&guest, SERVING.replace("CHECKOUT", checkout().to_str().unwrap())).unwrap();
        let text = "profile serving {\n    guest \"serving.kdl\"\n    vcpu 1\n    memory \"256MiB\"\n    iothreads 1\n}\n";
        fs::write(&profile, text).unwrap();
        let profile = profile.to_str().unwrap();

        let log = home.path().join("log");
        let mut running = spawn_with_log(&mut home.vmprof(LAB.iter().chain(&[profile])), &log);
        let told = || fs::read_to_string(&log).unwrap();
        eventually("the guest to be ready", || {
            assert!(!running.has_ended(), "the run ended early:\n{}", told());
            told().contains("serving is ready after").then_some(())
        });
        // Another name for the run's copy of the root, which keeps it when the run removes its own.
        let (roots, kept) = (home.path().join(".local/state/vmprof/roots"), home.path().join("kept"));
        let copies = || fs::read_dir(&roots).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let [copy] = &copies()[..] else { panic!("one copy of the root, not {:?}", copies()) };
        fs::hard_link(copy.join("root"), &kept).unwrap();

        running.signal(Signal::INT);
        let finished = running.finish();
        assert_eq!(finished.status, Some(130), "{}", told());
        assert_eq!(finished.stdout, "", "nothing is asked for on stdout");
        let at = |what: &str| told().find(what).unwrap_or_else(|| panic!("no `{what}` in:\n{}", told()));
        let order = [
            "first: starting",
            "first: ready",
            "second: starting",
            "second: ready",
            "serving is ready",
            "second: stopped",
            "first: stopped",
            "stopped cleanly",
        ];
        assert!(order.map(at).is_sorted(), "{}", told());

        assert_eq!(copies(), Vec::<PathBuf>::new(), "the copy is gone");
        // Every Debian has it; elsewhere it may be missing.
        match std::process::Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&kept).output() {
            Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
            Err(error) => eprintln!("skipped: no check of the root that was written to, e2fsck: {error}"),
        }

        let script =
            "cat /scratch/first /scratch/second && echo written > /written && cat /written /proc/mounts";
        let command = up(&home, profile, &["sh", "-c", script]).expect(0).stdout;
        let written = "first was here, in /srv\nsecond was here, in /\nwritten\n";
        assert!(command.starts_with(written), "{command}");
        assert!(command.contains(" / ext4 rw") && !command.contains("overlay"), "{command}");
    });
}
