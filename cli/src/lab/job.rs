//! What the first process of an emulated host is told, whatever the host is for.

use vmprof_job::{Bytes, Command, Init, JOB_SCHEMA, Job, Root, Streams};

use super::PathsInside;

/// The environment of every vmprof in it.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/bin:/bin"),
    ("HOME", "/root"),
    ("VMPROF_STORE", PathsInside::STORE),
    ("VMPROF_RUNTIME", PathsInside::RUNTIME),
];

/// To run this; without disks, and with a second for a clean stop.
pub fn job(argv: Vec<Bytes>, env: Vec<(Bytes, Bytes)>) -> Job {
    Job {
        schema: JOB_SCHEMA.to_owned(),
        hostname: "lab".to_owned(),
        online_cpus: true,
        root: Root::Initramfs,
        disks: Vec::new(),
        links: Vec::new(),
        nets: Vec::new(),
        sysctl: Vec::new(),
        mounts: Vec::new(),
        init: Init::Vmprof,
        services: Vec::new(),
        stop_within_ms: 1_000,
        env,
        directory: "/".to_owned(),
        command: Some(Command { argv, streams: Streams::Ports }),
    }
}
