//! What may stand behind `vmprof vhost-user-blk`.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, ValueEnum};
use vmprof_profiles::CpuSet;

use super::Arguments;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof vhost-user-blk --socket /run/vm/db.sock --source db.raw --queues 4\n  \
    vmprof vhost-user-blk --socket s --source db.raw --queues 4 --iothreads 2 --cpus 2-3 --poll-max-ns 32768\n\n\
    The client's memory must be shared, as QEMU's is with -object memory-backend-memfd,share=on. It says how many of the \
    virtqueues it uses; QEMU asks for one per vCPU unless it is told num-queues=N.\n\
    One client at a time; the next may connect when it has gone. SIGINT or SIGTERM once ends what the client has begun, removes \
    the socket and ends with status 0; twice ends at once.")]
pub struct VhostUserBlkArguments {
    /// Listen here; a socket that a dead server left is replaced
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// The disk: a raw file or a block device, locked while it is served
    #[arg(long, value_name = "FILE")]
    pub source: PathBuf,
    /// Refuse writes
    #[arg(long)]
    pub readonly: bool,
    /// Virtqueues that a client may use; it may use fewer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub queues: u16,
    /// Entries of the largest virtqueue that a client may set up: a power of two
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = queue_size)]
    pub queue_size: u16,
    /// Threads that serve the virtqueues: each the k-th, the k+N-th and so on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub iothreads: u16,
    /// CPUs of the IOThreads, such as 2-3,8, dealt out in turn: with as many CPUs as threads, each has one of its own
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuSet>,
    /// How long an idle IOThread looks for work before it sleeps, in nanoseconds; 0 never does
    #[arg(long, value_name = "NS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    pub poll_max_ns: u64,
    /// Whether the host's page cache is used, and what a completed write promises
    #[arg(long, value_enum, value_name = "MODE", default_value = "none")]
    pub cache: CacheWord,
    /// How requests reach the host's block layer
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "io_uring")]
    pub aio: AioWord,
    /// Look at the drive for what ended instead of waiting for its interrupt: the drive must have queues for it, and while
    /// requests are in flight the IOThread has its CPU busy
    #[arg(long)]
    pub iopoll: bool,
}

/// QEMU's cache modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheWord {
    /// O_DIRECT; durable after a flush
    None,
    /// O_DIRECT; every write durable
    Directsync,
    /// Page cache; durable after a flush
    Writeback,
    /// Page cache; every write durable
    Writethrough,
    /// Page cache; flushes ignored
    Unsafe,
}

/// QEMU's words of `aio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AioWord {
    #[value(name = "io_uring")]
    IoUring,
    Native,
    Threads,
}

impl VhostUserBlkArguments {
    /// What one argument says of another.
    pub fn check(&self) -> Result<(), clap::Error> {
        let refused = |message: String| Err(Arguments::command().error(ErrorKind::ArgumentConflict, message));
        let (threads, queues) = (self.iothreads, self.queues);
        if threads > queues {
            return refused(format!(
                "--iothreads {threads} of --queues {queues}: a thread would have nothing to serve"
            ));
        }
        if self.iopoll && self.aio != AioWord::IoUring {
            return refused("--iopoll needs --aio io_uring: no other engine can look at drives".to_owned());
        }
        if self.iopoll && !matches!(self.cache, CacheWord::None | CacheWord::Directsync) {
            return refused(
                "--iopoll needs --cache none or directsync: only direct I/O can be looked for".to_owned(),
            );
        }
        match &self.cpus {
            Some(cpus) if cpus.len() < threads.into() => refused(format!(
                "--cpus {cpus} for --iothreads {threads}: two threads would share a CPU; name as many CPUs, or leave --cpus out"
            )),
            _ => Ok(()),
        }
    }

    /// The CPUs of each IOThread; none where the kernel may choose.
    pub fn shares(&self) -> Vec<Vec<u32>> {
        let threads = usize::from(self.iothreads);
        let cpus: Vec<u32> = self.cpus.iter().flat_map(CpuSet::iter).collect();
        (0..threads).map(|thread| cpus.iter().skip(thread).step_by(threads).copied().collect()).collect()
    }
}

fn queue_size(text: &str) -> Result<u16, String> {
    let size = text.parse().ok().filter(|size: &u16| size.is_power_of_two() && (4..=32_768).contains(size));
    size.ok_or_else(|| "a virtqueue has a power of two of entries, from 4 to 32768".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Verb;
    use super::*;

    fn read(words: &str) -> Result<VhostUserBlkArguments, clap::Error> {
        let base = ["vmprof", "vhost-user-blk", "--socket", "s", "--source", "d"];
        match Arguments::try_parse_from(base.into_iter().chain(words.split_whitespace()))?.verb {
            Verb::VhostUserBlk(read) => read.check().map(|()| read),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn cpus_are_dealt_out_in_turn() {
        let shares = |words| read(words).unwrap().shares();
        assert_eq!(shares(""), [Vec::<u32>::new()]);
        assert_eq!(shares("--cpus 2-3"), [vec![2, 3]]);
        assert_eq!(shares("--queues 4 --iothreads 2 --cpus 0-1,8,10"), [vec![0, 8], vec![1, 10]]);
    }

    #[test]
    fn threads_without_a_queue_or_a_cpu_of_their_own_are_refused() {
        for wrong in ["--iothreads 2", "--queues 4 --iothreads 3 --cpus 1-2", "--queues 0", "--queues 257"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        for wrong in ["--queue-size 100", "--queue-size 2", "--queue-size 65536", "--cpus 3-1", "--aio spdk"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        for wrong in ["--iopoll --aio native", "--iopoll --cache writeback", "--iopoll --cache unsafe"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read("--iopoll --cache directsync").is_ok_and(|read| read.iopoll));
        assert!(read("--queues 256 --iothreads 256 --queue-size 1024 --cache unsafe --aio threads").is_ok());
    }
}
