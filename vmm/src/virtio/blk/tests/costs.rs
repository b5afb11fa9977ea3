//! What a request costs the IOThread. In system calls and CPU time it is no test but a measurement, to be run alone and in a
//! release build (`cargo test --release -p vmprof-vmm costs -- --ignored --nocapture`). The file is made in TMPDIR, which should
//! have direct I/O. The environment chooses: `RUNS`, `DEPTHS=1,32`, `AIO` (io_uring, sqpoll, registered, native, threads),
//! `POLL` in nanoseconds, `SEQUENTIAL`, `SCALE` (a divisor of the number of requests),
//! `LATENCY`.

use std::time::Duration;

use super::*;
use crate::iothread::Change;

const DISK_BYTES: u64 = 256 << 20;
const BLOCK: u64 = 4096;

/// Nanoseconds that a thread of ours has run on a CPU.
fn cpu_time(tid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Keeps `depth` random reads in flight until `total` have ended.
fn reads(driver: &mut BlkDriver, depth: u16, total: u32, sequential: bool) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut place = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % (DISK_BYTES / BLOCK) * 8
    };
    let mut next = 0;
    let mut sector = || match sequential {
        true => {
            next += 8;
            next % (DISK_BYTES / 512)
        }
        false => place(),
    };
    let mut tags = vec![0; usize::from(driver.queue.setup().size)];
    let mut offered = 0;
    for tag in 0..depth {
        let head = driver.request(tag, 0, sector(), BLOCK * u64::from(tag), BLOCK as u32);
        tags[usize::from(head)] = tag;
        offered += 1;
    }
    driver.queue.kick();
    let mut ended = 0;
    while ended < total {
        let mut found = Some(driver.queue.wait_used());
        let mut again = false;
        while let Some((head, _)) = found {
            ended += 1;
            if offered < total {
                let tag = tags[usize::from(head)];
                let head = driver.request(tag, 0, sector(), BLOCK * u64::from(tag), BLOCK as u32);
                tags[usize::from(head)] = tag;
                offered += 1;
                again = true;
            }
            found = driver.queue.take_used();
        }
        if again {
            driver.queue.kick();
        }
    }
}

#[test]
fn requests_that_lie_ready_are_handed_over_in_batches_that_grow() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let config = config::Disk { queue_size: 512, ..disk_config(&path, CacheMode::Writeback, &[0]) };
    let mut blk = Blk::new(&config, std::slice::from_ref(&thread)).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 512);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    driver.run(0, 0, 0, 4096);
    let without_waiting = || {
        let counted = thread.snapshot();
        counted.enters - counted.wakeups
    };
    let before = without_waiting();
    for tag in 0..120 {
        driver.request(tag, 0, 8 * u64::from(tag), BLOCK * u64::from(tag), BLOCK as u32);
    }
    driver.queue.kick();
    for _ in 0..120 {
        driver.queue.wait_used();
    }
    // 8, 16, 32 and 64; one more where the kernel held completions back. Always eight would be 15.
    let calls = without_waiting() - before;
    assert!((3..=8).contains(&calls), "{calls} calls");
}

#[test]
#[ignore = "a measurement: alone, and in a release build"]
fn costs_of_a_request() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk");
    let zeros = vec![7; 1 << 20];
    let file = std::fs::File::create(&path).unwrap();
    (0..DISK_BYTES >> 20).for_each(|at| file.write_all_at(&zeros, at << 20).unwrap());
    file.sync_all().unwrap();
    let number =
        |name: &str, unsaid: u64| std::env::var(name).map_or(unsaid, |text| text.parse::<u64>().unwrap());
    let aio = std::env::var("AIO").unwrap_or_else(|_| "io_uring".to_owned());
    tested::run_over(match aio.as_str() {
        "io_uring" | "registered" => tested::Over::IoUring,
        "sqpoll" => tested::Over::SqPoll,
        "native" => tested::Over::Native,
        "threads" => tested::Over::Threads,
        other => panic!("AIO={other}"),
    });
    let depths = std::env::var("DEPTHS").unwrap_or_else(|_| "1,32,128".to_owned());
    // With LATENCY each point is measured without times taken and with, in turn.
    let times: &[bool] = if std::env::var_os("LATENCY").is_some() { &[false, true] } else { &[false] };
    println!("depth  timed      iops   cpu ns  enters  sleeps  interrupts  kicks  poll hits  misses");
    for _ in 0..number("RUNS", 3) {
        let points = depths.split(',').flat_map(|depth| {
            let depth = depth.parse::<u16>().unwrap();
            times.iter().map(move |takes_times| (depth, *takes_times))
        });
        for (depth, takes_times) in points {
            let total = if depth == 1 { 10_000 } else { 60_000 } / number("SCALE", 1) as u32;
            let polling = config::Polling { max_ns: number("POLL", 0), ..config::Polling::default() };
            let mut own = config::IoThread { polling, ..tested::iothread(0, "iothread0") };
            own.ring.registered_memory = aio == "registered";
            let (ram, thread) = (mock::ram(4 * MIB), IoThread::spawn(&own).unwrap());
            thread.register_memory(&ram).unwrap();
            let config = config::Disk { queue_size: 512, ..disk_config(&path, CacheMode::None, &[0]) };
            let mut blk = Blk::new(&config, std::slice::from_ref(&thread)).unwrap();
            let mut driver = BlkDriver::new(&ram, 0, 512);
            blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
            if takes_times {
                thread.change(Change { latency: Some(true), ..Change::default() }).unwrap();
            }
            reads(&mut driver, depth, 500, false);
            let (cpu, before, begun) = (cpu_time(thread.tid()), thread.snapshot(), std::time::Instant::now());
            let counted = blk.stats().snapshot().virtqueues[0].clone();
            let kicks = driver.queue.kicks;
            reads(&mut driver, depth, total, std::env::var_os("SEQUENTIAL").is_some());
            let time: Duration = begun.elapsed();
            let (cpu, after) = (cpu_time(thread.tid()) - cpu, thread.snapshot());
            let counts = blk.stats().snapshot().virtqueues[0].clone();
            let each = |count: u64| count as f64 / f64::from(total);
            println!(
                "{depth:5}  {takes_times:5} {:9.0} {:8.0} {:7.3} {:7.3} {:11.3} {:6.3} {:10.3} {:7.3}",
                f64::from(total) / time.as_secs_f64(),
                each(cpu),
                each(after.enters - before.enters),
                each(after.wakeups - before.wakeups),
                each(counts.interrupts - counted.interrupts),
                each(driver.queue.kicks - kicks),
                each(after.poll_hits - before.poll_hits),
                each(after.poll_misses - before.poll_misses),
            );
        }
    }
}
