//! What templates expect of Python: how values print, JSON with its spaces, the date.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{
    Error, ErrorKind, Output, State, Value, escape_formatter,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Prints a value as Python's `str`.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Seq | ValueKind::Map => {
            out.write_str(&repr(value)).map_err(|_| Error::from(ErrorKind::WriteFailure))
        }
        _ => escape_formatter(out, state, value),
    }
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    let list = |value: &Value| value.try_iter().map(|items| items.map(|item| repr(&item)).collect::<Vec<_>>());
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool if value.is_true() => "True".to_owned(),
        ValueKind::Bool => "False".to_owned(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => format!("[{}]", list(value).unwrap_or_default().join(", ")),
        ValueKind::Map => {
            let pair = |key: Value| {
                let held = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&held))
            };
            let pairs = value.try_iter().map(|keys| keys.map(pair).collect::<Vec<_>>());
            format!("{{{}}}", pairs.unwrap_or_default().join(", "))
        }
        _ => value.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let escaped = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
    let escaped = if quote == '\'' { escaped.replace('\'', "\\'") } else { escaped };
    format!("{quote}{escaped}{quote}")
}

/// `json.dumps(value, ensure_ascii=False)`, with `indent` and `sort_keys`.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        value.sort_all_objects();
    }
    // Text is always written as it is.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let indent = options.get::<Option<usize>>("indent")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, OneLine)).map_err(failed)?,
    }
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// JSON on one line with a space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The present moment (UTC) in the words of `strftime`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()), format)
}

fn strftime(seconds: u64, format: &str) -> Result<String, Error> {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March end with the leap day; an era is 400 of them. Day 0 is the first of March of year 0.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let name = |names: &[&'static str], at: u64| usize::try_from(at).ok().and_then(|at| names.get(at)).copied();
    let month_name = name(&MONTHS, month - 1).unwrap_or_default();
    let day_name = name(&DAYS, (days + 3) % 7).unwrap_or_default();

    let mut written = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            written.push(letter);
            continue;
        }
        let field = match letters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name.chars().take(3).collect(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('H') => format!("{:02}", clock / 3_600),
            Some('M') => format!("{:02}", clock % 3_600 / 60),
            Some('S') => format!("{:02}", clock % 60),
            Some('%') => "%".to_owned(),
            other => {
                let problem = format!("strftime_now knows no %{} (it knows YymdBbAaHMS)", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        };
        written.push_str(&field);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime(0, "%d %b %Y %A").unwrap(), "01 Jan 1970 Thursday");
        assert_eq!(strftime(951_782_400, "%Y-%m-%d %a").unwrap(), "2000-02-29 Tue");
        assert_eq!(strftime(1_735_689_599, "%d %B %y %H:%M:%S%%").unwrap(), "31 December 24 23:59:59%");
        assert!(strftime(0, "%Q").unwrap_err().to_string().contains("%Q"));
    }
}
