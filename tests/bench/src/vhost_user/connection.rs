//! A client's connection to a server: the `virtio-driver` crate's vhost-user transport and its virtio-blk queues.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;

use virtio_driver::{VhostUser, VirtioBlkConfig, VirtioBlkQueue, VirtioBlkReqBuf, VirtioTransport as _};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, VolatileSlice};
use vmprof_sys::memory::{self, Binding, GuestRam, Range};
use vmprof_sys::peers::DrivenQueue;

use crate::client::{Client, DriverQueue, EVENT_IDX, FLUSH, MULTI_QUEUE, Port, QUEUE_SIZE, VERSION_1, touch};
use crate::error::{Doing as _, Error};

/// The driver's end.
pub struct Connection {
    ports: Vec<Port<'static>>,
    ram: Arc<GuestRam>,
    data_bytes: usize,
    /// The queues' memory is its.
    _transport: VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>,
}

impl Connection {
    pub fn new(socket: &Path, queues: u16, data_bytes: usize) -> Result<Connection, Error> {
        let asked = |error: &dyn std::error::Error| Error::Asked(error.to_string());
        let path =
            socket.to_str().ok_or_else(|| Error::Asked("the socket's path is not UTF-8".to_owned()))?;
        let doing = || "the client could not set the device up".to_owned();
        let features = VERSION_1 | EVENT_IDX | FLUSH | MULTI_QUEUE;
        let mut transport: VhostUser<VirtioBlkConfig, VirtioBlkReqBuf> =
            VhostUser::new(path, features).doing(doing)?;
        if transport.get_features() & EVENT_IDX == 0 {
            return Err(Error::Asked(
                "the server does not offer EVENT_IDX, which the client needs".to_owned(),
            ));
        }
        let range = Range { start: 0, len: (data_bytes as u64).next_multiple_of(2 << 20) };
        let ram = memory::allocate(&[range], None, Binding::Strict, &[]).map_err(|error| asked(&error))?;
        let ram = Arc::new(ram);
        let base = ram.get_host_address(GuestAddress(0)).map_err(|error| asked(&error))?;
        let region = ram.find_region(GuestAddress(0)).and_then(|region| region.file_offset());
        let file = region.ok_or_else(|| Error::Asked("the client's memory has no file".to_owned()))?;
        transport
            .map_mem_region(base as usize, range.len as usize, file.file().as_raw_fd(), 0)
            .doing(doing)?;
        let made = VirtioBlkQueue::setup_queues(&mut transport, queues.into(), QUEUE_SIZE).doing(doing)?;
        let port = |(index, queue)| {
            let call = transport.get_completion_fd(index).as_fd().try_clone_to_owned().doing(doing)?;
            let notifier = transport.get_submission_notifier(index);
            Ok(Port {
                queue: Box::new(CrateQueue(DrivenQueue::new(queue, &ram))),
                kick: Box::new(move || notifier.notify()),
                call,
            })
        };
        let ports = made.into_iter().enumerate().map(port).collect::<Result<Vec<_>, Error>>()?;
        Ok(Connection { ports, ram, data_bytes, _transport: transport })
    }

    /// Hands the queues to a client that drives them with this connection's memory.
    pub fn drive<T>(
        self,
        spins: bool,
        with: impl FnOnce(&mut Client<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let data = self.ram.get_slice(GuestAddress(0), self.data_bytes);
        let data: VolatileSlice<'_> = data.map_err(|error| Error::Asked(error.to_string()))?;
        for at in (0..data.len()).step_by(4096) {
            touch(&data, at);
        }
        let mut client = Client::new(self.ports, data, spins)?;
        with(&mut client)
    }
}

struct CrateQueue(DrivenQueue);

impl DriverQueue for CrateQueue {
    fn put(&mut self, write: bool, offset: u64, buffer: &VolatileSlice<'_>, slot: u32) -> io::Result<()> {
        self.0.put(write, offset, buffer, slot)
    }

    fn show(&mut self) -> bool {
        self.0.queue.avail_notif_needed()
    }

    fn take(&mut self) -> Option<(u32, bool)> {
        self.0.queue.completions().next().map(|completion| (completion.context, completion.ret == 0))
    }

    fn arm(&mut self) -> bool {
        // With EVENT_IDX this asks for an interrupt for the next completion, with the fence that belongs to it, and does not go
        // on asking with each one that is taken, as `true` does.
        self.0.queue.set_used_notif_enabled(false);
        self.0.queue.completions().has_next()
    }
}
