//! When the requests of a queue reached each of their stages, while times are taken. A request has its times in its head's
//! place; what ends in them is counted in the queue's histograms.

use std::sync::Arc;

use crate::iothread::latency::{self, Histogram, Latency};

#[derive(Debug)]
pub(super) struct Timing {
    latency: Arc<Latency>,
    /// By head.
    heads: Box<[Times]>,
    /// Heads with an operation that was started and not handed over.
    started: Vec<u16>,
    /// When the last completion of the queue was found.
    found_ns: u64,
    /// Of requests that ended and are not in the histogram yet.
    in_device: Alike,
    /// Requests that ended and were not shown to the driver, all of one batch.
    ended: u64,
}

/// So many requests in a row that took equally long: those of a batch do, and are counted at once.
#[derive(Debug, Clone, Copy, Default)]
struct Alike {
    nanos: u64,
    times: u64,
}

impl Alike {
    fn add(&mut self, nanos: u64, histogram: &Histogram) {
        if nanos != self.nanos {
            self.count(histogram);
            self.nanos = nanos;
        }
        self.times += 1;
    }

    fn count(&mut self, histogram: &Histogram) {
        if self.times > 0 {
            histogram.record(self.nanos, std::mem::take(&mut self.times));
        }
    }
}

/// 0 is not yet, or began before times were taken.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    taken_ns: u64,
    handed_over_ns: u64,
}

impl Timing {
    /// For a ring of so many entries.
    pub(super) fn new(latency: Arc<Latency>, size: u16) -> Self {
        let heads = vec![Times::default(); size.into()].into_boxed_slice();
        // A request has one operation at a time.
        let started = Vec::with_capacity(size.into());
        Timing { latency, heads, started, found_ns: 0, in_device: Alike::default(), ended: 0 }
    }

    pub(super) fn taken(&mut self, head: u16, at_ns: u64) {
        if let Some(times) = self.heads.get_mut(usize::from(head)) {
            *times = Times { taken_ns: at_ns, handed_over_ns: 0 };
        }
    }

    /// An operation of the request waits to be handed over.
    pub(super) fn started(&mut self, head: u16) {
        let times = self.heads.get(usize::from(head)).copied().unwrap_or_default();
        if times.taken_ns != 0 && times.handed_over_ns == 0 {
            self.started.push(head);
        }
    }

    /// Whether operations wait to be handed over.
    pub(super) fn has_started(&self) -> bool {
        !self.started.is_empty()
    }

    pub(super) fn handed_over(&mut self, at_ns: u64) {
        let mut in_queue = Alike::default();
        for head in self.started.drain(..) {
            if let Some(times) = self.heads.get_mut(usize::from(head))
                && times.taken_ns != 0
                && times.handed_over_ns == 0
            {
                in_queue.add(at_ns.saturating_sub(times.taken_ns), &self.latency.queue);
                times.handed_over_ns = at_ns;
            }
        }
        in_queue.count(&self.latency.queue);
    }

    pub(super) fn found(&mut self, at_ns: u64) {
        self.found_ns = at_ns;
    }

    /// The head goes back to the driver.
    pub(super) fn ended(&mut self, head: u16) {
        let Some(times) = self.heads.get_mut(usize::from(head)) else { return };
        let Times { handed_over_ns, .. } = std::mem::take(times);
        if handed_over_ns != 0 {
            self.in_device.add(self.found_ns.saturating_sub(handed_over_ns), &self.latency.device);
            self.ended += 1;
        }
    }

    /// The driver has been shown all that ended.
    pub(super) fn shown(&mut self) {
        let ended = std::mem::take(&mut self.ended);
        if ended > 0 {
            self.in_device.count(&self.latency.device);
            self.latency.completion.record(latency::now().saturating_sub(self.found_ns), ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_its_part_of_a_request() {
        let latency = Arc::new(Latency::default());
        let mut timing = Timing::new(Arc::clone(&latency), 4);
        let now = latency::now();
        let [taken, handed_over, found] = [10_240, 9_216, 1_024].map(|ago| now - ago);
        // Began before: nothing is known of it.
        timing.started(3);
        timing.taken(0, taken);
        timing.started(0);
        timing.taken(1, taken);
        timing.started(1);
        timing.handed_over(handed_over);
        // A second operation of the same request.
        timing.started(0);
        timing.handed_over(found);
        timing.found(found);
        [0, 1, 3].into_iter().for_each(|head| timing.ended(head));
        timing.shown();
        timing.shown();
        let told = latency.snapshot();
        assert_eq!(told.queue.buckets, [(1_024, 2)]);
        assert_eq!(told.device.buckets, [(8_192, 2)]);
        assert_eq!(told.completion.count(), 2);
        assert!(told.completion.max_ns >= 1_024);
    }

    #[test]
    #[ignore = "a measurement: in a release build, `costs_of_times -- --ignored --nocapture`"]
    fn costs_of_times() {
        const ROUNDS: u32 = 20_000;
        println!("batch  ns a request");
        for batch in [1, 8, 32] {
            let mut timing = Timing::new(Arc::default(), 64);
            let mut round = || {
                let taken = latency::now();
                (0..batch).for_each(|head| timing.taken(head, taken));
                (0..batch).for_each(|head| timing.started(head));
                timing.handed_over(latency::now());
                let found = latency::now();
                for head in 0..batch {
                    timing.found(found);
                    timing.ended(head);
                }
                timing.shown();
            };
            // The least of many: what else runs on the machine only adds to it.
            let least = (0..50).map(|_| {
                let begun = latency::now();
                (0..ROUNDS).for_each(|_| round());
                (latency::now() - begun) as f64 / f64::from(ROUNDS * u32::from(batch))
            });
            println!("{batch:5}  {:.1}", least.fold(f64::INFINITY, f64::min));
        }
    }

    #[test]
    fn what_needs_no_engine_is_not_counted_and_heads_that_do_not_exist_are_nothing() {
        let latency = Arc::new(Latency::default());
        let mut timing = Timing::new(Arc::clone(&latency), 2);
        timing.taken(1, latency::now());
        timing.ended(1);
        timing.taken(7, 1);
        timing.started(7);
        timing.ended(7);
        timing.shown();
        let told = latency.snapshot();
        assert!(told.stages().iter().all(|(_, stage)| stage.count() == 0), "{told:?}");
    }
}
