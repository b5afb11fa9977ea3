//! What names resolve to: the packages that apt would install, and those that hold a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use super::{Apt, AptError, failure, graph, run, uris};
use crate::error::{GuestError, Result};
use crate::kernel::KernelError;
use crate::lock::LockedPackage;

/// What apt made of a list of names.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) names: &'a [String],
    pub(crate) without: &'a [String],
    pub(crate) recommends: bool,
}

impl Apt {
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
                return Err(AptError::WithoutUnused {
                    name: name.clone(),
                    near: near.map(str::to_owned).into_iter().collect(),
                }
                .into());
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
            return Err(KernelError::NotAKernel { package: package.to_owned() }.into());
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
        AptError::UnknownPackage {
            name,
            suite: self.suites.join(", "),
            arch: self.arch.clone(),
            near: near.into_iter().collect(),
        }
        .into()
    }
}

/// What `--print-uris` printed, sorted by name.
fn packages(output: &Output) -> Vec<LockedPackage> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut packages: Vec<_> = text.lines().filter_map(uris::package).collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}
