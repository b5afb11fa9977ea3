//! What carries network devices' frames, and who serves their queues.

use std::collections::BTreeMap;

use vmprof_profiles::NetPlan;
use vmprof_vmm::virtio::net::NetSnapshot;

use super::{Finding, What};

/// `found` is how the machine has it; `None`: the machine has no such device.
pub(super) fn read_back(net: &NetPlan, found: Option<&NetSnapshot>) -> [Finding; 2] {
    let name = || net.name.clone();
    let found = found.ok_or_else(|| "the machine has no such device".to_owned());
    let link = found.clone().map(|net| if net.link { "up" } else { "down" }.to_owned());
    let mut link = Finding::new(What::Link { net: name() }, Some("up".into()), link);
    link.note = link.note.or(found.clone().ok().and_then(|net| net.fault.clone()));
    let planned = net.virtqueues.iter().map(|queue| (queue.vq, queue.iothread));
    let served = found.and_then(|net| {
        let served = net.virtqueues.iter().filter_map(|queue| Some((u32::from(queue.vq), queue.iothread?)));
        by_iothread(served).ok_or_else(|| "the guest's driver has enabled none".to_owned())
    });
    [link, Finding::new(What::Virtqueues { net: name() }, by_iothread(planned), served)]
}

/// `0,1,4 on iothread0; 2,3 on iothread1`; `None` without any.
fn by_iothread(queues: impl Iterator<Item = (u32, u32)>) -> Option<String> {
    let mut served: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (queue, iothread) in queues {
        served.entry(iothread).or_default().push(queue.to_string());
    }
    let words = served.into_iter().map(|(id, queues)| format!("{} on iothread{id}", queues.join(",")));
    Some(words.collect::<Vec<_>>().join("; ")).filter(|words| !words.is_empty())
}
