//! The host's own apt, asked without root and without touching its state: where the archive is, what a list of packages
//! resolves to, and the bytes of one package. vmprof names no host; apt's sources do, its keyring vouches for the index,
//! and its proxy settings hold.

mod graph;
mod uris;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::digest::Sha256;
use crate::error::{GuestError, Result, failed};
use crate::lock::{LockedPackage, Release};
use crate::store::{Store, TempDir};

pub(crate) use uris::encode_path;

/// Where Debian's keyring lies, by release.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
/// Not on PATH, and not configurable in any Debian.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// What the caller wants done to every process before it starts, such as tying its life to vmprof's.
pub(crate) type Prepare = fn(&mut Command) -> &mut Command;

/// Base addresses of the archives that the host's apt uses: what stands before `/dists/` and `/pool/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Archives {
    /// Those that should have the suite, the likeliest first.
    pub(crate) likely: Vec<String>,
    /// All others: a package that has left its suite may still lie there under the same path.
    pub(crate) others: Vec<String>,
}

impl Archives {
    /// Asks the host's apt which archives it uses. Needs no network and no list fetched before.
    pub(crate) fn of_host(suite: &str, prepare: Prepare) -> Result<Self> {
        let mut command = apt("apt-get", prepare);
        command.args(["--print-uris", "update"]);
        let output = run(&mut command)?;
        // Third-party sources without their key make apt complain here, and print what it knows all the same.
        let text = String::from_utf8_lossy(&output.stdout);
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let archives = uris::archives(&text, suite, uris::codename(&release));
        match archives == Self::default() {
            true => Err(GuestError::NoArchive { suite: suite.to_owned() }),
            false => Ok(archives),
        }
    }
}

/// Private apt state over one archive: lists of our own, an empty system, no hooks of the host.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: TempDir,
    suites: Vec<String>,
    arch: String,
    /// The suite apt prefers when several hold a package.
    target: String,
    prepare: Prepare,
}

/// What apt made of a list of names.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) names: &'a [String],
    pub(crate) without: &'a [String],
    pub(crate) recommends: bool,
}

impl Apt {
    /// Fetches the lists of `suites` (component main) and checks their signatures. The last suite is the preferred one.
    pub(crate) fn update(store: &Store, suites: &[&str], arch: &str, prepare: Prepare) -> Result<Self> {
        #[cfg(test)]
        if let Some(local) = crate::testing::local_archive() {
            return Self::update_from(&local, "trusted=yes", store, suites, arch, prepare);
        }
        let first = suites.first().copied().unwrap_or_default();
        let signed_by = format!("signed-by={}", keyring()?.display());
        Self::update_from(&Archives::of_host(first, prepare)?, &signed_by, store, suites, arch, prepare)
    }

    /// As [`Apt::update`], from these archives. `trust` is the option of sources.list(5) that says whom to believe.
    fn update_from(
        archives: &Archives,
        trust: &str,
        store: &Store,
        suites: &[&str],
        arch: &str,
        prepare: Prepare,
    ) -> Result<Self> {
        let target = suites.last().copied().unwrap_or_default().to_owned();
        let first = suites.first().copied().unwrap_or_default();
        let apt = Self {
            dir: store.temp_dir()?,
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
            arch: arch.to_owned(),
            target,
            prepare,
        };
        for part in ["state/lists/partial", "cache/archives/partial", "none"] {
            let path = apt.dir.path().join(part);
            std::fs::create_dir_all(&path).map_err(failed("make", &path))?;
        }
        apt.write("status", "")?;
        apt.write("apt.conf", &apt.configuration()?)?;
        let mut last = None;
        for base in &archives.likely {
            let lines: String = suites
                .iter()
                .map(|suite| format!("deb [{trust} arch={arch}] {base} {suite} main\n"))
                .collect();
            apt.write("sources.list", &lines)?;
            let output =
                run(apt.command("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]))?;
            if output.status.success() {
                return Ok(apt);
            }
            last.get_or_insert_with(|| {
                match uris::unknown_suite(&String::from_utf8_lossy(&output.stderr), suites) {
                    Some(suite) => GuestError::NoSuite { suite, output: words(&output) },
                    None => failure("fetching the package lists", "apt-get update", &output),
                }
            });
        }
        Err(last.unwrap_or(GuestError::NoArchive { suite: first.to_owned() }))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).map_err(failed("write", &path))
    }

    /// Ours, and of the host's configuration how to reach the network. Its hooks stay out: they are for real updates.
    fn configuration(&self) -> Result<String> {
        let output = run(apt("apt-config", self.prepare).arg("dump"))?;
        let dump = String::from_utf8_lossy(&output.stdout);
        let dir = self.dir.path().display();
        Ok(format!(
            "{host}\
             Dir::Etc::Main \"{dir}/none/none\";\n\
             Dir::Etc::Parts \"{dir}/none\";\n\
             Dir::Etc::SourceList \"{dir}/sources.list\";\n\
             Dir::Etc::SourceParts \"{dir}/none\";\n\
             Dir::Etc::Preferences \"{dir}/preferences\";\n\
             Dir::Etc::PreferencesParts \"{dir}/none\";\n\
             Dir::State \"{dir}/state\";\n\
             Dir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}/cache\";\n\
             Debug::NoLocking \"true\";\n\
             APT::Sandbox::User \"\";\n\
             APT::Architecture \"{arch}\";\n\
             APT::Architectures \"{arch}\";\n\
             APT::Get::List-Cleanup \"false\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::ForceHash \"SHA256\";\n",
            host = uris::network_settings(&dump),
            arch = self.arch,
        ))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = apt(program, self.prepare);
        command.env("APT_CONFIG", self.dir.path().join("apt.conf"));
        command
    }

    /// The state of the suites whose lists were fetched.
    pub(crate) fn releases(&self) -> Result<Vec<Release>> {
        let lists = self.dir.path().join("state/lists");
        let mut releases = Vec::new();
        for suite in &self.suites {
            let ending = format!("_dists_{suite}_InRelease");
            for item in std::fs::read_dir(&lists).map_err(failed("list", &lists))? {
                let path = item.map_err(failed("list", &lists))?.path();
                if path.to_string_lossy().ends_with(&ending) {
                    let bytes = crate::store::read(&path)?;
                    let text = String::from_utf8_lossy(&bytes);
                    let date = text.lines().find_map(|line| line.strip_prefix("Date:")).unwrap_or_default();
                    let date = date.trim().replace(['"', '\\'], "");
                    releases.push(Release { suite: suite.clone(), date, sha256: Sha256::of(&bytes) });
                }
            }
        }
        Ok(releases)
    }

    /// The closure of the wanted names, sorted by name, less what `without` leaves out. Of `kept` packages the same version
    /// is taken where the archive still has it and the others' dependencies allow it.
    pub(crate) fn resolve(&self, wanted: &Wanted<'_>, kept: &[&LockedPackage]) -> Result<Vec<LockedPackage>> {
        if wanted.names.is_empty() {
            return Ok(Vec::new());
        }
        let packages = self.closure(wanted, kept)?;
        if wanted.without.is_empty() {
            return Ok(packages);
        }
        let present: Vec<&str> = packages.iter().map(|p| p.name.as_str()).collect();
        for name in wanted.without {
            if !present.contains(&name.as_str()) {
                let near = vmprof_document::closest(name, present.iter().copied());
                return Err(GuestError::WithoutUnused {
                    name: name.clone(),
                    near: near.map(str::to_owned).into_iter().collect(),
                });
            }
        }
        let graph = graph::Graph::read(&self.show(&present)?, wanted.recommends);
        let kept: BTreeSet<String> = graph.reachable(wanted.names, wanted.without);
        Ok(packages.into_iter().filter(|p| kept.contains(&p.name)).collect())
    }

    /// What apt would install, with the kept versions pinned. Where that cannot be, apt says which package needs which other
    /// in another version: that one's pin goes, or else the pin of the one that needs it, until it can be.
    fn closure(&self, wanted: &Wanted<'_>, kept: &[&LockedPackage]) -> Result<Vec<LockedPackage>> {
        let mut pins: BTreeMap<&str, &str> =
            kept.iter().map(|package| (package.name.as_str(), package.version.as_str())).collect();
        let recommends = format!("APT::Install-Recommends={}", wanted.recommends);
        loop {
            self.pin(&pins)?;
            let mut command = self.command("apt-get");
            // Any quieter, and apt does not say which dependencies cannot be met.
            command.args(["-q", "-y", "--print-uris", "-o", &recommends, "-t", &self.target, "install"]);
            command.args(wanted.names);
            let output = run(&mut command)?;
            if output.status.success() {
                return Ok(packages(&output));
            }
            let said = [&output.stdout[..], &output.stderr[..]].concat();
            let unmet = uris::unmet(&String::from_utf8_lossy(&said));
            let before = pins.len();
            for (needing, needed) in &unmet {
                if pins.remove(needed.as_str()).is_none() {
                    pins.remove(needing.as_str());
                }
            }
            if pins.len() == before {
                return Err(self.explain("resolving packages", &output));
            }
        }
    }

    /// Has apt prefer exactly these versions over all others, older ones included (apt_preferences(5): above 1000).
    fn pin(&self, pins: &BTreeMap<&str, &str>) -> Result<()> {
        let pin = |(name, version): (&&str, &&str)| {
            format!("Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n")
        };
        self.write("preferences", &pins.iter().map(pin).collect::<String>())
    }

    /// Whether the archive still has exactly these packages.
    pub(crate) fn has(&self, wanted: &[LockedPackage]) -> Result<bool> {
        let mut command = self.command("apt-get");
        command.args(["-qq", "--print-uris", "download"]);
        command.args(wanted.iter().map(|package| format!("{}={}", package.name, package.version)));
        let output = run(&mut command)?;
        let found = packages(&output);
        Ok(output.status.success() && wanted.iter().all(|package| found.contains(package)))
    }

    /// The packages that hold the kernel and its modules, found from `package`, which may only depend on them.
    pub(crate) fn resolve_kernel(&self, package: &str) -> Result<Vec<LockedPackage>> {
        let mut open = vec![package.to_owned()];
        let mut seen = BTreeSet::new();
        let mut holders = Vec::new();
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let shown = self.show(&[&name])?;
            let next = graph::kernel_dependencies(&shown);
            // A package that depends on another image is the one that always points at the newest.
            if !next.iter().any(|dependency| dependency.starts_with("linux-image-")) {
                holders.push(name);
            }
            open.extend(next);
        }
        if !holders.iter().any(|name| graph::KERNEL_PARTS.iter().any(|part| name.starts_with(part))) {
            return Err(GuestError::NotAKernel { package: package.to_owned() });
        }
        let mut command = self.command("apt-get");
        command.args(["-qq", "--print-uris", "-t", &self.target, "download"]);
        command.args(&holders);
        self.print_uris(&mut command, "resolving the kernel")
    }

    fn print_uris(&self, command: &mut Command, doing: &str) -> Result<Vec<LockedPackage>> {
        let output = run(command)?;
        if !output.status.success() {
            return Err(self.explain(doing, &output));
        }
        Ok(packages(&output))
    }

    /// The index's paragraphs of these packages.
    fn show(&self, names: &[&str]) -> Result<String> {
        let mut command = self.command("apt-cache");
        command.args(["--no-all-versions", "-o", &format!("APT::Default-Release={}", self.target), "show"]);
        command.args(names);
        let output = run(&mut command)?;
        if !output.status.success() {
            return Err(self.explain("reading the package lists", &output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// apt's failure in vmprof's words where it is a known one.
    fn explain(&self, doing: &str, output: &Output) -> GuestError {
        let text = String::from_utf8_lossy(&output.stderr);
        let Some(name) = uris::unknown_package(&text) else { return failure(doing, "apt-get", output) };
        let known = run(self.command("apt-cache").arg("pkgnames")).map(|o| o.stdout).unwrap_or_default();
        let known = String::from_utf8_lossy(&known);
        let near = vmprof_document::closest(&name, known.lines()).map(str::to_owned);
        GuestError::UnknownPackage {
            name,
            suite: self.suites.join(", "),
            arch: self.arch.clone(),
            near: near.into_iter().collect(),
        }
    }
}

/// What `--print-uris` printed, sorted by name.
fn packages(output: &Output) -> Vec<LockedPackage> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut packages: Vec<_> = text.lines().filter_map(uris::package).collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}

/// How fetching some packages from one archive went.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Whether apt calls all of it fetched.
    pub(crate) whole: bool,
    /// What apt said.
    pub(crate) output: String,
}

/// Fetches packages from the archive at `base` into `dir`, each under its file name. A package whose bytes are wrong or
/// that is not there leaves no file; the rest still comes.
pub(crate) fn fetch(
    base: &str,
    packages: &[&LockedPackage],
    dir: &Path,
    prepare: Prepare,
) -> Result<Fetched> {
    let mut command = apt(APT_HELPER, prepare);
    // apt-helper leaves a link to what is on a disk already; a package becomes the store's own.
    let base = base.strip_prefix("file:").map_or_else(|| base.to_owned(), |path| format!("copy:{path}"));
    command.args(["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=2", "download-file"]);
    for package in packages {
        command.arg(format!("{base}/{}", encode_path(&package.path)));
        command.arg(dir.join(package.file_name()));
        command.arg(format!("SHA256:{}", package.sha256));
    }
    let output = run(&mut command)?;
    Ok(Fetched { whole: output.status.success(), output: words(&output) })
}

/// Where the host's apt keeps the packages that it has fetched for itself; `None` where it does not say.
pub(crate) fn host_cache(prepare: Prepare) -> Option<PathBuf> {
    let output = run(apt("apt-config", prepare).args(["shell", "DIR", "Dir::Cache::archives/d"])).ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().strip_prefix("DIR='")?.strip_suffix('\'').map(PathBuf::from)
}

fn keyring() -> Result<PathBuf> {
    KEYRINGS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .ok_or_else(|| GuestError::NoKeyring { looked: KEYRINGS.iter().map(PathBuf::from).collect() })
}

fn apt(program: &str, prepare: Prepare) -> Command {
    let mut command = Command::new(program);
    // APT_CONFIG stays: whoever sets it means the apt that vmprof asks, too.
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    prepare(&mut command);
    command
}

fn run(command: &mut Command) -> Result<Output> {
    command.output().map_err(|source| GuestError::NoApt {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })
}

fn words(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("E:") || line.starts_with("W:") || line.starts_with("Err:"))
        .collect();
    let lines = if lines.is_empty() { text.lines().collect() } else { lines };
    let skip = lines.len().saturating_sub(12);
    lines[skip..].join("\n")
}

fn failure(doing: &str, command: &str, output: &Output) -> GuestError {
    GuestError::AptFailed { doing: doing.to_owned(), command: command.to_owned(), output: words(output) }
}
