//! The ioctls of tap devices (linux/if_tun.h), on an open /dev/net/tun.

// UNSAFETY: no safe interface has these ioctls.
#![allow(unsafe_code, reason = "ioctls of /dev/net/tun")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// What the kernel may leave to whoever reads packets from the device (TUN_F_*).
pub mod offload {
    pub const CSUM: u32 = libc::TUN_F_CSUM;
    pub const TSO4: u32 = libc::TUN_F_TSO4;
    pub const TSO6: u32 = libc::TUN_F_TSO6;
    pub const TSO_ECN: u32 = libc::TUN_F_TSO_ECN;
}

/// Makes `file` a queue of the device `name`, for Ethernet frames behind a virtio_net_hdr (TUNSETIFF). A device that is not
/// there is made where the caller has the right to.
pub fn become_queue_of(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request(file, libc::TUNSETIFF, name, flags)
}

/// Attaches a queue of a device with several, or takes it off so that the kernel gives it no more packets (TUNSETQUEUE).
pub fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request(file, libc::TUNSETQUEUE, "", flags)
}

/// How long the header before each frame is (TUNSETVNETHDRSZ).
pub fn set_header_bytes(file: &File, bytes: i32) -> io::Result<()> {
    // SAFETY: the ioctl reads one int, which lives through the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Says what the reader takes, of [`offload`], for the whole device (TUNSETOFFLOAD).
pub fn set_offloads(file: &File, offloads: u32) -> io::Result<()> {
    // SAFETY: the ioctl takes its argument by value.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

fn request(file: &File, ioctl: libc::Ioctl, name: &str, flags: i32) -> io::Result<()> {
    // SAFETY: an ifreq is integers, of which zeros are some.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: both ioctls read an ifreq, and TUNSETIFF writes its name back; it lives through the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), ioctl, &raw mut request) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
