//! `net`: what carries the packets of a network device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmprof_document::Line;
use vmprof_mac::MacAddress;

use super::Written;

/// `net`.
#[derive(Debug, Clone)]
pub struct Net {
    /// What carries its packets, and where that was written.
    pub backend: Written<NetBackend>,
    /// Queue pairs.
    pub queues: u32,
    /// The line that says so; `None` where it is the default.
    pub queues_line: Option<Line>,
    /// Descriptors per virtqueue.
    pub queue_size: u16,
    /// The guest's hardware address; `None` derives it from the VM's name.
    pub mac: Option<MacAddress>,
}

/// What carries a network device's packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// passt as a child process: no root, the same addresses on every host.
    Passt {
        /// Ports of the host's loopback (127.0.0.1) that reach the guest.
        forwards: Vec<Forward>,
    },
    /// A tap device that exists.
    Tap {
        /// Its name.
        name: String,
    },
}

/// One port of the host that reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the host.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// The protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}
