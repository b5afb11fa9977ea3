//! vhost-user-vsock: the stream sockets of another VMM's guest, served by the same virtio-vsock as our own guests'. One client,
//! which is connected from the start: the lab's emulator.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use vhost::vhost_user::BackendReqHandler;

use super::device::Device;
use crate::emulator::{Emulator, EmulatorError};
use crate::virtio::vsock::Vsock;

/// A device that is served until its client closes the connection, or this is dropped.
#[derive(Debug)]
pub struct VsockServer {
    client: UnixStream,
    messages: Option<thread::JoinHandle<()>>,
    /// After the thread that hands queues over to it.
    _emulator: Emulator,
}

impl VsockServer {
    /// Serves the client at the other end of `client`. The outside begins connections at `listener`.
    pub fn start(client: UnixStream, listener: UnixListener) -> Result<VsockServer, EmulatorError> {
        let (vsock, handler) = Vsock::new(listener).map_err(EmulatorError::Loop)?;
        // Nobody waits for its end: a thread that broke down serves no more connections, and the client's guest goes on.
        let emulator = Emulator::start(&Vec::new(), vec![Box::new(handler)], mpsc::channel().0)?;
        let device = Device::new(Box::new(vsock)).map_err(EmulatorError::Loop)?;
        let stream = client.try_clone().map_err(EmulatorError::Loop)?;
        let spawned =
            thread::Builder::new().name("vsock messages".into()).spawn(move || serve(stream, device));
        let messages = Some(spawned.map_err(EmulatorError::Loop)?);
        Ok(VsockServer { client, messages, _emulator: emulator })
    }
}

/// Until the client goes, or says what cannot be answered: then its driver finds the device dead, and nobody else is hurt.
fn serve(stream: UnixStream, device: Device) {
    let device = Arc::new(Mutex::new(device));
    let mut messages = BackendReqHandler::from_stream(stream, Arc::clone(&device));
    while messages.handle_request().is_ok() {}
    if let Ok(mut device) = device.lock() {
        // What was its client's is nobody's now; the queues for the next one are nobody's, either.
        let _ = device.forget(true);
    }
}

impl Drop for VsockServer {
    fn drop(&mut self) {
        // Ends the wait for the next message; one that is closed already has ended it.
        let _ = self.client.shutdown(std::net::Shutdown::Both);
        if let Some(messages) = self.messages.take() {
            let _ = messages.join();
        }
    }
}
