//! The limit: one thread that reads the file through an io_uring and does nothing else. It has no driver, no rings in guest
//! memory and nobody to tell; its ring is set up as the kernel likes it best.

use std::fs::File;
use std::time::Instant;

use vm_memory::{VolatileMemory as _, VolatileSlice};
use vmprof_sys::peers::BareReads;

use super::Tally;
use super::rig::{self, Rig};
use crate::client::Load;
use crate::disk::stamp;
use crate::error::{Doing as _, Error};
use crate::point::Places;
use crate::usage::Whose;

/// Reads until the load's time is over, into the rig's data, which has room for a request of each slot.
pub fn run(file: File, rig: &Rig, load: &Load) -> Result<Tally, Error> {
    let doing = || "the bare loop's io_uring could not be set up".to_owned();
    let data = &rig.data()?;
    let mut ring = BareReads::new(load.depth.next_power_of_two(), file, rig.ram()).doing(doing)?;
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
        ring.submit_and_wait().doing(|| "the bare loop's last requests".to_owned())?;
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
    fn turn(&mut self, ring: &mut BareReads, data: &VolatileSlice<'_>) -> Result<(), Error> {
        while let Some(slot) = self.free.pop() {
            let offset = self.places.next();
            self.offsets[slot] = offset;
            let address = rig::DATA + slot as u64 * u64::from(self.bytes);
            let started = ring.read(offset, address, self.bytes, slot as u64);
            started.doing(|| "the bare loop could not start a read".to_owned())?;
        }
        self.enters += 1;
        ring.submit_and_wait().doing(|| "the bare loop could not wait".to_owned())?;
        self.reap(ring, data)
    }

    fn reap(&mut self, ring: &mut BareReads, data: &VolatileSlice<'_>) -> Result<(), Error> {
        while let Some((tag, result)) = ring.take() {
            let slot = tag as usize;
            let word = data.get_ref::<u64>(slot * self.bytes as usize).map_or(0, |word| word.load());
            let right = result == self.bytes as i32 && word == stamp(self.offsets[slot]);
            self.wrong += u64::from(!right);
            self.done += 1;
            self.free.push(slot);
        }
        Ok(())
    }
}
