//! Stats of network devices, for a person and for Prometheus.

use std::fmt::Display;

use vmprof_vmm::virtio::net::{NetQueueSnapshot, NetSnapshot, QueueKind};

use super::prometheus::Text;
use super::text;

fn word(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Receive => "receive",
        QueueKind::Transmit => "transmit",
        QueueKind::Control => "control",
    }
}

/// A table of their virtqueues, and a line for each that is not well; nothing without any.
pub(super) fn table(nets: &[NetSnapshot]) -> String {
    if nets.is_empty() {
        return String::new();
    }
    let queues = nets.iter().flat_map(|net| {
        net.virtqueues.iter().map(|queue| {
            let served = queue.iothread.map_or("-".to_owned(), |id| id.to_string());
            let counts = [queue.packets, queue.bytes, queue.dropped, queue.kicks, queue.interrupts];
            let names = [net.name.clone(), queue.vq.to_string(), word(queue.kind).to_owned(), served];
            names.into_iter().chain(counts.map(|number| number.to_string())).collect()
        })
    });
    let heads = ["NET", "vq", "kind", "iothread", "packets", "bytes", "dropped", "kicks", "interrupts"];
    let mut text = text::table(&heads, queues);
    for net in nets {
        let how = if net.link { "needs a reset" } else { "has no link" };
        match &net.fault {
            Some(fault) => text += &format!("net {} {how}: {fault}\n", net.name),
            None if !net.link => text += &format!("net {} {how}\n", net.name),
            None => {}
        }
    }
    text
}

/// A number of a queue's: its metric, what it is, and how it is read.
type Metric = (&'static str, &'static str, fn(&NetQueueSnapshot) -> u64);

const METRICS: [Metric; 5] = [
    ("vmprof_net_packets_total", "Frames of a virtqueue that went through.", |queue| queue.packets),
    ("vmprof_net_bytes_total", "Bytes of these frames.", |queue| queue.bytes),
    ("vmprof_net_dropped_total", "Frames and buffers of a virtqueue that were dropped.", |queue| {
        queue.dropped
    }),
    ("vmprof_net_kicks_total", "Doorbells heard.", |queue| queue.kicks),
    ("vmprof_net_interrupts_total", "Interrupts sent.", |queue| queue.interrupts),
];

/// The same for Prometheus.
pub(super) fn metrics(nets: &[NetSnapshot], text: &mut Text, vm: &dyn Display) {
    if nets.is_empty() {
        return;
    }
    for (name, help, value) in METRICS {
        text.metric(name, "counter", help);
        for net in nets {
            for queue in &net.virtqueues {
                let labels: [(&str, &dyn Display); 4] =
                    [("vm", vm), ("net", &net.name), ("vq", &queue.vq), ("kind", &word(queue.kind))];
                text.sample(name, &labels, value(queue));
            }
        }
    }
    let name = "vmprof_net_link";
    text.metric(name, "gauge", "1 while the guest is shown a link.");
    for net in nets {
        text.sample(name, &[("vm", vm), ("net", &net.name)], u8::from(net.link));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(link: bool, fault: Option<&str>) -> NetSnapshot {
        let queue = |vq, kind, iothread| NetQueueSnapshot {
            vq,
            kind,
            iothread,
            packets: 12,
            bytes: 3_456,
            dropped: 1,
            kicks: 7,
            interrupts: 8,
        };
        let virtqueues = vec![
            queue(0, QueueKind::Receive, Some(1)),
            queue(1, QueueKind::Transmit, Some(1)),
            queue(2, QueueKind::Control, None),
        ];
        NetSnapshot { name: "net0".into(), link, virtqueues, fault: fault.map(str::to_owned) }
    }

    #[test]
    fn each_queue_has_a_line_and_a_link_that_is_down_is_told() {
        assert_eq!(table(&[]), "");
        assert_eq!(
            table(&[net(false, Some("the other side closed the stream of frames"))]),
            "\n\
             NET   vq      kind  iothread  packets  bytes  dropped  kicks  interrupts\n\
             net0   0   receive         1       12   3456        1      7           8\n\
             net0   1  transmit         1       12   3456        1      7           8\n\
             net0   2   control         -       12   3456        1      7           8\n\
             net net0 has no link: the other side closed the stream of frames\n"
        );
        assert!(
            table(&[net(true, Some("virtqueue 1: x"))]).ends_with("net net0 needs a reset: virtqueue 1: x\n")
        );
        assert!(!table(&[net(true, None)]).contains("net net0 "));
    }

    #[test]
    fn metrics_say_which_queue_they_are_of() {
        let mut text = Text::default();
        metrics(&[net(true, None)], &mut text, &"db");
        let text = text.to_string();
        assert!(
            text.contains(
                "\nvmprof_net_packets_total{vm=\"db\",net=\"net0\",vq=\"1\",kind=\"transmit\"} 12\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("vmprof_net_link{vm=\"db\",net=\"net0\"} 1\n"), "{text}");
        let mut text = Text::default();
        metrics(&[], &mut text, &"db");
        assert_eq!(text.to_string(), "", "nothing of what there is none of");
    }
}
