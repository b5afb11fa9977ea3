//! Drivers and peers that break the rules: dropped, counted, and nobody else notices.

use proptest::prelude::*;

use super::*;

#[test]
fn frames_that_cannot_be_are_dropped_and_given_back() {
    let mut bench = Bench::with(true, ALL, |config| config.mtu = Some(1500));
    let data = bench.tx.data;
    bench.tx.put(0, &vec![0; 70_000]);
    let cases: [(&str, Vec<_>); 9] = [
        ("no bytes", vec![readable(data, 0)]),
        ("half a header", vec![readable(data, 11)]),
        ("a header alone", vec![readable(data, 12)]),
        ("too short for Ethernet", vec![readable(data, 12 + 13)]),
        ("longer than the mtu", vec![readable(data, 12 + 1519)]),
        ("longer than anything", vec![readable(data, 70_000)]),
        ("nothing to read", vec![writable(data, 200)]),
        ("no memory", vec![readable(data, 12), readable(u64::MAX - 4, 100)]),
        ("as long as can be said", vec![readable(data, 12), readable(0, u32::MAX)]),
    ];
    for (at, (name, chain)) in (1..).zip(cases) {
        let head = bench.tx.queue.add(&chain).unwrap();
        bench.tx.queue.kick();
        assert_eq!(bench.tx.queue.wait_used(), (head, 0), "{name}");
        assert_eq!((bench.counts(1).packets, bench.counts(1).dropped), (0, at), "{name}");
    }
    for (at, byte) in [(0, 1), (1, 1), (1, 3), (1, 0x84)] {
        // Offloads that were not offered.
        bench.tx.frame(0, &frame(1, 100));
        bench.tx.put(at, &[byte]);
        bench.tx.queue.kick();
        bench.tx.queue.wait_used();
    }
    assert_eq!((bench.counts(1).packets, bench.counts(1).dropped), (0, 13));
    bench.tx.send(&frame(1, 1518));
    assert_eq!(bench.left(), frame(1, 1518), "the next one goes");
    assert!(!bench.net.distress().unwrap().is_raised());
}

#[test]
fn buffers_that_hold_no_frame_are_given_back_and_the_frame_takes_the_next() {
    for features in [ALL, ALL & !MERGEABLE_BUFFERS] {
        let mut bench = Bench::with(false, features, |_| {});
        let data = bench.rx.data;
        let chains = [
            vec![writable(data, 0)],
            vec![writable(data, 11)],
            vec![readable(data, 2048)],
            vec![writable(u64::MAX - 1, 2048)],
            vec![writable(data, 100), writable(1 << 40, 2048)],
        ];
        let mut heads: Vec<u16> = chains.iter().map(|chain| bench.rx.queue.add(chain).unwrap()).collect();
        heads.push(bench.rx.offer(&[(4096, 2048)]));
        bench.rx.queue.kick();
        bench.arrives(&frame(1, 700));
        for head in &heads[..5] {
            assert_eq!(bench.rx.queue.wait_used(), (*head, 0));
        }
        assert_eq!(bench.rx.queue.wait_used(), (heads[5], 712));
        assert_eq!(bench.rx.get(4096 + 12, 700), frame(1, 700));
        assert_eq!((bench.counts(0).packets, bench.counts(0).dropped), (1, 5));
    }
}

#[test]
fn frames_of_the_peer_that_cannot_be_are_dropped() {
    let mut bench = Bench::with(true, ALL, |config| config.mtu = Some(1500));
    let head = bench.rx.offer(&[(0, 4096)]);
    bench.rx.queue.kick();
    for bytes in [0, 1, 13, 1519, LONGEST_FRAME] {
        bench.arrives(&frame(1, bytes));
    }
    bench.arrives(&frame(2, 1518));
    assert_eq!(bench.rx.queue.wait_used(), (head, 1530));
    assert_eq!((bench.counts(0).packets, bench.counts(0).dropped), (1, 5));
}

#[test]
fn a_peer_that_announces_what_cannot_be_loses_the_link() {
    for length in [LONGEST_FRAME as u32 + 1, u32::MAX] {
        let mut bench = Bench::new(false);
        bench.rx.offer(&[(0, 4096)]);
        bench.rx.queue.kick();
        bench.peer.write_all(&length.to_be_bytes()).unwrap();
        // The peer is told: its next read ends.
        assert_eq!(bench.peer.read(&mut [0]).unwrap(), 0);
        assert!(bench.stream.is_closed() && !bench.net.stats().snapshot().link);
        bench.tx.send(&frame(1, 60));
        assert_eq!(bench.counts(1).dropped, 1);
    }
}

#[test]
fn a_frame_that_no_ring_of_the_drivers_holds_is_dropped_and_the_next_comes() {
    let mut bench = Bench::new(true);
    // Half of the ring in buffers of 20 bytes: 640 in all.
    let heads: Vec<u16> = (0..32).map(|at| bench.rx.offer(&[(at * 64, 20)])).collect();
    bench.rx.queue.kick();
    bench.arrives(&frame(1, 1000));
    bench.until_dropped(0, 1);
    bench.arrives(&frame(2, 600));
    // 612 bytes are 30 buffers and 12 bytes.
    for (at, head) in heads.iter().take(31).enumerate() {
        assert_eq!(bench.rx.queue.wait_used(), (*head, if at < 30 { 20 } else { 12 }));
    }
    assert_eq!(bench.rx.get(0, 12), header::plain(31));
}

#[test]
fn a_broken_ring_needs_a_reset_and_the_other_queues_go_on() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        // A chain in a circle.
        let piece = writable(bench.rx.data, 16);
        bench.rx.queue.write_descriptor(0, piece, mock::NEXT, 0);
        bench.rx.queue.offer(0);
        bench.arrives(&frame(1, 60));
        let distress = bench.net.distress().unwrap();
        while !distress.is_raised() {
            std::thread::yield_now();
        }
        bench.tx.send(&frame(2, 60));
        assert_eq!(bench.left(), frame(2, 60));
        assert!(bench.net.stats().snapshot().fault.unwrap().contains("virtqueue 0"));
        bench.tx.queue.set_available(10_000);
        bench.tx.queue.doorbell.write(1).unwrap();
        bench.net.reset();
        assert!(!distress.is_raised() && bench.net.stats().snapshot().fault.is_none());
    }
}

#[test]
fn a_packed_ring_that_repeats_itself_does_not_hold_the_thread() {
    let mut bench = Bench::new(true);
    // Chains without end, each of them refused, beside a queue that works.
    for _ in 0..5 {
        let head = bench.tx.queue.add(&[readable(bench.tx.data, 1)]).unwrap();
        bench.tx.queue.offer_in_flight(head);
        bench.tx.queue.doorbell.write(1).unwrap();
    }
    let head = bench.rx.offer(&[(0, 2048)]);
    bench.rx.queue.kick();
    bench.arrives(&frame(1, 60));
    assert_eq!(bench.rx.queue.wait_used(), (head, 72));
}

/// A descriptor chain at random: mostly in memory, of any length and direction.
fn chains() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
    let address = prop_oneof![8 => 0..(4 * MIB as u64), 1 => any::<u64>()];
    let len = prop_oneof![6 => 0..3000_u32, 1 => any::<u32>()];
    proptest::collection::vec((address, len, any::<bool>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is in the rings and comes from the peer: no panic, no hang, and a reset ends it. Buffers may lie on the rings
    /// themselves, so what the device writes there is the driver's fault as well.
    #[test]
    fn random_rings_and_frames_end_in_a_reset(
        ring: bool,
        merges: bool,
        receive in proptest::collection::vec(chains(), 0..12),
        transmit in proptest::collection::vec(chains(), 0..12),
        jump in proptest::option::of(any::<u16>()),
        bytes in proptest::collection::vec(any::<u8>(), 0..4000),
        frames in proptest::collection::vec(0..3000_usize, 0..10),
    ) {
        let mut bench = Bench::with(ring, if merges { ALL } else { ALL & !MERGEABLE_BUFFERS }, |_| {});
        let chain = |chain: &[(u64, u32, bool)]| -> Vec<_> {
            let of = |(address, len, written): &(u64, u32, bool)| {
                if *written { writable(*address, *len) } else { readable(*address, *len) }
            };
            chain.iter().map(of).collect()
        };
        for frames in frames {
            // The peer may be gone by then.
            let _ = bench.peer.write_all(&encoded(&frame(1, frames)));
        }
        receive.iter().for_each(|descriptors| { bench.rx.queue.add(&chain(descriptors)); });
        transmit.iter().for_each(|descriptors| { bench.tx.queue.add(&chain(descriptors)); });
        bench.rx.queue.doorbell.write(1).unwrap();
        bench.tx.queue.doorbell.write(1).unwrap();
        bench.peer.set_nonblocking(true).unwrap();
        let _ = bench.peer.write_all(&bytes);
        let _ = bench.peer.read(&mut [0; 4096]);
        if let Some(jump) = jump {
            bench.rx.queue.set_available(jump);
            bench.tx.queue.set_available(jump.wrapping_mul(3));
            bench.rx.queue.doorbell.write(1).unwrap();
            bench.tx.queue.doorbell.write(1).unwrap();
        }
        bench.net.reset();
        // The thread is there, and serves the next driver unless the peer lost the stream.
        bench.tx = NetDriver::new(&bench.ram, 1);
        bench.net.activate(ALL, vec![bench.tx.queue.device_side(1)]).unwrap();
        if bench.stream.is_closed() {
            bench.tx.send(&frame(1, 60));
        }
        bench.net.reset();
    }
}
