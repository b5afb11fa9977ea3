//! What the language takes, and what it comes to.

use vmprof_profiles::{Aio, CacheMode, Hugepages, IoThreadCount, Mapping, read_profile};

use crate::host::{text_of, with};

#[test]
fn shipped_profiles_have_neither_problems_nor_warnings() {
    for (file, guest) in [("db.kdl", "../guests/fio.kdl"), ("hello.kdl", "../guests/hello.kdl")] {
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
    let whole = text_of("fixtures/profiles/pinned.kdl");
    for end in (0..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
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
