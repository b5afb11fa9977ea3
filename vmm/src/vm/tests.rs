//! Bare-metal guests: a few instructions each, on whatever /dev/kvm there is, an interpreting one included.

use std::io::{self, Write};
use std::sync::Mutex;

use super::*;
use crate::boot::cpuid;
use crate::config::{Boot, Memory, MemoryMode};
use crate::kvm;
use crate::pause::{PauseError, PauseNews};

/// A machine for `code`, or `None`, said by name, where there is no /dev/kvm that opens.
fn machine(test: &str, vcpus: u32, code: &[u8]) -> Option<(Vm<Running>, Outside)> {
    let host = match kvm::open_any() {
        Ok(host) => host,
        Err(why) => {
            eprintln!("skipped: {test}: {why}");
            return None;
        }
    };
    let outside = Outside::default();
    Some((running(&host, vcpus, code, outside.clone()), outside))
}

fn running(host: &Usable, vcpus: u32, code: &[u8], out: impl Write + Send + 'static) -> Vm<Running> {
    let channels =
        Channels { ports: vec![], vsock: None, nets: vec![], serial_out: Box::new(out), serial_in: None };
    let built = Vm::build_with(host, &config(vcpus), &[], channels, Start::RealMode { code });
    built.unwrap().start().unwrap()
}

/// The same with a serial console that nobody reads: the pipe's other end, to be kept.
fn unread(test: &str, code: &[u8]) -> Option<(Vm<Running>, io::PipeReader)> {
    let Ok(host) = kvm::open_any() else {
        eprintln!("skipped: {test}: no /dev/kvm");
        return None;
    };
    let (reader, writer) = io::pipe().unwrap();
    Some((running(&host, 1, code, writer), reader))
}

fn config(vcpus: u32) -> VmConfig {
    VmConfig {
        name: "bare".into(),
        boot: Boot { kernel: "".into(), initramfs: "".into(), cmdline: String::new() },
        memory: Memory { bytes: 2 << 20, nodes: vec![], mode: MemoryMode::Strict, hugepage_bytes: None },
        vcpus: (0..vcpus).map(|id| crate::config::Vcpu { id, cpus: vec![] }).collect(),
        threads_per_core: 1,
        emulator_cpus: vec![],
        iothreads: vec![],
        disks: vec![],
        nets: vec![],
    }
}

#[derive(Clone, Default)]
struct Outside(Arc<Mutex<Vec<u8>>>);

impl Outside {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Outside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes S5 with its enable bit to sleep control: `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`.
const POWER_OFF: [u8; 7] = [0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4];

fn ending_in_power_off(code: &[u8]) -> Vec<u8> {
    [code, &POWER_OFF].concat()
}

#[test]
fn a_guest_says_hello_on_the_serial_line_and_powers_off() {
    // mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, 'i'; out dx, al
    let code = ending_in_power_off(&[0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'i', 0xee]);
    let Some((vm, outside)) = machine("serial hello", 1, &code) else { return };
    let control = vm.control();
    assert!(matches!(vm.wait(), Exit::PowerOff));
    assert_eq!(outside.text(), "hi");
    assert_eq!(control.stats().vcpus[0].exits.port_writes, 3);
}

#[test]
fn the_serial_interrupt_reaches_the_guest() {
    #[rustfmt::skip]
    let code = ending_in_power_off(&[
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0,             // ax = ds = ss = 0
        0xc7, 0x06, 0x90, 0x00, 0x2d, 0x10,             // vector 0x24 leads to the handler at 0:0x102d
        0xa3, 0x92, 0x00,
        0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, // the PIC's lines begin at vector 0x20
        0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
        0xb0, 0xef, 0xe6, 0x21,                         // line 4 alone is open
        0xfb,                                           // sti
        0xba, 0xf9, 0x03, 0xb0, 0x02, 0xee,             // interrupt when there is room to write
        0x90, 0xeb, 0xfd,                               // for ever: nop
        0xba, 0xf8, 0x03, 0xb0, b'!', 0xee,             // the handler writes '!' and powers off
    ]);
    let Some((vm, outside)) = machine("serial interrupt", 1, &code) else { return };
    assert!(matches!(vm.wait(), Exit::PowerOff));
    assert_eq!(outside.text(), "!");
}

#[test]
fn each_way_to_end_ends_in_its_own_way() {
    let out = |port: u16, value: u8| {
        let [low, high] = port.to_le_bytes();
        [0xba, low, high, 0xb0, value, 0xee, 0xf4]
    };
    let Some((vm, _)) = machine("reset register", 1, &out(0x602, 1)) else { return };
    assert!(matches!(vm.wait(), Exit::Reset));
    let (vm, _) = machine("pvpanic", 1, &out(0x505, 1)).unwrap();
    assert!(matches!(vm.wait(), Exit::Panicked));
    let (vm, _) = machine("i8042", 1, &out(0x64, 0xfe)).unwrap();
    assert!(matches!(vm.wait(), Exit::Reset));
}

/// A reboot is a machine after a machine.
#[test]
fn a_machine_after_another_has_its_disks_and_channels_and_nothing_of_the_first_is_left() {
    let Ok(host) = kvm::open_any() else { return eprintln!("skipped: machines in a row: no /dev/kvm") };
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let config = VmConfig {
        iothreads: vec![crate::config::IoThread::named(0, "iothread0")],
        disks: vec![crate::config::Disk::named("data", file.path(), vec![0])],
        ..config(1)
    };
    let locks = [DiskLock::take(&config.disks[0]).unwrap()];
    // Sends what it reads back, and then resets: mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx;
    // out dx, al; mov dx, 0x602; mov al, 1; out dx, al; hlt
    #[rustfmt::skip]
    let code = [
        0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4,
    ];
    for key in b"abc" {
        let outside = Outside::default();
        let (mut keys, input) = std::os::unix::net::UnixStream::pair().unwrap();
        input.set_nonblocking(true).unwrap();
        let channels = Channels {
            ports: vec![],
            vsock: None,
            nets: vec![],
            serial_out: Box::new(outside.clone()),
            serial_in: Some(input.into()),
        };
        let built = Vm::build_with(&host, &config, &locks, channels, Start::RealMode { code: &code });
        let vm = built.unwrap().start().unwrap();
        let control = vm.control();
        keys.write_all(&[*key]).unwrap();
        assert!(matches!(vm.wait(), Exit::Reset));
        assert_eq!(outside.text().as_bytes(), [*key]);
        for (name, tid) in control.threads() {
            assert!(!std::path::Path::new(&format!("/proc/self/task/{tid}")).exists(), "{name}");
        }
        // Our end is the last: the machine has let go of its own.
        assert_eq!(io::Read::read(&mut keys, &mut [0]).unwrap(), 0);
    }
}

#[test]
fn the_code_at_the_reset_vector_resets() {
    let Some((vm, _)) = machine("reset vector", 1, &crate::power::RESET_CODE) else { return };
    assert!(matches!(vm.wait(), Exit::Reset));
}

#[test]
fn a_guest_that_never_ends_is_killed() {
    // jmp to itself
    let Some((vm, _)) = machine("kill", 2, &[0xeb, 0xfe]) else { return };
    vm.control().kill();
    assert!(matches!(vm.wait(), Exit::Killed));
}

/// Machine code that leaves the guest again and again: `mov dx, 0x80; out dx, al`, for ever.
const BUSY: [u8; 6] = [0xba, 0x80, 0x00, 0xee, 0xeb, 0xfd];

/// Waits until no vCPU has left its guest for a while.
fn stands_still(control: &Control) -> u64 {
    let exits = || control.stats().vcpus.iter().map(|vcpu| vcpu.exits.port_writes).sum::<u64>();
    for _ in 0..3_000 {
        let before = exits();
        std::thread::sleep(Duration::from_millis(10));
        if exits() == before {
            return before;
        }
    }
    panic!("a paused guest goes on");
}

#[test]
fn a_paused_machine_stands_still_until_it_is_resumed_and_can_be_ended() {
    let Some((vm, _)) = machine("pause", 2, &BUSY) else { return };
    let control = vm.control();
    let (tell, told) = mpsc::channel();
    control.on_pause(move |news| tell.send(news).unwrap());
    let exits = || control.stats().vcpus[0].exits.port_writes;
    while exits() == 0 {
        std::thread::yield_now();
    }
    control.pause().unwrap();
    let still = stands_still(&control);
    assert!(control.stats().paused.is_some_and(|pause| pause.asked));
    control.power_button();
    control.resume().unwrap();
    while exits() <= still {
        std::thread::yield_now();
    }
    assert!(control.stats().paused.is_none());
    control.pause().unwrap();
    stands_still(&control);
    control.kill();
    assert!(matches!(vm.wait(), Exit::Killed));
    assert_eq!(control.resume(), Err(PauseError::Ending));
    let paused = || PauseNews::Paused(None);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [paused(), PauseNews::Resumed, paused()]);
}

/// What a pipe holds, and more than a batch beyond it, so that whoever writes it must be waiting.
const MORE_THAN_A_PIPE: u64 = 70_000;

#[test]
fn a_machine_whose_console_nobody_reads_can_be_killed() {
    // mov dx, 0x3f8; for ever: out dx, al
    let Some((vm, _reader)) = unread("blocked kill", &[0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd]) else { return };
    let control = vm.control();
    while control.stats().vcpus[0].exits.port_writes < MORE_THAN_A_PIPE {
        std::thread::yield_now();
    }
    control.kill();
    assert!(matches!(vm.wait(), Exit::Killed));
}

#[test]
fn a_guest_that_ended_waits_for_its_reader_until_it_is_killed() {
    // mov dx, 0x3f8; 65,536 and then 5,120 times: out dx, al
    let code = ending_in_power_off(&[
        0xba, 0xf8, 0x03, 0xb9, 0x00, 0x00, 0xee, 0xe2, 0xfd, 0xb9, 0x00, 0x14, 0xee, 0xe2, 0xfd,
    ]);
    let Some((vm, _reader)) = unread("blocked end", &code) else { return };
    let control = vm.control();
    let (_, vcpu) = control.threads().into_iter().find(|(name, _)| name == "CPU 0/KVM").unwrap();
    let waiting = std::thread::spawn(|| vm.wait());
    while std::path::Path::new(&format!("/proc/self/task/{vcpu}")).exists() {
        std::thread::yield_now();
    }
    control.kill();
    assert!(matches!(waiting.join().unwrap(), Exit::PowerOff));
}

#[test]
fn a_guest_that_panics_may_say_why_before_it_resets() {
    #[rustfmt::skip]
    let code = [
        0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xee,                     // pvpanic, twice
        0xba, 0xf8, 0x03, 0xb0, b'w', 0xee, 0xb0, b'h', 0xee, 0xb0, b'y', 0xee,
        0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4,                     // reset
    ];
    let Some((vm, outside)) = machine("last words", 1, &code) else { return };
    assert!(matches!(vm.wait(), Exit::Panicked));
    assert_eq!(outside.text(), "why");
}

#[test]
fn a_machine_that_is_dropped_leaves_no_thread() {
    let Some((vm, _)) = machine("drop", 2, &[0xeb, 0xfe]) else { return };
    let threads = vm.control().threads();
    assert_eq!(
        threads.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["vmprof", "vmprof serial", "CPU 0/KVM", "CPU 1/KVM"]
    );
    for (name, tid) in &threads {
        let comm = std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")).unwrap();
        assert_eq!(comm.trim_end(), name);
    }
    drop(vm);
    for (_, tid) in threads {
        assert!(!std::path::Path::new(&format!("/proc/self/task/{tid}")).exists());
    }
}

#[test]
fn nothing_there_reads_as_ones() {
    // mov dx, 0x1234; in al, dx; mov dx, 0x3f8; out dx, al
    let code = ending_in_power_off(&[0xba, 0x34, 0x12, 0xec, 0xba, 0xf8, 0x03, 0xee]);
    let Some((vm, outside)) = machine("unclaimed port", 1, &code) else { return };
    assert!(matches!(vm.wait(), Exit::PowerOff));
    assert_eq!(*outside.0.lock().unwrap(), [0xff]);
}

#[test]
fn a_machine_without_vcpus_or_with_gaps_is_refused() {
    let Ok(host) = kvm::open_any() else { return eprintln!("skipped: refusals") };
    assert!(matches!(machine::check(&host, &config(0)), Err(BuildError::NoVcpu)));
    assert!(matches!(machine::check(&host, &config(256)), Err(BuildError::TooManyVcpus { asked: 256, .. })));
    let mut gap = config(2);
    gap.vcpus[1].id = 2;
    assert!(matches!(machine::check(&host, &gap), Err(BuildError::VcpuIds { position: 1, found: 2 })));
    for asked in [0, 3, 6, 16, u32::MAX] {
        let odd = VmConfig { threads_per_core: asked, ..config(2) };
        let error = machine::check(&host, &odd).unwrap_err();
        assert!(matches!(error, BuildError::ThreadsPerCore { asked: found } if found == asked), "{error}");
    }
}

#[test]
fn the_guest_reads_its_siblings_from_its_processor() {
    let Ok(host) = kvm::open_any() else { return eprintln!("skipped: siblings: no /dev/kvm") };
    #[rustfmt::skip]
    let code = ending_in_power_off(&[
        0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x0f, 0xa2, // leaf 1: EBX's third byte are the package's ids
        0x66, 0xc1, 0xeb, 0x10,                         // shr ebx, 16
        0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee,             // out 0x3f8, bl
        0x66, 0xb8, 0x0b, 0x00, 0x00, 0x00, 0x66, 0x31, 0xc9, 0x0f, 0xa2, // leaf 0xb, the threads of a core
        0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee,
    ]);
    // A processor without leaf 0xb answers with the last that it has.
    let has_levels = cpuid::supported(&host.kvm).unwrap().iter().any(|leaf| leaf.function == 0xb);
    for (threads_per_core, vcpus) in [(1, 4), (2, 4), (4, 8)] {
        let config = VmConfig { threads_per_core, ..config(vcpus) };
        let outside = Outside::default();
        let channels = Channels {
            ports: vec![],
            vsock: None,
            nets: vec![],
            serial_out: Box::new(outside.clone()),
            serial_in: None,
        };
        let vm = Vm::build_with(&host, &config, &[], channels, Start::RealMode { code: &code });
        assert!(matches!(vm.unwrap().start().unwrap().wait(), Exit::PowerOff));
        let said = outside.0.lock().unwrap().clone();
        assert_eq!(said.first(), Some(&(vcpus as u8)), "{said:?}");
        if has_levels {
            assert_eq!(said.get(1), Some(&(threads_per_core as u8)), "{said:?}");
        }
    }
}

mod driver;
