//! Whether everything that the guest shall start is in its tree: `run`, the services' programs, mkfs for empty disks.

use vmprof_job::Bytes;

use super::RootError;
use crate::error::Result;
use crate::recipe::{Conduct, steps};
use crate::tree::{Kind, Tree};

/// What nobody can run is refused before anything boots. What lies below a mount is on a disk, and not looked at.
pub(super) fn check(tree: &Tree, conduct: &Conduct, guest: &str) -> Result<()> {
    let looked_at = |program: &str| {
        let hidden = |over: &str| program.strip_prefix(over).is_some_and(|rest| rest.starts_with('/'));
        !conduct.mounts.iter().any(|mount| hidden(&mount.mount.path))
    };
    if let Some(program) = conduct.run.first().filter(|program| looked_at(program)) {
        let path = conduct.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        one(tree, program, path, &format!("guest `{guest}`"))?;
    }
    for service in &conduct.services {
        let who = format!("service `{}` of guest `{guest}`", service.name);
        for step in steps(service) {
            let Some(program) = step.argv.first().map(text).filter(|program| looked_at(program)) else {
                continue;
            };
            let path = step.env.iter().find(|(name, _)| name.as_bytes() == b"PATH");
            one(tree, &program, &path.map_or(String::new(), |(_, value)| text(value)), &who)?;
        }
    }
    for mount in &conduct.mounts {
        let Some(format) = mount.format else { continue };
        let program = format!("/usr/sbin/mkfs.{}", format.name());
        let found = tree
            .look(&program)
            .is_some_and(|(_, node)| node.kind != Kind::Directory && node.mode & 0o111 != 0);
        if !found {
            let (path, filesystem) = (mount.mount.path.clone(), format.name());
            return Err(RootError::NoMkfs { guest: guest.to_owned(), path, filesystem, program }.into());
        }
    }
    Ok(())
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes.as_bytes()).into_owned()
}

/// The program must be there, and so must the interpreter of a script.
fn one(tree: &Tree, program: &str, path: &str, who: &str) -> Result<()> {
    let missing = |program: &str, because: Option<String>| {
        RootError::NoProgram { who: who.to_owned(), program: program.to_owned(), because }.into()
    };
    let candidates: Vec<String> = match program.contains('/') {
        true => vec![program.to_owned()],
        false => path.split(':').map(|dir| format!("{dir}/{program}")).collect(),
    };
    let found =
        candidates.iter().find_map(|path| tree.look(path).filter(|(_, node)| node.kind != Kind::Directory));
    let Some((at, node)) = found else { return Err(missing(program, None)) };
    if node.mode & 0o111 == 0 {
        return Err(missing(
            program,
            Some(format!("/{at} is there, but not executable; give it `mode=0o755`")),
        ));
    }
    let Kind::File(content) = &node.kind else { return Ok(()) };
    if let Some(line) = content.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next())
    {
        let line = String::from_utf8_lossy(line);
        let interpreter = line.split_whitespace().next().unwrap_or_default();
        if tree.look(interpreter).is_none_or(|(_, node)| node.kind == Kind::Directory) {
            return Err(missing(interpreter, Some(format!("/{at} is a script for it"))));
        }
    }
    Ok(())
}
