//! What a guest does once it runs: [`Conduct`], and how it comes to be: what the recipe says, over what an image says of
//! itself ([`ImageConfig`]), over what holds everywhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmprof_job::{Bytes, Filesystem, Mount, Ready, Restart, RestartWhen, Service, ServiceKind, Step, Stop};

use super::{Recipe, User};

/// The environment of everything that runs in a guest, unless the recipe says otherwise.
const DEFAULT_ENV: [(&str, &str); 3] = [
    ("HOME", "/root"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TERM", "linux"),
];
/// How long a clean stop may take unless the recipe or its services need more.
const DEFAULT_STOP_MS: u64 = 5_000;
/// systemd gives each unit 90 s (DefaultTimeoutStopSec=), then kills it: so long, and some more.
const SYSTEMD_STOP_MS: u64 = 100_000;
/// How long a service may take to be ready.
pub(super) const DEFAULT_READY_MS: u64 = 60_000;
/// How long a service may take to stop.
pub(super) const DEFAULT_SERVICE_STOP_MS: u64 = 10_000;
pub(super) const SIGTERM: i32 = 15;
/// Of `restart`, where it does not say.
pub(super) const DEFAULT_RESTART: Restart =
    Restart { when: RestartWhen::Never, delay_ms: 1_000, most: 5, window_ms: 60_000 };
/// The service that an image's own command becomes.
const IMAGE_SERVICE: &str = "image";

/// What the guest does once it runs. Nothing of it decides the root image's bytes but the host name, and the units of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conduct {
    pub hostname: String,
    /// The whole environment of what runs, sorted by name.
    pub env: Vec<(String, String)>,
    /// Kernel settings by their dotted names.
    pub sysctl: Vec<(String, String)>,
    /// A mount comes after those it lies in.
    pub mounts: Vec<GuestMount>,
    pub init: Init,
    /// In the order of the recipe.
    pub services: Vec<Service>,
    /// How long a clean stop may take in all.
    pub stop_within_ms: u64,
    /// What the guest does when no command is given. Empty: it serves until it is stopped, or has no image.
    pub run: Vec<String>,
}

/// A mount of the recipe: a disk goes by the name the profile gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    pub mount: Mount,
    /// The filesystem for an empty disk where the profile names none; `None` for what is in memory, and for disks that
    /// must hold one.
    pub format: Option<Filesystem>,
    /// A profile without that disk is not refused.
    pub optional: bool,
}

/// Who is process 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    Vmprof,
    /// The distribution's systemd, with these units enabled and masked.
    Systemd {
        enable: Vec<String>,
        mask: Vec<String>,
    },
}

/// What an OCI image says of how it is run: its configuration's Env, Entrypoint and Cmd in one, WorkingDir, User and
/// StopSignal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    pub env: Vec<(String, String)>,
    pub argv: Vec<String>,
    pub directory: Option<String>,
    /// `USER` or `USER:GROUP`, names or numbers.
    pub user: Option<String>,
    /// A signal's number.
    pub stop_signal: Option<i32>,
}

/// What the recipe itself says, before any default.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// Environments hold only what is written out.
    pub(super) conduct: Conduct,
    pub(super) stop_within_ms: Option<u64>,
}

impl Recipe {
    /// The conduct over what an image says of itself: its environment lies below the recipe's, and its command, where the
    /// recipe has neither `run` nor a service, becomes the service `image`. [`Recipe::conduct`] is this over nothing.
    pub fn conduct_with(&self, image: &ImageConfig) -> Conduct {
        self.said.completed(image, &self.users)
    }
}

impl Said {
    pub(super) fn completed(&self, image: &ImageConfig, users: &[User]) -> Conduct {
        let mut conduct = self.conduct.clone();
        if conduct.run.is_empty()
            && conduct.services.is_empty()
            && conduct.init == Init::Vmprof
            && !image.argv.is_empty()
        {
            conduct.services.push(image_service(image));
        }
        let said = std::mem::take(&mut conduct.env);
        let layers = |user: &str| {
            let mut env: BTreeMap<String, String> = DEFAULT_ENV
                .iter()
                .filter(|(name, _)| is_root(user) || *name != "HOME")
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            if let Some(known) =
                users.iter().find(|known| known.name == user || known.uid.to_string() == user)
            {
                for (name, value) in [
                    ("HOME", &known.home),
                    ("USER", &known.name),
                    ("LOGNAME", &known.name),
                    ("SHELL", &known.shell),
                ] {
                    env.insert(name.to_owned(), value.clone());
                }
            }
            env.extend(image.env.iter().cloned());
            env.extend(said.iter().cloned());
            env
        };
        conduct.env = layers("root").into_iter().collect();
        for service in &mut conduct.services {
            let probe = match &mut service.ready {
                Ready::Command(step) => Some(step),
                _ => None,
            };
            for step in service.prepare.iter_mut().chain([&mut service.exec]).chain(probe) {
                let mut env: BTreeMap<String, Bytes> =
                    layers(&step.user).into_iter().map(|(name, value)| (name, Bytes::Text(value))).collect();
                let own = std::mem::take(&mut step.env);
                env.extend(own.into_iter().map(|(name, value)| (text(&name), value)));
                step.env = env.into_iter().map(|(name, value)| (Bytes::Text(name), value)).collect();
            }
        }
        let needed = match conduct.init {
            Init::Vmprof => {
                conduct.services.iter().fold(0_u64, |sum, one| sum.saturating_add(one.stop.within_ms))
            }
            Init::Systemd { .. } => SYSTEMD_STOP_MS,
        };
        conduct.stop_within_ms = self.stop_within_ms.unwrap_or(DEFAULT_STOP_MS.max(needed));
        conduct
    }
}

/// Every process that a service starts.
pub(crate) fn steps(service: &Service) -> impl Iterator<Item = &Step> {
    let probe = match &service.ready {
        Ready::Command(step) => Some(step),
        _ => None,
    };
    service.prepare.iter().chain([&service.exec]).chain(probe)
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes.as_bytes()).into_owned()
}

fn is_root(user: &str) -> bool {
    matches!(user, "root" | "0")
}

fn image_service(image: &ImageConfig) -> Service {
    let user = image.user.as_deref().filter(|user| !user.is_empty()).unwrap_or("root");
    let (user, group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group.to_owned())),
        None => (user, None),
    };
    Service {
        name: IMAGE_SERVICE.to_owned(),
        after: Vec::new(),
        directories: Vec::new(),
        prepare: Vec::new(),
        exec: Step {
            argv: image.argv.iter().map(|word| Bytes::from(word.as_str())).collect(),
            user: user.to_owned(),
            group,
            env: Vec::new(),
            directory: image.directory.clone().filter(|at| !at.is_empty()).unwrap_or_else(|| "/".to_owned()),
        },
        kind: ServiceKind::Daemon,
        restart: DEFAULT_RESTART,
        ready: Ready::Started,
        ready_within_ms: DEFAULT_READY_MS,
        stop: Stop { signal: image.stop_signal.unwrap_or(SIGTERM), within_ms: DEFAULT_SERVICE_STOP_MS },
    }
}
