//! Kernel settings, written below /proc/sys before anything starts, and read back: a setting that the kernel took as
//! something else is not the one that was asked for.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::failure::Failure;

/// Below `base` (/proc/sys), in the job's order: one setting may make room for the next.
pub(crate) fn write(base: &Path, settings: &[(String, String)]) -> Result<(), Failure> {
    settings.iter().try_for_each(|(name, value)| set(base, name, value))
}

fn set(base: &Path, name: &str, asked: &str) -> Result<(), Failure> {
    let failed = |found: String, source| Failure::Sysctl {
        setting: name.to_owned(),
        asked: asked.to_owned(),
        found,
        source,
    };
    let Some(below) = file(name) else { return Err(Failure::SysctlName(name.to_owned())) };
    let path = base.join(below);
    // Not fs::write, which would make a file where there is no such setting, were this not /proc.
    let written = fs::OpenOptions::new().write(true).truncate(true).open(&path);
    let written = written.and_then(|mut file| std::io::Write::write_all(&mut file, asked.as_bytes()));
    let found = fs::read_to_string(&path);
    match (written, found) {
        (Ok(()), Ok(found)) if is_as_asked(asked, &found) => Ok(()),
        // Some only trigger something, and cannot be read: `vm.compact_memory`.
        (Ok(()), Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        (written, found) => {
            let (found, unread) = match found {
                Ok(found) => (found.trim().to_owned(), None),
                Err(error) => (String::new(), Some(error)),
            };
            Err(failed(found, written.err().or(unread)))
        }
    }
}

/// As sysctl(8) has it: dots separate, unless the first separator is a slash; then a dot is part of a name.
fn file(name: &str) -> Option<PathBuf> {
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes().get(at) == Some(&b'/'));
    let path = PathBuf::from(if slashes {
        name.to_owned()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    });
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty()).then_some(path)
}

/// Blanks are the kernel's own, a number may come back in another notation, and where several values stand in one file,
/// those that were not written keep what they were.
fn is_as_asked(asked: &str, found: &str) -> bool {
    let (asked, found) = (asked.split_whitespace(), found.split_whitespace());
    let (asked, found): (Vec<_>, Vec<_>) = (asked.collect(), found.collect());
    asked.is_empty() == found.is_empty()
        && asked.len() <= found.len()
        && asked.iter().zip(&found).all(|(asked, found)| same(asked, found))
}

fn same(asked: &str, found: &str) -> bool {
    asked == found || number(asked).is_some_and(|asked| number(found) == Some(asked))
}

/// As the kernel reads one (kstrtol with base 0).
fn number(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => i128::from(u64::from_str_radix(digits, 16).ok()?),
        None if digits.len() > 1 && digits.starts_with('0') => {
            i128::from(u64::from_str_radix(digits, 8).ok()?)
        }
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(settings: &[(&str, &str)]) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        for (path, value) in settings {
            let path = base.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        base
    }

    fn written(base: &tempfile::TempDir, name: &str, value: &str) -> Result<(), String> {
        write(base.path(), &[(name.to_owned(), value.to_owned())]).map_err(|failure| failure.message())
    }

    #[test]
    fn a_setting_is_written_where_its_name_says() {
        let base = base(&[("vm/swappiness", "60\n"), ("net/ipv4/conf/eth0.1/forwarding", "0\n")]);
        written(&base, "vm.swappiness", "1").unwrap();
        written(&base, "net/ipv4/conf/eth0.1/forwarding", "1").unwrap();
        written(&base, "net.ipv4.conf.eth0/1.forwarding", "1").unwrap();
        assert_eq!(fs::read_to_string(base.path().join("vm/swappiness")).unwrap(), "1");
    }

    #[test]
    fn a_setting_that_is_not_there_is_named_with_what_was_asked() {
        let base = base(&[]);
        assert_eq!(
            written(&base, "vm.swapiness", "1"),
            Err("sysctl vm.swapiness: asked for `1`, found ``: No such file or directory (os error 2)".into())
        );
        assert!(!base.path().join("vm").exists());
    }

    #[test]
    fn a_name_cannot_lead_out_of_proc_sys() {
        let base = base(&[]);
        for name in ["", "/etc/passwd", "net/../../etc/passwd", "vm/../../x"] {
            let message = written(&base, name, "1").unwrap_err();
            assert!(message.contains("no name of a kernel setting"), "{name}: {message}");
        }
    }

    #[test]
    fn what_is_read_back_may_look_otherwise_and_mean_the_same() {
        for (asked, found, same) in [
            ("1", "1\n", true),
            ("0x10", "16\n", true),
            ("010", "8\n", true),
            ("0 2147483647", "0\t2147483647\n", true),
            ("3", "3\t4\t1\t7\n", true),
            ("", "\n", true),
            ("", "core\n", false),
            ("|/bin/dump %p", "|/bin/dump %p\n", true),
            ("1", "0\n", false),
            ("-1", "1\n", false),
            ("1 2 3", "1 2\n", false),
            ("bbr", "cubic\n", false),
        ] {
            assert_eq!(is_as_asked(asked, found), same, "{asked} {found}");
        }
    }
}
