//! Saved plans: what `plan --format json` wrote, read again to be compared or to be run exactly as it is.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vmprof_profiles::{Plan, PlanFault, Profile, profile_digest};

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

/// A plan that cannot be obeyed as it is.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{} cannot be obeyed on this host as it is", file.display())]
#[diagnostic(
    code(vmprof::plan::unfit),
    help("mend what was edited, or save the plan anew: `vmprof plan PROFILE --format json`")
)]
struct Unfit {
    file: PathBuf,
    #[related]
    faults: Vec<PlanFault>,
}

impl SavedPlan {
    pub fn read(path: &Path) -> Result<SavedPlan, Failure> {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::os(format!("the plan {} cannot be read", path.display()), error))?;
        Ok(SavedPlan { path: path.to_owned(), plan: parse(path, &text)? })
    }

    /// Refuses a profile that the plan was not made from: no host needs to be looked at for that.
    pub fn made_from(&self, profile: &Profile) -> Result<(), Failure> {
        if profile_digest(profile) == self.plan.profile_digest {
            return Ok(());
        }
        let whose = match profile.name == self.plan.profile {
            true => String::new(),
            false => format!(": it is a plan of `{}`", self.plan.profile),
        };
        let (file, name) = (self.path.display(), profile.source().name());
        Err(Failure::said(
            Kind::Invalid,
            "vmprof::plan::profile_changed",
            format!("{file} was made from another profile than {name} is now{whose}"),
            self.what_to_do(profile),
        ))
    }

    /// The plan, where it was made from this profile on this host as both are now.
    pub fn for_now(&self, profile: &Profile, host: &Host) -> Result<Plan, Failure> {
        self.made_from(profile)?;
        let file = self.path.display();
        if host.digest() != self.plan.host.digest {
            let changed = match host.plan(profile) {
                Ok(now) => self.changed(&now),
                Err(_) => "on this one the profile cannot be planned".to_owned(),
            };
            let message = format!("{file} was made for another host than this one is now: {changed}");
            return Err(Failure::said(
                Kind::HostCannot,
                "vmprof::plan::host_changed",
                message,
                self.what_to_do(profile),
            ));
        }
        let disks = profile.disks.iter().map(|disk| (disk.name.value.as_str(), &disk.source));
        if !disks.eq(self.plan.disks.iter().map(|disk| (disk.name.as_str(), &disk.source))) {
            return Err(Failure::said(
                Kind::Invalid,
                "vmprof::plan::other_disks",
                format!("{file} has other disks than {}", profile.source().name()),
                "a plan says how disks are served; which they are, and where they lie, is the profile's to say",
            ));
        }
        match host.check(&self.plan) {
            Ok(()) => Ok(self.plan.clone()),
            Err(faults) => Err(Failure::new(Kind::HostCannot, Unfit { file: self.path.clone(), faults })),
        }
    }

    /// What of the host differs, as far as the two plans tell.
    fn changed(&self, now: &Plan) -> String {
        let (then, now_size) = (&self.plan.host, &now.host);
        if (then.cpus, then.nodes) != (now_size.cpus, now_size.nodes) {
            let count =
                |number: usize, noun: &str| format!("{number} {noun}{}", if number == 1 { "" } else { "s" });
            let size = |cpus: usize, nodes: usize| {
                format!("{} in {}", count(cpus, "online CPU"), count(nodes, "node"))
            };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;
    use crate::profile;

    /// A shipped profile and a captured host, by their paths below `profiles/`.
    fn planned(name: &str, capture: &str) -> (Profile, Host, Plan) {
        let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles");
        let (_, profile) = profile::read(&room.join(name)).unwrap();
        let capture = fs::read_to_string(room.join("fixtures/topology").join(capture)).unwrap();
        let host = Host::described_by(&host::from_text("host.json".as_ref(), &capture).unwrap(), &profile);
        let plan = host.plan(&profile).unwrap();
        (profile, host, plan)
    }

    fn saved(plan: &Plan) -> SavedPlan {
        let path = Path::new("saved.json");
        SavedPlan { path: path.to_owned(), plan: parse(path, &plan.to_json()).unwrap() }
    }

    #[test]
    fn a_plan_that_still_holds_is_run_as_it_was_saved() {
        let (profile, host, mut plan) = planned("db.kdl", "lab.json");
        // What was saved counts, not what would be planned now.
        plan.emulator.because = "somebody looked at it".to_owned();
        assert_eq!(saved(&plan).for_now(&profile, &host).unwrap(), plan);
    }

    #[test]
    fn another_profile_is_invalid_and_is_named() {
        let (_, _, plan) = planned("hello.kdl", "lab.json");
        let (profile, host, _) = planned("db.kdl", "lab.json");
        let failure = saved(&plan).for_now(&profile, &host).unwrap_err();
        assert_eq!(failure.kind, Kind::Invalid);
        assert!(failure.problem.to_string().contains("a plan of `hello`"), "{}", failure.problem);
    }

    #[test]
    fn another_host_cannot_run_it_and_what_differs_is_said() {
        let (profile, host, _) = planned("db.kdl", "lab.json");
        for (other, said) in [
            ("smt2.json", "it had 16 online CPUs in 2 nodes, and now has 12"),
            ("one-cpu.json", "1 online CPU in 1 node"),
        ] {
            let (_, _, plan) = planned("db.kdl", other);
            let failure = saved(&plan).for_now(&profile, &host).unwrap_err();
            assert_eq!(failure.kind, Kind::HostCannot);
            assert!(failure.problem.to_string().contains(said), "{}", failure.problem);
        }
        let (_, _, mut plan) = planned("db.kdl", "lab.json");
        plan.host.digest = "0".repeat(64);
        let failure = saved(&plan).for_now(&profile, &host).unwrap_err();
        assert!(failure.problem.to_string().contains("otherwise built"), "{}", failure.problem);
        // Where the profile has no plan at all now, the plan is still the other host's.
        let (paired, siblings, plan) = planned("fixtures/profiles/paired.kdl", "smt2.json");
        let (_, other, _) = planned("db.kdl", "lab.json");
        let failure = saved(&plan).for_now(&paired, &other).unwrap_err();
        assert!(failure.problem.to_string().contains("cannot be planned"), "{}", failure.problem);
        assert_eq!(saved(&plan).for_now(&paired, &siblings).unwrap(), plan);
    }

    #[test]
    fn a_plan_edited_by_hand_is_obeyed_where_it_can_be_and_refused_by_name_where_not() {
        let (profile, host, plan) = planned("db.kdl", "lab.json");
        let free: vmprof_profiles::CpuSet = "10".parse().unwrap();
        let mut moved = plan.clone();
        moved.vcpus[0].cpus = free.clone();
        assert_eq!(saved(&moved).for_now(&profile, &host).unwrap().vcpus[0].cpus, free);

        let mut absent = plan.clone();
        absent.vcpus[0].cpus = "40".parse().unwrap();
        absent.disks[0].virtqueues.pop();
        let failure = saved(&absent).for_now(&profile, &host).unwrap_err();
        assert_eq!(failure.kind, Kind::HostCannot);
        let faults: Vec<String> = failure.problem.related().unwrap().map(|fault| fault.to_string()).collect();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("vcpu 0 is planned on CPU 40"), "{faults:?}");

        let mut other = plan;
        other.disks[0].name = "else".to_owned();
        let failure = saved(&other).for_now(&profile, &host).unwrap_err();
        assert_eq!(
            (failure.kind, failure.problem.to_string().contains("other disks")),
            (Kind::Invalid, true)
        );
    }

    #[test]
    fn what_is_no_plan_is_told_apart() {
        assert!(is_plan("{\"schema\": \"vmprof.plan/2\"}"));
        assert!(!is_plan("{\"schema\": \"vmprof.capture/1\"}") && !is_plan("{") && !is_plan("profile x"));
        let failure = parse(Path::new("x.json"), "{\"schema\": \"vmprof.plan/2\"}").unwrap_err();
        assert_eq!(failure.kind, Kind::Invalid);
    }
}
