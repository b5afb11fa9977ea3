//! A virtio driver in plain moves: a bare-metal guest that sets a device up by storing to its registers.

use super::*;
use crate::layout;
use crate::pci;
use crate::stats::Stats;
use crate::virtio::device::{ActivateError, ActiveQueue};
use crate::virtio::transport::F_RING_RESET;
use vmprof_sys::vring::Position;

/// What the test has of the device once the transport owns it.
#[derive(Default)]
struct Seen {
    features: Vec<u64>,
    /// How often the doorbell had rung when the queue went back.
    rings: Vec<u64>,
    resets: usize,
    /// Sizes of queues that were started while the device was live.
    started: Vec<u16>,
}

struct Probe {
    seen: Arc<Mutex<Seen>>,
    queues: Vec<ActiveQueue>,
}

impl VirtioDevice for Probe {
    fn name(&self) -> &str {
        "probe"
    }
    fn device_id(&self) -> u16 {
        2
    }
    fn features(&self) -> u64 {
        1 << 29 | F_RING_RESET
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }
    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}
    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        self.seen.lock().unwrap().features.push(features);
        // An interrupt at once, whatever the guest has done to its vectors.
        queues.iter().for_each(|queue| queue.interrupt.signal());
        self.queues = queues;
        Ok(())
    }
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        self.seen.lock().unwrap().started.push(queue.ring.size());
        self.queues.push(queue);
        Ok(())
    }
    fn stop_queue(&mut self, index: u16) -> Option<Position> {
        let at = self.queues.iter().position(|queue| queue.index == index)?;
        let queue = self.queues.remove(at);
        self.seen.lock().unwrap().rings.push(queue.doorbell.read().unwrap_or(0));
        Some(queue.ring.position())
    }
    fn reset(&mut self) {
        let mut seen = self.seen.lock().unwrap();
        seen.resets += 1;
        seen.rings.extend(self.queues.drain(..).map(|queue| queue.doorbell.read().unwrap_or(0)));
    }
}

/// Machine code that stores constants.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn byte(&mut self, address: u64, value: u8) -> &mut Code {
        self.0.extend([0xc6, 0x05]);
        self.0.extend((address as u32).to_le_bytes());
        self.0.push(value);
        self
    }
    fn word(&mut self, address: u64, value: u16) -> &mut Code {
        self.0.extend([0x66, 0xc7, 0x05]);
        self.0.extend((address as u32).to_le_bytes());
        self.0.extend(value.to_le_bytes());
        self
    }
    fn dword(&mut self, address: u64, value: u32) -> &mut Code {
        self.0.extend([0xc7, 0x05]);
        self.0.extend((address as u32).to_le_bytes());
        self.0.extend(value.to_le_bytes());
        self
    }
    fn raw(&mut self, bytes: &[u8]) -> &mut Code {
        self.0.extend(bytes);
        self
    }
}

/// `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`, for 32-bit code.
const POWER_OFF_32: [u8; 9] = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0x90];
const QUEUE: u32 = 0x1_0000;
const ECAM: u64 = layout::ECAM.start + (1 << 15);
/// Where the function's MSI-X capability comes to lie.
const MSIX: u64 = 0x98;
const TABLE: u64 = 0x4000;
const NOTIFY: u64 = 0xc000;

/// `mov al, [register]; mov dx, 0x3f8; out dx, al`: the register's low byte to the serial line.
fn print(code: &mut Code, register: u64) -> &mut Code {
    code.raw(&[0xa0]).raw(&(register as u32).to_le_bytes()).raw(&[0x66, 0xba, 0xf8, 0x03, 0xee])
}

/// From reset to DRIVER_OK, for the BAR at `bar` with the queue's parts at `queue`. Twelve stores.
fn set_up(code: &mut Code, bar: u64, queue: u32) -> &mut Code {
    code.byte(bar + 0x14, 1)
        .byte(bar + 0x14, 3)
        .dword(bar + 0x08, 1)
        .dword(bar + 0x0c, 1)
        .byte(bar + 0x14, 11)
        .word(bar + 0x16, 0)
        .word(bar + 0x1a, 1)
        .dword(bar + 0x20, queue)
        .dword(bar + 0x28, queue + 0x1000)
        .dword(bar + 0x30, queue + 0x2000)
        .word(bar + 0x1c, 1)
        .byte(bar + 0x14, 15)
}

const SET_UP_STORES: u64 = 12;

fn run(test: &str, code: &[u8]) -> Option<(Exit, Arc<Mutex<Seen>>, String, Stats)> {
    let host = match kvm::open_any() {
        Ok(host) => host,
        Err(why) => {
            eprintln!("skipped: {test}: {why}");
            return None;
        }
    };
    let seen = Arc::<Mutex<Seen>>::default();
    let outside = Outside::default();
    let probe = Probe { seen: seen.clone(), queues: vec![] };
    let start = Start::ProtectedMode { code };
    let config = config(1);
    let parts =
        machine::assemble(&host, &config, vec![Box::new(probe)], Box::new(outside.clone()), None, start);
    let vm = Vm::of(&config, parts.unwrap(), vec![], DeviceStats::default(), Arc::default()).start().unwrap();
    let control = vm.control();
    let exit = vm.wait();
    Some((exit, seen, outside.text(), control.stats()))
}

#[test]
fn a_doorbell_rings_without_an_exit_wherever_the_bar_is() {
    let (first, second) = (pci::first_bar(0), layout::PCI_WINDOW.start + 0x1000_0000);
    let mut code = Code::default();
    set_up(&mut code, first, QUEUE).word(first + NOTIFY, 0).word(first + NOTIFY, 0);
    // Moved while live, with decoding off in between; then a third ring.
    code.word(ECAM + 4, 0).dword(ECAM + 0x10, second as u32).word(ECAM + 4, 2).word(second + NOTIFY, 0);
    let Some((exit, seen, _, stats)) = run("doorbell", &code.raw(&POWER_OFF_32).0) else { return };
    assert!(matches!(exit, Exit::PowerOff), "{exit:?}");
    let seen = seen.lock().unwrap();
    assert_eq!((&seen.features[..], &seen.rings[..], seen.resets), (&[1 << 32][..], &[3][..], 1));
    assert_eq!(stats.vcpus[0].exits.mmio_writes, SET_UP_STORES + 3);
}

#[test]
fn a_doorbell_that_rings_before_the_device_is_live_is_not_lost() {
    let bar = pci::first_bar(0);
    let mut code = Code::default();
    code.word(bar + NOTIFY, 0);
    set_up(&mut code, bar, QUEUE);
    let Some((_, seen, _, stats)) = run("early doorbell", &code.raw(&POWER_OFF_32).0) else { return };
    assert_eq!(seen.lock().unwrap().rings, [1]);
    assert_eq!(stats.vcpus[0].exits.mmio_writes, SET_UP_STORES + 1);
}

#[test]
fn an_interrupt_that_is_raised_while_masked_arrives_when_it_is_unmasked() {
    const IDT: u32 = 0x3000;
    const HANDLER: u32 = 0x1800;
    const VECTOR: u8 = 0x41;
    let bar = pci::first_bar(0);
    let entry = TABLE + 16;
    let gate = u64::from(IDT + u32::from(VECTOR) * 8);
    let mut code = Code::default();
    // A stack, the interrupt table, the local APIC on.
    code.raw(&[0xbc, 0x00, 0x80, 0x00, 0x00])
        .dword(gate, 0x10 << 16 | HANDLER)
        .dword(gate + 4, 0x8e00)
        .word(0x2ff0, 0x7ff)
        .dword(0x2ff2, IDT)
        .raw(&[0x0f, 0x01, 0x1d, 0xf0, 0x2f, 0x00, 0x00])
        .dword(u64::from(layout::LOCAL_APIC) + 0xf0, 0x1ff);
    // MSI-X on, the queue's vector filled in and still masked; the device signals when it goes live.
    code.word(ECAM + MSIX + 2, 0x8000)
        .dword(bar + entry, layout::LOCAL_APIC)
        .dword(bar + entry + 4, 0)
        .dword(bar + entry + 8, VECTOR.into());
    set_up(&mut code, bar, QUEUE);
    // The pending bit of vector 1, to the serial line: mov al, [pending]; add al, '0'; mov dx, 0x3f8; out dx, al.
    let pending = ((bar + 0x3000) as u32).to_le_bytes();
    code.raw(&[0xa0]).raw(&pending).raw(&[0x04, b'0', 0x66, 0xba, 0xf8, 0x03, 0xee]);
    // Interrupts on, unmask, wait.
    code.raw(&[0xfb]).dword(bar + entry + 12, 0).raw(&[0xeb, 0xfe]);
    assert!(code.0.len() < 0x800);
    code.0.resize(0x800, 0x90);
    code.raw(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee]).raw(&POWER_OFF_32);
    let Some((exit, _, text, _)) = run("masked interrupt", &code.0) else { return };
    assert!(matches!(exit, Exit::PowerOff), "{exit:?}");
    assert_eq!(text, "2!");
}

#[test]
fn a_ring_outside_memory_makes_the_device_need_a_reset_and_nothing_else() {
    let bar = pci::first_bar(0);
    let mut code = Code::default();
    set_up(&mut code, bar, 0x7fff_0000);
    print(&mut code, bar + 0x14);
    let Some((exit, seen, text, _)) = run("bad ring", &code.raw(&POWER_OFF_32).0) else { return };
    assert!(matches!(exit, Exit::PowerOff), "{exit:?}");
    assert_eq!(text.as_bytes(), [15 | 64]);
    assert!(seen.lock().unwrap().features.is_empty());
}

#[test]
fn a_reset_gives_the_queue_back_and_the_device_can_start_again() {
    let bar = pci::first_bar(0);
    let mut code = Code::default();
    set_up(&mut code, bar, QUEUE).word(bar + NOTIFY, 0).byte(bar + 0x14, 0);
    set_up(&mut code, bar, QUEUE + 0x4000);
    let Some((exit, seen, _, _)) = run("reset", &code.raw(&POWER_OFF_32).0) else { return };
    assert!(matches!(exit, Exit::PowerOff), "{exit:?}");
    let seen = seen.lock().unwrap();
    // The second life begins with a silent bell.
    assert_eq!((&seen.rings[..], seen.resets, seen.features.len()), (&[1, 0][..], 2, 2));
}

#[test]
fn a_queue_is_reset_and_enabled_again_while_the_device_is_live() {
    let bar = pci::first_bar(0);
    let mut code = Code::default();
    // The driver takes RING_RESET, which set_up leaves out: bit 40 is bit 8 of the second word.
    code.byte(bar + 0x14, 1)
        .byte(bar + 0x14, 3)
        .dword(bar + 0x08, 1)
        .dword(bar + 0x0c, 1 | 1 << 8)
        .byte(bar + 0x14, 11)
        .dword(bar + 0x20, QUEUE)
        .dword(bar + 0x28, QUEUE + 0x1000)
        .dword(bar + 0x30, QUEUE + 0x2000)
        .word(bar + 0x1c, 1)
        .byte(bar + 0x14, 15)
        .word(bar + NOTIFY, 0)
        .word(bar + NOTIFY, 0)
        .word(bar + 0x3a, 1);
    print(&mut code, bar + 0x3a);
    print(&mut code, bar + 0x1c);
    // What rings now rings for nobody; the queue is enabled again with half its entries, elsewhere, and rings once.
    code.word(bar + 0x18, 4)
        .dword(bar + 0x20, QUEUE + 0x4000)
        .dword(bar + 0x28, QUEUE + 0x5000)
        .dword(bar + 0x30, QUEUE + 0x6000)
        .word(bar + 0x1c, 1)
        .word(bar + NOTIFY, 0);
    print(&mut code, bar + 0x1c);
    // Once more, with a ring that is nowhere: the device needs a reset.
    code.word(bar + 0x3a, 1).dword(bar + 0x20, 0x7fff_0000).word(bar + 0x1c, 1);
    print(&mut code, bar + 0x14);
    let Some((exit, seen, text, _)) = run("queue reset", &code.raw(&POWER_OFF_32).0) else { return };
    assert!(matches!(exit, Exit::PowerOff), "{exit:?}");
    let seen = seen.lock().unwrap();
    assert_eq!(text.as_bytes(), [0, 0, 1, 15 | 64]);
    assert_eq!((&seen.rings[..], &seen.started[..], seen.features.len()), (&[2, 1][..], &[4][..], 1));
}

/// Registers at random, most of them ones that mean something, of two functions whose BARs end up anywhere, on one another
/// included: the host's KVM takes whatever follows, and nothing panics.
#[test]
fn no_order_of_register_writes_ends_the_machine() {
    let Ok(host) = kvm::open_any() else { return eprintln!("skipped: registers at random") };
    let seen = Arc::<Mutex<Seen>>::default();
    let probe = || Box::new(Probe { seen: seen.clone(), queues: vec![] }) as Box<dyn VirtioDevice>;
    let start = Start::ProtectedMode { code: &POWER_OFF_32 };
    let outside = Box::new(Outside::default());
    let parts = machine::assemble(&host, &config(1), vec![probe(), probe()], outside, None, start).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    let bars =
        [pci::first_bar(0), pci::first_bar(1), 0, u64::MAX - 0xffff, 0x1_0000, layout::PCI_WINDOW.start];
    let config_registers = [0x04, 0x10, 0x14, 0x3c, 0x84, 0x88, 0x8c, 0x90, 0x94, MSIX - 1, MSIX, MSIX + 2];
    for _ in 0..20_000 {
        let len = [1, 2, 4, 8][next(4) as usize];
        let mut data = match next(4) {
            0 => u64::MAX,
            1 => bars[next(6) as usize],
            2 => next(16),
            _ => next(u64::MAX),
        }
        .to_le_bytes();
        let data = &mut data[..len];
        let register =
            [next(0x40), TABLE + next(0x40), NOTIFY + next(0x10), 0x3000, 0x1000][next(5) as usize];
        let address = match next(8) {
            0..3 => {
                let register = [config_registers[next(12) as usize], next(0x1000)][next(2) as usize];
                layout::ECAM.start + (next(3) << 15) + register
            }
            3..7 => bars[next(6) as usize].wrapping_add(register),
            _ => next(u64::MAX),
        };
        match next(50) {
            // The way to DRIVER_OK and a vector unmasked, wherever a BAR may be: what random writes seldom find.
            0 => {
                let bar = bars[next(6) as usize];
                let write = |at: u64, data: &[u8]| parts.bus.mmio_write(bar.wrapping_add(at), data).unwrap();
                parts.bus.mmio_write(ECAM + 4, &[6, 0]).unwrap();
                parts.bus.mmio_write(ECAM + MSIX + 2, &[0, 0x80]).unwrap();
                [0, 1, 3].iter().for_each(|status| write(0x14, &[*status]));
                write(0x08, &[1, 0, 0, 0]);
                write(0x0c, &[1, next(2) as u8, 0, 0]);
                write(0x14, &[11]);
                write(0x16, &[0, 0]);
                write(0x1a, &[1, 0]);
                for (part, register) in [0x20, 0x28, 0x30].into_iter().enumerate() {
                    write(register, &(QUEUE + 0x1000 * part as u32).to_le_bytes());
                }
                write(0x1c, &[1, 0]);
                write(0x14, &[15]);
                write(TABLE + 28, &[next(2) as u8, 0, 0, 0]);
                if next(2) == 0 {
                    write(0x3a, &[1, 0]);
                    write(0x20, &QUEUE.to_le_bytes());
                    write(0x1c, &[1, 0]);
                }
            }
            1..10 => parts.bus.mmio_read(address, data),
            10..20 if len < 8 => {
                let port = [layout::port::COM1, layout::port::PCI_ADDRESS, 0x600, 0xfffe][next(4) as usize];
                let port = port.wrapping_add(next(8) as u16);
                parts.bus.port_read(port, data);
                parts.bus.port_write(port, data).unwrap();
            }
            _ => parts.bus.mmio_write(address, data).unwrap(),
        }
    }
    parts.bus.pci.shut_down();
    assert!(seen.lock().unwrap().features.len() > 10, "the device goes live now and then");
}
