//! Stats of network devices: for a person, all of them and those of an interval, and for Prometheus.

use std::fmt::Display;

use vmprof_vmm::virtio::net::{NetQueueSnapshot, NetSnapshot, QueueKind};

use super::prometheus::Text;
use super::rates::{Row, each, mib, whole};
use super::text;

pub(super) const NET_HEADS: &[&str] =
    &["NET", "vq", "kind", "iothread", "packets/s", "MiB/s", "dropped/s", "kicks each", "interrupts"];

/// Which queue it is, and who serves it: the first four cells of its line.
fn place(net: &NetSnapshot, queue: &NetQueueSnapshot) -> [String; 4] {
    let served = queue.iothread.map_or("-".to_owned(), |id| id.to_string());
    [net.name.clone(), queue.vq.to_string(), word(queue.kind).to_owned(), served]
}

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
            let counts = [queue.packets, queue.bytes, queue.dropped, queue.kicks, queue.interrupts];
            place(net, queue).into_iter().chain(counts.map(|number| number.to_string())).collect()
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

/// A line for each of their virtqueues, of what came since `before`; `rate` makes two counts one of a second.
pub(super) fn rates(now: &[NetSnapshot], before: &[NetSnapshot], rate: impl Fn(u64, u64) -> f64) -> Vec<Row> {
    let row = |net: &NetSnapshot, queue: &NetQueueSnapshot| {
        let earlier = before.iter().find(|other| other.name == net.name);
        let earlier = earlier.and_then(|net| net.virtqueues.iter().find(|other| other.vq == queue.vq));
        let of = |field: fn(&NetQueueSnapshot) -> u64| rate(field(queue), earlier.map_or(0, field));
        let packets = of(|queue| queue.packets);
        let numbers = [
            whole(packets),
            mib(of(|queue| queue.bytes)),
            whole(of(|queue| queue.dropped)),
            each(of(|queue| queue.kicks), packets),
            each(of(|queue| queue.interrupts), packets),
        ];
        Row { load: packets, cells: place(net, queue).into_iter().chain(numbers).collect() }
    };
    now.iter()
        .flat_map(|net| net.virtqueues.iter().map(move |queue| (net, queue)))
        .map(|(n, q)| row(n, q))
        .collect()
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
pub(super) mod tests {
    use super::super::tests::stats;
    use super::*;

    pub fn net(link: bool, fault: Option<&str>) -> NetSnapshot {
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
    fn a_watch_shows_what_each_queue_did_since_and_what_a_packet_cost() {
        let (mut before, mut now) = (stats(), stats());
        before.machine.nets = vec![net(true, None)];
        now.machine.nets = vec![net(true, None), NetSnapshot { name: "net1".into(), ..net(true, None) }];
        let queue = &mut now.machine.nets[0].virtqueues[1];
        (queue.packets, queue.bytes) = (queue.packets + 4_000, queue.bytes + (6 << 20));
        (queue.dropped, queue.kicks, queue.interrupts) = (queue.dropped + 8, 7 + 1_000, 8 + 200);
        now.taken_ns += 2_000_000_000;
        let text = now.rates_since(&before);
        let (_, nets) = text.split_once("\nNET ").unwrap();
        assert_eq!(
            format!("NET {nets}"),
            "NET   vq      kind  iothread  packets/s  MiB/s  dropped/s  kicks each  interrupts\n\
             net0   0   receive         1          0    0.0          0           -           -\n\
             net0   1  transmit         1       2000    3.0          4        0.25        0.05\n\
             net0   2   control         -          0    0.0          0           -           -\n\
             net1   0   receive         1          6    0.0          0        0.58        0.67\n\
             net1   1  transmit         1          6    0.0          0        0.58        0.67\n\
             net1   2   control         -          6    0.0          0        0.58        0.67\n"
        );
        now.machine.nets.clear();
        assert!(!now.rates_since(&before).contains("NET"), "nothing of what there is none of");
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
