//! Clients that break the rules: each is sent away, or keeps a broken ring to itself, and the next is served.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

/// The first client ends with a refusal that says `why`; the second is served.
#[track_caller]
fn sent_away(why: &str, misbehave: impl FnOnce(&mut Frontend, &mut Disk)) {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    misbehave(&mut frontend, &mut disk);
    assert!(frontend.is_hung_up_on());
    assert_eq!(served.event(), Event::Connected);
    match served.event() {
        Event::Left { how: Left::Refused(reason) } => assert!(reason.contains(why), "{reason}"),
        other => panic!("{other:?}"),
    }
    let (_frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(2);
}

fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("memory of a hostile client", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

#[test]
fn a_virtqueue_that_is_not_there() {
    sent_away("virtqueue 2 of a disk that has 2", |frontend, _| {
        frontend.state(SET_VRING_NUM, 2, 64).unwrap_err();
    });
    sent_away("virtqueue 255 of a disk", |frontend, disk| {
        frontend.notifier(SET_VRING_CALL, 255, Some(&disk.queue.interrupt)).unwrap_err();
    });
    sent_away("virtqueue 4294967295 of a disk", |frontend, _| {
        frontend.send(GET_VRING_BASE, &[u32::MAX, 0].map(u32::to_le_bytes).concat(), &[]);
    });
}

#[test]
fn a_size_that_no_ring_has() {
    for size in [0, 3, 256, 65_536, u32::MAX] {
        sent_away("sizes are powers of two, here up to 128", |frontend, _| {
            frontend.state(SET_VRING_NUM, 1, size).unwrap_err();
        });
    }
}

#[test]
fn a_change_that_a_running_ring_cannot_have() {
    sent_away("change its size while it runs", |frontend, _| {
        frontend.state(SET_VRING_NUM, 0, 32).unwrap_err();
    });
    sent_away("go on elsewhere while it runs", |frontend, _| {
        frontend.state(SET_VRING_BASE, 0, 7).unwrap_err();
    });
    sent_away("features were to change", |frontend, _| {
        let features = VERSION_1 | frontend::PROTOCOL;
        frontend.say(SET_FEATURES, &features.to_le_bytes(), &[]).unwrap_err();
    });
}

#[test]
fn features_that_were_not_offered() {
    sent_away("features", |frontend, _| {
        frontend.say(SET_FEATURES, &u64::MAX.to_le_bytes(), &[]).unwrap_err();
    });
    sent_away("features", |frontend, _| {
        frontend.say(SET_PROTOCOL_FEATURES, &u64::MAX.to_le_bytes(), &[]).unwrap_err();
    });
}

#[test]
fn rings_where_the_client_has_no_memory() {
    let end = USER + RAM_BYTES;
    for at in [0, USER - 4096, end, u64::MAX - 15] {
        sent_away("where the client has no memory", |frontend, disk| {
            frontend.stop_ring(0);
            let [_, used, available] = disk.addresses();
            frontend.set_addresses(0, [at, used, available]).unwrap();
            frontend.notifier(SET_VRING_KICK, 0, Some(&disk.queue.doorbell)).unwrap_err();
        });
    }
    sent_away("does not lie within one region", |frontend, disk| {
        frontend.stop_ring(0);
        let [descriptors, used, _] = disk.addresses();
        frontend.set_addresses(0, [descriptors, used, end - 4]).unwrap();
        frontend.notifier(SET_VRING_KICK, 0, Some(&disk.queue.doorbell)).unwrap_err();
    });
}

#[test]
fn memory_that_cannot_be() {
    let file = memfd(1 << 20);
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let sizes = [("no part of a file", 0, (1 << 20) + 4096, 0), ("no part of a file", 0, 1 << 40, 0)];
    for (why, guest, bytes, offset) in sizes {
        sent_away(why, |frontend, _| {
            let region = [guest + RAM_BYTES, bytes, USER + RAM_BYTES, offset];
            frontend.change_memory(ADD_MEM_REG, region, &[file.as_fd()]).unwrap_err();
        });
    }
    sent_away("another region has these addresses", |frontend, _| {
        let region = [RAM_BYTES - 4096, 8192, USER + RAM_BYTES, 0];
        frontend.change_memory(ADD_MEM_REG, region, &[file.as_fd()]).unwrap_err();
    });
    sent_away("none of memfd", |frontend, _| {
        let region = [RAM_BYTES, 4096, USER + RAM_BYTES, 0];
        frontend.change_memory(ADD_MEM_REG, region, &[null.as_fd()]).unwrap_err();
    });
    sent_away("to remove", |frontend, _| {
        frontend.change_memory(REM_MEM_REG, [4096, 4096, USER, 0], &[]).unwrap_err();
    });
    sent_away("", |frontend, _| {
        frontend.set_memory(&[[0, 0, USER, 0]], &[file.as_fd()]).unwrap_err();
    });
    sent_away("", |frontend, _| {
        frontend.set_memory(&[[0, 4096, USER, 0]], &[]).unwrap_err();
    });
}

#[test]
fn notifiers_that_are_none() {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        sent_away("is no eventfd", |frontend, _| {
            frontend.say(request, &[0; 8], &[null.as_fd()]).unwrap_err();
        });
    }
    sent_away("never polls", |frontend, _| {
        frontend.notifier(SET_VRING_KICK, 0, None).unwrap_err();
    });
}

#[test]
fn messages_that_are_none() {
    sent_away("", |frontend, _| frontend.send(4711, &[], &[]));
    sent_away("", |frontend, _| frontend.send_with(GET_FEATURES, 7, &[], &[]));
    sent_away("", |frontend, _| frontend.send(SET_FEATURES, &[1, 2, 3], &[]));
    sent_away("", |frontend, _| {
        let header = [GET_FEATURES, 1, u32::MAX].map(u32::to_le_bytes).concat();
        std::io::Write::write_all(&mut &frontend.stream, &header).unwrap();
    });
}

#[test]
fn a_driver_that_breaks_its_ring_is_told_and_may_begin_anew() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.notifier(SET_VRING_ERR, 0, Some(&error)).unwrap();
    disk.queue.set_available(5_000);
    disk.queue.doorbell.write(1).unwrap();
    assert!(wait_for(&error));
    assert_eq!(served.event(), Event::Connected);
    assert!(matches!(served.event(), Event::Broke { fault } if fault.contains("virtqueue 0")));
    frontend.stop_ring(0);
    // The driver resets the device and makes its rings anew.
    let mut disk = Disk::new(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    disk.check(2);
}

/// A thread that writes a full eventfd waits until somebody reads it. Here nobody does, and the client goes.
#[test]
fn a_client_that_fills_its_eventfd_stops_nobody_else() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1);
    frontend.share_memory();
    let mut disk = Disk::without_events(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    frontend.notifier(SET_VRING_CALL, 0, Some(&full)).unwrap();
    disk.offer(0, 0, 0, 512);
    disk.queue.kick();
    // Published before the interrupt is sent.
    while disk.queue.take_used().is_none() {
        std::thread::yield_now();
    }
    drop(frontend);
    assert_eq!((served.event(), served.event()), (Event::Connected, Event::Left { how: Left::ByItself }));
    let (_frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(2);
}

/// What a message may carry besides its payload.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Nothing,
    Event,
    Memory,
    Null,
    Two,
}

#[derive(Debug, Clone)]
struct Said {
    request: u32,
    answered: bool,
    fields: Vec<u64>,
    cut: usize,
    sent: Sent,
}

fn field() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..4u64,
        3 => prop::sample::select(vec![64, 4096, RAM_BYTES, USER, USER + 0x1000, 0x100, 1 << 32]),
        2 => prop::sample::select(vec![VERSION_1 | frontend::PROTOCOL, VERSION_1, frontend::PROTOCOL | EVENT_IDX | VERSION_1]),
        1 => any::<u64>(),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    let sent = prop_oneof![
        3 => Just(Sent::Nothing), 3 => Just(Sent::Event), 3 => Just(Sent::Memory), 1 => Just(Sent::Null), 1 => Just(Sent::Two)
    ];
    let known = vec![
        GET_FEATURES,
        SET_FEATURES,
        SET_OWNER,
        4,
        SET_MEM_TABLE,
        SET_VRING_NUM,
        SET_VRING_ADDR,
        SET_VRING_BASE,
        GET_VRING_BASE,
        SET_VRING_KICK,
        SET_VRING_CALL,
        SET_VRING_ERR,
        GET_PROTOCOL_FEATURES,
        SET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        SET_VRING_ENABLE,
        GET_CONFIG,
        SET_CONFIG,
        RESET_DEVICE,
        GET_MAX_MEM_SLOTS,
        ADD_MEM_REG,
        REM_MEM_REG,
        6,
        7,
        21,
        31,
        32,
        33,
        42,
        43,
    ];
    let whole = prop_oneof![9 => Just(0), 1 => 1..8usize];
    (prop::sample::select(known), any::<bool>(), prop::collection::vec(field(), 0..6), whole, sent)
        .prop_map(|(request, answered, fields, cut, sent)| Said { request, answered, fields, cut, sent })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 5, ..ProptestConfig::default() })]

    /// Whatever clients say in whatever order, nobody panics or hangs, and the next one is served.
    #[test]
    fn no_sequence_of_messages_harms_the_server(clients in prop::collection::vec(prop::collection::vec(said(), 1..24), 1..6)) {
        let served = Served::with(2, 1, |_| {});
        let (file, null) = (memfd(RAM_BYTES), File::open("/dev/null").unwrap());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let event = eventfd::borrowed(&event);
        for messages in clients {
            let mut frontend = Frontend::connect(&served.path);
            frontend.greet(VERSION_1 | EVENT_IDX);
            frontend.share_memory();
            for Said { request, answered, fields, cut, sent } in messages {
                let mut payload: Vec<u8> = match request {
                    SET_VRING_NUM | SET_VRING_BASE | GET_VRING_BASE | SET_VRING_ENABLE =>
                        fields.iter().take(2).flat_map(|field| (*field as u32).to_le_bytes()).collect(),
                    SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR | SET_FEATURES | SET_PROTOCOL_FEATURES =>
                        fields.iter().take(1).flat_map(|field| field.to_le_bytes()).collect(),
                    _ => fields.iter().flat_map(|field| field.to_le_bytes()).collect(),
                };
                payload.truncate(payload.len().saturating_sub(cut));
                let fds = match sent {
                    Sent::Nothing => vec![],
                    Sent::Event => vec![event],
                    Sent::Memory => vec![file.as_fd()],
                    Sent::Null => vec![null.as_fd()],
                    Sent::Two => vec![file.as_fd(), event],
                };
                frontend.send_with(request, if answered { 9 } else { 1 }, &payload, &fds);
            }
        }
        let mut frontend = loop {
            // The one before may not have left yet: then we are turned away.
            let mut frontend = Frontend::connect(&served.path);
            frontend.send(GET_FEATURES, &[], &[]);
            if frontend.reply().is_some() { break frontend; }
        };
        frontend.greet(VERSION_1 | EVENT_IDX | FLUSH);
        frontend.share_memory();
        let mut disk = Disk::new(&frontend, 0);
        frontend.set_up(&disk, 0);
        frontend.begin(&disk);
        disk.check(9);
        served.stop();
    }
}
