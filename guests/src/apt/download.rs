//! The bytes of packages: from an archive, and from what the host's apt has fetched for itself.

use std::path::{Path, PathBuf};

use super::{Prepare, apt, encode_path, run, words};
use crate::error::Result;
use crate::lock::LockedPackage;

/// Not on PATH, and not configurable in any Debian.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

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
