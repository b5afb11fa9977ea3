//! Who needs whom, from the names a job gives; a circle and a name that nobody has are refused before anything starts.

use std::collections::HashMap;

use vmprof_job::Service;

use super::Id;
use crate::failure::Failure;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) needs: Vec<Id>,
    pub(super) needed_by: Vec<Id>,
}

/// In the order of `services`.
pub(super) fn needs(services: &[Service]) -> Result<Vec<Needs>, Failure> {
    let mut ids = HashMap::new();
    for (id, service) in services.iter().enumerate() {
        let name = service.name.as_str();
        // Names are names of files, in /run/log and as cgroups.
        let plain = !name.is_empty() && name.len() <= 64 && !name.starts_with('.');
        if !plain || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@+".contains(&b)) {
            return Err(Failure::ServiceName(name.to_owned()));
        }
        if service.exec.argv.is_empty() || service.prepare.iter().any(|step| step.argv.is_empty()) {
            return Err(Failure::ServiceWithoutProgram(name.to_owned()));
        }
        if ids.insert(name, id).is_some() {
            return Err(Failure::ServiceTwice(name.to_owned()));
        }
    }
    let mut all = vec![Needs::default(); services.len()];
    for (id, service) in services.iter().enumerate() {
        for name in &service.after {
            let Some(need) = ids.get(name.as_str()).copied() else {
                return Err(Failure::NoSuchService { service: service.name.clone(), after: name.clone() });
            };
            if let Some(needs) = all.get_mut(id)
                && !needs.needs.contains(&need)
            {
                needs.needs.push(need);
                all.get_mut(need).into_iter().for_each(|needed| needed.needed_by.push(id));
            }
        }
    }
    match circle(&all) {
        Some(ids) => {
            let names = ids.into_iter().filter_map(|id| services.get(id)).map(|service| service.name.clone());
            Err(Failure::ServiceCircle(names.collect()))
        }
        None => Ok(all),
    }
}

/// Those that can never start, if there are any: what is left when all that can start have been taken away.
fn circle(all: &[Needs]) -> Option<Vec<Id>> {
    let mut started = vec![false; all.len()];
    loop {
        let can = |id: &Id| {
            let is = |id: &Id| started.get(*id).copied().unwrap_or_default();
            !is(id) && all.get(*id).is_some_and(|one| one.needs.iter().all(is))
        };
        match (0..all.len()).find(can) {
            Some(id) => started.get_mut(id).into_iter().for_each(|started| *started = true),
            None => break,
        }
    }
    let left: Vec<Id> =
        started.iter().enumerate().filter(|(_, started)| !**started).map(|(id, _)| id).collect();
    (!left.is_empty()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::service;

    fn outcome(services: &[(&str, &[&str])]) -> Result<Vec<Needs>, String> {
        let services: Vec<Service> = services.iter().map(|(name, after)| service(name, after)).collect();
        needs(&services).map_err(|failure| failure.message())
    }

    #[test]
    fn needs_go_both_ways() {
        let all = outcome(&[("app", &["db", "net", "db"]), ("db", &["net"]), ("net", &[])]).unwrap();
        assert_eq!(all[0], Needs { needs: vec![1, 2], needed_by: vec![] });
        assert_eq!(all[1], Needs { needs: vec![2], needed_by: vec![0] });
        assert_eq!(all[2], Needs { needs: vec![], needed_by: vec![0, 1] });
    }

    #[test]
    fn what_could_never_start_is_refused() {
        assert_eq!(
            outcome(&[("a", &["b"]), ("b", &["a"]), ("c", &[])]),
            Err("services that wait for each other: a, b".into())
        );
        assert_eq!(outcome(&[("a", &["a"])]), Err("services that wait for each other: a".into()));
        assert_eq!(
            outcome(&[("a", &["x"])]),
            Err("service `a` is after `x`, and there is no such service".into())
        );
        assert_eq!(outcome(&[("a", &[]), ("a", &[])]), Err("two services have the name `a`".into()));
        for name in ["", "a/b", "..", ".x", "a b"] {
            assert!(outcome(&[(name, &[])]).unwrap_err().contains("no name for a service"), "{name}");
        }
    }
}
