//! The verb `check`: every problem of every profile and guest in one run, for people or as `vmprof.check/1`.

use std::path::Path;

use miette::{Diagnostic, Severity, SourceCode};
use serde::Serialize;
use vmprof_guests::{Lock, Recipe};
use vmprof_profiles::{Problem, Problems};

use crate::args::{CheckArguments, Format};
use crate::failure::{Failure, Kind};
use crate::profile;
use crate::report::Report;

const NO_GUEST: &str = "vmprof::profile::no_guest";

/// What `--format json` prints.
#[derive(Serialize)]
struct Checked {
    schema: &'static str,
    files: Vec<CheckedFile>,
}

#[derive(Serialize)]
struct CheckedFile {
    file: String,
    valid: bool,
    problems: Vec<Told>,
}

/// One problem. Lines and columns count from 1; `null` where it has no place.
#[derive(Serialize)]
struct Told {
    severity: &'static str,
    code: Option<String>,
    message: String,
    help: Option<String>,
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
    labels: Vec<Label>,
}

/// A place in a file, and what is there. The first one is the problem's own place.
#[derive(Serialize)]
struct Label {
    file: Option<String>,
    line: usize,
    column: usize,
    /// In bytes.
    length: usize,
    text: Option<String>,
}

/// Every file's problems, all of them, before the verb ends.
pub fn check(arguments: &CheckArguments, report: Report) -> Result<(), Failure> {
    let json = arguments.format == Format::Json;
    // Of one file there is nothing to sum up: its problems are the failure.
    if let ([path], false) = (&arguments.profiles[..], json) {
        let (valid, problem) = read(path);
        return match problem {
            Some(problem) if !valid => Err(Failure { kind: Kind::Invalid, problem }),
            remarks => {
                remarks.iter().for_each(|remarks| report.diagnostic(&**remarks));
                report.notice(format_args!("{}: valid", path.display()));
                Ok(())
            }
        };
    }
    let mut files = Vec::new();
    for path in &arguments.profiles {
        let (valid, problem) = read(path);
        let problem = problem.as_deref();
        if json {
            let problems = problem.map_or(Vec::new(), |problem| told(problem));
            files.push(CheckedFile { file: path.display().to_string(), valid, problems });
            continue;
        }
        if let Some(problem) = problem {
            report.diagnostic(problem);
        }
        if valid {
            report.notice(format_args!("{}: valid", path.display()));
        }
        files.push(CheckedFile { file: path.display().to_string(), valid, problems: Vec::new() });
    }
    let invalid = files.iter().filter(|file| !file.valid).count();
    let all = files.len();
    if json {
        report.json(&Checked { schema: "vmprof.check/1", files })?;
    }
    if invalid == 0 {
        return Ok(());
    }
    let message = format!("{invalid} of {all} files {} invalid", if invalid == 1 { "is" } else { "are" });
    let shown = if json { "each problem is on stdout" } else { "each problem is shown above" };
    Err(Failure::said(Kind::Invalid, "vmprof::profile::invalid", message, shown))
}

/// Whether a profile or a guest is valid, and what there is to say about it.
fn read(path: &Path) -> (bool, Option<Box<dyn Diagnostic + Send + Sync>>) {
    let text = match profile::text_of(path) {
        Ok(text) => text,
        Err(failure) => return (false, Some(failure.problem)),
    };
    match vmprof_document::first_node(&text).as_deref() {
        Some("guest") => return read_guest(path),
        // Beside its recipe, `guests/*.kdl` names it too.
        Some("lock") => {
            return match Lock::parse(path, &text) {
                Ok(_) => (true, None),
                Err(error) => (false, Some(Failure::from(error).problem)),
            };
        }
        _ => {}
    }
    match profile::read(path) {
        Ok((path, profile)) => {
            let mut remarks = profile.remarks();
            // A profile without its guest can be planned, and no more.
            match profile::recipe(&path, &profile) {
                Ok(_) => {}
                Err(Failure { problem, .. })
                    if problem.code().is_some_and(|code| code.to_string() == NO_GUEST) =>
                {
                    let help = problem.help().map(|help| help.to_string()).unwrap_or_default();
                    remarks.push(Problem::warning(NO_GUEST, problem.to_string()).help(help));
                }
                Err(failure) => return (false, Some(failure.problem)),
            }
            let told = !remarks.is_empty();
            let warnings = Problems::new("vmprof::profile", profile.source().clone(), remarks);
            (true, told.then(|| Box::new(warnings) as Box<_>))
        }
        Err(failure) => (false, Some(failure.problem)),
    }
}

fn read_guest(path: &Path) -> (bool, Option<Box<dyn Diagnostic + Send + Sync>>) {
    let read = Recipe::read_with_files(path).and_then(|recipe| {
        // Without a lock one will be made; one for other packages is in the way of every build.
        if recipe.distribution.is_some() && recipe.lock_path.exists() {
            Lock::read(&recipe.lock_path)?.check(&recipe)?;
        }
        Ok(recipe.warnings)
    });
    match read {
        Ok(warnings) => (true, (!warnings.is_empty()).then(|| Box::new(warnings) as Box<_>)),
        Err(error) => (false, Some(Failure::from(error).problem)),
    }
}

/// The single problems of a diagnostic: those it lists, or itself.
fn told(problem: &dyn Diagnostic) -> Vec<Told> {
    let source = problem.source_code();
    let listed: Vec<Told> = problem.related().into_iter().flatten().map(|one| tell(one, source)).collect();
    if listed.is_empty() { vec![tell(problem, source)] } else { listed }
}

fn tell(problem: &dyn Diagnostic, source: Option<&dyn SourceCode>) -> Told {
    let source = problem.source_code().or(source);
    let text = |word: Option<Box<dyn std::fmt::Display + '_>>| word.map(|word| word.to_string());
    let label = |label: miette::LabeledSpan| {
        // A place beyond the text has no line to show.
        let found = source?.read_span(label.inner(), 0, 0).ok()?;
        Some(Label {
            file: found.name().map(str::to_owned),
            line: found.line() + 1,
            column: found.column() + 1,
            length: label.len(),
            text: label.label().map(str::to_owned),
        })
    };
    let labels: Vec<Label> = problem.labels().into_iter().flatten().filter_map(label).collect();
    let first = labels.first();
    Told {
        severity: match problem.severity() {
            Some(Severity::Advice) => "advice",
            Some(Severity::Warning) => "warning",
            Some(Severity::Error) | None => "error",
        },
        code: text(problem.code()),
        message: problem.to_string(),
        help: text(problem.help()),
        file: first.and_then(|label| label.file.clone()),
        line: first.map(|label| label.line),
        column: first.map(|label| label.column),
        labels,
    }
}
