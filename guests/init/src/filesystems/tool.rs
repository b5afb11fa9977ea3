//! The guest's own programs for filesystems: making one, and looking one through.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use vmprof_job::Filesystem;

use crate::failure::Failure;
use crate::kmsg;

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// What of a program's words goes into a failure.
const LAST_LINES: usize = 8;

/// What looking a filesystem through came to, where it came to something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Whole,
    /// What the kernel has read of it before, if it is mounted, is no longer so.
    Repaired,
    /// The guest has no e2fsck.
    Unchecked,
}

impl Checked {
    pub(crate) fn must_be_mounted_anew(&self) -> bool {
        matches!(self, Checked::Repaired)
    }
}

/// e2fsck(8): errors were corrected, or, with this bit, they were on a filesystem that is mounted.
const REBOOT: i32 = 2;
/// e2fsck(8): from here on errors are left, or it could not do its work.
const ERRORS_LEFT: i32 = 4;

/// Nothing in it depends on what lay on the disk before, so nothing needs to be discarded.
pub(crate) fn make(disk: &str, device: &Path, filesystem: Filesystem) -> Result<(), Failure> {
    let (program, arguments): (&str, &[&str]) = match filesystem {
        Filesystem::Ext4 => ("/usr/sbin/mkfs.ext4", &["-q", "-F", "-E", "nodiscard"]),
        Filesystem::Xfs => ("/usr/sbin/mkfs.xfs", &["-q", "-f", "-K"]),
    };
    let mut command = Command::new(program);
    command.args(arguments).args(["-L", &label(disk, filesystem)]).arg(device);
    let output = run(&mut command).map_err(|source| Failure::NoMkfs {
        disk: disk.to_owned(),
        program: program.to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::Mkfs {
        disk: disk.to_owned(),
        program: program.to_owned(),
        status: output.status.to_string(),
        said: last_words(&output),
    })
}

/// The disk's name as far as the filesystem has room for it; xfs takes no blanks.
fn label(disk: &str, filesystem: Filesystem) -> String {
    let room = match filesystem {
        Filesystem::Ext4 => 16,
        Filesystem::Xfs => 12,
    };
    disk.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).take(room).collect()
}

/// Repairs what can be repaired without asking. A guest without e2fsck mounts without it.
pub(crate) fn check(disk: &str, device: &Path) -> Result<Checked, Failure> {
    let output = match run(Command::new("e2fsck").arg("-p").arg(device)) {
        Ok(output) => output,
        Err(error) => {
            kmsg::error(format_args!(
                "disk `{disk}` asks for e2fsck, which the guest does not have: {error}"
            ));
            return Ok(Checked::Unchecked);
        }
    };
    match output.status.code() {
        Some(code) if code < ERRORS_LEFT => {
            kmsg::note(format_args!("disk `{disk}`: e2fsck: {}", last_words(&output)));
            Ok(if code & REBOOT == 0 { Checked::Whole } else { Checked::Repaired })
        }
        _ => Err(Failure::Fsck {
            disk: disk.to_owned(),
            status: output.status.to_string(),
            said: last_words(&output),
        }),
    }
}

/// Before any service: nobody else reaps yet, so the program's end is this call's own to wait for.
fn run(command: &mut Command) -> std::io::Result<Output> {
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).output()
}

fn last_words(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines.get(from..).unwrap_or_default().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_what_the_filesystem_has_room_for() {
        assert_eq!(label("data", Filesystem::Ext4), "data");
        assert_eq!(label("a-name-of-twenty-one", Filesystem::Ext4), "a-name-of-twenty");
        assert_eq!(label("write ahead log", Filesystem::Xfs), "write-ahead-");
    }
}
