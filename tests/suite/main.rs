//! One binary for all end-to-end tests; `every_file_is_listed` fails when a file of this directory is not below.

mod boots;
mod cli;
mod console;
mod control;
mod detached;
mod docs;
mod durability;
mod explain;
mod exports;
mod faults;
mod images;
mod inside;
mod kills;
mod lab;
mod machine;
mod matrix;
mod net;
mod postgres;
mod reboots;
mod reconnect;
mod roots;
mod store;
mod systemd;
mod vhost_user;

#[test]
fn every_file_is_listed() {
    let listed = include_str!("main.rs");
    let directory = vmprof_tests::checkout().join("tests/suite");
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(
            module == "main" || listed.contains(&format!("mod {module};")),
            "{name} is not part of the suite"
        );
    }
}
