//! Arguments in, exit code out.

mod args;
mod check;
mod console;
mod cp;
mod doctor;
mod exec;
mod explain;
mod export;
mod failure;
mod fmt;
mod guest;
mod host;
mod import;
mod lab;
mod lower;
mod manual;
mod places;
mod plan;
mod profile;
mod progress;
mod replace;
mod report;
mod run;
mod running;
mod saved;
mod stats;
mod store;
mod tasks;
mod top;
mod up;
mod verify;
mod vhost_user_blk;

use std::process::ExitCode;

use args::{Arguments, Verb};
use failure::Failure;
use report::Report;

/// sysexits.h EX_USAGE, as the contract has it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if let Some(left) = up::left_behind() {
        return ExitCode::from(up::run_machine(left));
    }
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => {
            // To stdout when it is help that was asked for; a reader that has gone is no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let report = Report::new();
    let verb = match arguments.verb {
        Verb::Up(arguments) => return ExitCode::from(up::up(*arguments, report)),
        Verb::Exec(arguments) => return ExitCode::from(exec::exec(&arguments, report)),
        Verb::Lab(verb) => {
            return ExitCode::from(lab::run(&verb, report).unwrap_or_else(|failure| {
                report.failure(&failure);
                failure.kind.status()
            }));
        }
        verb => verb,
    };
    match run(&verb, report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report.failure(&failure);
            ExitCode::from(failure.kind.status())
        }
    }
}

fn run(verb: &Verb, report: Report) -> Result<(), Failure> {
    match verb {
        // They have statuses of their own, and went their own way in main.
        Verb::Up(_) | Verb::Exec(_) | Verb::Lab(_) => Ok(()),
        Verb::Plan(arguments) => plan::plan(arguments, report),
        Verb::Check(arguments) => check::check(arguments, report),
        Verb::Import(verb) => import::import(verb, report),
        Verb::Schema => report.data(&vmprof_profiles::plan_schema()),
        Verb::Fmt(arguments) => fmt::fmt(arguments, report),
        Verb::Host(arguments) => host::show(arguments, report),
        Verb::Lock(arguments) => guest::lock(arguments, report),
        Verb::Build(arguments) => guest::build(arguments, report),
        Verb::Doctor(arguments) => doctor::doctor(arguments, report),
        Verb::Ps(arguments) => running::ps(arguments, report),
        Verb::Console(arguments) => console::console(arguments, report),
        Verb::Logs(arguments) => running::logs(arguments, report),
        Verb::Cp(arguments) => cp::cp(arguments, report),
        Verb::Stop(arguments) => running::stop(arguments, report),
        Verb::Pause(arguments) => running::pause(arguments, report),
        Verb::Resume(arguments) => running::resume(arguments, report),
        Verb::Verify(arguments) => running::verify(arguments, report),
        Verb::Stats(arguments) => running::stats(arguments, report),
        Verb::Top(arguments) => top::top(arguments),
        Verb::Iothread(arguments) => running::iothread(arguments, report),
        Verb::VhostUserBlk(arguments) => vhost_user_blk::serve(arguments, report),
        Verb::Store(verb) => store::store(verb, report),
        Verb::Explain(arguments) => explain::explain(arguments, report),
        Verb::Inside(errand) => lab::run_errand(errand, report),
        Verb::Completions { shell } => manual::completions(*shell, report),
        Verb::Man { verb } => manual::page(verb.as_deref(), report),
        Verb::Ask { relay, name, request, arguments } => {
            running::ask_and_print(name, request, arguments.as_deref(), *relay, report)
        }
    }
}
