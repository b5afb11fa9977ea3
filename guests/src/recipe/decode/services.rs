//! `service NAME { … }`: what the guest keeps running, and in which order.

use std::collections::BTreeMap;

use vmprof_document::{Block, Findings, Node, SourceSpan, closest, one_of};
use vmprof_job::{Bytes, Directory, Ready, Restart, RestartWhen, Service, ServiceKind, Step, Stop};

use super::users::People;
use super::{LONGEST_MS, absolute, argv, environment, formed, mode, probes};
use crate::recipe::Init;
use crate::recipe::conduct::{DEFAULT_READY_MS, DEFAULT_RESTART, DEFAULT_SERVICE_STOP_MS, SIGTERM};
use crate::recipe::words::{SERVICE, SIGNALS};

/// A service and where it and what it names stand.
struct Read {
    service: Service,
    place: SourceSpan,
    after: Vec<(String, SourceSpan)>,
}

/// What every process of one service has unless it says otherwise. Its environment holds what the service writes out.
pub(super) struct Surroundings {
    pub(super) user: String,
    pub(super) group: Option<String>,
    pub(super) env: Vec<(Bytes, Bytes)>,
    pub(super) directory: String,
}

impl Surroundings {
    pub(super) fn step(&self, argv: Vec<String>) -> Step {
        Step {
            argv: argv.iter().map(|word| Bytes::from(word.as_str())).collect(),
            user: self.user.clone(),
            group: self.group.clone(),
            env: self.env.clone(),
            directory: self.directory.clone(),
        }
    }
}

/// The services, and how many there would be if none of them were wrong.
pub(super) fn services(body: &Block<'_>, people: &People, init: &Init) -> (Vec<Service>, usize) {
    let found = body.findings();
    let mut read: Vec<Read> = Vec::new();
    let mut names: BTreeMap<String, SourceSpan> = BTreeMap::new();
    let nodes = body.all("service");
    let declared = nodes.len();
    for node in nodes {
        if *init != Init::Vmprof {
            let message = "the guest's services are systemd's";
            found.push(node.problem("contradiction", message).help(
                "write the unit, `file \"/etc/systemd/system/NAME.service\" …`, and `enable` it under `init systemd`",
            ));
        }
        // A service that is wrong in itself is still one that others may come after.
        let name = node
            .required_arg("its name", "write `service NAME { exec \"/usr/bin/program\" }`")
            .and_then(|v| formed(found, v, &SERVICE));
        let place = node.name_span();
        if let Some(name) = &name
            && let Some(first) = names.insert(name.clone(), place)
        {
            let problem = found.error("duplicate_name", format!("service `{name}` stands twice"));
            let problem = problem.at(place, "again here").at(first, "first here");
            found.push(problem.help("keep one of them, or give it another name"));
        }
        let service = service(&node, name, people);
        node.finish();
        read.extend(service.map(|(service, after)| Read { service, place, after }));
    }
    order(found, &read, &names);
    (read.into_iter().map(|read| read.service).collect(), declared)
}

/// Names that nobody has, and services that wait for each other.
fn order(found: &Findings, read: &[Read], names: &BTreeMap<String, SourceSpan>) {
    for Read { service, after, .. } in read {
        for (name, span) in after {
            if names.contains_key(name) {
                continue;
            }
            let others: Vec<&str> =
                names.keys().map(String::as_str).filter(|other| *other != service.name).collect();
            let help = match (closest(name, others.iter().copied()), others.as_slice()) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, []) => "the guest has no other service: remove it".to_owned(),
                (None, others) => format!("the other services are {}", one_of(others)),
            };
            let message =
                format!("service `{}` comes after `{name}`, which the guest does not have", service.name);
            found.push(found.error("unknown_service", message).at(*span, "no such service").help(help));
        }
    }
    // Services that come after nothing that is left are taken away until none is left, or a circle.
    let mut left: Vec<&Read> = read.iter().collect();
    loop {
        let waits = |one: &Read| {
            one.service.after.iter().any(|name| left.iter().any(|other| other.service.name == *name))
        };
        let rest: Vec<&Read> = left.iter().copied().filter(|one| waits(one)).collect();
        if rest.len() == left.len() {
            break;
        }
        left = rest;
    }
    let Some(first) = left.first() else { return };
    // From each of those that are left a way leads on among them; followed, it meets itself.
    let mut way: Vec<&Read> = vec![first];
    let round = loop {
        let Some(last) = way.last() else { return };
        let next = left.iter().find(|other| last.service.after.contains(&other.service.name));
        let Some(next) = next else { return };
        if let Some(at) = way.iter().position(|one| one.service.name == next.service.name) {
            break way.split_off(at);
        }
        way.push(next);
    };
    let Some(begin) = round.first() else { return };
    let mut shown: Vec<&str> = round.iter().map(|one| one.service.name.as_str()).collect();
    shown.push(&begin.service.name);
    let message = format!("services wait for each other: {}", shown.join(" after "));
    let problem = found.error("service_cycle", message).at(begin.place, "this one is in the circle");
    found.push(problem.help("take one `after` out: what needs nothing starts first"));
}

type After = Vec<(String, SourceSpan)>;

fn service(node: &Node<'_>, name: Option<String>, people: &People) -> Option<(Service, After)> {
    let found = node.findings();
    let body = node.children();
    let mut after: After = Vec::new();
    for node in body.all("after") {
        for value in node.args("a service's name") {
            let name = formed(found, value, &SERVICE);
            after.extend(
                name.filter(|name| after.iter().all(|(one, _)| one != name)).map(|n| (n, value.span())),
            );
        }
        node.finish();
    }
    let mut whole = true;
    let mut keep = |read: bool| whole &= read;
    let (user, group) = match body.only("user") {
        None => (Some("root".to_owned()), None),
        Some(node) => {
            let user = node
                .required_arg("who runs it", "write `user NAME`")
                .and_then(|v| people.runner(&node, v, "user"));
            let group = node.prop("group").map(|v| people.runner(&node, v, "group"));
            keep(group != Some(None));
            node.finish();
            (user, group.flatten())
        }
    };
    let directory = match body.only("working-directory") {
        None => Some("/".to_owned()),
        Some(node) => {
            let value = node.required_arg("where it runs", "write `working-directory \"/srv\"`");
            let root = value.is_some_and(|v| v.raw().as_string() == Some("/"));
            let path = if root { Some("/".to_owned()) } else { value.and_then(|v| absolute(found, v)) };
            node.finish();
            path
        }
    };
    let env = body.only("env").map(environment::variables).unwrap_or_default();
    let surroundings = Surroundings {
        user: user.clone().unwrap_or_default(),
        group,
        env: env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        directory: directory.clone().unwrap_or_default(),
    };
    keep(user.is_some() && directory.is_some());
    let mut directories = Vec::new();
    for node in body.all("directory") {
        let path = node.required_arg("a path", "write an absolute path in double quotes");
        let path = path.and_then(|v| absolute(found, v));
        let (mode, owner) = (mode(&node, 0o755), people.owner(&node).or_root());
        node.finish();
        let read = path.zip(mode).zip(owner);
        keep(read.is_some());
        directories.extend(read.map(|((path, mode), owner)| Directory { path, mode, owner }));
    }
    let mut prepare = Vec::new();
    for node in body.all("prepare") {
        let mut step = surroundings.step(argv(&node));
        if let Some(value) = node.prop("as") {
            let other = people.runner(&node, value, "user");
            keep(other.is_some());
            (step.user, step.group) = (other.unwrap_or_default(), None);
        }
        node.finish();
        prepare.push(step);
    }
    let exec = body.required("exec", "write `exec \"/usr/bin/program\" \"argument\"`").map(|node| {
        let step = surroundings.step(argv(&node));
        node.finish();
        step
    });
    let kinds = [("daemon", ServiceKind::Daemon), ("once", ServiceKind::Once)];
    let kind = match body.only("kind") {
        None => Some(ServiceKind::Daemon),
        Some(node) => super::sole(node, "daemon or once", |v| v.word(&kinds)),
    };
    let restart = match body.only("restart") {
        None => Some(DEFAULT_RESTART),
        Some(node) => restart(node, kind),
    };
    let (ready, ready_within_ms) = match body.only("ready") {
        None => (Some(Ready::Started), Some(DEFAULT_READY_MS)),
        Some(node) => probes::ready(node, kind, &surroundings),
    };
    let stop = match body.only("stop") {
        None => Some(Stop { signal: SIGTERM, within_ms: DEFAULT_SERVICE_STOP_MS }),
        Some(node) => stop(node),
    };
    body.finish();
    let service = Service {
        name: name?,
        after: after.iter().map(|(name, _)| name.clone()).collect(),
        directories,
        prepare,
        exec: exec?,
        kind: kind?,
        restart: restart?,
        ready: ready?,
        ready_within_ms: ready_within_ms?,
        stop: stop?,
    };
    whole.then_some((service, after))
}

fn restart(node: Node<'_>, kind: Option<ServiceKind>) -> Option<Restart> {
    let words = [
        ("never", RestartWhen::Never),
        ("on-failure", RestartWhen::OnFailure),
        ("always", RestartWhen::Always),
    ];
    let word = node.required_arg("when", "write `restart on-failure`, `always` or `never`");
    let when = word.and_then(|v| v.word(&words));
    if let (Some(value), Some(RestartWhen::Always), Some(ServiceKind::Once)) = (word, when, kind) {
        let problem = value.problem("contradiction", "what runs once is not always started again");
        node.findings().push(problem.help("write `restart on-failure`, or `kind daemon`"));
    }
    let delay = node.prop("delay").map(|v| v.duration_ms(0..=LONGEST_MS));
    let most = node.prop("most").map(|v| v.u64(1..=1_000_000).and_then(|n| u32::try_from(n).ok()));
    let within = node.prop("within").map(|v| v.duration_ms(1..=LONGEST_MS));
    node.finish();
    Some(Restart {
        when: when?,
        delay_ms: delay.unwrap_or(Some(DEFAULT_RESTART.delay_ms))?,
        most: most.unwrap_or(Some(DEFAULT_RESTART.most))?,
        window_ms: within.unwrap_or(Some(DEFAULT_RESTART.window_ms))?,
    })
}

fn stop(node: Node<'_>) -> Option<Stop> {
    let signal = match node.prop("signal") {
        None => Some(SIGTERM),
        Some(value) => value.word(&SIGNALS),
    };
    let within = match node.prop("timeout") {
        None => Some(DEFAULT_SERVICE_STOP_MS),
        Some(value) => value.duration_ms(1..=LONGEST_MS),
    };
    if !node.has_entries() {
        let problem = node.problem("missing_property", "`stop` does not say how");
        node.findings().push(problem.help("write `stop signal=SIGINT timeout=\"30s\"`, or one of the two"));
    }
    node.finish();
    Some(Stop { signal: signal?, within_ms: within? })
}
