//! A tap device of the host's: each of its queues is a descriptor that frames are read from and written to, one a system
//! call, behind the header that the guest's driver knows (IFF_VNET_HDR), so that checksums and segments can be left to whoever
//! does them best.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
use vmprof_sys::tap;

use super::NetError;

const TUN: &str = "/dev/net/tun";
/// linux/if_tun.h, as /sys/class/net/NAME/tun_flags shows them.
const IFF_TAP: u32 = 0x0002;
const IFF_MULTI_QUEUE: u32 = 0x0100;

/// An open tap device.
#[derive(Debug)]
pub(crate) struct Tap {
    /// By the pair that reads and writes it.
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    file: File,
    attached: AtomicBool,
}

impl Tap {
    /// Opens `pairs` queues of a device that exists, whose packets have a header of `header_bytes`.
    pub(crate) fn open(name: &str, pairs: usize, header_bytes: i32) -> Result<Tap, NetError> {
        let device = || name.to_owned();
        // TUNSETIFF makes what is not there, for those who may.
        let before = index_of(name)?.ok_or_else(|| NetError::NoSuchDevice { device: device(), pairs })?;
        let flags = flags_of(name, before);
        if flags.is_some_and(|flags| flags & IFF_TAP == 0) {
            return Err(NetError::NotATap { device: device() });
        }
        let is_multi_queue = flags.map(|flags| flags & IFF_MULTI_QUEUE != 0);
        let wanted = pairs > 1;
        if is_multi_queue.is_some_and(|is| is != wanted) {
            return Err(NetError::Queues { device: device(), pairs });
        }
        let queue = |_| {
            let file = open_tun()?;
            tap::become_queue_of(&file, name, wanted).map_err(|error| refused(name, pairs, error))?;
            let set_up =
                tap::set_header_bytes(&file, header_bytes).and_then(|()| tap::set_offloads(&file, 0));
            set_up.map_err(|source| NetError::Tap { device: device(), source })?;
            Ok(Queue { file, attached: AtomicBool::new(true) })
        };
        let queues = (0..pairs).map(queue).collect::<Result<Vec<_>, NetError>>()?;
        if index_of(name)? != Some(before) {
            // It went meanwhile, and what was made in its place goes with the descriptors.
            return Err(NetError::NoSuchDevice { device: device(), pairs });
        }
        Ok(Tap { queues })
    }

    /// What the guest's driver takes, of [`tap::offload`].
    pub(crate) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        self.queues.first().map_or(Ok(()), |queue| tap::set_offloads(&queue.file, offloads))
    }

    /// Whether the kernel may give frames to a pair's queue. The first pair's always is.
    pub(crate) fn set_attached(&self, pair: usize, attached: bool) -> io::Result<()> {
        let Some(queue) = self.queues.get(pair).filter(|_| pair > 0) else { return Ok(()) };
        if queue.attached.load(Ordering::Relaxed) != attached {
            tap::set_attached(&queue.file, attached)?;
            queue.attached.store(attached, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A descriptor of its own of a pair's queue, to be watched by one thread.
    pub(crate) fn descriptor(&self, pair: usize) -> io::Result<OwnedFd> {
        let queue = self.queues.get(pair).ok_or(io::ErrorKind::NotFound)?;
        Ok(queue.file.try_clone()?.into())
    }

    /// `None`: there is no such pair.
    pub(crate) fn queue(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        Some(self.queues.get(pair)?.file.as_fd())
    }
}

fn open_tun() -> Result<File, NetError> {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(TUN);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => NetError::NoTun { source },
        _ => NetError::OpenTun { source },
    })
}

/// The number of the device, by the network namespace of this thread, which /sys may not be of.
fn index_of(name: &str) -> Result<Option<u32>, NetError> {
    let refused = |errno: Errno| NetError::Tap { device: name.to_owned(), source: errno.into() };
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    match netdevice::name_to_index(socket.map_err(refused)?, name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(refused(errno)),
    }
}

/// Of the device with this number, if /sys shows it; those that are not tun or tap devices have none.
fn flags_of(name: &str, index: u32) -> Option<u32> {
    let read = |file: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{file}"));
    if read("ifindex").ok()?.trim() != index.to_string() {
        return None;
    }
    match read("tun_flags") {
        Ok(text) => u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok(),
        Err(error) => (error.kind() == io::ErrorKind::NotFound).then_some(0),
    }
}

fn refused(name: &str, pairs: usize, source: io::Error) -> NetError {
    let device = name.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::BUSY | Errno::TOOBIG) => NetError::Busy { device },
        Some(Errno::PERM) => NetError::NotPermitted { device, pairs },
        Some(Errno::INVAL) => NetError::NotATapOrQueues { device, pairs },
        _ => NetError::Tap { device, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the namespace of the device's tests has no second user for.
    #[test]
    fn what_the_kernel_refuses_is_told_with_what_to_do() {
        let told = |errno: Errno, pairs| refused("tap7", pairs, errno.into()).to_string();
        let one = "`ip tuntap add dev tap7 mode tap user $USER`";
        let many = "`ip tuntap add dev tap7 mode tap user $USER multi_queue`";
        assert!(told(Errno::PERM, 1).contains(one));
        assert!(told(Errno::INVAL, 2).contains(many) && told(Errno::INVAL, 1).contains(one));
        assert!(told(Errno::BUSY, 1).contains("in use by another program"));
        assert!(told(Errno::IO, 1).contains("cannot be used"));
    }

    #[test]
    fn a_device_that_is_not_there_is_not_made() {
        let name = format!("vp{}", std::process::id() % 100_000);
        match Tap::open(&name, 2, 12) {
            Err(error @ NetError::NoSuchDevice { .. }) => {
                assert!(error.to_string().contains("mode tap user $USER multi_queue"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(index_of(&name).unwrap(), None);
        assert!(matches!(Tap::open("lo", 1, 12), Err(NetError::NotATap { .. } | NetError::NoTun { .. })));
    }
}
