//! What a request that ended adds to its queue's counters.

use super::BlkQueue;
use crate::virtio::blk::request::{Kind, Request, Status};

impl BlkQueue {
    /// `read`: the bytes that it gave the driver, beside its status.
    pub(super) fn count(&self, head: u16, request: Request, status: Status, read: u64) {
        let counters = &self.counters;
        let is_well = status == Status::Ok;
        match request.kind {
            Kind::Read { .. } => {
                counters.reads.add(1);
                counters.read_bytes.add(read);
            }
            Kind::Write { .. } => {
                counters.writes.add(1);
                counters.written_bytes.add(if is_well { request.readable } else { 0 });
            }
            Kind::Flush => counters.flushes.add(1),
            Kind::Discard => {
                counters.discards.add(1);
                counters.discarded_bytes.add(if is_well { self.erased_bytes(head) } else { 0 });
            }
            Kind::WriteZeroes => {
                counters.write_zeroes.add(1);
                counters.zeroed_bytes.add(if is_well { self.erased_bytes(head) } else { 0 });
            }
            Kind::GetId | Kind::Refused(_) => counters.others.add(1),
        }
        if !is_well {
            self.count_failed(request);
        }
    }

    #[cold]
    fn count_failed(&self, request: Request) {
        let counters = &self.counters;
        counters.errors.add(1);
        match request.kind {
            Kind::Read { .. } => counters.failed_reads.add(1),
            Kind::Write { .. } => counters.failed_writes.add(1),
            Kind::Flush => counters.failed_flushes.add(1),
            Kind::Discard => counters.failed_discards.add(1),
            Kind::WriteZeroes => counters.failed_write_zeroes.add(1),
            Kind::GetId | Kind::Refused(_) => {}
        }
    }
}
