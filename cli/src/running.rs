//! The verbs on running VMs: `ps`, `stop`, `verify`, `stats`, and `ask`, through which the lab's are reached.

use serde_json::Value;

use crate::args::{Format, NamedArguments, PsArguments, StopArguments};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::report::Report;
use crate::run::control::{self, Request};
use crate::run::record;
use crate::verify::{Finding, table};

pub fn ps(arguments: &PsArguments, report: Report) -> Result<(), Failure> {
    let runs = record::running(&Places::from_environment()?);
    let text = match arguments.format {
        Format::Json => json(&runs)?,
        Format::Text => {
            let mut text = format!("{:<20} {:>8}  {:<4} {}\n", "NAME", "PID", "ON", "PROFILE");
            for run in runs {
                text +=
                    &format!("{:<20} {:>8}  {:<4} {}\n", run.name, run.pid, run.on, run.profile.display());
            }
            text
        }
    };
    print(report, &text)
}

pub fn stop(arguments: &StopArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    ask(&places, &arguments.name, Request::Stop)?;
    while record::find(&places, &arguments.name).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    report.notice(format_args!("{} has stopped", arguments.name));
    Ok(())
}

pub fn verify(arguments: &NamedArguments, report: Report) -> Result<(), Failure> {
    let answer = ask(&Places::from_environment()?, &arguments.name, Request::Verify)?;
    let findings: Vec<Finding> = serde_json::from_value(answer)
        .map_err(|error| Failure::os("the answer of the running VM cannot be read", error.into()))?;
    print(report, &if arguments.format == Format::Json { json(&findings)? } else { table(&findings) })?;
    let strays: Vec<&str> = findings
        .iter()
        .filter(|finding| !finding.as_planned)
        .map(|finding| finding.thread.as_str())
        .collect();
    if strays.is_empty() {
        return Ok(());
    }
    let message = format!("{} is not where the plan has it: {}", arguments.name, strays.join(", "));
    Err(Failure::said(
        Kind::Failure,
        "vmprof::verify::strayed",
        message,
        "something moved its threads after the start: a cgroup, taskset, or a daemon",
    ))
}

pub fn stats(arguments: &NamedArguments, report: Report) -> Result<(), Failure> {
    let answer = ask(&Places::from_environment()?, &arguments.name, Request::Stats)?;
    match arguments.format {
        Format::Json => print(report, &json(&answer)?),
        Format::Text => print(report, &outline(&answer)),
    }
}

/// Prints the answer as JSON, whatever it is.
pub fn ask_and_print(name: &str, word: &str, report: Report) -> Result<(), Failure> {
    let Some(request) = Request::from_word(word) else {
        let message = format!("`{word}` is nothing a running VM can be asked");
        return Err(Failure::said(
            Kind::Failure,
            "vmprof::run::control",
            message,
            "plan, stats, verify or stop",
        ));
    };
    print(report, &json(&ask(&Places::from_environment()?, name, request)?)?)
}

fn ask(places: &Places, name: &str, request: Request) -> Result<Value, Failure> {
    record::find(places, name)?;
    Ok(control::ask(name, &places.run_of(name), request)?)
}

pub fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|error| Failure::os("the answer cannot be written as JSON", error.into()))
}

pub fn print(report: Report, text: &str) -> Result<(), Failure> {
    report.data(text).map_err(|error| Failure::os("standard output cannot be written", error))
}

/// JSON as indented lines of `name value`: each list element is a paragraph, named by its own name where it has one.
fn outline(value: &Value) -> String {
    fn lines(value: &Value, depth: usize, text: &mut String) {
        let pad = "  ".repeat(depth);
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::Object(_) | Value::Array(_) => {
                            *text += &format!("{pad}{name}\n");
                            lines(value, depth + 1, text);
                        }
                        plain => {
                            *text += &format!(
                                "{pad}{name} {}\n",
                                plain.as_str().map_or(plain.to_string(), str::to_owned)
                            )
                        }
                    }
                }
            }
            Value::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    let scalar = |value: &Value| match value {
                        Value::Object(_) | Value::Array(_) => None,
                        Value::String(word) => Some(word.clone()),
                        other => Some(other.to_string()),
                    };
                    match element {
                        // One line an element, as long as nothing in it has parts of its own.
                        Value::Object(fields) if fields.values().all(|value| scalar(value).is_some()) => {
                            let words: Vec<String> = fields
                                .iter()
                                .map(|(name, value)| format!("{name} {}", scalar(value).unwrap_or_default()))
                                .collect();
                            *text += &format!("{pad}{}\n", words.join("  "));
                        }
                        Value::Object(_) | Value::Array(_) => {
                            *text += &format!("{pad}[{index}]\n");
                            lines(element, depth + 1, text);
                        }
                        plain => *text += &format!("{pad}{plain}\n"),
                    }
                }
            }
            plain => *text += &format!("{pad}{plain}\n"),
        }
    }
    let mut text = String::new();
    lines(value, 0, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counters_are_legible_without_json() {
        let value = json!({ "vcpus": [{ "id": 0, "exits": 3 }], "disks": [{ "name": "data", "virtqueues": [{ "vq": 0 }] }] });
        assert_eq!(
            outline(&value),
            "disks\n  [0]\n    name data\n    virtqueues\n      vq 0\nvcpus\n  exits 3  id 0\n"
        );
    }
}
