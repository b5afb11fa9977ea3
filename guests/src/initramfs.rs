//! The first archive the kernel sees: the guest's first process, the modules it loads before it can find a disk, and the
//! directories it mounts on.

use crate::error::Result;
use crate::modules::Module;
use crate::tree::{Kind, Node, Origin, Tree};
use crate::{cpio, init};

/// What every guest needs: the buses and disks of vmprof's VMM, the channel for a command's streams, the power button. A
/// kernel that lacks one of them is refused.
pub(crate) const NEEDED: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_console", "button", "evdev"];

/// Taken where the kernel has them: older devices, the host's random bytes, word of a panic to the VMM, the sockets of `exec`
/// and `cp`, and network devices, which the profile decides on and not the recipe.
pub(crate) const WELCOME: [&str; 8] = [
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_net",
    "virtio_rng",
    "pvpanic",
    "pvpanic_mmio",
    "pvpanic_pci",
    "vmw_vsock_virtio_transport",
];

/// Mounted on, or needed before anything is mounted.
const DIRECTORIES: [&str; 7] = ["dev", "etc", "newroot", "proc", "run", "sys", "tmp"];

/// Packs the archive. `/modules/order` lists what to load, one path a line.
pub(crate) fn pack(modules: &[Module]) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    let by = Origin::Builder;
    for directory in DIRECTORIES {
        tree.put(directory, Node::directory(0o755), &by)?;
    }
    // The kernel opens it for the first process before that process could mount /dev.
    let console = Node::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600);
    tree.put("dev/console", console, &by)?;
    // Where the kernel has no console at all, the first process starts without streams, and Rust opens this for them.
    let null = Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666);
    tree.put("dev/null", null, &by)?;
    tree.put("init", Node::file(0o755, init::PROGRAM), &by)?;
    let mut order = String::new();
    for module in modules {
        let path = format!("modules/{}.ko", module.name);
        order.push_str(&format!("/{path}\n"));
        tree.put(&path, Node::file(0o644, module.content.clone()), &by)?;
    }
    tree.put("modules/order", Node::file(0o644, order.as_bytes()), &by)?;
    cpio::pack(&tree)
}

#[cfg(test)]
mod tests {
    use object::Endianness;
    use object::elf::{PT_INTERP, PT_LOAD};
    use object::read::elf::ElfFile64;

    use super::*;

    #[test]
    fn the_archive_holds_the_first_process_and_the_modules_in_loading_order() {
        let module = |name: &str| Module { name: name.to_owned(), content: [1, 2, 3].into() };
        let packed = pack(&[module("virtio"), module("button")]).unwrap();
        let members = cpio::members(&packed).unwrap();
        let content = |path: &str| members.iter().find(|(at, ..)| at == path).map(|(_, _, data)| *data);
        assert_eq!(content("modules/order"), Some(&b"/modules/virtio.ko\n/modules/button.ko\n"[..]));
        assert_eq!(content("init"), Some(init::PROGRAM));
        assert!(content("newroot").is_some() && content("dev/console").is_some());
        assert!(content("dev/null").is_some(), "a machine without a console still needs streams");
    }

    #[test]
    fn the_first_process_is_a_static_program() {
        let elf = ElfFile64::<Endianness>::parse(init::PROGRAM).unwrap();
        let kinds: Vec<_> =
            elf.elf_program_headers().iter().map(|h| h.p_type.get(Endianness::Little)).collect();
        assert!(kinds.contains(&PT_LOAD));
        assert!(!kinds.contains(&PT_INTERP), "the initramfs has no dynamic linker");
    }
}
