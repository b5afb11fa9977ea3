//! One thing wrong with a file ([`Problem`]), all of them with the text ([`Problems`]), and the gatherer that readers
//! write into ([`Findings`]). Nothing here prints.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceSpan};

/// So many problems of one file are shown; nobody reads on, and each one costs a look through the text.
pub(crate) const MOST_PROBLEMS: usize = 100;

/// One problem: what was asked, what was found, what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    code: String,
    severity: Severity,
    message: String,
    labels: Vec<LabeledSpan>,
    help: Option<String>,
}

impl Problem {
    /// A problem that makes the file invalid. `code` is whole, such as `vmprof::profile::unknown_node`.
    pub fn error(code: impl Into<String>, message: impl Into<String>) -> Self {
        Problem::new(Severity::Error, code.into(), message.into())
    }

    /// A remark that does not stop anyone.
    pub fn warning(code: impl Into<String>, message: impl Into<String>) -> Self {
        Problem::new(Severity::Warning, code.into(), message.into())
    }

    fn new(severity: Severity, code: String, message: String) -> Self {
        Problem { code, severity, message, labels: Vec::new(), help: None }
    }

    /// Points at `span`. The first one is the primary place.
    #[must_use]
    pub fn at(mut self, span: SourceSpan, label: impl Into<String>) -> Self {
        let label = Some(label.into());
        self.labels.push(if self.labels.is_empty() {
            LabeledSpan::new_primary_with_span(label, span)
        } else {
            LabeledSpan::new_with_span(label, span)
        });
        self
    }

    /// The next step.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The whole code, such as `vmprof::profile::unknown_node`.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The message without code and help.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The help text, if there is one.
    pub fn help_text(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Whether this makes the file invalid.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The primary place, if the problem has one.
    pub fn first_span(&self) -> Option<SourceSpan> {
        self.labels.first().map(|l| *l.inner())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.code))
    }
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty()).then(|| Box::new(self.labels.iter().cloned()) as Box<_>)
    }
}

/// All problems of one file, with its text: a miette diagnostic whose `related` are the single ones.
#[derive(Debug, Clone)]
pub struct Problems {
    area: &'static str,
    source: NamedSource<Arc<str>>,
    problems: Vec<Problem>,
}

impl Problems {
    /// Joins `problems` with the text they point into. Past the first hundred they are counted only.
    pub fn new(area: &'static str, source: NamedSource<Arc<str>>, mut problems: Vec<Problem>) -> Self {
        if problems.len() > MOST_PROBLEMS {
            let more = problems.len() - MOST_PROBLEMS;
            let failed = problems.iter().skip(MOST_PROBLEMS).any(Problem::is_error);
            problems.truncate(MOST_PROBLEMS);
            let severity = if failed { Severity::Error } else { Severity::Warning };
            let rest = Problem::new(severity, format!("{area}::too_many"), format!("and {more} more"));
            problems.push(rest.help("mend these, and check again"));
        }
        Problems { area, source, problems }
    }

    /// The single problems, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The name of the file they are about.
    pub fn file(&self) -> &str {
        self.source.name()
    }

    fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.has_errors() { "problem" } else { "warning" };
        let plural = if self.len() == 1 { "" } else { "s" };
        write!(f, "{}: {} {noun}{plural}", self.source.name(), self.len())
    }
}

impl std::error::Error for Problems {}

impl Diagnostic for Problems {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.has_errors().then(|| Box::new(format!("{}::invalid", self.area)) as Box<_>)
    }
    fn severity(&self) -> Option<Severity> {
        Some(if self.has_errors() { Severity::Error } else { Severity::Warning })
    }
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.source)
    }
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|p| p as &dyn Diagnostic)))
    }
}

/// Where the cursors of one reading write what they find.
#[derive(Debug)]
pub struct Findings {
    area: &'static str,
    problems: RefCell<Vec<Problem>>,
    /// Places already reported as syntax slips: reading their stand-in values reports nothing more.
    poisoned: Vec<SourceSpan>,
    /// Where each line after the first begins.
    lines: Vec<usize>,
}

impl Findings {
    pub(crate) fn new(
        area: &'static str,
        text: &str,
        problems: Vec<Problem>,
        poisoned: Vec<SourceSpan>,
    ) -> Self {
        let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Findings { area, problems: RefCell::new(problems), poisoned, lines }
    }

    /// The line in which a place begins, counted from 1.
    pub fn line(&self, place: SourceSpan) -> u32 {
        let before = self.lines.partition_point(|start| *start <= place.offset());
        u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// An error with the area's prefix: `code` is the last word, such as `unknown_node`.
    pub fn error(&self, code: &str, message: impl Into<String>) -> Problem {
        Problem::error(format!("{}::{code}", self.area), message)
    }

    /// A warning with the area's prefix.
    pub fn warning(&self, code: &str, message: impl Into<String>) -> Problem {
        Problem::warning(format!("{}::{code}", self.area), message)
    }

    /// Records a problem.
    pub fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Whether an error was recorded so far.
    pub fn has_errors(&self) -> bool {
        self.problems.borrow().iter().any(Problem::is_error)
    }

    pub(crate) fn is_poisoned(&self, span: SourceSpan) -> bool {
        let (start, end) = (span.offset(), span.offset() + span.len());
        self.poisoned.iter().any(|p| start <= p.offset() && p.offset() + p.len() <= end)
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}
