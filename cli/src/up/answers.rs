//! What a running machine answers on its control socket; `run/control.rs` reads the requests.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use serde_json::{Value, json};
use vmprof_profiles::Plan;
use vmprof_vmm::config::IoThread;
use vmprof_vmm::iothread::IoThreadError;
use vmprof_vmm::vm::Control;

use super::tuned::Tuned;
use crate::run::control::{self, Answers, Request};
use crate::run::conversation::Event;
use crate::run::record::Kept;
use crate::run::status::Status;
use crate::stats::{Stats, as_qemu_counts};
use crate::verify::{self, Finding};

/// What one machine answers.
pub struct Here {
    pub tuned: Arc<Tuned>,
    pub kept: Kept,
    pub control: Control,
    pub events: Sender<Event>,
}

impl Here {
    fn verify(&self) -> Result<Vec<Finding>, String> {
        let in_force = self.tuned.in_force();
        let plan: Plan = serde_json::from_str(&in_force.plan).map_err(|error| error.to_string())?;
        let open = self.control.disks_open_as().map_err(|error| error.to_string())?;
        let guest = match plan.disks.is_empty() {
            true => Ok(Vec::new()),
            false => verify::schedulers::ask(&self.events, self.control.stats().paused.is_some()),
        };
        let guest = guest.as_deref().map_err(String::as_str);
        let nets = self.control.stats().nets;
        Ok(verify::read_back(&plan, &in_force.threads, &open, &nets, guest, verify::Host::this_one()))
    }
}

impl Answers for Here {
    fn answer(&self, request: Request) -> Result<Value, String> {
        let as_json = |value: serde_json::Result<Value>| value.map_err(|error| error.to_string());
        match request {
            Request::Plan => as_json(serde_json::from_str(&self.tuned.in_force().plan)),
            Request::Status => {
                let plan: Value =
                    serde_json::from_str(&self.tuned.in_force().plan).map_err(|error| error.to_string())?;
                let digest = plan["digest"].as_str().map(str::to_owned);
                let paused = self.control.stats().paused;
                as_json(serde_json::to_value(Status::of(self.kept.run(), paused, digest)))
            }
            Request::QueryIothreads => {
                let running = self.control.stats().iothreads;
                let iothreads = self.tuned.in_force().iothreads;
                let told = iothreads.iter().filter_map(|iothread| {
                    let thread = running.iter().find(|thread| thread.id == iothread.id)?;
                    Some(as_qemu_tells(iothread, thread.tid))
                });
                Ok(told.collect())
            }
            Request::QueryBlockstats => Ok(as_qemu_counts(&self.control.stats().disks)),
            Request::Stats => as_json(serde_json::to_value(Stats::of(self.control.stats()))),
            Request::IothreadSet(set) => {
                let snapshot = |id| self.control.stats().iothreads.into_iter().find(|thread| thread.id == id);
                let takes_times = |id| snapshot(id).is_some_and(|thread| thread.latency);
                let gone = |id| {
                    Err(IoThreadError::Ended { name: format!("iothread{id}"), how: "it is not there".into() })
                };
                let apply = |id, change| self.control.change_iothread(id, change).unwrap_or_else(|| gone(id));
                as_json(serde_json::to_value(self.tuned.change(&set, takes_times, apply)?))
            }
            Request::Verify => as_json(serde_json::to_value(self.verify()?)),
            Request::Pause => {
                self.control.pause().map(|()| Value::Bool(true)).map_err(|error| error.to_string())
            }
            Request::Resume => {
                self.control.resume().map(|()| Value::Bool(true)).map_err(|error| error.to_string())
            }
            Request::Stop => control::stop(&self.events),
        }
    }
}

/// An IOThread in the shape of QEMU's `query-iothreads` (qapi/misc.json, IOThreadInfo). vmprof has no bound on the batches of
/// an engine but the engine's own, which is what 0 says there.
fn as_qemu_tells(iothread: &IoThread, tid: i32) -> Value {
    json!({
        "id": iothread.name,
        "thread-id": tid,
        "poll-max-ns": iothread.polling.max_ns,
        "poll-grow": iothread.polling.grow,
        "poll-shrink": iothread.polling.shrink,
        "aio-max-batch": 0,
    })
}
