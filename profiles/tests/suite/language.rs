//! What the language takes, and what it comes to.

use vmprof_profiles::{
    Aio, CacheMode, ErrorPolicy, Forward, Hugepages, IoThreadCount, Mapping, MemoryMode, NetBackend,
    Protocol, Smt, read_profile,
};

use crate::host::{text_of, with};

#[test]
fn shipped_profiles_have_neither_problems_nor_warnings() {
    for (file, guest) in [("db.kdl", "../guests/postgres.kdl"), ("hello.kdl", "../guests/hello.kdl")] {
        let text = text_of(file);
        assert!(text.starts_with("/- kdl-version 2\n//"), "{file} opens with its version and when to use it");
        let (profile, warnings) = read_profile(file, &text).unwrap();
        assert!(warnings.is_empty(), "{file}");
        assert_eq!(profile.guest.value, guest);
    }
}

#[test]
fn what_is_left_out_has_a_default() {
    let profile = with("vcpu 3\ndisk d { source file=\"d.raw\"; }");
    let disk = &profile.disks[0];
    assert_eq!((disk.cache, disk.aio, disk.queues, disk.queue_size), (CacheMode::None, Aio::IoUring, 3, 256));
    assert_eq!(disk.mapping, Mapping::RoundRobin);
    assert_eq!(profile.iothreads.count, IoThreadCount::Auto { min: 1, max: 8 });
    assert_eq!(profile.memory.hugepages, Hugepages::None);
    assert!(profile.strict.is_none() && profile.host.cpuset.is_none());
}

#[test]
fn cache_modes_come_to_direct_and_write_cache() {
    for (word, direct, write_cache) in [
        ("none", true, true),
        ("directsync", true, false),
        ("writeback", false, true),
        ("writethrough", false, false),
        ("unsafe", false, true),
    ] {
        let profile = with(&format!("vcpu 1\ndisk d {{ source file=\"d.raw\"; driver raw cache={word}; }}"));
        let cache = profile.disks[0].cache;
        assert_eq!((cache.word(), cache.direct(), cache.write_cache()), (word, direct, write_cache));
    }
}

#[test]
fn native_is_taken_with_o_direct_only() {
    for (cache, right) in [
        ("none", true),
        ("directsync", true),
        ("writeback", false),
        ("writethrough", false),
        ("unsafe", false),
    ] {
        for key in ["aio", "io"] {
            let text = format!(
                "profile t {{ guest g; vcpu 1; memory \"1GiB\"; disk d {{ source file=d; driver raw cache={cache} {key}=native; }}; }}"
            );
            assert_eq!(read_profile("t.kdl", &text).is_ok(), right, "{text}");
        }
    }
}

#[test]
fn a_drive_is_looked_at_by_io_uring_with_o_direct_and_no_thread_that_submits() {
    let read = |driver: &str, iothreads: &str| {
        let text = format!(
            "profile t {{ guest g; vcpu 1; memory \"1GiB\"; iothreads 1 {iothreads}; disk d {{ source file=d; driver raw {driver}; }}; }}"
        );
        match read_profile("t.kdl", &text) {
            Ok((profile, _)) => Ok(profile.disks[0].iopoll),
            Err(problems) => Err(problems.iter().map(|one| one.code().to_owned()).collect::<Vec<_>>()),
        }
    };
    let refused = |words: &[&str]| Err(words.iter().map(|word| format!("vmprof::profile::{word}")).collect());
    let sqpoll = "{ sqpoll cpuset=0; }";
    assert_eq!(read("", sqpoll), Ok(false));
    assert_eq!(read("iopoll=off cache=unsafe aio=threads", sqpoll), Ok(false));
    assert_eq!(read("iopoll=on", ""), Ok(true));
    assert_eq!(read("iopoll=on cache=directsync io=io_uring", "{ registered-memory; }"), Ok(true));
    for cache in ["writeback", "writethrough"] {
        assert_eq!(read(&format!("iopoll=on cache={cache}"), ""), refused(&["iopoll_needs_direct"]));
    }
    assert_eq!(read("iopoll=on aio=native", ""), refused(&["iopoll_needs_io_uring"]));
    assert_eq!(read("iopoll=on fallback=threads", ""), refused(&["iopoll_needs_io_uring"]));
    assert_eq!(read("iopoll=on", sqpoll), refused(&["iopoll_with_sqpoll"]));
    assert_eq!(read("iopoll=yes", ""), refused(&["unknown_word"]));
}

#[test]
fn more_iothreads_than_queues_is_a_warning() {
    for nodes in [
        "vcpu 2\niothreads 3\ndisk d { source file=d; }",
        "vcpu 4\niothreads 3\ndisk d { source file=d; queues 2; iothread-vq-mapping { iothread 0; iothread 1; iothread 2; }; }",
    ] {
        let profile = with(nodes);
        let codes: Vec<&str> = profile.warnings.iter().map(|w| w.code()).collect();
        assert_eq!(codes, ["vmprof::profile::more_iothreads_than_queues"], "{nodes}");
    }
}

#[test]
fn aio_threads_under_a_mapping_and_unsafe_are_warnings() {
    let profile = with("vcpu 2\niothreads 2\ndisk d { source file=d; driver raw cache=unsafe aio=threads; }");
    let codes: Vec<&str> = profile.warnings.iter().map(|w| w.code().rsplit("::").next().unwrap()).collect();
    assert_eq!(codes, ["threads_under_mapping", "unsafe_cache"]);
}

#[test]
fn a_list_that_misses_a_queue_names_it() {
    let text = "profile t { guest g; vcpu 4; memory \"1GiB\"; iothreads 2; disk d { source file=d; iothread-vq-mapping { iothread 0 vqs=\"0,3\"; iothread 1 vqs=1; }; }; }";
    let problems = read_profile("t.kdl", text).unwrap_err();
    let messages: Vec<&str> = problems.iter().map(|p| p.message()).collect();
    assert_eq!(messages, ["no IOThread serves virtqueue 2 of 4"]);
}

#[test]
fn nothing_a_file_can_hold_makes_the_reader_panic() {
    let whole = text_of("fixtures/profiles/whole.kdl");
    for end in (0..whole.len()).step_by(5).filter(|end| whole.is_char_boundary(*end)) {
        let _ = read_profile("cut.kdl", &whole[..end]);
    }
    for text in [
        "",
        "\0",
        "é 8GiB",
        "profile",
        "profile 8GiB { é true",
        "profile t { disk \"\" { source; } }",
        "(a)b (c)8GiB",
    ] {
        assert!(read_profile("odd.kdl", text).is_err(), "{text}");
    }
}

#[test]
fn the_emulator_s_list_may_stand_alone() {
    for text in ["emulatorpin cpuset=\"3\"", "emulatorpin \"3\"", "emulatorpin 3"] {
        let profile = with(&format!("vcpu 1\n{text}"));
        let vmprof_profiles::EmulatorPin::Explicit(set) = profile.emulator else { panic!("{text}") };
        assert_eq!(set.value.to_string(), "3", "{text}");
    }
    for text in [
        "emulatorpin \"3\" cpuset=\"4\"",
        "emulatorpin \"3-\"",
        "emulatorpin always",
        "emulatorpin none cpuset=3",
    ] {
        let whole = format!("profile t {{ guest g; vcpu 1; memory \"1GiB\"; {text}; }}");
        assert_eq!(read_profile("t.kdl", &whole).unwrap_err().len(), 1, "{text}");
    }
}

#[test]
fn every_node_comes_to_its_fields() {
    let profile = crate::host::profile(&text_of("fixtures/profiles/whole.kdl"));
    assert_eq!(profile.host.cpuset.as_ref().unwrap().value.to_string(), "0-2,4-15");
    assert_eq!(profile.host.smt, Smt::Require);
    let memory = &profile.memory;
    assert_eq!(
        (memory.nodes.as_ref().unwrap().value.to_string(), memory.mode),
        ("0".into(), MemoryMode::Preferred)
    );
    let iothreads = &profile.iothreads;
    assert_eq!(
        (iothreads.poll_max_ns, iothreads.poll_grow, iothreads.poll_shrink),
        (Some(32768), Some(3), Some(2))
    );
    let sqpoll = iothreads.sqpoll.as_ref().map(|sqpoll| (sqpoll.cpus.value.to_string(), sqpoll.idle_ms));
    assert_eq!((iothreads.registered_memory, sqpoll), (true, Some(("14-15".to_owned(), 20))));
    let [data, more] = profile.disks.as_slice() else { panic!() };
    assert_eq!(
        (data.cache, data.aio, data.aio_fallback),
        (CacheMode::Directsync, Aio::IoUring, Some(Aio::Native))
    );
    assert_eq!((data.packed, more.packed), (true, false));
    assert_eq!((data.discard, data.rerror, data.werror), (true, ErrorPolicy::Stop, ErrorPolicy::Enospc));
    assert_eq!((data.logical_block_bytes, data.physical_block_bytes), (Some(512), Some(4096)));
    let format = &data.format.as_ref().unwrap().value;
    assert_eq!((format.filesystem.as_str(), format.mount.as_deref()), ("xfs", Some("/srv/data")));
    assert_eq!(data.mapping, Mapping::Exact(vec![(0, vec![0, 2]), (1, vec![1, 3])]));
    assert_eq!((more.mapping.clone(), more.readonly, more.queues), (Mapping::Locality, true, 4));
    assert_eq!((more.discard, more.rerror, more.logical_block_bytes), (false, ErrorPolicy::Report, None));
    let [passt, tap] = profile.nets.as_slice() else { panic!() };
    let NetBackend::Passt { forwards } = &passt.backend.value else { panic!() };
    let wanted = Forward { protocol: Protocol::Udp, host: 5353, guest: 53 };
    assert_eq!((forwards.len(), forwards[1], passt.queues, passt.queue_size), (2, wanted, 1, 512));
    assert_eq!(passt.mac.map(|mac| mac.to_string()).as_deref(), Some("52:54:00:ab:cd:01"));
    assert_eq!(
        (tap.backend.value.clone(), tap.queues, tap.queue_size),
        (NetBackend::Tap { name: "tap0".into() }, 2, 256)
    );
    assert_eq!((profile.whens().len(), profile.asserts.len()), (2, 1));
}

#[test]
fn lists_of_cpus_take_exclusions_and_lists_of_queues_do_not() {
    for (list, set) in [("0-7,^3", "0-2,4-7"), ("^3,0-7", "0-2,4-7"), ("0-7,^0-2,^7", "3-6"), ("4", "4")] {
        let profile = with(&format!("vcpu 1\nhost {{ cpuset \"{list}\"; }}"));
        assert_eq!(profile.host.cpuset.unwrap().value.to_string(), set);
    }
    for list in ["^3", "0-7,^8", "0-7,^", "0-7,,^3", "0-3,^0-3", "0-3,^^1"] {
        let text =
            format!("profile t {{ guest g; memory \"1GiB\"; vcpu 1; host {{ cpuset \"{list}\"; }}; }}");
        let problems = read_profile("t.kdl", &text).unwrap_err();
        assert_eq!(problems.iter().next().unwrap().code(), "vmprof::profile::bad_list", "{list}");
    }
    let vqs = "profile t { guest g; memory \"1GiB\"; vcpu 4; iothreads 1; disk d { source file=d; iothread-vq-mapping { iothread 0 vqs=\"0-4,^4\"; }; }; }";
    assert_eq!(
        read_profile("t.kdl", vqs).unwrap_err().iter().next().unwrap().code(),
        "vmprof::profile::bad_list"
    );
}

#[test]
fn a_switch_can_be_written_off() {
    let profile = with("vcpu 1\nstrict #false\ndisk d { source file=d; readonly #false; }");
    assert!(profile.strict.is_none() && !profile.disks[0].readonly);
}

/// What a profile comes to, without the places it was written in.
fn meaning(text: &str) -> String {
    let profile = crate::host::profile(text);
    let (vcpus, memory) = (profile.vcpus.count, profile.memory.bytes.value);
    let disks: Vec<_> = profile
        .disks
        .iter()
        .map(|d| (&d.source, d.cache, d.aio, d.queues, &d.mapping, &d.guest_scheduler))
        .collect();
    format!(
        "{} {:?} {vcpus} {memory} {:?} {disks:?} {}",
        profile.name,
        profile.description,
        profile.memory.mode,
        profile.nets.len()
    )
}

#[test]
fn laying_out_a_profile_changes_nothing_it_says() {
    for file in [
        "db.kdl",
        "hello.kdl",
        "fixtures/profiles/far-drive.kdl",
        "fixtures/profiles/pinned.kdl",
        "fixtures/profiles/whole.kdl",
    ] {
        let text = text_of(file);
        let laid_out = vmprof_document::format("vmprof::profile", file, &text).unwrap();
        assert_eq!(meaning(&laid_out), meaning(&text), "{file}");
        assert_eq!(vmprof_document::format("vmprof::profile", file, &laid_out).unwrap(), laid_out, "{file}");
        let comments = |text: &str| {
            text.lines()
                .filter_map(|line| Some(line.split_once("//")?.1.trim().to_owned()))
                .collect::<Vec<_>>()
        };
        assert_eq!(comments(&laid_out), comments(&text), "{file}");
    }
    let whole = text_of("fixtures/profiles/whole.kdl");
    assert_eq!(
        vmprof_document::format("vmprof::profile", "whole.kdl", &whole).unwrap(),
        whole,
        "it shows the layout"
    );
}

#[test]
fn a_word_more_or_less_anywhere_is_no_panic() {
    let whole = text_of("fixtures/profiles/whole.kdl");
    let words: Vec<&str> = whole.split_inclusive([' ', '\n', '=', '"']).collect();
    let extras = ["8GiB ", "{ ", "\"\" ", "none ", "when "];
    // Every word is taken out, or has one word too many before it, in turn.
    for (at, extra) in (0..words.len()).step_by(2).zip(extras.iter().cycle()) {
        let without = [&words[..at], &words[at + 1..]].concat().concat();
        let _ = read_profile("less.kdl", &without);
        let more = [&words[..at + 1], &[extra], &words[at + 1..]].concat().concat();
        let _ = read_profile("more.kdl", &more);
    }
}
