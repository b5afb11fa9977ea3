//! What `top` shows: the running VMs in a line, and of the chosen one what `stats --watch` prints, sorted and scrolled.

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::asking::Heard;
use crate::run::record::Run;
use crate::stats::{Section, Stats, table};

/// How rows of a kind stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sorted {
    /// As the plan has them.
    ByName,
    /// Those that have most to do first.
    ByLoad,
}

#[derive(Debug)]
pub struct Screen {
    runs: Vec<Run>,
    /// Of the VM that is shown; it stays when that has ended.
    name: Option<String>,
    /// Whether anything was heard at all.
    is_begun: bool,
    shown: Shown,
    sorted: Sorted,
    /// Lines that are scrolled past.
    scrolled: u16,
    /// Lines that there were to scroll through when it was last drawn.
    most_scrolled: u16,
}

/// What there is of it.
#[derive(Debug)]
enum Shown {
    Nothing,
    /// A first answer, to hold a second against.
    First(Box<Stats>),
    Rates {
        before: Box<Stats>,
        now: Box<Stats>,
    },
    /// Why there is no answer.
    Failed(String),
}

impl Screen {
    /// Shows the VM of this name, or the first that runs.
    pub fn new(name: Option<String>) -> Screen {
        Screen {
            runs: Vec::new(),
            name,
            is_begun: false,
            shown: Shown::Nothing,
            sorted: Sorted::ByName,
            scrolled: 0,
            most_scrolled: 0,
        }
    }

    /// Which VM is shown.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub fn hear(&mut self, heard: Heard) {
        let Heard { runs, asked } = heard;
        (self.runs, self.is_begun) = (runs, true);
        if self.name.is_none() {
            self.name = self.runs.first().map(|run| run.name.clone());
        }
        // An answer of one that was shown before comes late.
        let Some((_, answer)) = asked.filter(|(name, _)| Some(name.as_str()) == self.name()) else { return };
        self.shown = match (answer, std::mem::replace(&mut self.shown, Shown::Nothing)) {
            (Err(why), _) => Shown::Failed(why),
            // The name may have another process by now.
            (Ok(now), Shown::First(before) | Shown::Rates { now: before, .. })
                if before.process.pid == now.process.pid && before.taken_ns < now.taken_ns =>
            {
                Shown::Rates { before, now }
            }
            (Ok(now), _) => Shown::First(now),
        };
    }

    pub fn key(&mut self, key: KeyCode) {
        match key {
            KeyCode::Tab | KeyCode::Right => self.choose(1),
            KeyCode::BackTab | KeyCode::Left => self.choose(self.runs.len().saturating_sub(1)),
            KeyCode::Down => self.scrolled = self.scrolled.saturating_add(1).min(self.most_scrolled),
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::Char('s') => {
                self.sorted = match self.sorted {
                    Sorted::ByName => Sorted::ByLoad,
                    Sorted::ByLoad => Sorted::ByName,
                };
            }
            _ => {}
        }
    }

    /// The VM that stands so many further in the line.
    fn choose(&mut self, further: usize) {
        let own = self.runs.iter().position(|run| Some(run.name.as_str()) == self.name());
        let next = own.map_or(0, |own| (own + further) % self.runs.len().max(1));
        if let Some(run) = self.runs.get(next)
            && Some(next) != own
        {
            self.name = Some(run.name.clone());
            (self.shown, self.scrolled) = (Shown::Nothing, 0);
        }
    }

    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let [names, body, keys] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(self.names(), names);
        let lines = self.lines();
        let hidden = lines.len().saturating_sub(body.height.into());
        self.most_scrolled = u16::try_from(hidden).unwrap_or(u16::MAX);
        self.scrolled = self.scrolled.min(self.most_scrolled);
        frame.render_widget(Paragraph::new(lines).scroll((self.scrolled, 0)), body);
        let order = if self.sorted == Sorted::ByName { "load" } else { "name" };
        let help = format!("q leave   Tab, ← → other VM   ↑ ↓ scroll   s sort by {order}");
        frame.render_widget(Line::from(help).dim(), keys);
    }

    fn names(&self) -> Line<'static> {
        let mut spans = Vec::new();
        for run in &self.runs {
            let state = if run.paused.is_some() { "paused" } else { run.state.word() };
            let text = format!(" {} ({state}) ", run.name);
            let style = match Some(run.name.as_str()) == self.name() {
                true => Style::new().bold().reversed(),
                false => Style::new(),
            };
            spans.push(Span::styled(text, style));
        }
        Line::from(spans)
    }

    fn lines(&self) -> Vec<Line<'static>> {
        let said = |text: String| -> Vec<Line<'static>> {
            std::iter::once("").chain(text.lines()).map(|line| Line::from(line.to_owned())).collect()
        };
        let name = self.name.as_deref().unwrap_or_default();
        let is_running = self.runs.iter().any(|run| run.name == name);
        match &self.shown {
            _ if !self.is_begun => Vec::new(),
            _ if name.is_empty() => {
                said("No VM is running; `vmprof up --detach` leaves one running.".to_owned())
            }
            _ if !is_running => said(format!("{name} has ended.")),
            Shown::Nothing | Shown::First(_) => said(format!("{name}: one moment, rates need two answers.")),
            Shown::Failed(why) => said(why.clone()),
            Shown::Rates { before, now } => {
                let paused = now.machine.paused.is_some().then(|| Line::from("paused").bold());
                let sections =
                    now.sections_since(before).into_iter().filter(|section| !section.rows.is_empty());
                paused.into_iter().chain(sections.flat_map(|section| self.section(section))).collect()
            }
        }
    }

    fn section(&self, Section { heads, mut rows }: Section) -> Vec<Line<'static>> {
        if self.sorted == Sorted::ByLoad {
            // Stable: of equals the order stays.
            rows.sort_by(|a, b| b.load.total_cmp(&a.load));
        }
        let text = table(heads, rows.into_iter().map(|row| row.cells));
        let line = |(number, text): (usize, &str)| {
            let line = Line::from(text.to_owned());
            // The first is empty.
            if number == 1 { line.bold() } else { line }
        };
        text.lines().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests;
