//! What is wrong with a profile, as users read it.

use insta::assert_snapshot;
use miette::{GraphicalReportHandler, GraphicalTheme};
use vmprof_profiles::{Ledger, Problems, Source, Storage, Topology, plan, read_profile_with};

use crate::fixtures::source;
use crate::host::{profile, text_of};

fn rendered(diagnostic: &dyn miette::Diagnostic) -> String {
    let mut text = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(110)
        .with_links(false)
        .render_report(&mut text, diagnostic)
        .unwrap();
    text
}

/// The problems of a bad profile, whose bases lie beside it.
fn problems_of(file: &str) -> Problems {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/profiles/bad");
    let load = |path: &str| match std::fs::read_to_string(dir.join(path)) {
        // The words of the system are not ours to test.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(std::io::Error::other("no such file"))
        }
        read => read,
    };
    read_profile_with(file, &text_of(&format!("fixtures/profiles/bad/{file}")), &load).unwrap_err()
}

fn codes(file: &str) -> Vec<String> {
    let problems = problems_of(file);
    problems.iter().map(|p| p.code().rsplit("::").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_bad_profile_says_what_to_write() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/profiles/bad");
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut files: Vec<String> = entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert!(files.len() >= 16, "{files:?}");
    for file in files {
        let problems = problems_of(&file);
        for problem in problems.iter() {
            assert!(problem.code().starts_with("vmprof::profile::"), "{problem:?}");
            assert!(problem.first_span().is_some() && problem.help_text().is_some(), "{problem:?}");
        }
        assert_snapshot!(format!("bad-{file}"), rendered(&problems));
    }
}

#[test]
fn three_mistakes_are_three_diagnostics() {
    assert_eq!(codes("three-mistakes.kdl"), ["unknown_node", "native_needs_direct", "vq_not_served"]);
}

#[test]
fn slips_of_syntax_do_not_hide_other_mistakes() {
    assert_eq!(codes("slips.kdl"), ["missing_quotes", "missing_quotes", "bare_keyword", "unknown_word"]);
}

fn refused(text: &str, source: &Source) -> String {
    let profile = profile(text);
    let topology = Topology::read(source);
    let storage = Storage::read(source, &profile, &topology, None);
    let ledger = Ledger {
        held: vec![vmprof_profiles::Held { holder: "other".into(), cpus: crate::host::set("3"), pid: None }],
    };
    rendered(&plan(&profile, &topology, &storage, &ledger).unwrap_err())
}

#[test]
fn what_a_host_cannot_give_names_what_it_has() {
    let profile =
        |nodes: &str| format!("profile test {{\n    guest \"g.kdl\"\n    memory \"1GiB\"\n{nodes}\n}}\n");
    let pins =
        "    vcpu 2 { vcpupin { vcpu 0 cpuset=\"40-41\"; vcpu 1 cpuset=3; }; }\n    emulatorpin cpuset=\"0\"";
    assert_snapshot!("cannot-pins", refused(&profile(pins), &source("isolated")));
    let nowhere = "    vcpu 1\n    host { cpuset \"100-103\"; }";
    assert_snapshot!("cannot-cpuset", refused(&profile(nowhere), &source("lab")));
    let held = "    vcpu 1\n    host { cpuset \"3\"; }";
    assert_snapshot!("cannot-held", refused(&profile(held), &source("lab")));
    let node = "    vcpu 1\n    host { numa node=7; }";
    assert_snapshot!("cannot-node", refused(&profile(node), &source("lab")));
    let strict = "    vcpu 4\n    strict";
    assert_snapshot!("cannot-strict", refused(&profile(strict), &source("two-cpus")));
    let pages = "    vcpu 1\n    host { numa node=0; }";
    let pages = profile(pages).replace("\"1GiB\"", "\"1GiB\" hugepages=\"2MiB\"");
    assert_snapshot!("cannot-hugepages", refused(&pages, &source("lab")));
    let binding = profile("    vcpu 1\n    host { numa node=0; }").replace("\"1GiB\"", "\"8GiB\"");
    assert_snapshot!("cannot-binding", refused(&binding, &source("lab")));
}
