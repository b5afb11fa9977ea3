//! libblkio's driver as the client. Its memory is looked at through the file that it shares, as the server does.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use super::*;

const BLOCK: usize = 4096;

struct Client {
    /// Declared first: queues end before the device does.
    queues: Vec<Blkioq>,
    region: MemoryRegion,
    shared: File,
    device: Blkio,
}

impl Client {
    fn start(path: &Path, queues: usize) -> Client {
        let mut device = Blkio::new("virtio-blk-vhost-user").unwrap();
        device.set_str("path", path.to_str().unwrap()).unwrap();
        device.connect().unwrap();
        device.set_i32("num-queues", queues as i32).unwrap();
        device.set_i32("queue-size", 128).unwrap();
        let queues = device.start().unwrap().queues;
        let region = device.alloc_mem_region(64 * BLOCK).unwrap();
        device.map_mem_region(&region).unwrap();
        let shared = format!("/proc/self/fd/{}", region.fd);
        let shared = File::options().read(true).write(true).open(shared).unwrap();
        Client { queues, region, shared, device }
    }

    fn at(&self, block: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + block * BLOCK)
    }

    fn put(&self, block: usize, byte: u8) {
        self.shared
            .write_all_at(&[byte; BLOCK], self.region.fd_offset as u64 + (block * BLOCK) as u64)
            .unwrap();
    }

    fn get(&self, block: usize) -> Vec<u8> {
        let mut found = vec![0; BLOCK];
        self.shared.read_exact_at(&mut found, self.region.fd_offset as u64 + (block * BLOCK) as u64).unwrap();
        found
    }

    /// Waits for so many requests of a queue, all of which succeed.
    fn finish(&mut self, queue: usize, count: usize) {
        let mut done: Vec<_> = (0..count).map(|_| MaybeUninit::<Completion>::uninit()).collect();
        let ended = self.queues[queue].do_io(&mut done, count, None, None).unwrap();
        assert_eq!(ended, count);
    }
}

#[test]
fn a_front_end_that_nobody_here_wrote_reads_what_it_wrote() {
    let served = Served::new();
    for round in 0..2_u8 {
        let mut client = Client::start(&served.path, 2);
        assert_eq!(client.device.get_u64("capacity").unwrap(), DISK_BYTES);
        for queue in 0..2 {
            let first = queue * 16;
            for block in first..first + 16 {
                client.put(block, 1 + round + block as u8);
                let (from, flags) = (client.at(block), ReqFlags::empty());
                client.queues[queue].write((block * BLOCK) as u64, from, BLOCK, block, flags);
            }
            client.finish(queue, 16);
            client.queues[queue].flush(0, ReqFlags::empty());
            client.finish(queue, 1);
            for block in first..first + 16 {
                let (to, flags) = (client.at(block + 32), ReqFlags::empty());
                client.queues[queue].read((block * BLOCK) as u64, to, BLOCK, block, flags);
            }
            client.finish(queue, 16);
        }
        for block in 0..32 {
            assert_eq!(client.get(block + 32), [1 + round + block as u8; BLOCK], "block {block}");
        }
        let file = File::open(served.source()).unwrap();
        let mut found = vec![0; BLOCK];
        file.read_exact_at(&mut found, 31 * BLOCK as u64).unwrap();
        assert_eq!(found, [32 + round; BLOCK]);
        drop(client);
        assert_eq!((served.event(), served.event()), (Event::Connected, Event::Left { how: Left::ByItself }));
    }
    let done = served.stop();
    // Each queue was served by a thread of its own, and each had its half.
    for queue in &done.virtqueues {
        assert_eq!(
            (queue.iothread, queue.reads, queue.writes, queue.flushes),
            (Some(queue.vq.into()), 32, 32, 2)
        );
        assert_eq!(queue.errors, 0);
    }
}
