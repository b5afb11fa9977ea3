//! Requests to the control socket of a VM in the lab.

use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use serde_json::Value;
use vmprof_job::{Bytes, Ended};

use crate::run::control::{self, Answer, Answers, Request};
use crate::run::conversation::Event;
use crate::run::record::{Kept, State};
use crate::run::status::Status;

/// Requests are the inner vmprof's to answer.
pub(super) struct Forwarded {
    /// The program inside, and what the run is called there.
    pub(super) vmprof: String,
    pub(super) name: String,
    pub(super) kept: Kept,
    pub(super) events: Sender<Event>,
}

impl Forwarded {
    /// The guest is the inner vmprof's to tell of, the process and the profile are ours.
    fn status(&self) -> Result<Value, String> {
        let run = self.kept.run();
        let as_json = |status: Status| serde_json::to_value(status).map_err(|error| error.to_string());
        // The emulated host may not have a VM yet, or no vmprof that answers.
        if run.state == State::Starting {
            return as_json(Status::of(run, None, None));
        }
        let inner: Status =
            serde_json::from_value(self.pass_on(&Request::Status)?).map_err(|error| error.to_string())?;
        as_json(Status::of(run, inner.paused, inner.plan_digest))
    }

    fn pass_on(&self, request: &Request) -> Result<Value, String> {
        let mut argv: Vec<Bytes> =
            [&*self.vmprof, "ask", "--relay", &self.name, request.word()].map(Bytes::from).into();
        argv.extend(request.arguments().map(|arguments| arguments.to_string().as_str().into()));
        let (answer, ran) = mpsc::channel();
        self.events.send(Event::RunAsked { argv, answer }).map_err(|_| control::IS_ENDING.to_owned())?;
        let ran =
            ran.recv_timeout(Duration::from_secs(50)).map_err(|_| "the lab did not answer".to_owned())?;
        match ran.status {
            Ended::Exited(0) => match serde_json::from_slice(&ran.stdout) {
                Ok(Answer::Ok(value)) => Ok(value),
                Ok(Answer::Error(reason)) => Err(reason),
                Err(error) => Err(error.to_string()),
            },
            _ => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
        }
    }
}

impl Answers for Forwarded {
    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Stop => control::stop(&self.events),
            Request::Status => self.status(),
            request => self.pass_on(&request),
        }
    }
}
