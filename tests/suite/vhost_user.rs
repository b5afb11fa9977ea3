//! `vhost-user-blk` as its users have it: the binary, and clients that others wrote (QEMU, libblkio).

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use blkio::{Blkio, Completion, ReqFlags};
use rustix::process::Signal;
use vmprof_tests::libvirt_schema::is_valid;
use vmprof_tests::qemu::Machine;
use vmprof_tests::server::{DISK_BYTES, Server, blocks};

#[test]
fn libblkio_reads_and_writes_a_disk_and_the_threads_are_where_they_were_to_be() {
    let server =
        Server::start(&["--queues", "2", "--iothreads", "2", "--cpus", "0-1", "--cache", "writeback"]);
    let tasks = format!("/proc/{}/task", server.pid());
    let mut placed: Vec<String> =
        fs::read_dir(tasks).unwrap().flatten().filter_map(|task| thread(&task.path())).collect();
    placed.sort();
    assert_eq!(placed, ["IO iothread0 on 0", "IO iothread1 on 1"]);

    let mut device = Blkio::new("virtio-blk-vhost-user").unwrap();
    device.set_str("path", server.socket().to_str().unwrap()).unwrap();
    device.connect().unwrap();
    device.set_i32("num-queues", 2).unwrap();
    let mut queues = device.start().unwrap().queues;
    assert_eq!(device.get_u64("capacity").unwrap(), DISK_BYTES);
    let region = device.alloc_mem_region(65_536).unwrap();
    device.map_mem_region(&region).unwrap();
    let memory = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", region.fd)).unwrap();
    let base = region.fd_offset as u64;
    let at = |offset: usize| std::ptr::with_exposed_provenance_mut(region.addr + offset);
    for (number, queue) in queues.iter_mut().enumerate() {
        let text = format!("queue {number} was here").repeat(1000);
        let (text, target) = (&text.as_bytes()[..8192], number as u64 * 1_048_576);
        memory.write_all_at(text, base).unwrap();
        queue.write(target, at(0), 8192, 0, ReqFlags::empty());
        queue.read(target, at(32_768), 8192, 1, ReqFlags::empty());
        for _ in 0..2 {
            let mut done = [MaybeUninit::<Completion>::uninit()];
            assert_eq!(queue.do_io(&mut done, 1, None, None).unwrap(), 1);
        }
        let mut found = vec![0; 8192];
        File::open(server.disk()).unwrap().read_exact_at(&mut found, target).unwrap();
        assert_eq!(found, text, "in the file");
    }
    drop((queues, device));
    let said = server.stop(Signal::INT);
    assert!(said.contains("served 1 client: 2 reads, 2 writes, 0 flushes, 0 of all"), "{said}");
}

/// An IOThread, and the CPUs that the kernel has it on.
fn thread(task: &Path) -> Option<String> {
    let name = fs::read_to_string(task.join("comm")).ok()?;
    let status = fs::read_to_string(task.join("status")).ok()?;
    let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
    name.starts_with("IO ").then(|| format!("{} on {cpus}", name.trim_end()))
}

/// The documented command, as far as the boot sector, which the BIOS reads through the server and runs.
#[test]
fn qemu_starts_with_the_documented_command_and_boots_from_the_disk() {
    let server = Server::start(&["--queues", "4", "--iothreads", "2"]);
    // mov al, 16; out 0xf4, al; jmp $
    let mut sector = vec![0xb0, 0x10, 0xe6, 0xf4, 0xeb, 0xfe];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    File::options().write(true).open(server.disk()).unwrap().write_all_at(&sector, 0).unwrap();
    let documented = blocks("sh").into_iter().find(|block| block.starts_with("qemu-system")).unwrap();
    let command = documented
        .replace("/run/vm/db.sock", server.socket().to_str().unwrap())
        // What is tried here need not be as large.
        .replace("4G", "128M");
    let exit = " -nodefaults -device isa-debug-exit,iobase=0xf4,iosize=1";
    let mut machine = Machine::start(&(command.trim_end().to_owned() + exit), server.home().path());
    assert_eq!(machine.property("data", "num-queues"), 4);
    machine.runs_until(16 << 1 | 1);
    let said = server.stop(Signal::TERM);
    assert!(said.contains("the client has gone") && said.contains("0 of all requests failed"), "{said}");
}

#[test]
fn the_documented_domain_is_one_to_libvirt() {
    let domains = blocks("xml");
    assert_eq!(domains.len(), 1);
    is_valid(&domains[0]);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_code() {
    let server = Server::start(&[]);
    let refused = |words: &[&str], status: i32, code: &str| {
        let mut all = vec!["vhost-user-blk"];
        all.extend(words);
        let finished = server.home().run(all).expect(status);
        assert!(finished.stderr.contains(code), "{words:?}: {}", finished.stderr);
        assert!(finished.stdout.is_empty());
    };
    let (disk, socket) = (server.disk(), server.socket());
    let (disk, socket) = (disk.to_str().unwrap(), socket.to_str().unwrap());
    let other = server.home().path().join("other.raw");
    File::create(&other).unwrap().set_len(4096).unwrap();
    let other = other.to_str().unwrap();
    refused(&["--socket", "x", "--source", disk], 1, "vmprof::vhost_user::not_started");
    refused(&["--socket", socket, "--source", other], 1, "listens at");
    refused(&["--socket", other, "--source", other], 1, "is no socket");
    refused(&["--socket", "/nowhere/s", "--source", other], 1, "vmprof::vhost_user::socket");
    refused(&["--socket", "x", "--source", "/nowhere"], 1, "could not be opened");
    refused(&["--socket", "x", "--source", other, "--cpus", "65000"], 4, "iothread0");
    refused(&["--socket", "x", "--source", other, "--iothreads", "2"], 64, "nothing to serve");
    assert!(fs::metadata(other).unwrap().is_file());
    server.stop(Signal::TERM);
}

#[test]
fn the_socket_of_a_killed_server_is_replaced() {
    Server::start(&[]).kill().start_again().stop(Signal::TERM);
}
