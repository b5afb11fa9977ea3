//! The only writer to the terminal: data on stdout, everything else on stderr.

use std::collections::BTreeSet;
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
        Report { colour: terminal && colour_is_welcome(), terminal }
    }

    /// For one whose messages go on into a log.
    pub fn without_colour() -> Report {
        Report { colour: false, ..Report::new() }
    }

    /// Whether lines may be drawn over: progress bars only where somebody watches.
    pub fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Whether text for stdout may have colours.
    pub fn colour_on_stdout(self) -> bool {
        io::stdout().is_terminal() && colour_is_welcome()
    }

    /// How many columns stdout has, where it is a terminal.
    pub fn stdout_columns(self) -> Option<usize> {
        let columns = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?.ws_col;
        (columns > 0).then_some(usize::from(columns))
    }

    /// Data: what the user asked for. A reader that has gone is no failure.
    pub fn data(self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes()).map(drop)
    }

    /// Data that need not be text. Whether its reader is still there.
    pub fn bytes(self, data: &[u8]) -> Result<bool, Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(data).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            other => {
                other.map(|()| true).map_err(|error| Failure::os("standard output cannot be written", error))
            }
        }
    }

    /// Data as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.data(&(text + "\n")),
            Err(error) => Err(Failure::os("the answer cannot be written as JSON", error.into())),
        }
    }

    /// Data as JSON, one line. Whether its reader is still there.
    pub fn json_line(self, value: &impl Serialize) -> Result<bool, Failure> {
        match serde_json::to_string(value) {
            Ok(text) => self.bytes((text + "\n").as_bytes()),
            Err(error) => Err(Failure::os("the answer cannot be written as JSON", error.into())),
        }
    }

    /// Text that takes the place of what was shown before, on a terminal, and else follows it. Whether its reader is still
    /// there.
    pub fn screen(self, text: &str) -> Result<bool, Failure> {
        // Home, and clear to the end: what is drawn over does not flicker.
        let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
        self.bytes(format!("{clear}{text}").as_bytes())
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

    /// What a verb ends with: the problem, and where somebody watches, how to learn more about it.
    pub fn failure(self, failure: &Failure) {
        self.diagnostic(&*failure.problem);
        let code = code_to_explain(&*failure.problem);
        // `explain` itself has said what there is to say.
        if self.terminal && !code.starts_with("vmprof::explain::") {
            self.notice(format_args!("`vmprof explain {code}` says more"));
        }
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

/// Whether a terminal here takes colours and its user wants them.
fn colour_is_welcome() -> bool {
    // no-color.org: set and not empty. A dumb terminal shows escape sequences as they are.
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !no_colour && !dumb
}

/// The code that a problem is about: its own, or that of the problems which it lists; `CODE` where they are several.
fn code_to_explain(problem: &dyn Diagnostic) -> String {
    let code = |problem: &dyn Diagnostic| problem.code().map(|code| code.to_string());
    let listed: BTreeSet<String> = problem.related().into_iter().flatten().filter_map(code).collect();
    let own = || code(problem).filter(|code| code != ALREADY_LISTED);
    let one = if listed.len() > 1 { None } else { listed.into_iter().next().or_else(own) };
    one.unwrap_or_else(|| "CODE".to_owned())
}

/// The end of a run that has shown its problems one by one.
const ALREADY_LISTED: &str = "vmprof::profile::invalid";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    fn read(text: &str) -> vmprof_document::Problems {
        vmprof_profiles::read_profile("a.kdl", text).unwrap_err()
    }

    #[test]
    fn the_hint_names_the_code_where_there_is_one() {
        let said = Failure::said(Kind::Failure, "vmprof::man", "none", "");
        assert_eq!(code_to_explain(&*said.problem), "vmprof::man");
        let whole = "profile x { guest \"g.kdl\"; vcpu 1; memory \"1GiB\"; ";
        let one = read(&format!("{whole} memroy 1; }}"));
        assert_eq!(code_to_explain(&one), "vmprof::profile::unknown_node");
        let two = read(&format!("{whole} memroy 1; vcpu 2; }}"));
        assert_eq!(code_to_explain(&two), "CODE");
        let end = Failure::said(Kind::Invalid, "vmprof::profile::invalid", "1 of 2", "");
        assert_eq!(code_to_explain(&*end.problem), "CODE");
    }
}
