//! How values print in Python.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Output, State, Value, escape_formatter,
    value::{Tuple, ValueKind},
};

use super::limits::{Bounded, MOST_LEVELS};

/// Prints a value as Python's `str`.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if as_float(value).is_none() && !is_container(value) {
        return escape_formatter(out, state, value);
    }
    out.write_str(&str(state, value)?).map_err(|_| Error::from(ErrorKind::WriteFailure))
}

/// Python's `str`.
pub(super) fn str(state: &State, value: &Value) -> Result<String, Error> {
    if let Some(number) = as_float(value) {
        return Ok(float(number));
    }
    if !is_container(value) {
        return Ok(value.to_string());
    }
    let mut out = Bounded::new(state);
    write(&mut out, value, 0)?;
    Ok(out.into_text())
}

/// Whether its parts are printed as Python prints them. Generators and namespaces print as MiniJinja does.
fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
}

/// The value of a number that is none of the integers.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok()).flatten()
}

pub(super) fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value with more than {MOST_LEVELS} levels"))
}

/// Python's `repr`.
fn write(out: &mut Bounded, value: &Value, level: usize) -> Result<(), Error> {
    if level > MOST_LEVELS {
        return Err(too_deep());
    }
    out.visit()?;
    match value.kind() {
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if is_tuple { "(" } else { "[" })?;
            for (at, item) in value.try_iter()?.enumerate() {
                out.push(if at == 0 { "" } else { ", " })?;
                write(out, &item, level + 1)?;
            }
            out.push(match (is_tuple, value.len()) {
                (true, Some(1)) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            })
        }
        ValueKind::Map => {
            out.push("{")?;
            for (at, key) in value.try_iter()?.enumerate() {
                out.push(if at == 0 { "" } else { ", " })?;
                write(out, &key, level + 1)?;
                out.push(": ")?;
                write(out, &value.get_item(&key)?, level + 1)?;
            }
            out.push("}")
        }
        _ => match as_float(value) {
            Some(number) => out.push(&float(number)),
            None => out.push(&value.to_string()),
        },
    }
}

fn quoted(out: &mut Bounded, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut written = String::with_capacity(text.len() + 2);
    written.push(quote);
    for letter in text.chars() {
        match letter {
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            '\t' => written.push_str("\\t"),
            _ if letter == quote => written.extend(['\\', quote]),
            _ if letter.is_control() => {
                _ = write!(written, "\\x{:02x}", u32::from(letter));
            }
            _ => written.push(letter),
        }
    }
    written.push(quote);
    out.push(&written)
}

/// The `repr` of a float: the fewest digits that say which it is, with an exponent outside of 1e-4 to 1e16.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => {
            let plain = number.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (number, text) in [
            (1e-7, "1e-07"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (2.5, "2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (12_345_678_901_234_567_890.0, "1.2345678901234567e+19"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
