//! Progress of locking, fetching and building: bars where somebody watches, a line a stage elsewhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vmprof_guests::Progress;

use crate::report::Report;

#[derive(Debug)]
pub struct Stages {
    report: Report,
    /// Met by the builder's threads.
    current: Mutex<Option<Stage>>,
}

#[derive(Debug)]
struct Stage {
    name: String,
    begun: Instant,
    bar: ProgressBar,
}

/// Shorter stages leave no line behind: on a warm store there is nothing to tell.
const WORTH_A_LINE: Duration = Duration::from_millis(300);

impl Stages {
    pub fn new(report: Report) -> Stages {
        Stages { report, current: Mutex::new(None) }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Stage>> {
        // A bar has no state that a panic could leave half-changed.
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn close(&self, stage: Option<Stage>) {
        let Some(stage) = stage else { return };
        stage.bar.finish_and_clear();
        if stage.begun.elapsed() >= WORTH_A_LINE {
            self.report.notice(format_args!("{} ({:.1} s)", stage.name, stage.begun.elapsed().as_secs_f64()));
        }
    }
}

impl Progress for Stages {
    fn stage(&self, name: &str, total: Option<u64>) {
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template("{msg:24} {wide_bar} {percent:>3}% {elapsed:>4}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            ),
            None => ProgressBar::new_spinner(),
        };
        let watched = self.report.is_terminal();
        bar.set_draw_target(if watched {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        });
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        let before = self.current().replace(Stage { name: name.to_owned(), begun: Instant::now(), bar });
        self.close(before);
    }

    fn advance(&self, by: u64) {
        if let Some(stage) = &*self.current() {
            stage.bar.inc(by);
        }
    }

    fn done(&self) {
        let stage = self.current().take();
        self.close(stage);
    }

    fn note(&self, text: &str) {
        match &*self.current() {
            Some(stage) => stage.bar.suspend(|| self.report.notice(text)),
            None => self.report.notice(text),
        }
    }
}
