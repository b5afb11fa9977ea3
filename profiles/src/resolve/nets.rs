//! Network devices: their virtqueues in the order of virtio 1.3, 5.1.2, and the IOThreads that serve them.

use crate::plan::{IoThreadPlan, NetPlan, Virtqueue};
use crate::profile::{Net, Profile};
use crate::reason::MappingReason;

/// Resolves every network device, in the order of the profile.
pub(super) fn nets(profile: &Profile, iothreads: &[IoThreadPlan]) -> Vec<NetPlan> {
    profile.nets.iter().zip(0u32..).map(|(net, at)| resolve(net, at, iothreads)).collect()
}

fn resolve(net: &Net, at: u32, iothreads: &[IoThreadPlan]) -> NetPlan {
    // Pair k has receive 2k and transmit 2k+1; both are served by one IOThread, as an answer follows a question.
    let pairs = (0..net.queues).zip(iothreads.iter().cycle());
    let mut virtqueues: Vec<Virtqueue> = pairs
        .flat_map(|(pair, iothread)| {
            [2 * pair, 2 * pair + 1].map(|vq| Virtqueue { vq, iothread: iothread.id })
        })
        .collect();
    // The control queue comes after the last pair; it is always there, or the guest could not switch pairs on.
    let control = iothreads.first().map(|iothread| Virtqueue { vq: 2 * net.queues, iothread: iothread.id });
    virtqueues.extend(control);
    let pairs = format!("{} queue {}", net.queues, if net.queues == 1 { "pair" } else { "pairs" });
    let said = net.queues_line.as_ref().map_or(String::new(), |line| format!(" as line {line} says"));
    NetPlan {
        name: format!("net{at}"),
        backend: net.backend.value.clone(),
        queues: net.queues,
        queue_size: net.queue_size,
        mac: net.mac.map(|mac| mac.to_string()),
        virtqueues,
        because: format!("{pairs}{said}; {}", MappingReason::Pairs),
    }
}
