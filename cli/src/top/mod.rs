//! The verb `top`: what running VMs do, live on a terminal. What is shown is [`screen`]'s; here are the terminal, its keys, and
//! the thread that asks, so that a VM which takes its time to answer holds up no key.

mod asking;
mod screen;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::asking::Asking;
use self::screen::Screen;
use crate::args::TopArguments;
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::run::record;

/// How long a key or a signal may wait to be looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn top(arguments: &TopArguments) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    if let Some(name) = &arguments.name {
        record::find(&places, name)?;
    }
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Failure::said(
            Kind::Failure,
            "vmprof::top::no_terminal",
            "`vmprof top` draws on a terminal and reads its keys, and here is none",
            "`vmprof stats NAME --watch` prints the same, and --format json or prometheus is for programs",
        ));
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))
            .map_err(|error| Failure::os("a signal's handler cannot be installed", error))?;
    }
    let mut asking = Asking::start(places, arguments.every)
        .map_err(|error| Failure::os("the VMs cannot be asked", error))?;
    let mut screen = Screen::new(arguments.name.clone());
    // It gives the terminal back on a panic, too.
    let mut terminal = ratatui::try_init().map_err(unusable)?;
    let outcome = show(&mut terminal, &mut screen, &mut asking, &ended);
    let restored = ratatui::try_restore();
    outcome.and(restored).map_err(unusable)
}

fn unusable(error: io::Error) -> Failure {
    Failure::os("the terminal cannot be used", error)
}

/// Until somebody leaves.
fn show(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    asking: &mut Asking,
    ended: &AtomicBool,
) -> io::Result<()> {
    while !ended.load(Ordering::Relaxed) {
        if asking.hear(screen) {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        if !event::poll(LOOK_EVERY)? {
            continue;
        }
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                if is_leaving(key) {
                    return Ok(());
                }
                screen.key(key.code);
                asking.about(screen.name());
            }
            _ => {}
        }
        terminal.draw(|frame| screen.draw(frame))?;
    }
    Ok(())
}

/// A raw terminal sends no signal for Ctrl-C.
fn is_leaving(key: KeyEvent) -> bool {
    let interrupts = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}
