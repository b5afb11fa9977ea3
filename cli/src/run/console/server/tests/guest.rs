//! A console with real guests: machine code of a few bytes, on whatever /dev/kvm there is, an interpreting one included.

use std::path::Path;

use vmprof_vmm::config::{Boot, Memory, MemoryMode, Vcpu, VmConfig};
use vmprof_vmm::exit::Exit;
use vmprof_vmm::{Channels, Vm, kvm};

use super::*;

/// Sends back each byte of the serial line, and resets behind Ctrl-C. In 32-bit protected mode, as PVH enters.
#[rustfmt::skip]
const ECHO: [u8; 27] = [
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait
    0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,                   // mov dx, 0x3f8; in al, dx; out dx, al
    0x3c, 0x03, 0x75, 0xed,                               // cmp al, 3; jne to the beginning
    0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4,       // mov dx, 0x602; mov al, 1; out dx, al; hlt
];

/// An ELF file of `code`, loaded at 2 MiB and entered there by PVH (XEN_ELFNOTE_PHYS32_ENTRY, 18).
fn kernel(code: &[u8], path: &Path) {
    const AT: u64 = 2 << 20;
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let note =
        [&4u32.to_le_bytes()[..], &8u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0", &AT.to_le_bytes()];
    let note = note.concat();
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let code_at = note_at + note.len() as u64;
    // e_ident; ET_EXEC, EM_X86_64, version 1; then e_entry, e_phoff, e_shoff.
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [AT, HEADER, 0].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend([0; 4]);
    // Sizes and numbers of headers.
    [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0]
        .iter()
        .for_each(|word| file.extend(word.to_le_bytes()));
    // PT_LOAD, which may be read and run; PT_NOTE.
    for (kind, flags, offset, address, length) in
        [(1u32, 5u32, code_at, AT, code.len() as u64), (4, 4, note_at, 0, note.len() as u64)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        [offset, address, address, length, length, 4].iter().for_each(|word| file.extend(word.to_le_bytes()));
    }
    file.extend(note);
    file.extend(code);
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_guest_reads_what_is_typed_and_whoever_is_attached_sees_it_reboot() {
    let host = match kvm::open_any() {
        Ok(host) => host,
        Err(why) => return eprintln!("skipped: a console with real guests: {why}"),
    };
    let keep = tempfile::tempdir().unwrap();
    let (image, initramfs) = (keep.path().join("kernel"), keep.path().join("initramfs"));
    kernel(&ECHO, &image);
    std::fs::write(&initramfs, "").unwrap();
    let config = VmConfig {
        name: "echo".into(),
        boot: Boot { kernel: image, initramfs, cmdline: String::new() },
        memory: Memory { bytes: 16 << 20, nodes: vec![], mode: MemoryMode::Strict, hugepage_bytes: None },
        vcpus: vec![Vcpu { id: 0, cpus: vec![] }],
        threads_per_core: 1,
        emulator_cpus: vec![],
        iothreads: vec![],
        disks: vec![],
        nets: vec![],
    };
    let console = Console::start(sockets::listen(keep.path(), CONSOLE).unwrap(), None).unwrap();
    let attached = |keyboard| attach(sockets::connect(keep.path(), CONSOLE).unwrap(), keyboard).unwrap();
    let typist = attached(true);
    let mut keys = typist.keys().unwrap();
    let (typed, typist) = watch(typist);
    let (watched, watcher) = watch(attached(false));
    for text in [&b"uname\r"[..], b"again\r"] {
        let (printing, input) = console.plug(Box::new(io::sink())).unwrap();
        let channels = Channels {
            ports: vec![],
            vsock: None,
            nets: vec![],
            serial_out: Box::new(printing),
            serial_in: Some(input),
        };
        let vm = Vm::build(&host, &config, channels, &[]).unwrap().start().unwrap();
        keys.write_all(text).unwrap();
        assert_eq!(until(&typed, b"\r"), text);
        keys.write_all(b"\x03").unwrap();
        let exit = vm.wait();
        assert!(matches!(exit, Exit::Reset), "{exit:?}");
        console.unplug();
        assert_eq!(until(&watched, b"\x03"), [text, b"\x03"].concat());
        assert_eq!(until(&typed, b"\x03"), b"\x03");
    }
    drop(console);
    for end in [typist, watcher] {
        assert_eq!(end.join().unwrap(), Left::Because(Because::Over));
    }
}
