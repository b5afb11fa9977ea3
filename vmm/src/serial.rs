//! The serial console, COM1. The UART's registers are vm-superio's; here is how its bytes travel: what the guest writes is
//! gathered and written out by a thread of its own ([`outlet`]), and what comes from outside goes in, by the emulator
//! thread, as fast as the guest takes it.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::emulator::{Handler, Watch};

pub mod outlet;

use outlet::{Gathered, Outbox, Outlet};

/// The UART's register whose bit 4 connects its output to its input.
const MODEM_CONTROL: u8 = 4;

/// The UART as vCPU threads and the emulator thread share it.
#[derive(Clone)]
pub struct Com1 {
    uart: Arc<Mutex<Uart>>,
    gathered: Arc<Gathered>,
    hungry: Arc<EventFd>,
}

type Uart = Serial<Irq, Hungry, Outbox>;

impl std::fmt::Debug for Com1 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Com1")
    }
}

#[derive(Debug)]
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Wakes the emulator thread when the guest has taken all input.
#[derive(Debug)]
struct Hungry(Arc<EventFd>);

impl SerialEvents for Hungry {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Only a counter that is full refuses, and then the thread is being woken.
        let _ = self.0.write(1);
    }
}

impl Com1 {
    /// The console's three ends: the registers, the handler that brings input in, and the outlet. `interrupt` raises COM1's
    /// pin.
    pub fn new(
        interrupt: EventFd,
        out: Box<dyn Write + Send>,
        input: Option<OwnedFd>,
    ) -> io::Result<(Com1, SerialHandler, Outlet)> {
        let hungry = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let gathered = Arc::new(Gathered::default());
        let uart = Serial::with_events(Irq(interrupt), Hungry(hungry.clone()), Outbox(gathered.clone()));
        let com1 =
            Com1 { uart: Arc::new(Mutex::new(uart)), gathered: gathered.clone(), hungry: hungry.clone() };
        let input = input.map(|fd| Input { fd, buffer: Vec::new() });
        let handler = SerialHandler { com1: com1.clone(), hungry, input };
        Ok((com1, handler, Outlet { gathered, out }))
    }

    /// Reads the register at `offset` from the base port.
    pub fn read(&self, offset: u8) -> u8 {
        self.lock().read(offset)
    }

    pub fn write(&self, offset: u8, value: u8) {
        // Before the UART is locked: the emulator thread needs that lock to bring input in.
        self.gathered.wait_for_room();
        // A byte that cannot be written is lost, as on a line with nobody at its end; the outbox never fails.
        let _ = self.lock().write(offset, value);
        if offset == MODEM_CONTROL {
            // Out of loopback the UART takes input again, and would not say so.
            let _ = self.hungry.write(1);
        }
    }

    /// The machine ends: nobody waits for room any more.
    pub fn stop_waiting(&self) {
        self.gathered.stop_waiting();
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Input {
    fd: OwnedFd,
    /// Read from outside, not yet in the UART.
    buffer: Vec<u8>,
}

/// The emulator thread's end of the console.
pub struct SerialHandler {
    com1: Com1,
    hungry: Arc<EventFd>,
    input: Option<Input>,
}

impl std::fmt::Debug for SerialHandler {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SerialHandler")
    }
}

impl SerialHandler {
    fn feed(&mut self) {
        let _ = self.hungry.read();
        let Some(input) = &mut self.input else { return };
        loop {
            let mut uart = self.com1.lock();
            let room = uart.fifo_capacity().min(input.buffer.len());
            let taken = match uart.enqueue_raw_bytes(&input.buffer[..room]) {
                // In loopback, as drivers probe it, the UART takes nothing.
                Ok(taken) => taken,
                // It took them, and only the interrupt was refused; a full one has no `room`.
                Err(_) => room,
            };
            drop(uart);
            input.buffer.drain(..taken);
            if !input.buffer.is_empty() {
                // The UART is full or in loopback: whoever changes that calls.
                return;
            }
            let mut bytes = [0; 64];
            match rustix::io::read(&input.fd, &mut bytes) {
                Ok(0) => break,
                Ok(count) => input.buffer.extend_from_slice(&bytes[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => break,
            }
        }
        self.input = None;
    }
}

impl Handler for SerialHandler {
    fn start(&mut self, watch: &Watch) {
        // An eventfd can always be watched while descriptors last; it was made a moment ago.
        let _ = watch.add_event(&self.hungry);
        if let Some(input) = &self.input {
            // A file that cannot be watched is read whenever the guest is hungry, which it is in the beginning.
            let _ = watch.add(&input.fd);
        }
        self.feed();
    }

    fn ready(&mut self, _watch: &Watch) {
        self.feed();
    }

    /// A guest that has stopped types nothing and reads nothing.
    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::emulator::Emulator;

    fn interrupt() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn input_waits_for_a_guest_that_reads_slowly_and_arrives_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (com1, handler, _outlet) =
            Com1::new(interrupt(), Box::new(io::sink()), Some(theirs.into())).unwrap();
        let emulator =
            Emulator::start(&vec![], vec![Box::new(handler)], std::sync::mpsc::channel().0).unwrap();
        let text: Vec<u8> = (0..1000u32).map(|index| index as u8).collect();
        (&ours).write_all(&text).unwrap();
        let mut read = Vec::new();
        while read.len() < text.len() {
            // Line status bit 0: a byte is there.
            if com1.read(5) & 1 != 0 {
                read.push(com1.read(0));
            } else {
                std::thread::yield_now();
            }
        }
        assert!(read == text);
        emulator.stop().unwrap();
    }

    #[test]
    fn what_is_typed_while_a_driver_probes_the_uart_is_not_lost() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (com1, mut handler, _outlet) =
            Com1::new(interrupt(), Box::new(io::sink()), Some(theirs.into())).unwrap();
        com1.write(MODEM_CONTROL, 0x10);
        (&ours).write_all(b"typed").unwrap();
        handler.feed();
        com1.write(MODEM_CONTROL, 0);
        assert!(handler.hungry.read().is_ok(), "the handler is called again");
        handler.feed();
        let read: Vec<u8> = (0..5).map(|_| com1.read(0)).collect();
        assert_eq!(read, b"typed");
    }
}
