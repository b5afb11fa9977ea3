//! The verbs about guests: `lock` and `build`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use vmprof_guests::Update;

use super::{Arguments, Format};

#[derive(Debug, Args)]
#[command(override_usage = "vmprof lock [OPTIONS] GUEST")]
#[command(after_help = "Examples:\n  \
    vmprof lock guests/fio.kdl                what the recipe's change needs; every other version stays\n  \
    vmprof lock --update guests/fio.kdl       everything as the archive has it now\n  \
    vmprof lock --update fio guests/fio.kdl   fio, and what its new version needs\n  \
    vmprof lock --check guests/*.kdl          for a CI job: changes nothing, and ends with 1 where it would")]
pub struct LockArguments {
    /// The guests' recipes, KDL files
    #[arg(value_name = "GUEST")]
    guests: Vec<PathBuf>,
    /// Take the archive's present version of PACKAGE and what that needs, several times for several packages; without
    /// PACKAGE, of everything
    #[arg(long, value_name = "PACKAGE", num_args = 0..=1, default_missing_value = "")]
    update: Vec<String>,
    /// Change nothing: say what would change, and end with status 1 where anything would
    #[arg(long)]
    pub check: bool,
    /// json: vmprof.lock/1 on stdout, every change as an object
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `vmprof lock` with its own usage line.
fn lock_command() -> clap::Command {
    let mut all = Arguments::command();
    all.build();
    all.find_subcommand("lock").cloned().unwrap_or(all)
}

impl LockArguments {
    /// The recipes, and what to update. A word behind `--update` that looks like a file is a recipe: `--update` then stands
    /// alone. No package's name has a slash or ends with `.kdl`.
    pub fn read(&self) -> Result<(Vec<PathBuf>, Update), clap::Error> {
        let is_file = |word: &str| word.contains('/') || word.ends_with(".kdl");
        let mut guests: Vec<PathBuf> =
            self.update.iter().filter(|word| is_file(word)).map(PathBuf::from).collect();
        guests.extend(self.guests.iter().cloned());
        let packages = self.update.iter().filter(|word| !is_file(word) && !word.is_empty());
        let packages: Vec<String> = packages.cloned().collect();
        let usage =
            |message: &str| lock_command().error(clap::error::ErrorKind::MissingRequiredArgument, message);
        if guests.is_empty() {
            return Err(usage(
                "the guest's recipe is missing: `vmprof lock guests/fio.kdl`, or `./NAME` for a file whose name does not end with .kdl",
            ));
        }
        let update = match (self.update.is_empty(), packages.is_empty()) {
            (true, _) => Update::Nothing,
            (false, true) => Update::All,
            (false, false) if packages.len() < self.update.len() => {
                let message = "--update stands once without a package, for everything, or each time with one";
                return Err(lock_command().error(clap::error::ErrorKind::ArgumentConflict, message));
            }
            (false, false) => Update::Packages(packages),
        };
        Ok((guests, update))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof build profiles/db.kdl                      what is not in the store yet\n  \
    vmprof build --check guests/postgres.kdl          built once more from the packages, and compared\n  \
    vmprof build --export db.img guests/postgres.kdl  the root disk as a file of its own")]
pub struct BuildArguments {
    /// A profile or a guest's recipe, a KDL file
    pub file: PathBuf,
    /// Build again and compare with what the store holds
    #[arg(long)]
    pub check: bool,
    /// Write the root disk to FILE too, and print its BLAKE3 digest; a FILE that exists is left alone
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Let --export replace a FILE that exists
    #[arg(long, requires = "export")]
    pub force: bool,
    #[command(flatten)]
    pub sources: Sources,
    /// json: vmprof.build/1 on stdout: paths, sizes, formats
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Sources {
    /// Refuse a lock file that is missing or does not fit its recipe
    #[arg(long)]
    pub frozen: bool,
    /// Touch no network: what the store lacks is an error
    #[arg(long)]
    pub offline: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Verb;
    use super::*;

    fn lock(words: &[&str]) -> Result<(Vec<PathBuf>, Update), clap::Error> {
        let words = ["vmprof", "lock"].iter().chain(words);
        match Arguments::try_parse_from(words)?.verb {
            Verb::Lock(lock) => lock.read(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn update_reads_the_same_wherever_it_stands() {
        let guest = || vec![PathBuf::from("g/a.kdl")];
        let fio = || Update::Packages(vec!["fio".to_owned()]);
        assert_eq!(lock(&["g/a.kdl"]).unwrap(), (guest(), Update::Nothing));
        assert_eq!(lock(&["--update", "g/a.kdl"]).unwrap(), (guest(), Update::All));
        assert_eq!(lock(&["g/a.kdl", "--update"]).unwrap(), (guest(), Update::All));
        for words in [["--update", "fio", "g/a.kdl"], ["g/a.kdl", "--update", "fio"]] {
            assert_eq!(lock(&words).unwrap(), (guest(), fio()));
        }
        assert_eq!(lock(&["--update=fio", "g/a.kdl"]).unwrap(), (guest(), fio()));
        let both = Update::Packages(vec!["fio".to_owned(), "libc6".to_owned()]);
        assert_eq!(lock(&["--update=fio", "--update=libc6", "g/a.kdl"]).unwrap(), (guest(), both));
    }

    #[test]
    fn a_lock_without_a_recipe_or_with_two_meanings_of_update_is_refused() {
        assert!(lock(&["--update", "fio"]).is_err());
        assert!(lock(&[]).is_err());
        assert!(lock(&["--update=fio", "--update", "g/a.kdl"]).is_err());
    }
}
