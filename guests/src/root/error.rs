//! What a root lacks, or cannot hold, of what its recipe asks for.

use crate::elf::MissingLibrary;
use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RootError {
    #[error("{who} runs `{program}`, which is not in its image{}", because.as_ref().map(|b| format!(": {b}")).unwrap_or_default())]
    #[diagnostic(code(vmprof::guest::no_program), help("{}", no_program_help(program)))]
    NoProgram { who: String, program: String, because: Option<String> },

    #[error("guest `{guest}` makes {filesystem} on the empty disk of {path}, and has no {program}")]
    #[diagnostic(
        code(vmprof::guest::no_mkfs),
        help("add the package {} under `packages`", if *filesystem == "xfs" { "xfsprogs" } else { "e2fsprogs" })
    )]
    NoMkfs { guest: String, path: String, filesystem: &'static str, program: String },

    #[error("{of} names {what} `{asked}`, which the guest does not have; it has {}", known.join(", "))]
    #[diagnostic(
        code(vmprof::guest::unknown_account),
        help(
            "declare it: {}",
            if *what == "user" { format!("`user {asked} uid=…`") } else { format!("`group {asked} gid=…`") }
        )
    )]
    UnknownAccount { what: &'static str, asked: String, of: String, known: Vec<String> },

    #[error("{what} `{name}` shall have id {id}, which {what} `{holder}` has in the image")]
    #[diagnostic(code(vmprof::guest::taken_id), help("give `{name}` another id"))]
    TakenId { what: &'static str, name: String, id: u32, holder: String },

    #[error("guest `{guest}` has `init systemd`, and no /usr/lib/systemd/systemd in its image")]
    #[diagnostic(
        code(vmprof::guest::no_systemd),
        help("add `systemd` under `packages`, or take `init systemd` out")
    )]
    NoSystemd { guest: String },

    #[error("guest `{guest}` enables `{unit}`, which is not among the units in its image")]
    #[diagnostic(
        code(vmprof::guest::no_unit),
        help("{}", near.as_ref().map_or("add the package that holds it, or write the unit with `file`".to_owned(), |near| format!("did you mean `{near}`?")))
    )]
    NoUnit { guest: String, unit: String, near: Option<String> },

    #[error("unit `{unit}` cannot be enabled or masked: {problem}")]
    #[diagnostic(
        code(vmprof::guest::unit_refused),
        help("take it out of `init systemd`, or change the unit")
    )]
    UnitRefused { unit: String, problem: String },

    #[error(
        "programs of guest `{guest}` need libraries that are not in its image: {}",
        list_missing(missing)
    )]
    #[diagnostic(
        code(vmprof::guest::missing_library),
        help("a package named under `without` holds them: take it out of that list")
    )]
    MissingLibraries { guest: String, missing: Vec<MissingLibrary> },
}

impl RootError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::NoProgram { .. }
            | Self::NoMkfs { .. }
            | Self::UnknownAccount { .. }
            | Self::TakenId { .. }
            | Self::NoSystemd { .. }
            | Self::NoUnit { .. }
            | Self::UnitRefused { .. }
            | Self::MissingLibraries { .. } => FailureClass::Invalid,
        }
    }
}

fn no_program_help(program: &str) -> String {
    let mut words = program.split_whitespace().map(|word| format!("\"{word}\""));
    match (words.next(), words.collect::<Vec<_>>().join(" ")) {
        (Some(program), words) if !words.is_empty() => {
            format!("no shell takes it apart: write each word for itself, {program} {words}")
        }
        _ => "add the package that holds it under `packages`, or the file or link that should be there"
            .to_owned(),
    }
}

fn list_missing(missing: &[MissingLibrary]) -> String {
    let each: Vec<_> = missing.iter().map(|m| format!("{} (for {})", m.library, m.needed_by)).collect();
    each.join(", ")
}
