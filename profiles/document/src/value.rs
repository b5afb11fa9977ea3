//! One value of a node, an argument or a property, with typed getters that report what they cannot take.

use std::ops::RangeInclusive;

use kdl::{KdlEntry, KdlValue};
use miette::SourceSpan;

use crate::duration::{self, DurationError, format_duration, parse_duration};
use crate::foreign::{self, Kind};
use crate::problem::{Findings, Problem};
use crate::size::{SizeError, format_size, parse_size, unit_meant};
use crate::suggest::{closest, one_of};

/// One value. Each getter returns `None` after having reported why.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    findings: &'a Findings,
    entry: &'a KdlEntry,
    what: &'a str,
    /// What messages call it: the node of an argument, the key of a property.
    subject: &'a str,
}

impl<'a> Value<'a> {
    pub(crate) fn new(findings: &'a Findings, entry: &'a KdlEntry, what: &'a str) -> Self {
        Value { findings, entry, what, subject: what }
    }

    pub(crate) fn of(self, node: &'a str) -> Self {
        Value { subject: node, ..self }
    }

    /// Where the value stands; for a property this covers `key=value`.
    pub fn span(&self) -> SourceSpan {
        self.entry.span()
    }

    /// The value as the parser gives it.
    pub fn raw(&self) -> &'a KdlValue {
        self.entry.value()
    }

    /// What the value is, in words, as the reader named it.
    pub fn what(&self) -> &'a str {
        self.what
    }

    /// A string, quoted or bare.
    pub fn string(&self) -> Option<&'a str> {
        match self.raw() {
            _ if self.poisoned() => None,
            KdlValue::String(s) => Some(s),
            _ => self.refuse("a string", "put it in double quotes"),
        }
    }

    /// A string that is not empty.
    pub fn text(&self) -> Option<&'a str> {
        let text = self.string()?;
        if text.trim().is_empty() {
            let problem = self.problem("empty_value", format!("the text of `{}` is empty", self.subject));
            self.findings.push(problem.help("write it, or leave it out altogether"));
            return None;
        }
        Some(text)
    }

    /// `#true` or `#false`.
    pub fn bool(&self) -> Option<bool> {
        match self.raw() {
            _ if self.poisoned() => None,
            KdlValue::Bool(b) => Some(*b),
            _ => self.refuse("`#true` or `#false`", "KDL 2 writes booleans with a hash: `#true`, `#false`"),
        }
    }

    /// A whole number inside `range`.
    pub fn u64(&self, range: RangeInclusive<u64>) -> Option<u64> {
        match self.raw() {
            _ if self.poisoned() => None,
            KdlValue::Integer(n) => match u64::try_from(*n) {
                Ok(n) if range.contains(&n) => Some(n),
                _ => self.out_of_range(*n, range.start(), range.end()),
            },
            KdlValue::String(s) if s.parse::<i64>().is_ok() => {
                self.refuse("a whole number", "write it bare, without quotes")
            }
            // `iothread0`, as QEMU and libvirt name its objects.
            KdlValue::String(s) => {
                let digits = s.trim_start_matches(|c: char| !c.is_ascii_digit());
                let help = match digits.parse::<u64>() {
                    Ok(n) if range.contains(&n) => format!("write the number alone: `{n}`"),
                    _ => "write a number, such as 2".to_owned(),
                };
                self.refuse("a whole number", help)
            }
            _ => self.refuse("a whole number", "write a number, such as 2"),
        }
    }

    /// A whole number that may be negative.
    pub fn i64(&self, range: RangeInclusive<i64>) -> Option<i64> {
        match self.raw() {
            _ if self.poisoned() => None,
            KdlValue::Integer(n) => match i64::try_from(*n) {
                Ok(n) if range.contains(&n) => Some(n),
                _ => self.out_of_range(*n, range.start(), range.end()),
            },
            KdlValue::String(s) if s.parse::<i64>().is_ok() => {
                self.refuse("a whole number", "write it bare, without quotes")
            }
            _ => self.refuse("a whole number", "write a number, such as 2"),
        }
    }

    /// A number of bytes written as `"8GiB"`. A bare number is refused: its unit would be a guess.
    pub fn bytes(&self) -> Option<u64> {
        let text = match self.raw() {
            _ if self.poisoned() => return None,
            KdlValue::String(s) => s.as_str(),
            KdlValue::Integer(n) => {
                let unit = self.entry.ty().map(|t| t.value()).filter(|t| unit_meant(t).is_some());
                let help = match (unit, u64::try_from(*n)) {
                    (Some(unit), _) => format!("write \"{n}{unit}\""),
                    (None, Ok(n)) => unit_of(n),
                    (None, Err(_)) => "write a quoted string with its unit, such as \"8GiB\"".to_owned(),
                };
                return self.refuse("a size with its unit", help);
            }
            _ => return self.refuse("a size with its unit", "write it as a quoted string, such as \"8GiB\""),
        };
        match parse_size(text) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let help = match &error {
                    SizeError::Unit(unit) => match unit_meant(unit) {
                        Some(meant) => {
                            let number = text.trim_end_matches(unit.as_str()).trim_end();
                            format!("write \"{number}{meant}\"")
                        }
                        None => "the units are KiB, MiB, GiB and TiB".to_owned(),
                    },
                    SizeError::NoUnit(text) => format!("name the unit: \"{text}MiB\" or \"{text}GiB\""),
                    SizeError::Number(_) if unquoted(text).is_some_and(|inner| parse_size(inner).is_ok()) => {
                        format!("KDL's quotes are double: write \"{}\"", unquoted(text).unwrap_or_default())
                    }
                    SizeError::Number(_) | SizeError::TooLarge(_) => {
                        "write a whole number and a unit, such as \"1536MiB\"".to_owned()
                    }
                };
                let problem =
                    self.problem("bad_size", format!("`{}` is given no size: {error}", self.subject));
                self.findings.push(problem.help(help));
                None
            }
        }
    }

    /// A span of time written as `"90s"`, in milliseconds. A bare number is refused: its unit would be a guess.
    pub fn duration_ms(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let text = match self.raw() {
            _ if self.poisoned() => return None,
            KdlValue::String(s) => s.as_str(),
            KdlValue::Integer(n) => {
                let help = format!("name the unit, in quotes: \"{n}s\" or \"{n}ms\"");
                return self.refuse("a time with its unit", help);
            }
            _ => return self.refuse("a time with its unit", "write it as a quoted string, such as \"30s\""),
        };
        let (message, help) = match parse_duration(text) {
            Ok(ms) if range.contains(&ms) => return Some(ms),
            Ok(_) => {
                let (low, high) = (format_duration(*range.start()), format_duration(*range.end()));
                let message = format!("`{}` is given {text}, outside {low} to {high}", self.subject);
                let problem = self.problem("out_of_range", message);
                self.findings.push(problem.help(format!("write \"{low}\" to \"{high}\"")));
                return None;
            }
            Err(error) => {
                let help = match &error {
                    DurationError::Unit(unit) => match duration::unit_meant(unit) {
                        Some(meant) => {
                            let number = text.trim_end_matches(unit.as_str()).trim_end();
                            format!("write \"{number}{meant}\"")
                        }
                        None => "the units are ms, s, m and h".to_owned(),
                    },
                    DurationError::NoUnit(text) => format!("name the unit: \"{text}s\" or \"{text}ms\""),
                    DurationError::Number(_) | DurationError::TooLong(_) => {
                        "write a whole number and a unit, such as \"90s\"".to_owned()
                    }
                };
                (format!("`{}` is given no time: {error}", self.subject), help)
            }
        };
        self.findings.push(self.problem("bad_duration", message).help(help));
        None
    }

    /// The value as it was written in its file, the key of a property included.
    pub fn written(&self) -> &'a str {
        self.findings.written(self.entry.span())
    }

    /// One word of a closed list.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let shown: Vec<String> = names.iter().map(|name| as_written(name)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        let given = match self.raw() {
            _ if self.poisoned() => return None,
            KdlValue::String(s) => s.as_str(),
            _ => return self.refuse(&one_of(&shown), "write one of these words"),
        };
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == given) {
            return Some(*value);
        }
        let foreign = foreign::instead(self.findings.foreign(), Kind::Value, self.subject, given);
        let near = closest(given, names.iter().copied());
        let help = match near.map(as_written) {
            _ if foreign.is_some() => foreign.unwrap_or_default().to_owned(),
            _ if unquoted(given).is_some_and(|inner| names.contains(&inner)) => {
                format!(
                    "KDL's quotes are double, and a word needs none: write `{}`",
                    given.trim_matches('\'')
                )
            }
            Some(near) if names.len() == 1 => format!("did you mean `{near}`?"),
            Some(near) => format!("did you mean `{near}`? The words are {}", one_of(&shown)),
            None if names.len() == 1 => format!("write {}", one_of(&shown)),
            None => format!("the words are {}", one_of(&shown)),
        };
        let problem = self.problem("unknown_word", format!("`{given}` is no word for `{}`", self.subject));
        self.findings.push(problem.help(help));
        None
    }

    /// A problem that points at this value, for the reader's own rules; record it with [`Findings::push`].
    pub fn problem(&self, code: &str, message: impl Into<String>) -> Problem {
        self.findings.error(code, message).at(self.span(), "here")
    }

    /// Whether a syntax slip at this place was reported already; getters then stay silent.
    pub fn poisoned(&self) -> bool {
        self.findings.is_poisoned(self.entry.span())
    }

    fn refuse<T>(&self, wanted: &str, help: impl Into<String>) -> Option<T> {
        let found = match self.raw() {
            KdlValue::String(s) => format!("the string \"{s}\""),
            KdlValue::Integer(n) => format!("the number {n}"),
            KdlValue::Float(n) => format!("the number {n}"),
            KdlValue::Bool(b) => format!("#{b}"),
            KdlValue::Null => "#null".to_owned(),
        };
        let message = format!("`{}` takes {wanted}, and is given {found}", self.subject);
        self.findings.push(
            self.findings
                .error("wrong_type", message)
                .at(self.span(), format!("not {wanted}"))
                .help(help.into()),
        );
        None
    }

    fn out_of_range<T>(&self, found: i128, low: impl ToString, high: impl ToString) -> Option<T> {
        let (low, high) = (low.to_string(), high.to_string());
        let message = format!("`{}` is given {found}, outside {low} to {high}", self.subject);
        self.findings.push(self.problem("out_of_range", message).help(format!("write {low} to {high}")));
        None
    }
}

/// A word as KDL has it: one that starts with a digit stands in quotes.
fn as_written(word: &str) -> String {
    if word.starts_with(|c: char| c.is_ascii_digit()) { format!("\"{word}\"") } else { word.to_owned() }
}

/// What stands between single quotes, which are no quotes in KDL.
fn unquoted(text: &str) -> Option<&str> {
    text.strip_prefix('\'')?.strip_suffix('\'')
}

/// What a number without a unit can have meant: few are GiB or MiB, very many are libvirt's KiB or bytes.
fn unit_of(number: u64) -> String {
    let kib = number.checked_mul(1 << 10).map(format_size);
    match (number, kib) {
        (0..64, _) => format!("name the unit, in quotes: \"{number}GiB\" or \"{number}MiB\""),
        (64..65_536, _) => format!("name the unit, in quotes: \"{number}MiB\" or \"{number}GiB\""),
        (65_536..268_435_456, Some(kib)) => format!("write \"{kib}\" if it is KiB, as in libvirt's XML"),
        _ => format!("write \"{}\" if it is bytes", format_size(number)),
    }
}
