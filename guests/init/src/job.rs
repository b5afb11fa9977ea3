//! Reading the job.

use std::fs;
use std::path::Path;

use vmprof_job::{Init, JOB_SCHEMA, Job};

use crate::failure::Failure;

/// The schema is looked at before the rest: a job of another one is named as such, not by the field it lacks.
pub(crate) fn read(path: &Path) -> Result<Job, Failure> {
    let bytes = fs::read(path).map_err(|source| Failure::NoJob { path: path.into(), source })?;
    let wrong = |source| Failure::Job { schema: JOB_SCHEMA, source };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(wrong)?;
    match value.get("schema").and_then(|schema| schema.as_str()) {
        Some(JOB_SCHEMA) => {}
        found => {
            let found = found.unwrap_or("none").to_owned();
            return Err(Failure::JobSchema { asked: JOB_SCHEMA, found });
        }
    }
    let job: Job = serde_json::from_value(value).map_err(wrong)?;
    match &job.command {
        Some(command) if command.argv.is_empty() => Err(Failure::EmptyCommand),
        None if job.services.is_empty() && job.init == Init::Vmprof => Err(Failure::NoCommand),
        _ => Ok(job),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use vmprof_job::{Command, Disk, Root, Streams};

    use super::*;
    use crate::command::Surroundings;

    pub(crate) fn job(argv: &[&str]) -> Job {
        Job {
            schema: JOB_SCHEMA.into(),
            hostname: "db".into(),
            online_cpus: false,
            root: Root::Disk { serial: "root".into(), filesystem: "squashfs".into(), writable: false },
            disks: vec![Disk {
                name: "data".into(),
                serial: "data".into(),
                scheduler: Some("none".into()),
                format: None,
            }],
            links: Vec::new(),
            nets: Vec::new(),
            sysctl: Vec::new(),
            mounts: Vec::new(),
            init: Init::Vmprof,
            services: Vec::new(),
            stop_within_ms: 5_000,
            env: vec![("PATH".into(), "/opt/bin".into())],
            directory: "/".into(),
            command: Some(Command {
                argv: argv.iter().map(|word| (*word).into()).collect(),
                streams: Streams::Ports,
            }),
        }
    }

    fn read_back(text: &[u8]) -> Result<Job, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.json");
        fs::write(&path, text).unwrap();
        read(&path).map_err(|failure| failure.message())
    }

    #[test]
    fn what_is_run_beside_services_has_the_guests_environment_with_a_command_and_without() {
        let value = |job: &Job, wanted: &str| {
            let all = Surroundings::of(job).environment;
            all.into_iter().find(|(name, _)| name == wanted).map(|(_, value)| value.into_string().unwrap())
        };
        let with_command = job(&["true"]);
        let serving = Job { command: None, ..job(&["true"]) };
        for job in [&with_command, &serving] {
            assert_eq!(value(job, "PATH").as_deref(), Some("/opt/bin"));
            assert_eq!(Surroundings::of(job).directory, Path::new("/"));
        }
        let bare = Job { env: Vec::new(), directory: "/nonexistent".into(), ..serving };
        assert!(value(&bare, "PATH").is_some_and(|path| path.contains("/usr/bin")));
        assert!(Surroundings::of(&bare).directory.is_dir());
    }

    #[test]
    fn a_job_arrives_as_it_was_written() {
        assert_eq!(read_back(&vmprof_job::line(&job(&["true"]))), Ok(job(&["true"])));
    }

    #[test]
    fn what_is_no_job_is_refused_by_what_it_is() {
        let missing = read(Path::new("/nonexistent/job.json")).unwrap_err().message();
        assert!(
            missing.starts_with("the job /nonexistent/job.json could not be read: No such file"),
            "{missing}"
        );
        assert_eq!(
            read_back(br#"{"schema":"vmprof.job/1"}"#),
            Err("the job is of schema `vmprof.job/1`; this first process reads `vmprof.job/3`".into())
        );
        assert!(read_back(br#"{"schema":"vmprof.job/3"}"#).unwrap_err().contains("missing field"));
        assert_eq!(read_back(&vmprof_job::line(&job(&[]))), Err("the job's command has no words".into()));
        let idle = Job { command: None, ..job(&[]) };
        assert!(read_back(&vmprof_job::line(&idle)).unwrap_err().ends_with("there is nothing to run"));
    }
}
