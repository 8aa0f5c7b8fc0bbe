//! Filters and tests of Jinja that MiniJinja has otherwise, or not at all.

use std::borrow::Cow;

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind},
};

use super::{json, limits::Bounded, methods, repr};

/// Puts them in the place of those that are there.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("center", center);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    // Python's texts and dictionaries have a length and entries too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
            || value.kind() == ValueKind::Iterable && value.len().is_some()
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
}

fn string(state: &State, value: &Value) -> Result<Value, Error> {
    // A text that is safe stays so.
    if value.kind() == ValueKind::String { Ok(value.clone()) } else { repr::str(state, value).map(Value::from) }
}

/// `join(items, d='', attribute=None)`.
fn join(
    state: &State,
    items: &Value,
    separator: Option<Cow<'_, str>>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let named_separator: Option<String> = named.get("d")?;
    let attribute = attribute.or(named.get("attribute")?);
    named.assert_all_used()?;
    let separator = separator.or(named_separator.map(Cow::Owned)).unwrap_or_default();
    let mut out = Bounded::new(state);
    for (at, item) in items.try_iter()?.enumerate() {
        // Steps for the items: a list may be many times as long as what it is made of.
        state.consume_fuel(1)?;
        if at > 0 {
            out.push(&separator)?;
        }
        let item = match &attribute {
            Some(path) => reach(&item, path)?,
            None => item,
        };
        match item.as_str() {
            Some(text) => out.push(text)?,
            None => out.push(&repr::str(state, &item)?)?,
        }
    }
    Ok(out.into_text())
}

/// What stands at `a.0.b` of a value.
fn reach(value: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return value.get_item(path) };
    path.split('.').try_fold(value.clone(), |value, part| match part.parse::<usize>() {
        Ok(at) => value.get_item(&Value::from(at)),
        Err(_) => value.get_attr(part),
    })
}

/// `int(value, default=0, base=10)`.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(named.get("base")?).unwrap_or(10);
    named.assert_all_used()?;
    let Some(text) = value.as_str() else {
        return Ok(match repr::as_float(value) {
            Some(number) => int_of(number).unwrap_or(default),
            None if value.kind() == ValueKind::Bool => Value::from(i32::from(value.is_true())),
            None if value.kind() == ValueKind::Number => value.clone(),
            None => default,
        });
    };
    let text = text.trim().replace('_', "");
    let (sign, digits) = text.strip_prefix('-').map_or((1, text.trim_start_matches('+')), |digits| (-1, digits));
    let prefix = match base {
        16 => digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")),
        8 => digits.strip_prefix("0o").or_else(|| digits.strip_prefix("0O")),
        2 => digits.strip_prefix("0b").or_else(|| digits.strip_prefix("0B")),
        _ => None,
    };
    let number =
        if (2..=36).contains(&base) { i128::from_str_radix(prefix.unwrap_or(digits), base).ok() } else { None };
    let number = number.and_then(|number| number.checked_mul(sign)).map(Value::from);
    // `'3.9'|int` is 3.
    Ok(number.or_else(|| text.parse::<f64>().ok().and_then(int_of)).unwrap_or(default))
}

fn int_of(number: f64) -> Option<Value> {
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (number.is_finite() && number.abs() < 1e38).then(|| Value::from(number.trunc() as i128))
}

/// `float(value, default=0.0)`.
fn float(value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or_else(|| Value::from(0.0));
    named.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or(default, |number: f64| Value::from(number)))
}

/// `default(value, default_value='', boolean=False)`.
fn default(value: &Value, other: Option<Value>, boolean: Option<bool>, named: Kwargs) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    Ok(if value.is_undefined() || boolean && !value.is_true() { other } else { value.clone() })
}

/// `center(value, width=80)`.
fn center(state: &mut State, value: &Value, width: Option<i64>) -> Result<Value, Error> {
    let text = Value::from(repr::str(state, value)?);
    methods::call(state, &text, "center", &[Value::from(width.unwrap_or(80))])
}

/// What `raise_exception` of a template does.
pub(super) fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
