//! Progress of locking, fetching and building: a bar for each stage that runs where somebody watches, a line a stage
//! elsewhere.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use vmprof_guests::{Progress, Stage, Total};

use crate::failure::Failure;
use crate::report::Report;

#[derive(Debug)]
pub struct Stages {
    report: Report,
    bars: MultiProgress,
    /// How many bars are drawn, one a line.
    drawn: Arc<AtomicUsize>,
    unfinished: Shared,
}

/// Work of which nothing is kept when it is interrupted.
#[derive(Debug)]
pub struct Unfinished {
    /// What the interruption says.
    pub told: String,
    /// A file that must not stay.
    pub remove: Option<PathBuf>,
}

/// The thread that works and the one that waits for signals meet here.
type Shared = Arc<Mutex<Option<Unfinished>>>;

/// While it lives, an interruption knows of the work.
#[derive(Debug)]
pub struct Working(Shared);

impl Working {
    /// Says it before the file is made: what is not there is not missed.
    pub fn removes(&self, path: &Path) {
        if let Some(unfinished) = &mut *held(&self.0) {
            unfinished.remove = Some(path.to_owned());
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        *held(&self.0) = None;
    }
}

fn held(shared: &Shared) -> MutexGuard<'_, Option<Unfinished>> {
    shared.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// What becomes of the work, once a signal has come. Nothing goes on with it after that.
fn given_up(shared: &Shared) -> String {
    match held(shared).take() {
        None => "interrupted: what is finished is kept, the next build goes on from there".to_owned(),
        Some(Unfinished { told, remove }) => {
            // Not there before it was begun, and after it got its name.
            remove.map(std::fs::remove_file);
            told
        }
    }
}

#[derive(Debug)]
struct Running {
    report: Report,
    /// Where notices go while bars are drawn.
    bars: MultiProgress,
    name: String,
    begun: Instant,
    bar: ProgressBar,
    drawn: Arc<AtomicUsize>,
}

/// Shorter stages leave no line behind: on a warm store there is nothing to tell.
const WORTH_A_LINE: Duration = Duration::from_millis(300);

impl Stages {
    pub fn new(report: Report) -> Stages {
        let target = match report.is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bars = MultiProgress::with_draw_target(target);
        Stages { report, bars, drawn: Arc::default(), unfinished: Arc::default() }
    }

    /// What an interruption says and removes, until the returned value is dropped.
    pub fn unfinished(&self, work: Unfinished) -> Working {
        *held(&self.unfinished) = Some(work);
        Working(self.unfinished.clone())
    }

    /// Until the returned value is dropped, a signal that ends vmprof takes the bars off the terminal first and says what
    /// becomes of the work.
    pub fn interruptible(&self) -> Result<Interruptible, Failure> {
        let failed = |error| Failure::os("signals cannot be watched", error);
        // Heard at all, it does not kill: past a limit on a file's size writing fails as on a full disk, and is told like it.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
        let handle = signals.handle();
        let (report, bars, drawn) = (self.report, self.bars.clone(), self.drawn.clone());
        let unfinished = self.unfinished.clone();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // A bar that is drawn once more would stay.
                bars.set_draw_target(ProgressDrawTarget::hidden());
                if report.is_terminal() {
                    report.text(&erasing(drawn.load(Ordering::Relaxed), signal));
                }
                report.notice(given_up(&unfinished));
                // Ends this process as the signal itself would have, so that a shell or make sees an interruption.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                std::process::exit(128 + signal);
            }
        });
        Ok(Interruptible(handle))
    }
}

/// What takes that many bars off the terminal. The cursor stands at the end of the last one; the `^C` that the terminal shows
/// for the interrupting key finds no room there, and goes to a line of its own.
fn erasing(bars: usize, signal: i32) -> String {
    let above = bars.saturating_sub(1) + usize::from(bars > 0 && signal == SIGINT);
    let up = if above > 0 { format!("\x1b[{above}A") } else { String::new() };
    format!("{up}\r\x1b[J")
}

/// While it lives, an interruption is told.
#[derive(Debug)]
pub struct Interruptible(Handle);

impl Drop for Interruptible {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn bar(total: Total) -> ProgressBar {
    let styled = |bar: ProgressBar, template: &str| {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.with_style(style.progress_chars("=> "))
    };
    match total {
        Total::Bytes(bytes) => styled(
            ProgressBar::new(bytes),
            "{msg:36!} [{wide_bar}] {bytes:>10} of {total_bytes:>10} {elapsed:>4}",
        ),
        Total::Items(items) => {
            styled(ProgressBar::new(items), "{msg:36!} [{wide_bar}] {pos:>10} of {len:>10} {elapsed:>4}")
        }
        Total::Unknown => styled(ProgressBar::new_spinner(), "{msg:36!} {spinner} {elapsed:>4}"),
    }
}

impl Progress for Stages {
    fn stage(&self, name: &str, total: Total) -> Box<dyn Stage> {
        let bar = self.bars.add(bar(total));
        bar.set_message(name.to_owned());
        if self.report.is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.drawn.fetch_add(1, Ordering::Relaxed);
        let (report, bars, drawn) = (self.report, self.bars.clone(), self.drawn.clone());
        Box::new(Running { report, bars, name: name.to_owned(), begun: Instant::now(), bar, drawn })
    }

    fn note(&self, text: &str) {
        self.bars.suspend(|| self.report.notice(text));
    }
}

impl Stage for Running {
    fn advance(&self, by: u64) {
        self.bar.inc(by);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.bars.remove(&self.bar);
        self.drawn.fetch_sub(1, Ordering::Relaxed);
        let took = self.begun.elapsed();
        if took >= WORTH_A_LINE {
            self.bars.suspend(|| {
                self.report.notice(format_args!("{} ({:.1} s)", self.name, took.as_secs_f64()));
            });
        }
    }
}

/// Bytes on their way of which nobody knows how many there will be, shown where somebody watches.
#[derive(Debug)]
pub struct Bytes(ProgressBar);

impl Bytes {
    pub fn new(report: Report) -> Bytes {
        let target = match report.is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{spinner} {bytes} at {bytes_per_sec} {elapsed:>4}");
        let bar = ProgressBar::with_draw_target(None, target);
        Bytes(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
    }

    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_removes_what_is_half_done_and_says_so() {
        let keep = tempfile::tempdir().unwrap();
        let half = keep.path().join(".vmprof-1");
        let stages = Stages::new(Report::new());
        let working = stages.unfinished(Unfinished { told: "not written".to_owned(), remove: None });
        working.removes(&half);
        std::fs::write(&half, "half").unwrap();
        assert_eq!(given_up(&stages.unfinished), "not written");
        assert!(!half.exists());
        drop(working);
        drop(stages.unfinished(Unfinished { told: "not written".to_owned(), remove: None }));
        assert!(given_up(&stages.unfinished).contains("what is finished is kept"), "nothing is half done");
    }

    #[test]
    fn an_interruption_leaves_no_bar_on_the_terminal() {
        assert_eq!(erasing(0, SIGINT), "\r\x1b[J");
        assert_eq!(erasing(1, SIGINT), "\x1b[1A\r\x1b[J");
        assert_eq!(erasing(2, SIGINT), "\x1b[2A\r\x1b[J");
        assert_eq!(erasing(1, SIGTERM), "\r\x1b[J");
        assert_eq!(erasing(2, SIGTERM), "\x1b[1A\r\x1b[J");
    }
}
