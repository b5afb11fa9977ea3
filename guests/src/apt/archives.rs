//! Which archives the host's apt uses.

use super::{AptError, Prepare, apt, run, uris};
use crate::error::Result;

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
            true => Err(AptError::NoArchive { suite: suite.to_owned() }.into()),
            false => Ok(archives),
        }
    }
}
