//! Where a guest comes from: `distribution`, `packages`, `root`, `kernel`.

use vmprof_document::{Block, Node, Value};

use super::beside::{Beside, Wanted};
use super::{formed, sorted_once};
use crate::digest::Sha256;
use crate::recipe::words::{PACKAGE, SUITE};
use crate::recipe::{Distribution, Kernel, Packages, Root};

pub(super) fn distribution(node: Node<'_>) -> Option<Distribution> {
    let found = node.findings();
    let debian = node
        .required_arg("whose packages", "write `distribution debian suite=bookworm arch=amd64`")
        .and_then(|v| v.word(&[("debian", ())]));
    let suite = node
        .required_prop("suite", "write `suite=bookworm`, or another suite of Debian")
        .and_then(|v| formed(found, v, &SUITE));
    let arch = match node.prop("arch") {
        None => Some("amd64"),
        Some(value) => value.word(&[("amd64", "amd64")]),
    };
    node.finish();
    debian?;
    Some(Distribution { suite: suite?, arch: arch?.to_owned() })
}

/// All `packages` of the recipe and of those it extends. `other_root`: the root comes from elsewhere.
pub(super) fn packages(body: &Block<'_>, other_root: bool) -> Packages {
    let found = body.findings();
    let mut packages = Packages::default();
    let nodes = body.all("packages");
    let mut asked = Vec::new();
    for node in nodes {
        let mut names = Vec::new();
        let mut without = Vec::new();
        for value in node.args("a package's name") {
            names.extend(formed(found, value, &PACKAGE));
        }
        if let Some(recommends) = node.prop("recommends").and_then(|v| v.bool()) {
            packages.recommends = recommends;
        }
        let children = node.children();
        for left_out in children.all("without") {
            for value in left_out.args("a package's name") {
                without.extend(formed(found, value, &PACKAGE));
            }
            left_out.finish();
        }
        for child in children.rest() {
            if PACKAGE.fits(child.name()) {
                names.push(child.name().to_owned());
            } else {
                let message = format!("`{}` cannot be {}", child.name(), PACKAGE.what);
                let problem = child.problem("bad_name", message);
                found.push(problem.help(format!("it is made of {}", PACKAGE.made_of)));
            }
            child.finish();
        }
        for twice in sorted_once(&mut names).into_iter().chain(sorted_once(&mut without)) {
            let problem = node.problem("duplicate_package", format!("package `{twice}` is named twice"));
            found.push(problem.help("keep one of them"));
        }
        if other_root {
            let message = "the root comes from an archive, and from packages at once";
            found.push(
                node.problem("contradiction", message)
                    .help("keep `root` or `packages`: a root from an archive is taken as it is"),
            );
        }
        asked.push((node.name_span(), names.clone()));
        packages.names.extend(names);
        packages.without.extend(without);
        children.finish();
        node.finish();
    }
    // Two layers may both ask for a package.
    sorted_once(&mut packages.names);
    sorted_once(&mut packages.without);
    for (span, names) in asked {
        for both in names.iter().filter(|name| packages.without.contains(name)) {
            let message = format!("package `{both}` is asked for and left out at once");
            let problem = found.error("contradiction", message).at(span, "asked for here");
            found.push(problem.help("keep it in one of the two lists"));
        }
    }
    packages
}

pub(super) fn root(node: Node<'_>, beside: Beside<'_>) -> Option<Root> {
    let found = node.findings();
    let hash = |value: Value<'_>| {
        let text = value.text()?;
        let hash = text.strip_prefix("sha256:").unwrap_or(text).parse::<Sha256>();
        if hash.is_err() {
            let message = format!("`{text}` is not a SHA-256: that has 64 hexadecimal digits");
            let problem = value.problem("bad_hash", message);
            found.push(problem.help("write what `sha256sum FILE`, or the image's tool, prints for it"));
        }
        hash.ok()
    };
    let root = match (node.prop("oci"), node.prop("tar")) {
        (Some(oci), None) => {
            let digest = node
                .required_prop("digest", "write `digest=\"sha256:…\"`, the digest of the image's manifest");
            let (path, digest) = (beside.path(found, oci, Wanted::Either), digest.and_then(hash));
            path.zip(digest).map(|(path, digest)| Root::Oci { path, digest })
        }
        (None, Some(tar)) => {
            let sha256 = node.required_prop("sha256", "write `sha256=\"…\"`: what `sha256sum FILE` prints");
            let (path, sha256) = (beside.path(found, tar, Wanted::File), sha256.and_then(hash));
            path.zip(sha256).map(|(path, sha256)| Root::Tar { path, sha256 })
        }
        (Some(_), Some(_)) => {
            let problem = node.problem("contradiction", "the root comes from two archives at once");
            found.push(problem.help("keep `oci=` or `tar=`"));
            None
        }
        (None, None) => {
            let problem = node.problem("missing_property", "`root` does not say where the root comes from");
            found.push(problem.help(
                "write `root oci=\"image\" digest=\"sha256:…\"` or `root tar=\"rootfs.tar\" sha256=\"…\"`, or leave it out for packages",
            ));
            None
        }
    };
    node.finish();
    root
}

pub(super) fn kernel(node: Node<'_>, beside: Beside<'_>) -> Option<(Kernel, Option<String>)> {
    let found = node.findings();
    let path = node.prop("path");
    let kernel = match path {
        None => node
            .required_prop("package", "write `kernel package=linux-image-cloud-amd64`, or `path=\"vmlinux\"`")
            .and_then(|v| formed(found, v, &PACKAGE))
            .map(Kernel::Package),
        Some(path) => {
            if let Some(package) = node.prop("package") {
                let problem = package.problem("contradiction", "the kernel is a package and a file at once");
                found.push(problem.help("keep `package=` or `path=`"));
            }
            let modules = node.prop("modules").map(|v| beside.path(found, v, Wanted::Directory));
            let path = beside.path(found, path, Wanted::File);
            match (path, modules) {
                (Some(path), None) => Some(Kernel::File { path, modules: None }),
                (Some(path), Some(Some(modules))) => Some(Kernel::File { path, modules: Some(modules) }),
                _ => None,
            }
        }
    };
    if path.is_none()
        && let Some(modules) = node.prop("modules")
    {
        let problem = modules.problem("contradiction", "a kernel's package has its modules with it");
        found.push(
            problem.help(
                "remove `modules=`; `modules NAME` on a line of its own puts a module into the initramfs",
            ),
        );
    }
    let cmdline = node.prop("cmdline").map(|v| (v, v.text()));
    if let Some((value, Some(text))) = cmdline
        && text.chars().any(|c| c.is_control())
    {
        let problem = value.problem("bad_cmdline", "the kernel's command line is one line");
        found.push(problem.help("write the words in one string, with blanks between them"));
    }
    node.finish();
    Some((kernel?, cmdline.and_then(|(_, text)| text).map(str::to_owned)))
}
