//! Private apt state over one archive: its lists, fetched and their signatures checked.

use std::path::PathBuf;
use std::process::Command;

use super::{AptError, Archives, Prepare, apt, failure, run, uris, words};
use crate::digest::Sha256;
use crate::error::{Result, failed};
use crate::lock::Release;
use crate::store::{Store, TempDir};

/// Where Debian's keyring lies, by release.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Private apt state over one archive: lists of our own, an empty system, no hooks of the host.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: TempDir,
    pub(super) suites: Vec<String>,
    pub(super) arch: String,
    /// The suite apt prefers when several hold a package.
    pub(super) target: String,
    prepare: Prepare,
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
                    Some(suite) => AptError::NoSuite { suite, output: words(&output) }.into(),
                    None => failure("fetching the package lists", "apt-get update", &output),
                }
            });
        }
        Err(last.unwrap_or(AptError::NoArchive { suite: first.to_owned() }.into()))
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
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

    pub(super) fn command(&self, program: &str) -> Command {
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
}

fn keyring() -> Result<PathBuf> {
    KEYRINGS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .ok_or_else(|| AptError::NoKeyring { looked: KEYRINGS.iter().map(PathBuf::from).collect() }.into())
}
