//! The limit: one thread that reads the file through an io_uring and does nothing else. It has no driver, no rings in guest
//! memory and nobody to tell; its ring is set up as the kernel likes it best.

// UNSAFETY: entries point to buffers that the kernel writes.
#![allow(unsafe_code, reason = "pushing io_uring entries")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use vm_memory::{VolatileMemory as _, VolatileSlice};

use super::Tally;
use crate::client::Load;
use crate::disk::stamp;
use crate::error::{Doing as _, Error};
use crate::point::Places;
use crate::usage::Whose;

/// Reads until the load's time is over; `data` has room for a request of each slot.
pub fn run(file: &File, data: &VolatileSlice<'_>, load: &Load) -> Result<Tally, Error> {
    let doing = || "the bare loop's io_uring could not be set up".to_owned();
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(load.depth.next_power_of_two())
        .doing(doing)?;
    ring.submitter().register_files(&[file.as_raw_fd()]).doing(doing)?;
    let mut bare = Bare {
        places: Places::new(load.workload, load.area_bytes, load.seed),
        offsets: vec![0; load.depth as usize],
        free: (0..load.depth as usize).collect(),
        bytes: load.workload.bytes(),
        done: 0,
        wrong: 0,
        enters: 0,
    };
    let begun = Instant::now();
    while begun.elapsed() < load.warmup {
        bare.turn(&mut ring, data)?;
    }
    let (usage, done, enters) = (Whose::Own.usage()?, bare.done, bare.enters);
    let start = Instant::now();
    while start.elapsed() < load.window {
        bare.turn(&mut ring, data)?;
    }
    let wall = start.elapsed();
    let server = Whose::Own.usage()?.since(usage);
    let (requests, enters) = (bare.done - done, bare.enters - enters);
    while bare.free.len() < bare.offsets.len() {
        ring.submit_and_wait(1).doing(|| "the bare loop's last requests".to_owned())?;
        bare.reap(&mut ring, data)?;
    }
    Ok(Tally { requests, wall, server, syscalls: enters, wrong: bare.wrong })
}

struct Bare {
    places: Places,
    offsets: Vec<u64>,
    free: Vec<usize>,
    bytes: u32,
    done: u64,
    wrong: u64,
    enters: u64,
}

impl Bare {
    fn turn(&mut self, ring: &mut IoUring, data: &VolatileSlice<'_>) -> Result<(), Error> {
        let base = data.ptr_guard_mut().as_ptr();
        let mut submission = ring.submission();
        while let Some(slot) = self.free.pop() {
            let offset = self.places.next();
            self.offsets[slot] = offset;
            let buffer = base.wrapping_add(slot * self.bytes as usize);
            let entry = opcode::Read::new(types::Fixed(0), buffer, self.bytes)
                .offset(offset)
                .build()
                .user_data(slot as u64);
            // SAFETY: the buffer lies in `data`, which the caller keeps mapped; its slot is used again only after the entry's
            // completion, and `run` returns only when all have come.
            let pushed = unsafe { submission.push(&entry) };
            if pushed.is_err() {
                return Err(Error::Asked("the bare loop's ring is smaller than its depth".to_owned()));
            }
        }
        drop(submission);
        self.enters += 1;
        ring.submit_and_wait(1).doing(|| "the bare loop could not wait".to_owned())?;
        self.reap(ring, data)
    }

    fn reap(&mut self, ring: &mut IoUring, data: &VolatileSlice<'_>) -> Result<(), Error> {
        for entry in ring.completion() {
            let slot = entry.user_data() as usize;
            let word = data.get_ref::<u64>(slot * self.bytes as usize).map_or(0, |word| word.load());
            let right = entry.result() == self.bytes as i32 && word == stamp(self.offsets[slot]);
            self.wrong += u64::from(!right);
            self.done += 1;
            self.free.push(slot);
        }
        Ok(())
    }
}
