//! `vmprof explain`, and that what a run prints can be handed to it as it stands.

use serde_json::Value;
use vmprof_tests::{Home, checkout};

#[test]
fn a_code_is_explained_on_stdout_whole_or_by_its_last_word() {
    let home = Home::new();
    let whole = home.run(["explain", "vmprof::plan::dense_host"]).expect(0);
    assert!(whole.stdout.starts_with("vmprof::plan::dense_host\n\n") && whole.stdout.contains("\nSource: "));
    assert_eq!(home.run(["explain", "dense_host"]).expect(0).stdout, whole.stdout);
    assert_eq!(home.run(["explain", "[vmprof::plan::dense_host]"]).expect(0).stdout, whole.stdout);
    assert!(whole.stderr.is_empty());
}

#[test]
fn every_code_is_listed_and_each_of_them_explained() {
    let home = Home::new();
    let listed = home.run(["explain"]).expect(0).stdout;
    let codes: Vec<&str> =
        listed.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    let all: Value =
        serde_json::from_str(&home.run(["explain", "--format", "json"]).expect(0).stdout).unwrap();
    assert_eq!(all["schema"], "vmprof.codes/1");
    let explained: Vec<&str> =
        all["codes"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
    assert_eq!(codes, explained);
    assert!(codes.len() > 100, "{codes:?}");
}

#[test]
fn a_near_miss_fails_and_says_what_was_meant() {
    let missed = Home::new().run(["explain", "dense_hots"]).expect(1);
    assert!(missed.stdout.is_empty());
    assert!(missed.stderr.contains("did you mean `vmprof::plan::dense_host`?"), "{}", missed.stderr);
}

#[test]
fn what_a_plan_and_a_refusal_print_can_be_explained() {
    let home = Home::new();
    let small = checkout().join("profiles/fixtures/topology/one-cpu.json");
    let words = ["plan", "profiles/db.kdl", "--format", "json", "--host", small.to_str().unwrap()];
    let plan: Value = serde_json::from_str(&home.run(words).expect(0).stdout).unwrap();
    let printed = plan["diagnostics"].as_array().unwrap();
    assert!(!printed.is_empty(), "one CPU is too small for this profile");
    for code in printed.iter().map(|one| one["code"].as_str().unwrap()) {
        home.run(["explain", code]).expect(0);
    }
    let refused = home.run(["check", "profiles/fixtures/profiles/bad/three-mistakes.kdl"]).expect(3).stderr;
    let codes: Vec<&str> = refused.split_whitespace().filter(|word| word.starts_with("vmprof::")).collect();
    assert!(codes.len() > 3, "{refused}");
    for code in codes {
        home.run(["explain", code]).expect(0);
    }
    // Only a terminal is told about `explain`.
    assert!(!refused.contains("vmprof explain"), "{refused}");
}
