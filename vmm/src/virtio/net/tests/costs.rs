//! What a frame costs over a stream, beside a loop that does nothing but write and read the same bytes on such a socket:
//! `cargo test --release -p vmprof-vmm costs_of_a_frame -- --ignored --nocapture`. The driver's mock is a part of what is
//! measured, and slower than a kernel's driver.

use std::time::Instant;

use super::*;

const FRAMES: usize = 64_000;
const BYTES: usize = 1_514;
/// Buffers of the driver's, one descriptor each.
const BUFFERS: u64 = 64;

/// Frames a second.
fn rate(run: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    run();
    FRAMES as f64 / begun.elapsed().as_secs_f64()
}

/// Reads until all frames came, as much as there is with each call.
fn read_all(mut peer: UnixStream) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut left, mut room) = (FRAMES * (BYTES + 4), vec![0; 128 << 10]);
        while left > 0 {
            left -= peer.read(&mut room).unwrap();
        }
    })
}

/// Writes all frames, so many with each call.
fn write_all(mut peer: UnixStream, batch: usize) -> std::thread::JoinHandle<()> {
    let some: Vec<u8> = (0..batch).flat_map(|tag| encoded(&frame(tag, BYTES))).collect();
    std::thread::spawn(move || (0..FRAMES / batch).for_each(|_| peer.write_all(&some).unwrap()))
}

fn bare(batch: usize) -> f64 {
    let (one, other) = UnixStream::pair().unwrap();
    rate(|| {
        let (reader, writer) = (read_all(one), write_all(other, batch));
        writer.join().unwrap();
        reader.join().unwrap();
    })
}

fn transmitted(batch: usize) -> f64 {
    let mut bench = Bench::new(false);
    let reader = read_all(bench.peer.try_clone().unwrap());
    bench.tx.put(0, &[&[0; HEADER_BYTES][..], &frame(1, BYTES)].concat());
    let at = bench.tx.data;
    rate(|| {
        for _ in 0..FRAMES / batch {
            for _ in 0..batch {
                bench.tx.queue.add(&[readable(at, (HEADER_BYTES + BYTES) as u32)]).unwrap();
            }
            bench.tx.queue.kick();
            for _ in 0..batch {
                bench.tx.queue.wait_used();
            }
        }
        reader.join().unwrap();
    })
}

fn received(batch: usize) -> f64 {
    let mut bench = Bench::new(false);
    for at in 0..BUFFERS {
        bench.rx.offer(&[(at * 2048, 2048)]);
    }
    bench.rx.queue.kick();
    rate(|| {
        let writer = write_all(bench.peer.try_clone().unwrap(), batch);
        for at in 0..FRAMES as u64 {
            bench.rx.queue.wait_used();
            bench.rx.offer(&[(at % BUFFERS * 2048, 2048)]);
            bench.rx.queue.kick();
        }
        writer.join().unwrap();
    })
}

#[test]
#[ignore = "a measurement: alone, and in a release build"]
fn costs_of_a_frame() {
    println!("frames of {BYTES} bytes a second, medians of five");
    for batch in [1, 8, 64] {
        let mut rates = [[0.0; 5]; 3];
        for round in 0..5 {
            for (rates, measure) in rates.iter_mut().zip([bare, transmitted, received]) {
                rates[round] = measure(batch);
            }
        }
        let [bare, transmitted, received] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[2]
        });
        println!(
            "batches of {batch}: bare {bare:.0}, transmitted {transmitted:.0} ({:.2}), received {received:.0} ({:.2})",
            transmitted / bare,
            received / bare
        );
    }
}
