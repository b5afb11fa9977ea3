//! The command line: statuses, streams, messages. Nothing here boots.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;
use vmprof_tests::{Home, NOBODY, binary, checkout, copy_of_binary, finish, kvm_is_usable};

#[test]
fn the_binary_is_one_static_file_that_runs_anywhere() {
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = copy_of_binary(elsewhere.path());
    let version = finish(Command::new(copy).arg("--version").env_clear().current_dir("/"));
    assert!(version.expect(0).stdout.starts_with("vmprof "));
    // An interpreter is what a dynamic executable has (ELF, program header PT_INTERP).
    let bytes = fs::read(binary()).unwrap();
    let loader = b"/lib64/ld-linux";
    let interpreter = bytes[..4096].windows(loader.len()).any(|window| window == loader);
    assert!(!interpreter, "the binary asks for a dynamic loader");
}

#[test]
fn wrong_usage_is_64_and_help_is_0() {
    let home = Home::new();
    for wrong in [
        &["--wrong"][..],
        &["fly"],
        &["up"],
        &["plan"],
        &["up", "p.kdl", "--timeout", "5d"],
        &["up", "p.kdl", "--lab", "cpus=3"],
    ] {
        let finished = home.run(wrong).expect(64);
        assert!(
            finished.stdout.is_empty() && finished.stderr.contains("error:"),
            "{wrong:?}: {}",
            finished.stderr
        );
    }
    assert!(home.run(["--help"]).expect(0).stdout.contains("plan"));
    assert!(home.run(["up", "--help"]).expect(0).stdout.contains("125"));
}

/// Nothing is built and no emulated host boots to find that out: the store is empty and has no network.
#[test]
fn a_saved_plan_of_another_profile_is_refused_at_once() {
    let home = Home::with_store("/nowhere".into());
    let planned = home.run(["plan", "profiles/db.kdl", "--format", "json"]).expect(0);
    let file = home.path().join("db.json");
    fs::write(&file, planned.stdout).unwrap();
    let words = ["up", "--on", "lab", "--offline", "--plan", file.to_str().unwrap(), "profiles/hello.kdl"];
    let finished = home.run(words).expect(3);
    assert!(finished.stderr.contains("vmprof::plan::profile_changed"), "{}", finished.stderr);
    assert!(finished.stderr.contains("of `db`"), "{}", finished.stderr);
}

#[test]
fn a_file_that_is_no_host_is_named() {
    let finished = Home::new().run(["plan", "profiles/db.kdl", "--host", "README.md"]).expect(1);
    assert!(
        finished.stderr.contains("README.md") && finished.stderr.contains("not_a_host"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_profile_that_is_not_there_is_invalid() {
    let finished = Home::new().run(["plan", "nowhere.kdl"]).expect(3);
    assert!(finished.stderr.contains("nowhere.kdl cannot be read") && finished.stdout.is_empty());
}

#[test]
fn a_guest_that_is_not_there_is_invalid_too() {
    let home = Home::new();
    let profile = home.path().join("lost.kdl");
    fs::write(&profile, "profile lost {\n    guest \"gone.kdl\"\n    vcpu 1\n    memory \"256MiB\"\n}\n")
        .unwrap();
    for words in [&["build"][..], &["up", "--on", "lab"]] {
        let finished = home.run(words.iter().copied().chain([profile.to_str().unwrap()])).expect(3);
        assert!(
            finished.stderr.contains("line 2") && finished.stderr.contains("gone.kdl"),
            "{}",
            finished.stderr
        );
    }
}

/// A /dev/kvm that may not be opened is told with its fix, not hidden behind the lab.
#[test]
fn a_kvm_that_may_not_be_opened_is_4() {
    let may_become_nobody = rustix::process::geteuid().is_root();
    let closed_to_others =
        fs::metadata("/dev/kvm").is_ok_and(|found| found.permissions().mode() & 0o006 == 0);
    if !may_become_nobody || !closed_to_others {
        println!(
            "skipped: a_kvm_that_may_not_be_opened_is_4: no /dev/kvm here that another user may not open"
        );
        return;
    }
    let home = Home::new();
    let copy = copy_of_binary(home.path());
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The checkout may lie where nobody else may look.
    for file in ["profiles/hello.kdl", "guests/hello.kdl", "guests/hello.lock.kdl"] {
        let at = home.path().join(file);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::copy(checkout().join(file), at).unwrap();
    }
    for on in ["auto", "kvm"] {
        let mut command = Command::new(&copy);
        command
            .args(["up", "--on", on, "profiles/hello.kdl"])
            .current_dir(home.path())
            .env_clear()
            .env("HOME", home.path());
        let stderr = finish(command.uid(NOBODY).gid(NOBODY)).expect(4).stderr;
        assert!(stderr.contains("may not be opened") && stderr.contains("usermod"), "{stderr}");
    }
}

#[test]
fn three_mistakes_are_three_diagnostics() {
    let home = Home::new();
    let profile = home.path().join("bad.kdl");
    fs::write(
        &profile,
        "profile bad {\n    guest \"g.kdl\"\n    vcpu 2\n    memory 1GiB\n    iothreads 1\n    disk data {\n        \
         source file=\"d.raw\" size=\"1GiB\"\n        driver raw cache=writeback aio=native\n        queues 2\n        \
         iothread-vq-mapping { iothread 3 vqs=\"0,1\" }\n    }\n}\n",
    )
    .unwrap();
    for verb in ["plan", "check", "up"] {
        let stderr = home.run([verb, profile.to_str().unwrap()]).expect(3).stderr;
        for code in ["missing_quotes", "native_needs_direct", "no_such_iothread"] {
            assert!(stderr.contains(&format!("vmprof::profile::{code}")), "{verb}: no {code} in\n{stderr}");
        }
        assert_eq!(stderr.matches("help:").count(), 3, "{verb}:\n{stderr}");
    }
}

#[test]
fn a_plan_needs_no_kvm_no_network_and_no_programs() {
    let home = Home::new();
    let mut command = home.vmprof(["plan", "profiles/db.kdl", "--format", "json"]);
    // No PATH: no apt, no shell.
    let plan = finish(command.env("PATH", "")).expect(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!(plan["schema"], "vmprof.plan/1");
    assert_eq!(
        (plan["vcpus"].as_array().unwrap().len(), plan["iothreads"].as_array().unwrap().len()),
        (4, 2)
    );
    let data = &plan["disks"][0];
    assert_eq!(
        (&data["name"], &data["cache"], &data["aio"], &data["queues"]),
        (&"data".into(), &"none".into(), &"io_uring".into(), &4.into())
    );
    let served: Vec<u64> =
        data["virtqueues"].as_array().unwrap().iter().map(|vq| vq["iothread"].as_u64().unwrap()).collect();
    assert_eq!(served, [0, 1, 0, 1]);
}

#[test]
fn a_plan_made_from_a_capture_is_the_plan_made_here() {
    let home = Home::new();
    let capture = home.path().join("host.json");
    home.run(["host", "--capture", capture.to_str().unwrap()]).expect(0);
    let here = home.run(["host"]).expect(0).stdout;
    assert!(here.contains("node"), "{here}");
    let plan = |arguments: &[&str]| {
        let mut all = vec!["plan", "profiles/hello.kdl", "--format", "json"];
        all.extend(arguments);
        let plan: Value = serde_json::from_str(&home.run(all).expect(0).stdout).unwrap();
        plan
    };
    let (live, captured) = (plan(&[]), plan(&["--host", capture.to_str().unwrap()]));
    assert_eq!(live["vcpus"], captured["vcpus"]);
    assert_eq!(live["iothreads"], captured["iothreads"]);
}

#[test]
fn a_host_without_usable_kvm_is_4_with_what_was_found_and_what_to_do() {
    if kvm_is_usable() {
        println!("skipped: a_host_without_usable_kvm_is_4: this host's KVM is usable");
        return;
    }
    let stderr = Home::new().run(["up", "--on", "kvm", "profiles/hello.kdl"]).expect(4).stderr;
    assert!(
        stderr.contains("/dev/kvm") && stderr.contains("help:") && stderr.contains("--on lab"),
        "{stderr}"
    );
}

#[test]
fn a_name_that_is_not_running_is_a_failure_that_says_so() {
    let home = Home::new();
    for verb in ["stop", "pause", "resume", "stats", "verify"] {
        let stderr = home.run([verb, "ghost"]).expect(1).stderr;
        assert!(stderr.contains("no VM named `ghost` is running"), "{stderr}");
    }
    assert_eq!(home.run(["ps", "--format", "json"]).expect(0).stdout.trim(), "[]");
}

#[test]
fn manual_and_completions_are_made_from_the_arguments() {
    let home = Home::new();
    assert!(home.run(["man", "up"]).expect(0).stdout.contains("timeout"));
    assert!(home.run(["completions", "bash"]).expect(0).stdout.contains("vmprof"));
    home.run(["man", "fly"]).expect(1);
}

#[test]
fn what_is_shipped_is_laid_out_canonically() {
    let mut files: Vec<String> = Vec::new();
    for room in ["profiles", "guests"] {
        let entries = fs::read_dir(checkout().join(room)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(
            entries
                .filter(|path| path.extension().is_some_and(|kind| kind == "kdl"))
                .map(|path| path.to_str().unwrap().to_owned()),
        );
    }
    assert!(files.len() > 10, "{files:?}");
    let words = ["fmt", "--check"].into_iter().chain(files.iter().map(String::as_str));
    Home::new().run(words.collect::<Vec<_>>()).expect(0);
}

#[test]
fn the_shipped_profiles_guests_and_locks_are_valid() {
    let entries = ["profiles", "guests"].map(|room| fs::read_dir(checkout().join(room)).unwrap().flatten());
    let files = entries.into_iter().flatten().map(|entry| entry.path());
    let shipped: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "kdl")).collect();
    assert!(shipped.iter().any(|path| path.ends_with("guests/fio.lock.kdl")));
    let mut arguments = vec!["check".into()];
    arguments.extend(shipped);
    Home::new().run(arguments).expect(0);
}

/// vmprof on a captured host that every checkout has.
fn planned(home: &Home, more: &[&str]) -> vmprof_tests::Finished {
    let mut words = vec!["plan", "profiles/db.kdl", "--host", "profiles/fixtures/topology/lab.json"];
    words.extend(more);
    home.run(words)
}

#[test]
fn files_are_laid_out_in_place_or_only_named() {
    let home = Home::new();
    let file = home.path().join("a.kdl");
    let untidy = "profile a {\n  guest \"g.kdl\" // kept\n  vcpu   1;memory \"256MiB\"\n}\n";
    fs::write(&file, untidy).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let name = file.to_str().unwrap();
    let named = home.run(["fmt", "--check", name]).expect(1);
    assert_eq!(named.stdout.trim(), name);
    assert_eq!(fs::read_to_string(&file).unwrap(), untidy, "--check changes nothing");
    home.run(["fmt", name]).expect(0);
    let tidy = fs::read_to_string(&file).unwrap();
    assert!(tidy.contains("    vcpu 1\n") && tidy.contains("// kept"), "{tidy}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert!(home.run(["fmt", "--check", name]).expect(0).stdout.is_empty());
    let piped = vmprof_tests::finish_with_input(&mut home.vmprof(["fmt", "-"]), untidy.as_bytes());
    assert_eq!(piped.expect(0).stdout, tidy);
    fs::write(&file, "profile {").unwrap();
    home.run(["fmt", name]).expect(3);
    assert_eq!(fs::read_to_string(&file).unwrap(), "profile {", "what is not KDL stays as it is");
}

#[test]
fn a_plan_is_text_json_or_a_picture() {
    let home = Home::new();
    let text = planned(&home, &[]).expect(0).stdout;
    assert!(text.contains("\nthreads\n") && text.contains("\nchoices\n"), "{text}");
    // Into a pipe there are no colours, and lines keep to 100 columns.
    assert!(!text.contains('\x1b') && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let explained = planned(&home, &["--explain"]).expect(0).stdout;
    assert!(explained.lines().count() >= text.lines().count());
    let svg = planned(&home, &["--format", "svg"]).expect(0).stdout;
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert_eq!(svg, planned(&home, &["--format", "svg"]).expect(0).stdout);
    assert!(planned(&home, &["--format", "xml"]).expect(64).stderr.contains("svg"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let home = Home::new();
    let vmprof = binary().to_str().unwrap();
    let line = format!("{vmprof} plan profiles/db.kdl | true; echo ${{PIPESTATUS[0]}}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &line]).current_dir(checkout()).env("HOME", home.path());
    let finished = finish(&mut shell).expect(0);
    assert_eq!((finished.stdout.trim(), finished.stderr.as_str()), ("0", ""));
}

#[test]
fn the_schema_of_a_plan_is_printed() {
    let schema: Value = serde_json::from_str(&Home::new().run(["schema"]).expect(0).stdout).unwrap();
    assert_eq!(schema["title"], "vmprof.plan/1");
    let plan: Value =
        serde_json::from_str(&planned(&Home::new(), &["--format", "json"]).expect(0).stdout).unwrap();
    let described = schema["properties"].as_object().unwrap();
    for field in plan.as_object().unwrap().keys() {
        assert!(described.contains_key(field), "the schema does not know `{field}`");
    }
}

#[test]
fn a_plan_is_compared_with_a_profile_a_host_or_a_saved_plan() {
    let home = Home::new();
    let saved = home.path().join("saved.json");
    fs::write(&saved, planned(&home, &["--format", "json"]).expect(0).stdout).unwrap();
    let saved = saved.to_str().unwrap();
    assert!(planned(&home, &["--diff", saved]).expect(0).stdout.contains("no difference"));

    let profile = planned(&home, &["--diff", "profiles/hello.kdl"]).expect(0).stdout;
    assert!(profile.contains("data  new") && profile.contains("from  profiles/hello.kdl"), "{profile}");

    let host = ["--diff", "profiles/fixtures/topology/smt2.json"];
    assert!(planned(&home, &host).expect(0).stdout.contains("→"));
    let json = planned(&home, &[&host[..], &["--format", "json"]].concat()).expect(0).stdout;
    let diff: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&diff["schema"], &diff["same"]), (&"vmprof.diff/1".into(), &false.into()));
    assert!(!diff["changes"].as_array().unwrap().is_empty());

    planned(&home, &["--diff", saved, "--format", "svg"]).expect(64);
    planned(&home, &["--diff", saved, "--explain"]).expect(64);
    planned(&home, &["--diff", "nowhere.json"]).expect(1);
    let later = home.path().join("later.json");
    fs::write(&later, "{\"schema\": \"vmprof.plan/2\"}").unwrap();
    let stderr = planned(&home, &["--diff", later.to_str().unwrap()]).expect(3).stderr;
    assert!(stderr.contains("vmprof::plan::not_a_plan"), "{stderr}");
}

#[test]
fn a_saved_plan_that_is_none_is_refused_before_anything_else() {
    let home = Home::new();
    let saved = home.path().join("saved.json");
    fs::write(&saved, "{}").unwrap();
    let words = ["up", "--on", "lab", "--plan", saved.to_str().unwrap(), "profiles/hello.kdl"];
    let stderr = home.run(words).expect(3).stderr;
    assert!(stderr.contains("is no plan that this vmprof can read"), "{stderr}");
}

#[test]
fn a_profile_is_not_locked_and_its_guest_is_named() {
    let told = Home::new().run(["lock", "profiles/hello.kdl"]).expect(3).stderr;
    assert!(told.contains("vmprof::lock::a_profile") && told.contains("guests/hello.kdl"), "{told}");
    let told = Home::new().run(["lock", "nowhere.kdl"]).expect(3).stderr;
    assert!(told.contains("nowhere.kdl cannot be read"), "{told}");
    let told = Home::new().run(["lock", "--update"]).expect(64).stderr;
    assert!(told.contains("Usage: vmprof lock"), "{told}");
}

#[test]
fn every_problem_of_every_file_is_told_as_json_too() {
    let home = Home::new();
    let bad = "profiles/fixtures/profiles/bad/three-mistakes.kdl";
    let finished = home.run(["check", "--format", "json", bad, "profiles/db.kdl", "nowhere.kdl"]).expect(3);
    let checked: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(checked["schema"], "vmprof.check/1");
    let files = checked["files"].as_array().unwrap();
    let valid: Vec<bool> = files.iter().map(|file| file["valid"].as_bool().unwrap()).collect();
    assert_eq!(valid, [false, true, false]);
    let problems = files[0]["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 3, "{problems:?}");
    for problem in problems {
        assert_eq!((&problem["severity"], &problem["file"]), (&"error".into(), &bad.into()));
        assert!(problem["line"].as_u64().unwrap() > 1 && problem["column"].as_u64().unwrap() >= 1);
        assert!(problem["code"].as_str().unwrap().starts_with("vmprof::profile::"));
        assert!(!problem["labels"].as_array().unwrap().is_empty());
    }
    // A file that cannot be read has no place to point at.
    assert!(files[2]["problems"][0]["line"].is_null());
}

#[test]
fn a_plan_goes_to_libvirt_and_comes_back_as_a_profile() {
    let home = Home::new();
    let (domain, profile) = (home.path().join("db.xml"), home.path().join("db.kdl"));
    let xml = home.run(["plan", "profiles/db.kdl", "--format", "libvirt"]).expect(0).stdout;
    fs::write(&domain, &xml).unwrap();
    let (domain, written) = (domain.to_str().unwrap(), profile.to_str().unwrap());
    let imported = home.run(["import", "libvirt", domain, "-o", written]).expect(0);
    assert!(
        imported.stdout.is_empty() && imported.stderr.contains("does not say all"),
        "{}",
        imported.stderr
    );
    home.run(["check", written]).expect(0);
    assert_eq!(
        home.run(["import", "libvirt", domain]).expect(0).stdout,
        fs::read_to_string(&profile).unwrap()
    );
    home.run(["import", "libvirt", "README.md"]).expect(1);
    let qemu = home.run(["plan", "profiles/db.kdl", "--format", "qemu"]).expect(0);
    assert!(qemu.stdout.starts_with("qemu-system-x86_64"), "{}", qemu.stdout);
}

/// What this machine lacks is its own; that every check has a state, and the status follows from the problems, is not.
#[test]
fn doctor_tells_what_the_host_lacks_and_ends_with_it() {
    let home = Home::new();
    let finished = home.run(["doctor", "--format", "json"]);
    let answer: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(answer["schema"], "vmprof.doctor/1");
    let findings = answer["findings"].as_array().unwrap();
    let state = |check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check);
        finding.unwrap_or_else(|| panic!("{check} was not looked at"))["state"].as_str().unwrap()
    };
    assert_eq!(state("kvm") == "ok", kvm_is_usable());
    assert_eq!(state("threads"), "ok");
    let problems = findings.iter().filter(|finding| finding["state"] == "problem").count();
    assert_eq!(finished.status, Some(if problems == 0 { 0 } else { 4 }), "{}", finished.stderr);
    assert_eq!(finished.stderr.contains("vmprof::doctor::problems"), problems > 0);
    let text = home.run(["doctor"]).stdout;
    assert!(findings.iter().all(|finding| text.contains(finding["found"].as_str().unwrap())), "{text}");
}
