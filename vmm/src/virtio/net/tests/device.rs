//! What the driver sees of the device, and what is refused before there is one.

use super::*;

fn made(change: impl FnOnce(&mut config::Net)) -> Result<Net, NetError> {
    let mut config = config(NetBackend::Stream, 1);
    change(&mut config);
    let (_, ours) = UnixStream::pair().unwrap();
    Net::new(&config, Some(FrameStream::new(ours.into()).unwrap()), &[iothread(0, false)])
}

#[test]
fn a_stream_offers_what_a_stream_can() {
    let net = made(|config| config.mtu = Some(9000)).unwrap();
    let features = net.features();
    for offered in [MAC, MTU, STATUS, CONTROL_QUEUE, MERGEABLE_BUFFERS, EVENT_IDX, INDIRECT_DESCRIPTORS] {
        assert_ne!(features & offered, 0, "{offered:#x}");
    }
    assert_eq!(features & (OFFLOADS | MULTI_QUEUE), 0);
    assert_eq!((net.device_id(), net.queue_sizes()), (1, &[QUEUE_SIZE; 3][..]));
    let mut config = [0xff; 16];
    net.read_config(0, &mut config);
    let expected = [0x52, 0x54, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23, 0, 0, 0, 0];
    assert_eq!(config, expected, "address, link, pairs, mtu");
    assert_eq!(made(|_| {}).unwrap().features() & MTU, 0);
}

#[test]
fn a_device_that_cannot_be_is_refused() {
    let refused = |change: fn(&mut config::Net)| made(change).unwrap_err();
    for size in [0, 1, 48, 65_535] {
        let error = made(|config| config.queue_size = size).unwrap_err();
        assert!(matches!(error, NetError::QueueSize { .. }), "{error}");
    }
    for mapped in [0, 1, 2, 4] {
        let error = made(|config| config.virtqueues = vec![0; mapped]).unwrap_err();
        assert!(matches!(error, NetError::Mapping { .. }), "{error}");
    }
    let error = refused(|config| config.virtqueues = vec![0; 5]);
    assert!(matches!(error, NetError::PairsOfAStream { pairs: 2, .. }), "{error}");
    let error = refused(|config| config.virtqueues = vec![0, 0, 7]);
    assert!(matches!(error, NetError::NoSuchIoThread { queue: 2, iothread: 7, .. }), "{error}");
    for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        let error = made(|config| config.mac = mac).unwrap_err();
        assert!(matches!(error, NetError::Mac { .. }), "{error}");
    }
    assert!(matches!(refused(|config| config.mtu = Some(67)), NetError::Mtu { mtu: 67, .. }));
    let plain = [config(NetBackend::Stream, 1)];
    let error = Net::of_machine(&plain, Vec::new(), &[iothread(0, false)]).unwrap_err();
    assert!(matches!(error, NetError::Streams { wanted: 1, given: 0 }), "{error}");
    let error = Net::of_machine(&[], vec![Bench::new(false).stream.clone()], &[]).unwrap_err();
    assert!(matches!(error, NetError::Streams { wanted: 0, given: 1 }), "{error}");
}

#[test]
fn every_command_but_the_one_that_is_offered_is_refused() {
    let mut bench = Bench::new(true);
    bench.net.reset();
    let mut control = NetDriver::new(&bench.ram, 2);
    bench.net.activate(ALL, vec![control.queue.device_side(2)]).unwrap();
    let at = control.data;
    let commands: [&[u8]; 6] = [&[4, 0, 1, 0], &[0, 0, 1], &[1, 1, 0, 0, 0, 0, 0, 0], &[4], &[], &[0xff; 64]];
    for command in commands {
        control.put(0, command);
        control.put(100, &[0x77]);
        // In two pieces, as drivers do it.
        let first = command.len().min(2) as u32;
        let mut chain =
            vec![readable(at, first), readable(at + u64::from(first), command.len() as u32 - first)];
        chain.push(writable(at + 100, 1));
        let head = control.queue.add(&chain).unwrap();
        control.queue.kick();
        assert_eq!(control.queue.wait_used(), (head, 1));
        assert_eq!(control.get(100, 1), [1], "{command:?}: the driver did not take MQ");
    }
    for chain in [
        vec![readable(at, 4)],
        vec![readable(u64::MAX, 4), writable(at + 100, 1)],
        vec![writable(u64::MAX, 1)],
    ] {
        let head = control.queue.add(&chain).unwrap();
        control.queue.kick();
        assert_eq!(control.queue.wait_used().0, head);
    }
    assert_eq!((bench.counts(2).packets, bench.counts(2).dropped), (9, 9));
    assert_eq!(bench.counts(2).kind, QueueKind::Control);
}

#[test]
fn queues_that_the_driver_did_not_ask_for_are_not_served() {
    let mut bench = Bench::new(false);
    bench.net.reset();
    let control = NetDriver::new(&bench.ram, 2);
    let error = bench.net.activate(ALL & !CONTROL_QUEUE, vec![control.queue.device_side(2)]).unwrap_err();
    assert!(error.to_string().contains("queue 2"), "{error}");
    let error = bench.net.activate(ALL, vec![control.queue.device_side(3)]).unwrap_err();
    assert!(error.to_string().contains("no such queue"), "{error}");
}

#[test]
fn one_queue_is_stopped_and_started_while_the_other_goes_on() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        bench.tx.send(&frame(1, 60));
        assert!(bench.net.stop_queue(0).is_some());
        bench.arrives(&frame(2, 60));
        bench.tx.send(&frame(3, 60));
        bench.rx = NetDriver::new(&bench.ram, 0);
        bench.net.start_queue(bench.rx.queue.device_side(0)).unwrap();
        let head = bench.rx.offer(&[(0, 2048)]);
        bench.rx.queue.kick();
        assert_eq!(bench.rx.queue.wait_used(), (head, 72));
        assert_eq!(bench.rx.get(12, 60), frame(2, 60));
    }
}
