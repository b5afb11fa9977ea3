//! passt, which carries a VM's packets to the host's sockets without root: one of at least July 2026 from PATH, or else from
//! Debian's packages, as the lab's emulator is.
//!
//! Older ones need an interface with a route on the host, or forget the addresses that they were given where there is none.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::builder::Builder;
use crate::error::Result;
use crate::toolset::{Realised, Toolset};

/// A date, as passt's versions are: 28 July 2026.
const WANTED: u32 = 20260728;
const PROGRAM: &str = "passt";
const BINARY: &str = "usr/bin/passt";
/// The same with checksums by AVX2. passt looks for it beside itself, where run by its loader it is not.
const WITH_AVX2: &str = "usr/bin/passt.avx2";

const TOOLSET: Toolset = Toolset {
    name: "passt",
    suites: &["trixie", "trixie-backports"],
    packages: &["passt"],
    programs: &[BINARY, WITH_AVX2],
    data: &[],
    linked: &[],
    layout: "1",
};

/// A passt that does what vmprof asks of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passt {
    /// The words in front of its own arguments: its path, or its loader with what that needs.
    pub argv: Vec<OsString>,
}

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum PasstError {
    #[error("the passt realised from Debian is not of {WANTED} or later: {found}")]
    #[diagnostic(code(vmprof::guest::passt_version), help("put a newer passt on PATH"))]
    Version { found: String },
}

/// Finds passt on PATH or in the store, or realises it. Warm, this starts at most the one on PATH, to ask for its version.
pub fn find(builder: &Builder<'_>) -> Result<Passt> {
    find_with(builder, std::env::var_os("PATH").as_deref())
}

fn find_with(builder: &Builder<'_>, path: Option<&OsStr>) -> Result<Passt> {
    for directory in path.map(std::env::split_paths).into_iter().flatten() {
        let program = directory.join(PROGRAM);
        if program.is_file() && is_new_enough(builder, &[program.clone().into()]).is_ok() {
            return Ok(Passt { argv: vec![program.into()] });
        }
    }
    let realised = TOOLSET.realise_checked(builder, |realised| {
        let check = is_new_enough(builder, &realised.argv(BINARY));
        check.map_err(|found| PasstError::Version { found })?;
        Ok(Vec::new())
    })?;
    Ok(Passt { argv: argv(&realised) })
}

fn argv(realised: &Realised) -> Vec<OsString> {
    realised.argv(if std::arch::is_x86_feature_detected!("avx2") { WITH_AVX2 } else { BINARY })
}

/// Asks it; the error is what it answers.
fn is_new_enough(builder: &Builder<'_>, argv: &[OsString]) -> std::result::Result<(), String> {
    let mut command = Command::new(PathBuf::from(&argv[0]));
    command.args(&argv[1..]).arg("--version").stdin(Stdio::null());
    let output = (builder.prepare())(&mut command).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    if date(first) >= Some(WANTED) { Ok(()) } else { Err(first.to_owned()) }
}

/// `passt 0.0~git20260728.f8df3f1-1`, `passt 2026_07_28.f8df3f1`, `passt 0^20260728.gf8df3f1-1.fc44` → 20260728.
fn date(version: &str) -> Option<u32> {
    let joined = version.replace('_', "");
    joined
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| digits.len() == 8 && digits.starts_with("20"))
        .and_then(|digits| digits.parse().ok())
}

/// What a passt says that is no error and is said each time.
pub fn is_usual(line: &str) -> bool {
    line.starts_with("Can't run AVX2 build") || line.starts_with("Started as root")
}

impl Passt {
    /// The path of the file that is started, for what must stay in the store while it runs.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.argv.iter().map(Path::new).filter(|path| path.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::GuestError;
    use crate::fetch::FetchError;
    use crate::progress::Silent;
    use crate::store::Store;
    use crate::testing;

    #[test]
    fn a_version_is_the_date_in_it_however_it_is_packaged() {
        for (version, expected) in [
            ("passt 0.0~git20260728.f8df3f1-1~bpo13+1", Some(20260728)),
            ("passt 2026_07_28.f8df3f1", Some(20260728)),
            ("passt 0^20250121.g4f2c8e7-2.fc41.x86_64", Some(20250121)),
            ("passt unknown version", None),
            ("", None),
        ] {
            assert_eq!(date(version), expected, "{version}");
        }
    }

    #[test]
    fn one_on_path_is_taken_where_it_is_new_enough_and_passed_over_where_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let builder = Builder::new(&store, &Silent).offline(true);
        let program = dir.path().join(PROGRAM);
        let says = |text: &str| {
            testing::program(&program, &format!("echo '{text}'"));
            find_with(&builder, Some(dir.path().as_os_str()))
        };
        assert_eq!(says("passt 2026_09_01.0293c6f").unwrap().argv, [program.as_os_str()]);
        for old in ["passt 0.0~git20250503.587980c-2", "passt unknown version", "Segmentation fault"] {
            let error = says(old).unwrap_err();
            assert!(matches!(error, GuestError::Fetch(FetchError::Offline { .. })), "{error}");
        }
    }
}
