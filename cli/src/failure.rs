//! Failures of a verb: what to tell, and with which status to end.

use miette::Diagnostic;

/// What kind of failure it is, which decides the exit status (the contract is in the help of `vmprof` and of `up`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The profile or the guest is invalid.
    Invalid,
    /// This host cannot satisfy it.
    HostCannot,
    HashMismatch,
    NotDeterministic,
    /// The emulated host failed: never the guest's fault.
    Lab,
    Failure,
}

impl Kind {
    /// The status of every verb but `up`.
    pub fn status(self) -> u8 {
        match self {
            Kind::Invalid => 3,
            Kind::HostCannot => 4,
            Kind::HashMismatch => 102,
            Kind::NotDeterministic => 104,
            Kind::Lab => 125,
            Kind::Failure => 1,
        }
    }

    /// The status of `up`: with CMD, everything that is not CMD's own and not told before the boot is 125.
    pub fn status_of_up(self, with_command: bool) -> u8 {
        match self {
            Kind::Invalid | Kind::HostCannot => self.status(),
            _ if with_command => 125,
            _ => self.status(),
        }
    }
}

#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub problem: Box<dyn Diagnostic + Send + Sync>,
}

impl Failure {
    pub fn new(kind: Kind, problem: impl Diagnostic + Send + Sync + 'static) -> Failure {
        Failure { kind, problem: Box::new(problem) }
    }

    /// A failure that is one sentence, with what to do about it.
    pub fn said(
        kind: Kind,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Failure {
        let said = Said { message: message.into(), code, help: help.into(), source: None };
        Failure::new(kind, said)
    }

    /// A typed error of a library that knows no diagnostics: its message, its causes, and what to do.
    pub fn caused(
        kind: Kind,
        code: &'static str,
        error: impl std::error::Error + Send + Sync + 'static,
        help: impl Into<String>,
    ) -> Failure {
        let message = error.to_string();
        // The outer message is told already: what follows is what it rests on.
        let source = Cause::of(&error);
        Failure::new(kind, Said { message, code, help: help.into(), source })
    }

    /// It and what caused it, in one line.
    pub fn told(&self) -> String {
        let mut text = self.problem.to_string();
        let mut source = self.problem.source();
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    }

    /// Something the operating system refused: what was tried, and its answer.
    pub fn os(what: impl Into<String>, source: std::io::Error) -> Failure {
        let said = Said {
            message: what.into(),
            code: "vmprof::os",
            help: String::new(),
            source: Some(Box::new(Cause(source.to_string(), Cause::of(&source)))),
        };
        Failure::new(Kind::Failure, said)
    }
}

/// An error that has no type of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Said {
    message: String,
    code: &'static str,
    help: String,
    source: Option<Box<Cause>>,
}

/// A chain of causes as text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String, #[source] Option<Box<Cause>>);

impl Cause {
    /// What `error` rests on.
    fn of(error: &dyn std::error::Error) -> Option<Box<Cause>> {
        let source = error.source()?;
        Some(Box::new(Cause(source.to_string(), Cause::of(source))))
    }
}

impl Diagnostic for Said {
    fn code<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        (!self.help.is_empty()).then(|| Box::new(&self.help) as _)
    }
}

/// Failures that every verb can meet, each of one kind.
macro_rules! failures {
    ($($error:ty => $kind:ident),+ $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::new(Kind::$kind, error)
            }
        }
    )+};
}

failures! {
    crate::places::NoPlace => Failure,
    crate::run::record::RecordError => Failure,
    crate::run::control::AskError => Failure,
    crate::lab::LabError => Lab,
}

impl From<vmprof_guests::GuestError> for Failure {
    fn from(error: vmprof_guests::GuestError) -> Failure {
        let kind = match error.class() {
            vmprof_guests::FailureClass::Invalid => Kind::Invalid,
            vmprof_guests::FailureClass::HashMismatch => Kind::HashMismatch,
            vmprof_guests::FailureClass::NotDeterministic => Kind::NotDeterministic,
            vmprof_guests::FailureClass::Failure => Kind::Failure,
        };
        Failure::new(kind, error)
    }
}
