//! The only writer to the terminal: data on stdout, everything else on stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use serde::Serialize;

use crate::failure::Failure;

/// A run's way to speak to its user. Cheap to copy: what it knows is whether stderr is a terminal that takes colour.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    colour: bool,
    terminal: bool,
}

impl Report {
    pub fn new() -> Report {
        let terminal = io::stderr().is_terminal();
        // no-color.org: set and not empty.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Report { colour: terminal && !no_colour, terminal }
    }

    /// Whether lines may be drawn over: progress bars only where somebody watches.
    pub fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Whether text for stdout may have colours.
    pub fn colour_on_stdout(self) -> bool {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        io::stdout().is_terminal() && !no_colour
    }

    /// How many columns stdout has, where it is a terminal.
    pub fn stdout_columns(self) -> Option<usize> {
        let columns = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?.ws_col;
        (columns > 0).then_some(usize::from(columns))
    }

    /// Data: what the user asked for. A reader that has gone is no failure.
    pub fn data(self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| Failure::os("standard output cannot be written", error)),
        }
    }

    /// Data as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.data(&(text + "\n")),
            Err(error) => Err(Failure::os("the answer cannot be written as JSON", error.into())),
        }
    }

    /// Text for stderr, as it is.
    pub fn text(self, text: &str) {
        // Whoever closed stderr does not want to know.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// One line that says what happens.
    pub fn notice(self, text: impl Display) {
        let mark = if self.colour { "\x1b[1;36mvmprof:\x1b[0m" } else { "vmprof:" };
        self.text(&format!("{mark} {text}\n"));
    }

    /// A problem with its code, source lines, help and everything that belongs to it.
    pub fn diagnostic(self, problem: &dyn Diagnostic) {
        let theme = match (self.colour, self.terminal) {
            (true, _) => GraphicalTheme::unicode(),
            (false, true) => GraphicalTheme::unicode_nocolor(),
            (false, false) => GraphicalTheme::none(),
        };
        let width =
            rustix::termios::tcgetwinsize(rustix::stdio::stderr()).map_or(100, |size| size.ws_col.into());
        let handler = GraphicalReportHandler::new_themed(theme).with_width(usize::max(width, 60));
        let mut text = String::new();
        match handler.render_report(&mut text, problem) {
            Ok(()) => self.text(&text),
            Err(_) => self.text(&format!("error: {problem}\n")),
        }
    }
}
