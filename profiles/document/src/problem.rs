//! One thing wrong with a file ([`Problem`]), all of them with the text ([`Problems`]), and the gatherer that readers
//! write into ([`Findings`]). Nothing here prints.

use std::cell::{Cell, RefCell};
use std::fmt;

use miette::{Diagnostic, LabeledSpan, Severity, SourceSpan};

use crate::foreign::Foreign;
use crate::sources::{Line, Sources};

/// So many problems of one file are shown; nobody reads on, and each one costs a look through the text.
pub(crate) const MOST_PROBLEMS: usize = 100;
/// So many are written out before the rest is counted: enough that the first hundred in the order of the text are there.
const FULL: usize = 1000;

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

    /// Points at one more place.
    pub(crate) fn point(&mut self, span: SourceSpan, label: &str) {
        self.labels.push(LabeledSpan::new_with_span(Some(label.to_owned()), span));
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

    /// What makes two problems one: code, message and primary place.
    pub fn identity(&self) -> (String, String, Option<(usize, usize)>) {
        let place = self.first_span().map(|span| (span.offset(), span.len()));
        (self.code.clone(), self.message.clone(), place)
    }

    /// The same problem, `by` further on in the common space of several texts.
    pub(crate) fn shifted(mut self, by: usize) -> Self {
        for label in std::mem::take(&mut self.labels) {
            let span = SourceSpan::from((label.offset() + by, label.len()));
            self = self.at(span, label.label().unwrap_or_default());
        }
        self
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
    source: Sources,
    problems: Vec<Problem>,
}

impl Problems {
    /// Joins `problems` with the text they point into. Past the first hundred they are counted only.
    pub fn new(area: &'static str, source: impl Into<Sources>, problems: Vec<Problem>) -> Self {
        Problems::counted(area, source.into(), problems, 0)
    }

    /// The same, with `skipped` more that were not written out.
    pub(crate) fn counted(
        area: &'static str,
        source: Sources,
        mut problems: Vec<Problem>,
        skipped: usize,
    ) -> Self {
        if problems.len() > MOST_PROBLEMS {
            let more = problems.len() - MOST_PROBLEMS + skipped;
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

    /// The texts they are about.
    pub fn sources(&self) -> &Sources {
        &self.source
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
    /// Places already reported as syntax slips, in order: reading their stand-in values reports nothing more.
    poisoned: Vec<SourceSpan>,
    sources: Sources,
    foreign: &'static [Foreign],
    /// Problems that were counted and not written out.
    skipped: Cell<usize>,
}

impl Findings {
    pub(crate) fn new(
        area: &'static str,
        sources: Sources,
        problems: Vec<Problem>,
        mut poisoned: Vec<SourceSpan>,
    ) -> Self {
        poisoned.sort_unstable_by_key(SourceSpan::offset);
        Findings {
            area,
            problems: RefCell::new(problems),
            poisoned,
            sources,
            foreign: &[],
            skipped: Cell::new(0),
        }
    }

    /// The same gatherer, which knows words of other languages: where one stands, the help says what to write here.
    #[must_use]
    pub fn knowing(self, foreign: &'static [Foreign]) -> Self {
        Findings { foreign, ..self }
    }

    pub(crate) fn foreign(&self) -> &'static [Foreign] {
        self.foreign
    }

    /// The line in which a place begins.
    pub fn line(&self, place: SourceSpan) -> Line {
        self.sources.line(place)
    }

    /// What stands at a place, as it was written.
    pub fn written(&self, place: SourceSpan) -> &str {
        self.sources.written(place)
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

    /// Takes back a problem that turned out to be the echo of another.
    pub(crate) fn retract(&self, problem: &Problem) {
        let mut problems = self.problems.borrow_mut();
        if let Some(at) = problems.iter().rposition(|recorded| recorded == problem) {
            problems.remove(at);
        }
    }

    /// Whether so many problems were recorded that the next need not be written out: they would only be counted.
    pub(crate) fn is_full(&self) -> bool {
        self.problems.borrow().len() >= FULL
    }

    /// Counts a problem that is not written out.
    pub(crate) fn skip(&self) {
        self.skipped.set(self.skipped.get() + 1);
    }

    pub(crate) fn skipped(&self) -> usize {
        self.skipped.get()
    }

    /// Whether an error was recorded so far.
    pub fn has_errors(&self) -> bool {
        self.problems.borrow().iter().any(Problem::is_error)
    }

    /// How many problems were recorded so far.
    pub fn count(&self) -> usize {
        self.problems.borrow().len()
    }

    /// The problems recorded so far.
    pub fn recorded(&self) -> Vec<Problem> {
        self.problems.borrow().clone()
    }

    /// Slips are words, so they do not overlap: the first one inside the place is the one that ends first.
    pub(crate) fn is_poisoned(&self, span: SourceSpan) -> bool {
        let (start, end) = (span.offset(), span.offset() + span.len());
        let first = self.poisoned.partition_point(|p| p.offset() < start);
        self.poisoned.get(first).is_some_and(|p| p.offset() + p.len() <= end)
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}
