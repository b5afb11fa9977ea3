//! The lock file's text: KDL out, KDL in. What is read is checked as if a stranger had written it: names and paths end
//! up in file names and in apt's arguments.

use std::fmt::Write as _;
use std::path::Path;

use vmprof_document::{Block, Document, Findings, Node, Problems, Value};

use super::{Asked, Lock, LockedPackage, Release};
use crate::recipe::{AREA, Form, PACKAGE, PLAIN_NAME, SUITE, VERSION};

const HEAD: &str = "/- kdl-version 2\n// Written by `vmprof lock`: the exact packages this guest is built from. Keep it beside the recipe.\n";

pub(super) fn text(lock: &Lock) -> String {
    let mut out = HEAD.to_owned();
    // Writing to a String cannot fail.
    let _ = write_lock(&mut out, lock);
    out
}

fn write_lock(out: &mut String, lock: &Lock) -> std::fmt::Result {
    writeln!(out, "lock \"{}\" schema=1 {{", lock.guest)?;
    writeln!(out, "    distribution \"debian\" suite=\"{}\" arch=\"{}\"", lock.asked.suite, lock.arch)?;
    for release in &lock.releases {
        writeln!(
            out,
            "    release \"{}\" date=\"{}\" sha256=\"{}\"",
            release.suite, release.date, release.sha256
        )?;
    }
    writeln!(out, "    asked recommends=#{} {{", lock.asked.recommends)?;
    writeln!(out, "        kernel \"{}\"", lock.asked.kernel)?;
    for (node, names) in [("packages", &lock.asked.packages), ("without", &lock.asked.without)] {
        if !names.is_empty() {
            writeln!(out, "        {node} \"{}\"", names.join("\" \""))?;
        }
    }
    writeln!(out, "    }}")?;
    for (node, packages) in [("kernel", &lock.kernel), ("packages", &lock.packages)] {
        if packages.is_empty() {
            writeln!(out, "    {node} {{}}")?;
            continue;
        }
        writeln!(out, "    {node} {{")?;
        for p in packages {
            writeln!(
                out,
                "        package \"{}\" version=\"{}\" arch=\"{}\" size={} sha256=\"{}\" path=\"{}\"",
                p.name, p.version, p.arch, p.size, p.sha256, p.path
            )?;
        }
        writeln!(out, "    }}")?;
    }
    writeln!(out, "}}")
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Lock, Problems> {
    let document = Document::parse(AREA, &path.display().to_string(), text)?;
    let findings = document.findings();
    let root = document.root(&findings);
    let lock = root.required("lock", "make the file again with `vmprof lock`").and_then(lock);
    root.finish();
    document.conclude(findings, lock).map(|(lock, _)| lock)
}

const AGAIN: &str = "make the file again with `vmprof lock`";

fn lock(node: Node<'_>) -> Option<Lock> {
    let guest = formed(node.findings(), node.required_arg("a guest", AGAIN), &PLAIN_NAME);
    let schema = node.required_prop("schema", AGAIN).and_then(|v| schema(node.findings(), v));
    let body = node.children();
    let distribution = body.required("distribution", AGAIN).and_then(distribution);
    let releases: Vec<_> = body.all("release").into_iter().map(release).collect();
    let asked = body.required("asked", AGAIN).and_then(asked);
    let kernel = body.required("kernel", AGAIN).and_then(packages);
    let locked = body.required("packages", AGAIN).and_then(packages);
    body.finish();
    node.finish();
    schema?;
    let (suite, arch) = distribution?;
    Some(Lock {
        guest: guest?,
        releases: releases.into_iter().collect::<Option<_>>()?,
        arch,
        asked: Asked { suite, ..asked? },
        kernel: kernel?,
        packages: locked?,
    })
}

/// A later vmprof may write another form; guessing at it could build something else than was locked.
fn schema(found: &Findings, value: Value<'_>) -> Option<u64> {
    match value.u64(0..=u64::MAX)? {
        1 => Some(1),
        other => {
            let message = format!("the lock is of schema {other}; this vmprof reads schema 1");
            let problem = value.problem("unknown_schema", message);
            found.push(
                problem.help("use the vmprof that wrote it, or make the file again with `vmprof lock`"),
            );
            None
        }
    }
}

fn distribution(node: Node<'_>) -> Option<(String, String)> {
    let debian = node.required_arg("whose packages", AGAIN).and_then(|v| v.word(&[("debian", ())]));
    let suite = formed(node.findings(), node.required_prop("suite", AGAIN), &SUITE);
    let arch = node.required_prop("arch", AGAIN).and_then(|v| v.word(&[("amd64", "amd64")]));
    node.finish();
    debian?;
    Some((suite?, arch?.to_owned()))
}

fn release(node: Node<'_>) -> Option<Release> {
    let suite = formed(node.findings(), node.required_arg("a suite", AGAIN), &SUITE);
    let date = node.required_prop("date", AGAIN).and_then(|v| v.text().map(str::to_owned));
    let sha256 = parsed(node.findings(), node.required_prop("sha256", AGAIN));
    node.finish();
    Some(Release { suite: suite?, date: date?, sha256: sha256? })
}

fn asked(node: Node<'_>) -> Option<Asked> {
    let recommends = node.required_prop("recommends", AGAIN).and_then(|v| v.bool());
    let body = node.children();
    let names = |name: &'static str| names(&body, name);
    let (packages, without, kernel) = (names("packages"), names("without"), names("kernel"));
    body.finish();
    node.finish();
    Some(Asked {
        suite: String::new(),
        packages,
        without,
        recommends: recommends?,
        kernel: kernel.into_iter().next()?,
    })
}

fn names(body: &Block<'_>, name: &'static str) -> Vec<String> {
    let Some(node) = body.only(name) else { return Vec::new() };
    let found = node.findings();
    let names =
        node.args("a package's name").into_iter().filter_map(|v| formed(found, Some(v), &PACKAGE)).collect();
    node.finish();
    names
}

fn packages(node: Node<'_>) -> Option<Vec<LockedPackage>> {
    let body = node.children();
    let packages: Vec<_> = body.all("package").into_iter().map(package).collect();
    body.finish();
    node.finish();
    packages.into_iter().collect()
}

fn package(node: Node<'_>) -> Option<LockedPackage> {
    let found = node.findings();
    let name = formed(found, node.required_arg("a package", AGAIN), &PACKAGE);
    let version = formed(found, node.required_prop("version", AGAIN), &VERSION);
    let arch = node.required_prop("arch", AGAIN).and_then(|v| v.word(&[("amd64", "amd64"), ("all", "all")]));
    let size = node.required_prop("size", AGAIN).and_then(|v| v.u64(1..=1 << 40));
    let sha256 = parsed(found, node.required_prop("sha256", AGAIN));
    let path = node.required_prop("path", AGAIN).and_then(|value| {
        let text = value.text()?;
        if is_pool_path(text) {
            return Some(text.to_owned());
        }
        let problem =
            value.problem("bad_path", format!("`{text}` is not the path of a .deb below an archive"));
        found.push(problem.help(AGAIN));
        None
    });
    node.finish();
    Some(LockedPackage {
        name: name?,
        version: version?,
        arch: arch?.to_owned(),
        size: size?,
        sha256: sha256?,
        path: path?,
    })
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    found: &Findings,
    value: Option<Value<'_>>,
) -> Option<T> {
    let value = value?;
    match value.text()?.parse() {
        Ok(read) => Some(read),
        Err(error) => {
            found.push(value.problem("bad_hash", error.to_string()).help(AGAIN));
            None
        }
    }
}

fn formed(found: &Findings, value: Option<Value<'_>>, form: &Form) -> Option<String> {
    let value = value?;
    let text = value.text()?;
    if form.fits(text) {
        return Some(text.to_owned());
    }
    let problem = value.problem("bad_name", format!("`{text}` cannot be {}", form.what));
    found.push(problem.help(AGAIN));
    None
}

/// `pool/main/f/fio/fio_3.33-3_amd64.deb`: plain parts, no way up, no option.
pub(crate) fn is_pool_path(path: &str) -> bool {
    path.ends_with(".deb")
        && path.len() <= 400
        && path.split('/').all(|part| {
            part.len() <= 180
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || ".+-_~:%".contains(c))
        })
}
