//! Any text given as an hwloc file is read or refused with a place in it: nothing panics, nothing hangs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmprof_profiles::{Ledger, Source, Storage, Topology, plan, read_profile, view};

const PROFILE: &str = r#"profile a { guest "g.kdl"; vcpu 4; memory "1GiB" hugepages=auto; iothreads auto
    disk d { source dev="/dev/nvme0n1"; queues auto; } }"#;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let source = match Source::from_file_text(text) {
        Ok(source) => source,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let topology = Topology::read(&source);
    assert!(!topology.online.is_empty());
    view::host_text(&topology, &Ledger::default());
    let Ok((profile, _)) = read_profile("fuzz.kdl", PROFILE) else { panic!("the profile is right") };
    let storage = Storage::read(&source, &profile, &topology, None);
    let _ = plan(&profile, &topology, &storage, &Ledger::default());
});
