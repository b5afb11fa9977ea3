//! The texts that one reading is made of, side by side: [`Sources`]. A profile that extends others is read from several
//! files; each has its own stretch of one space of offsets, so that a span alone says which file it points into, and
//! miette shows the right lines under the right name.

use std::fmt;
use std::sync::Arc;

use miette::{MietteError, MietteSpanContents, NamedSource, SourceCode, SourceSpan, SpanContents};

/// One text of a [`Sources`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// What diagnostics call it.
    pub name: Arc<str>,
    /// Its path relative to the first file's directory; for the first file its name.
    pub path: Arc<str>,
    /// What it says.
    pub text: Arc<str>,
    /// Where it begins in the common space.
    start: usize,
    /// Where each line after the first begins, counted from the text's own start.
    lines: Arc<[usize]>,
}

impl SourceFile {
    fn new(name: &str, path: &str, text: Arc<str>, start: usize) -> Self {
        let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        SourceFile { name: name.into(), path: path.into(), text, start, lines }
    }

    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// One or more texts in one space of offsets; the first begins at 0. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    files: Vec<SourceFile>,
}

impl Sources {
    /// One text.
    pub fn one(name: &str, text: impl Into<Arc<str>>) -> Self {
        Sources { files: vec![SourceFile::new(name, name, text.into(), 0)] }
    }

    /// Adds a text after the others and says where it begins. `path` is relative to the first file's directory.
    pub fn add(&mut self, name: &str, path: &str, text: impl Into<Arc<str>>) -> usize {
        let start = self.next_start();
        self.files.push(SourceFile::new(name, path, text.into(), start));
        start
    }

    /// Where the next text will begin. One offset is left between two texts, so that the end of one is not the start of
    /// the next.
    pub fn next_start(&self) -> usize {
        self.files.last().map_or(0, |file| file.end() + 1)
    }

    /// The texts in the order they were read; the first is the one that was asked for.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The name of the first text.
    pub fn name(&self) -> &str {
        self.files.first().map_or("", |file| &file.name)
    }

    /// The text that `span` begins in.
    pub fn file_of(&self, span: SourceSpan) -> Option<&SourceFile> {
        let at = self.files.partition_point(|file| file.start <= span.offset()).checked_sub(1)?;
        self.files.get(at).filter(|file| span.offset() <= file.end())
    }

    /// What stands at `span`, as it was written; empty where no text has it.
    pub fn written(&self, span: SourceSpan) -> &str {
        let in_file = |file: &SourceFile| {
            let from = span.offset().checked_sub(file.start)?;
            Some(from..from.checked_add(span.len())?)
        };
        let file = self.file_of(span);
        file.and_then(|file| file.text.get(in_file(file)?)).unwrap_or_default()
    }

    /// The line that `span` begins in, with the file's path where that is not the first one.
    pub fn line(&self, span: SourceSpan) -> Line {
        let Some(file) = self.file_of(span) else { return Line { number: 1, file: None } };
        let offset = span.offset() - file.start;
        let before = file.lines.partition_point(|start| *start <= offset);
        Line {
            number: u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1),
            file: (file.start > 0).then(|| file.path.clone()),
        }
    }
}

impl From<NamedSource<Arc<str>>> for Sources {
    fn from(source: NamedSource<Arc<str>>) -> Self {
        Sources::one(source.name(), source.inner().clone())
    }
}

impl SourceCode for Sources {
    /// A span that leaves its file is refused: miette then shows two excerpts instead of one that runs from a file into
    /// the next.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let file = self.file_of(*span).ok_or(MietteError::OutOfBounds)?;
        if span.offset() + span.len() > file.end() {
            return Err(MietteError::OutOfBounds);
        }
        let own = SourceSpan::from((span.offset() - file.start, span.len()));
        let inner = file.text.as_ref().read_span(&own, before, after)?;
        let there = inner.span();
        Ok(Box::new(MietteSpanContents::new_named(
            file.name.to_string(),
            inner.data(),
            SourceSpan::from((there.offset() + file.start, there.len())),
            inner.line(),
            inner.column(),
            inner.line_count(),
        )))
    }
}

/// A line of a file, counted from 1. It reads `4`, or `4 of base.kdl` where the file is not the one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The line.
    pub number: u32,
    /// The file's path relative to the first file's directory; `None` for the first file.
    pub file: Option<Arc<str>>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            None => write!(f, "{}", self.number),
            Some(file) => write!(f, "{} of {file}", self.number),
        }
    }
}
