//! Frames in both directions over a stream.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[test]
fn frames_go_both_ways_over_every_engine() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        for (at, bytes) in [14, 60, 1514, 9000, LONGEST_FRAME].into_iter().enumerate() {
            let sent = frame(at, bytes);
            bench.tx.send(&sent);
            assert_eq!(bench.left(), sent);
            let head = bench.rx.offer(&[(0, 5), (5, 70_000)]);
            bench.rx.queue.kick();
            let back = frame(at + 100, bytes);
            let (mut peer, whole) = (bench.peer.try_clone().unwrap(), encoded(&back));
            let writer = std::thread::spawn(move || peer.write_all(&whole).unwrap());
            assert_eq!(bench.rx.queue.wait_used(), (head, (12 + bytes) as u32), "{bytes} bytes");
            writer.join().unwrap();
            assert_eq!(bench.rx.get(0, 12), header::plain(1));
            assert_eq!(bench.rx.get(12, bytes), back);
        }
        let (rx, tx) = (bench.counts(0), bench.counts(1));
        assert_eq!((rx.packets, tx.packets, rx.dropped, tx.dropped), (5, 5, 0, 0));
        assert_eq!((rx.bytes, rx.kind, rx.iothread), (tx.bytes, QueueKind::Receive, Some(0)));
    }
}

#[test]
fn drivers_without_event_indices_are_told_too() {
    let mut bench = Bench::with(false, ALL & !EVENT_IDX, |_| {});
    for tag in 0..50 {
        bench.tx.send(&frame(tag, 60));
        assert_eq!(bench.left(), frame(tag, 60));
        let head = bench.rx.offer(&[(0, 2048)]);
        bench.rx.queue.kick();
        bench.arrives(&frame(tag, 80));
        assert_eq!(bench.rx.queue.wait_used(), (head, 92));
    }
}

#[test]
fn a_frame_lies_over_as_many_buffers_as_it_takes() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        let heads: Vec<u16> =
            (0..30).map(|at| bench.rx.offer(&[(at * 2048, 100), (at * 2048 + 100, 50)])).collect();
        bench.rx.queue.kick();
        let long = frame(1, 12 + 150 * 3);
        bench.arrives(&long);
        // Header and frame: 474 bytes in buffers of 150.
        let expected = [(heads[0], 150), (heads[1], 150), (heads[2], 150), (heads[3], 24)];
        let mut found = Vec::new();
        for expected in expected {
            assert_eq!(bench.rx.queue.wait_used(), expected);
        }
        assert_eq!(bench.rx.get(0, 12), header::plain(4));
        for at in 0..4 {
            found.extend(bench.rx.get(at * 2048, 150));
        }
        assert_eq!(found[12..12 + long.len()], long);
        bench.arrives(&frame(2, 138));
        assert_eq!(bench.rx.queue.wait_used(), (heads[4], 150), "exactly one");
        assert_eq!(bench.rx.get(4 * 2048, 12), header::plain(1));
    }
}

#[test]
fn a_driver_that_merges_no_buffers_has_what_does_not_fit_dropped() {
    let mut bench = Bench::with(true, ALL & !MERGEABLE_BUFFERS, |_| {});
    let first = bench.rx.offer(&[(0, 100)]);
    let second = bench.rx.offer(&[(2048, 1600)]);
    bench.rx.queue.kick();
    bench.arrives(&frame(1, 89));
    bench.until_dropped(0, 1);
    bench.arrives(&frame(2, 88));
    assert_eq!(bench.rx.queue.wait_used(), (first, 100), "the buffer was kept for the next");
    bench.arrives(&frame(3, 1514));
    assert_eq!(bench.rx.queue.wait_used(), (second, 1526));
    assert_eq!(bench.rx.get(2048, 12), header::plain(1));
    assert_eq!(bench.counts(0).dropped, 1);
}

#[test]
fn without_buffers_frames_wait_outside_and_go_on_at_the_doorbell() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        bench.peer.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let one = encoded(&frame(0, 1000));
        let mut sent = 0;
        // Until the socket is full: nothing is lost, and nothing is kept here without end.
        while bench.peer.write(&one).is_ok_and(|bytes| bytes == one.len()) {
            sent += 1;
        }
        assert!(sent > 10 && sent < 2_000, "{sent}");
        assert_eq!((bench.counts(0).packets, bench.counts(0).dropped), (0, 0));
        let kicks = bench.counts(0).kicks;
        for _ in 0..sent {
            let head = bench.rx.offer(&[(0, 2048)]);
            bench.rx.queue.kick();
            assert_eq!(bench.rx.queue.wait_used(), (head, 1012));
        }
        assert!(bench.counts(0).kicks > kicks, "the doorbell was asked for");
    }
}

#[test]
fn a_peer_that_does_not_read_holds_up_the_driver_and_loses_nothing() {
    for ring in [true, false] {
        let mut bench = Bench::with_little_room(ring);
        let frames: Vec<Vec<u8>> = (0..600).map(|tag| frame(tag, 2_000 + tag)).collect();
        let expected: Vec<u8> = frames.iter().flat_map(|frame| encoded(frame)).collect();
        let slot = |at: usize| (at % 30 * 4096) as u64;
        // More than the socket holds.
        for (at, frame) in frames[..30].iter().enumerate() {
            bench.tx.frame(slot(at), frame);
        }
        bench.tx.queue.kick();
        let mut reader = bench.peer.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut found = vec![0; expected.len()];
            reader.read_exact(&mut found).unwrap();
            assert!(found == expected);
        });
        for (at, frame) in frames.iter().enumerate().skip(30) {
            bench.tx.queue.wait_used();
            bench.tx.frame(slot(at), frame);
            bench.tx.queue.kick();
        }
        for _ in 0..30 {
            bench.tx.queue.wait_used();
        }
        reader.join().unwrap();
        assert_eq!(bench.counts(1).packets, 600);
    }
}

#[test]
fn a_batch_is_one_interrupt_and_few_system_calls() {
    let mut bench = Bench::new(false);
    for round in 0..20 {
        for at in 0..30 {
            bench.tx.frame(at * 2048, &frame(round, 60));
        }
        bench.tx.queue.kick();
        for _ in 0..30 {
            bench.tx.queue.wait_used();
        }
    }
    let counts = bench.counts(1);
    assert_eq!(counts.packets, 600);
    assert!(counts.interrupts < 200 && counts.kicks < 200, "{counts:?}");
}

#[test]
fn a_reset_in_the_middle_of_traffic_ends_and_the_next_driver_goes_on() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        let mut peer = bench.peer.try_clone().unwrap();
        const FRAMES: usize = 3_000;
        let bytes_of = |tag: usize| 14 + tag % 900;
        let writer = std::thread::spawn(move || {
            let mut sent = |tag| peer.write_all(&encoded(&frame(tag, bytes_of(tag))));
            (0..FRAMES).take_while(|tag| sent(*tag).is_ok()).count()
        });
        // Frames come in their order, whole, and none twice; those that a reset found in buffers are lost.
        let mut next = 0;
        for round in 0.. {
            let places: std::collections::HashMap<u16, u64> =
                (0..20).map(|at| (bench.rx.offer(&[(at * 2048, 1100)]), at * 2048)).collect();
            bench.rx.queue.kick();
            for _ in 0..if round % 3 == 0 { 1 } else { 19 } {
                let (head, written) = bench.rx.queue.wait_used();
                let found = bench.rx.get(places[&head] + 12, written as usize - 12);
                let tag = (next..FRAMES).find(|tag| frame(*tag, bytes_of(*tag)) == found);
                next = 1 + tag.expect("a frame that was sent, behind the one before");
            }
            if next > FRAMES / 2 {
                break;
            }
            bench.net.reset();
            bench.rx = NetDriver::new(&bench.ram, 0);
            bench.tx = NetDriver::new(&bench.ram, 1);
            let queues = vec![bench.rx.queue.device_side(0), bench.tx.queue.device_side(1)];
            bench.net.activate(ALL, queues).unwrap();
        }
        // Nobody reads any more: what is still to be written fails.
        drop(bench);
        writer.join().unwrap();
    }
}

#[test]
fn the_machine_that_follows_goes_on_in_the_middle_of_a_frame() {
    for ring in [true, false] {
        let whole = [encoded(&frame(7, 300)), encoded(&frame(8, 300))].concat();
        for cut in [1, 3, 4, 150, 304, 306, 500] {
            let mut bench = Bench::new(ring);
            bench.peer.write_all(&whole[..cut]).unwrap();
            // The first machine's driver has no buffers: what is whole is kept as well.
            bench.net.reset();
            let (peer, stream) = (bench.peer.try_clone().unwrap(), bench.stream.clone());
            drop(bench);
            let config = config(NetBackend::Stream, 1);
            let mut bench = Bench::over(&config, &[iothread(0, ring)], peer, stream, ALL);
            let first = bench.rx.offer(&[(0, 2048)]);
            let second = bench.rx.offer(&[(2048, 2048)]);
            bench.rx.queue.kick();
            bench.peer.write_all(&whole[cut..]).unwrap();
            assert_eq!(bench.rx.queue.wait_used(), (first, 312), "cut at {cut}");
            assert_eq!(bench.rx.queue.wait_used(), (second, 312));
            assert_eq!((bench.rx.get(12, 300), bench.rx.get(2048 + 12, 300)), (frame(7, 300), frame(8, 300)));
        }
    }
}

#[test]
fn what_a_machine_sent_in_part_the_next_one_ends() {
    for ring in [true, false] {
        let mut bench = Bench::with_little_room(ring);
        // The socket takes a part of it, which counts as the frame.
        let long = frame(3, 60_001);
        bench.tx.send(&long);
        bench.net.reset();
        let (mut peer, stream) = (bench.peer.try_clone().unwrap(), bench.stream.clone());
        drop(bench);
        let expected = [encoded(&long), encoded(&frame(4, 99))].concat();
        let reader = std::thread::spawn(move || {
            let mut found = vec![0; expected.len()];
            peer.read_exact(&mut found).unwrap();
            assert!(found == expected);
        });
        let (unused, _other) = UnixStream::pair().unwrap();
        let config = config(NetBackend::Stream, 1);
        let mut bench = Bench::over(&config, &[iothread(0, ring)], unused, stream, ALL);
        bench.tx.send(&frame(4, 99));
        reader.join().unwrap();
    }
}

#[test]
fn a_peer_that_closes_takes_the_link_down_and_frames_are_dropped() {
    for ring in [true, false] {
        let mut bench = Bench::new(ring);
        let status = |net: &Net| {
            let mut status = [0xff; 2];
            net.read_config(6, &mut status);
            u16::from_le_bytes(status)
        };
        let changes = bench.net.config_changes().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        changes.on_change(move || tell.send(()).unwrap());
        assert_eq!((status(&bench.net), changes.generation()), (1, 0));
        let (nobody, _) = UnixStream::pair().unwrap();
        drop(std::mem::replace(&mut bench.peer, nobody));
        told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!((status(&bench.net), changes.generation()), (0, 1));
        bench.tx.send(&frame(0, 60));
        assert_eq!((bench.counts(1).packets, bench.counts(1).dropped), (0, 1));
        let snapshot = bench.net.stats().snapshot();
        assert!(!snapshot.link && snapshot.fault.unwrap().contains("closed"));
        assert!(told.try_recv().is_err(), "told once");
        bench.net.reset();
        assert_eq!(status(&bench.net), 0, "a reset does not bring it back");
    }
}

#[test]
fn one_iothread_serves_nets_beside_disks_and_two_share_one_stream() {
    let (peer, ours) = UnixStream::pair().unwrap();
    let stream = FrameStream::new(ours.into()).unwrap();
    let mut config = config(NetBackend::Stream, 1);
    config.virtqueues = vec![0, 1, 0];
    let threads = [iothread(0, true), iothread(1, false)];
    let mut bench = Bench::over(&config, &threads, peer, stream, ALL);
    for tag in 0..200 {
        let head = bench.rx.offer(&[(0, 2048)]);
        bench.rx.queue.kick();
        bench.tx.send(&frame(tag, 60 + tag));
        let sent = bench.left();
        bench.arrives(&sent);
        assert_eq!(bench.rx.queue.wait_used(), (head, 72 + tag as u32));
        assert_eq!(bench.rx.get(12, 60 + tag), frame(tag, 60 + tag));
    }
    assert_eq!((bench.counts(0).iothread, bench.counts(1).iothread), (Some(0), Some(1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Frames of any size, in chains cut anywhere and a stream cut anywhere, are the same frames.
    #[test]
    fn frames_survive_any_cut(
        frames in proptest::collection::vec((14..1600_usize, 1..1600_usize), 1..30),
        cuts in proptest::collection::vec(1..4000_usize, 1..20),
    ) {
        let mut bench = Bench::new(true);
        let bytes: Vec<u8> = (0..).zip(&frames).flat_map(|(tag, (len, _))| encoded(&frame(tag, *len))).collect();
        let mut peer = bench.peer.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            let mut left = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = left.split_at(left.len().min(*cut));
                peer.write_all(now).unwrap();
                left = later;
                if left.is_empty() {
                    break;
                }
            }
        });
        for (tag, (len, cut)) in frames.iter().enumerate() {
            // Any cut of a buffer that is large enough, with room in between.
            let cut = (*cut).min(len + 11) as u32;
            let head = bench.rx.offer(&[(0, cut), (4096, 2048 - cut)]);
            bench.rx.queue.kick();
            prop_assert_eq!(bench.rx.queue.wait_used(), (head, 12 + *len as u32));
            let whole = [bench.rx.get(0, cut as usize), bench.rx.get(4096, 2048 - cut as usize)].concat();
            prop_assert_eq!(&whole[12..12 + len], frame(tag, *len));
            let sent = &whole[12..12 + len];
            bench.tx.put(0, &[0; 12]);
            bench.tx.put(12, sent);
            let at = bench.tx.data;
            let chain = [readable(at, cut), readable(at + u64::from(cut), 12 + *len as u32 - cut)];
            let chain: Vec<_> = chain.into_iter().filter(|piece| piece.len > 0).collect();
            bench.tx.queue.add(&chain).unwrap();
            bench.tx.queue.kick();
            bench.tx.queue.wait_used();
            prop_assert_eq!(bench.left(), sent);
        }
        writer.join().unwrap();
    }
}
