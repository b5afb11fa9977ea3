//! Saved plans: what `plan --format json` wrote, read again to be compared or to be run exactly as it is.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vmprof_profiles::{Plan, Profile};

use crate::failure::{Failure, Kind};
use crate::profile::Host;

/// A saved plan and where it lies.
#[derive(Debug)]
pub struct SavedPlan {
    pub path: PathBuf,
    plan: Plan,
}

/// Whether a JSON text says that it is a plan, of whatever version.
pub fn is_plan(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Stamp {
        schema: String,
    }
    serde_json::from_str(text).is_ok_and(|Stamp { schema }| schema.starts_with("vmprof.plan/"))
}

/// Reads a plan's JSON.
pub fn parse(path: &Path, text: &str) -> Result<Plan, Failure> {
    Plan::from_json(text).map_err(|error| {
        let message = format!("{} is no plan that this vmprof can read: {error}", path.display());
        let help =
            "`vmprof plan PROFILE --format json > FILE` writes one; `vmprof schema` tells what is in it";
        Failure::said(Kind::Invalid, "vmprof::plan::not_a_plan", message, help)
    })
}

impl SavedPlan {
    pub fn read(path: &Path) -> Result<SavedPlan, Failure> {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::os(format!("the plan {} cannot be read", path.display()), error))?;
        Ok(SavedPlan { path: path.to_owned(), plan: parse(path, &text)? })
    }

    /// The plan, where it was made from this profile on this host as both are now.
    pub fn for_now(&self, profile: &Profile, host: &Host) -> Result<Plan, Failure> {
        let file = self.path.display();
        let now = host.plan(profile);
        if let Ok(now) = &now
            && now.profile_digest != self.plan.profile_digest
        {
            let message = format!(
                "{file} was made from another profile than {} is now{}",
                profile.source().name(),
                if now.profile == self.plan.profile {
                    String::new()
                } else {
                    format!(": it is a plan of `{}`", self.plan.profile)
                }
            );
            return Err(Failure::said(
                Kind::Invalid,
                "vmprof::plan::profile_changed",
                message,
                self.what_to_do(profile),
            ));
        }
        let now = now?;
        if now.host.digest != self.plan.host.digest {
            let message =
                format!("{file} was made for another host than this one is now: {}", self.changed(&now));
            return Err(Failure::said(
                Kind::HostCannot,
                "vmprof::plan::host_changed",
                message,
                self.what_to_do(profile),
            ));
        }
        Ok(self.plan.clone())
    }

    /// What of the host differs, as far as the two plans tell.
    fn changed(&self, now: &Plan) -> String {
        let (then, now_size) = (&self.plan.host, &now.host);
        if (then.cpus, then.nodes) != (now_size.cpus, now_size.nodes) {
            let size = |cpus: usize, nodes: usize| format!("{cpus} online CPUs in {nodes} nodes");
            return format!(
                "it had {}, and now has {}",
                size(then.cpus, then.nodes),
                size(now_size.cpus, now_size.nodes)
            );
        }
        let devices = self.plan.disks.iter().zip(&now.disks);
        let moved = devices.filter(|(then, now)| (&then.device, then.node) != (&now.device, now.node));
        if let Some((then, now)) = { moved }.next() {
            let device =
                |device: &Option<String>| device.clone().unwrap_or_else(|| "an unknown device".to_owned());
            return format!(
                "disk `{}` lay on {}, and now lies on {}",
                then.name,
                device(&then.device),
                device(&now.device)
            );
        }
        "as many CPUs and nodes as then, and otherwise built, or with other CPUs allowed or held".to_owned()
    }

    fn what_to_do(&self, profile: &Profile) -> String {
        let (name, file) = (profile.source().name(), self.path.display());
        format!(
            "`vmprof plan {name} --diff {file}` shows what a new plan changes; leave --plan out, or save it anew"
        )
    }
}
