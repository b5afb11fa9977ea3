//! Why there is nothing to report.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{tool} is not here: {hint}")]
    Missing { tool: &'static str, hint: String },
    #[error("{} is version {found}, and the comparison is with {least} or newer: name another with {option}", .path.display())]
    TooOld { path: PathBuf, found: String, least: u32, option: &'static str },
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("{server} did not come up: {why}")]
    Server { server: String, why: String },
    #[error("{tool} failed: {why}")]
    Tool { tool: String, why: String },
    #[error("{subject}: {failed} requests failed, or brought other bytes than those that lie there")]
    WrongData { subject: String, failed: u64 },
    #[error("{0}")]
    Asked(String),
}

/// Says what was being done when the system refused.
pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::Io { what: what(), source: error.into() })
    }
}
