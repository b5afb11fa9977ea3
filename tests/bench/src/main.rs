//! vmprof's benchmarks of its dataplane. docs/measuring.md says how to run them and how to read them.

mod client;
mod disk;
mod engine;
mod error;
mod host;
mod measure;
mod point;
mod report;
mod rounds;
mod settings;
mod usage;
mod vhost_user;

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;

use disk::Disk;
use error::Error;
use host::Host;
use measure::{Measurement, Summary};
use point::Point;
use report::{Report, Verdict};
use settings::{Arguments, Benchmark, Common, Servers, Settings};

fn main() -> ExitCode {
    let outcome = match &Arguments::parse().benchmark {
        Benchmark::Engine { common } => engine(common),
        Benchmark::VhostUserBlk { common, servers } => vhost_user(common, servers),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            eprintln!("vmprof-bench: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

fn engine(common: &Common) -> Result<(), Error> {
    let settings = Settings::new(common, "engine")?;
    let (disk, points) = (Disk::prepare(&settings.file, settings.area_bytes)?, engine::points(&settings));
    let page = Page::new("engine", &settings, Host::of(&disk.path));
    let all = rounds::run(
        settings.rounds,
        settings.seed,
        &engine::SUBJECTS,
        &points,
        |turn| engine::measure(&settings, &disk, turn),
        |all| page.write(all, engine::summaries(all, &points), engine::verdicts(all, &points)),
    )?;
    page.print(&points, &engine::summaries(&all, &points), &engine::verdicts(&all, &points));
    Ok(())
}

fn vhost_user(common: &Common, servers: &Servers) -> Result<(), Error> {
    let settings = Settings::new(common, "vhost-user-blk")?;
    let tools = vhost_user::Tools::find(servers)?;
    let bench = vhost_user::Bench::new(&settings, servers, &tools)?;
    let points = bench.points().to_vec();
    let mut host = Host::of(&settings.file);
    host.versions = tools.versions();
    let page = Page::new("vhost-user-blk", &settings, host);
    let mut all = rounds::run(
        settings.rounds,
        settings.seed,
        bench.subjects(),
        &points,
        |turn| bench.measure(turn),
        |all| page.write(all, bench.summaries(all), bench.verdicts(all)),
    )?;
    bench.count_syscalls(&mut all)?;
    let (summaries, verdicts) = (bench.summaries(&all), bench.verdicts(&all));
    page.write(&all, summaries.clone(), verdicts.clone())?;
    page.print(&points, &summaries, &verdicts);
    Ok(())
}

/// What stays the same of a report while the rounds come in.
struct Page<'run> {
    benchmark: &'static str,
    settings: &'run Settings,
    host: Host,
    started: String,
}

impl Page<'_> {
    fn new<'run>(benchmark: &'static str, settings: &'run Settings, host: Host) -> Page<'run> {
        let seconds =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Page { benchmark, settings, host, started: utc(seconds) }
    }

    fn write(
        &self,
        all: &[Measurement],
        summaries: Vec<Summary>,
        targets: Vec<Verdict>,
    ) -> Result<(), Error> {
        let report = Report {
            benchmark: self.benchmark,
            vmprof_bench: env!("CARGO_PKG_VERSION"),
            started: self.started.clone(),
            host: &self.host,
            settings: serde_json::to_value(self.settings).map_err(|error| Error::Asked(error.to_string()))?,
            summaries,
            targets,
            measurements: all,
        };
        report.write(Path::new(&self.settings.json))
    }

    fn print(&self, points: &[Point], summaries: &[Summary], verdicts: &[Verdict]) {
        println!("{}, {}\n{}", self.benchmark, self.started, self.host.text());
        print!("{}", report::summaries(summaries, points));
        print!("{}", report::verdicts(verdicts));
        if self.settings.quick {
            println!("\nA quick run: it shows that everything runs, and no figure of it is a measurement.");
        }
        println!("\nEvery measurement: {}", self.settings.json.display());
    }
}

/// A moment as `2026-01-31T12:00:00Z`.
fn utc(seconds: u64) -> String {
    let (day, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days to a date in the proleptic Gregorian calendar: years begin in March, so that the leap day is a year's last.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn moments_are_written_as_dates() {
        assert_eq!(super::utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(super::utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(super::utc(4_102_444_800), "2100-01-01T00:00:00Z");
    }
}
