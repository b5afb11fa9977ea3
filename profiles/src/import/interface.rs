//! A domain's network devices.

use std::collections::BTreeSet;

use super::draft::{Draft, quoted, string};
use super::libvirt::Reading;
use super::unsaid;
use super::xml::{Xml, child, children, elements};
use crate::export::shell;

/// Reads one, where it is of a kind that vmprof has.
pub(super) fn interface<'a, 'x>(reading: &mut Reading<'a, 'x>, node: Xml<'a, 'x>) -> Option<Draft> {
    let kind = node.attribute("type").unwrap_or_default();
    let mac = child(node, "mac").and_then(|mac| mac.attribute("address"));
    let what = match mac {
        Some(mac) => format!("interface {mac}"),
        None => format!("interface {kind}"),
    };
    let tap = child(node, "target").and_then(|target| target.attribute("dev"));
    let mut net = match (kind, tap) {
        ("user", _) => {
            if child(node, "backend").and_then(|backend| backend.attribute("type")) != Some("passt") {
                reading.leave(
                    node,
                    format!("{what}: QEMU's own user network"),
                    "vmprof's is passt, with the same addresses; the host's loopback is not behind 10.0.2.2",
                );
            }
            let mut net = Draft::new("net passt", reading.origin(node, what.clone())).kept();
            forwards(reading, node, &what, &mut net);
            net
        }
        ("ethernet", Some(tap)) => {
            if child(node, "target").and_then(|target| target.attribute("managed")) != Some("no") {
                reading.leave(
                    node,
                    format!("{what}: managed"),
                    format!(
                        "vmprof makes no tap device: `ip tuntap add {} mode tap` first",
                        shell::quoted(tap)
                    ),
                );
            }
            let origin = reading.origin(node, what.clone());
            Draft::new(format!("net tap name={}", string(tap)), origin).kept()
        }
        _ => {
            let source = child(node, "source");
            let named = ["bridge", "network", "dev"]
                .iter()
                .find_map(|name| source?.attribute(*name))
                .unwrap_or("the network");
            reading.leave(node, format!("{what}, of the type {kind}"), format!("vmprof's networks are passt and tap devices that exist: put a tap device on {named}, and name it"));
            return None;
        }
    };
    if let Some(mac) = mac {
        net.add(Draft::new(
            format!("mac {}", quoted(mac)),
            reading.origin(node, format!("{what}: its address")),
        ));
    }
    if let Some(model) = child(node, "model")
        .and_then(|model| model.attribute("type"))
        .filter(|model| !model.starts_with("virtio"))
    {
        reading.leave(node, format!("{what}: model '{model}'"), "the guest sees a virtio-net device");
    }
    reading.leave_attributes(&what, node, &["type"]);
    for (element, known) in [
        ("source", [].as_slice()),
        ("target", &["dev", "managed"]),
        ("backend", &["type"]),
        ("model", &["type"]),
        ("mac", &["address"]),
    ] {
        if let Some(part) = child(node, element) {
            let what = format!("{what}: {element}");
            reading.leave_attributes(&what, part, known);
            reading.leave_children(&what, part, &[]);
        }
    }
    if let Some(driver) = child(node, "driver") {
        if let Some(queues) = driver
            .attribute("queues")
            .and_then(|queues| queues.parse::<u32>().ok())
            .filter(|queues| *queues > 1)
        {
            match kind {
                // As libvirt has it, too: its passt takes the first pair.
                "user" => {
                    reading.leave(driver, format!("{what}: queues='{queues}'"), "passt has one queue pair")
                }
                _ => net.add(Draft::new(
                    format!("queues {queues}"),
                    reading.origin(driver, format!("{what}: queues='{queues}'")),
                )),
            }
        }
        // Receive queues of 256 are everyone's.
        let mut known = vec!["queues"];
        if driver.attribute("name") == Some("qemu") {
            known.push("name");
        }
        if driver.attribute("rx_queue_size") == Some("256") {
            known.push("rx_queue_size");
        }
        reading.leave_attributes(&what, driver, &known);
        reading.leave_children(&format!("{what}: driver"), driver, &[]);
    }
    for rest in elements(node) {
        match rest.tag_name().name() {
            "mac" | "model" | "driver" | "target" | "backend" | "portForward" | "source" | "address"
            | "alias" => {}
            element => reading.leave(rest, format!("{what}: {element}"), unsaid::why("interface", element)),
        }
    }
    Some(net)
}

/// Ports of the host that reach the guest: single ones, each with its own.
fn forwards<'a, 'x>(reading: &mut Reading<'a, 'x>, node: Xml<'a, 'x>, what: &str, net: &mut Draft) {
    let mut seen = BTreeSet::new();
    for forward in children(node, "portForward") {
        let protocol = forward.attribute("proto").unwrap_or("tcp");
        if forward.attribute("address") != Some("127.0.0.1") || forward.attribute("dev").is_some() {
            reading.leave(
                forward,
                format!("{what}: the address of a port forward"),
                "a port is forwarded on 127.0.0.1 alone",
            );
        }
        for range in children(forward, "range") {
            let port = |name: &str| range.attribute(name).and_then(|port| port.parse::<u16>().ok());
            let start = port("start");
            let single = range.attribute("end").is_none() || port("end") == start;
            match start {
                Some(start) if single && range.attribute("exclude") != Some("yes") => {
                    let guest = port("to").unwrap_or(start);
                    let origin = reading.origin(range, format!("{what}: {protocol} port {start}"));
                    if seen.insert((protocol, start)) {
                        net.add(Draft::new(format!("forward {protocol} host={start} guest={guest}"), origin));
                    }
                }
                _ => reading.leave(
                    range,
                    format!("{what}: a range of ports"),
                    "ports are forwarded one by one: write each",
                ),
            }
        }
    }
}
