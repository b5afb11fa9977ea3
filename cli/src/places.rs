//! Where vmprof keeps things: the XDG base directories, each movable with a variable of its own. This and `main` are the
//! only readers of the environment.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The content-addressed store.
    pub store: PathBuf,
    /// What is not in the store: the disks that `source file=` names, which last, and copies of writable roots, which do not.
    pub state: PathBuf,
    /// What lives as long as a run: sockets, locks, run records.
    pub runtime: PathBuf,
    /// Where a lab that stays has its sockets.
    pub lab: PathBuf,
}

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error(
    "there is no place for {what}: neither {variable} nor {standard} nor HOME is set to an absolute path"
)]
#[diagnostic(code(vmprof::places::none), help("set {variable} to a directory you can write to"))]
pub struct NoPlace {
    what: &'static str,
    variable: &'static str,
    standard: &'static str,
}

impl Places {
    pub fn from_environment() -> Result<Places, NoPlace> {
        Places::find(|name| env::var_os(name))
    }

    fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Places, NoPlace> {
        // XDG base directory specification: a relative path is invalid and ignored.
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let own = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = absolute("HOME");
        let below = |standard: &str, default: &str| {
            absolute(standard)
                .or_else(|| home.as_ref().map(|home| home.join(default)))
                .map(|base| base.join("vmprof"))
        };
        let store =
            own("VMPROF_STORE").or_else(|| below("XDG_DATA_HOME", ".local/share").map(|p| p.join("store")));
        let state = own("VMPROF_STATE").or_else(|| below("XDG_STATE_HOME", ".local/state"));
        let none = |what, variable, standard| NoPlace { what, variable, standard };
        let store = store.ok_or(none("the store", "VMPROF_STORE", "XDG_DATA_HOME"))?;
        let state = state.ok_or(none("the state", "VMPROF_STATE", "XDG_STATE_HOME"))?;
        let runtime = own("VMPROF_RUNTIME")
            .or_else(|| absolute("XDG_RUNTIME_DIR").map(|base| base.join("vmprof")))
            .unwrap_or_else(|| state.join("run"));
        // No VM can be called so.
        let lab = own("VMPROF_LAB").unwrap_or_else(|| runtime.join(".lab"));
        // A variable of our own may be relative: from here on nobody depends on the working directory.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let (store, state) = (absolute(store), absolute(state));
        Ok(Places { store, state, runtime: absolute(runtime), lab: absolute(lab) })
    }

    /// Where the log of a run is that was left on its own.
    pub fn log_of(&self, name: &str) -> PathBuf {
        self.state.join("logs").join(format!("{name}.log"))
    }

    /// Where the keeper of a lab that stays has its log.
    pub fn lab_log(&self) -> PathBuf {
        self.state.join("lab.log")
    }

    /// Where a relative `source file=` of a profile lies.
    pub fn disks_of(&self, profile: &str) -> PathBuf {
        self.state.join("disks").join(profile)
    }

    /// The lock of those who plan. No VM can be called so.
    pub fn turn(&self) -> PathBuf {
        self.runtime.join(".planning")
    }

    /// Where runs keep their copies of writable roots.
    pub fn roots(&self) -> PathBuf {
        self.state.join("roots")
    }

    pub fn run_of(&self, name: &str) -> PathBuf {
        self.runtime.join(name)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Places, NoPlace> {
        Places::find(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_defaults_lie_under_home() {
        let places = find(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(places.store, Path::new("/home/u/.local/share/vmprof/store"));
        assert_eq!(places.state, Path::new("/home/u/.local/state/vmprof"));
        assert_eq!(places.runtime, Path::new("/home/u/.local/state/vmprof/run"));
    }

    #[test]
    fn xdg_moves_them_and_vmprofs_own_variables_win() {
        let places = find(&[
            ("HOME", "/home/u"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_STATE_HOME", "relative"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("VMPROF_STORE", "/s"),
        ])
        .unwrap();
        assert_eq!(places.store, Path::new("/s"));
        assert_eq!(places.state, Path::new("/home/u/.local/state/vmprof"));
        assert_eq!(places.runtime, Path::new("/r/vmprof"));
        assert_eq!(places.lab, Path::new("/r/vmprof/.lab"));
        let places = find(&[("HOME", "/h"), ("VMPROF_LAB", "/l")]).unwrap();
        assert_eq!(places.lab, Path::new("/l"));
    }

    #[test]
    fn without_any_of_them_the_message_names_the_variable() {
        assert!(find(&[]).unwrap_err().to_string().contains("VMPROF_STORE"));
    }
}
