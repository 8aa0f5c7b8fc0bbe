//! The filter `tojson`, which is Python's `json.dumps` with `ensure_ascii=False`.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind},
};

use super::{
    limits::{Bounded, MOST_LEVELS},
    repr::{as_float, float, too_deep},
};

/// How JSON is written.
#[derive(Debug)]
struct Style {
    ensure_ascii: bool,
    /// What stands before a line, for each level; nothing for all on one line.
    indent: Option<Indent>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

#[derive(Debug)]
enum Indent {
    Spaces(usize),
    Text(String),
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let option = |given: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        let value = match given {
            Some(value) => Some(value),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = option(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let sort_keys = option(None, "sort_keys")?.is_some_and(|value| value.is_true());
    let indent = option(indent, "indent")?;
    let separators = option(None, "separators")?;
    named.assert_all_used()?;
    let indent = match indent.as_ref().map(|value| (value, value.as_str())) {
        None => None,
        Some((_, Some(text))) => Some(Indent::Text(text.to_owned())),
        Some((value, None)) => Some(Indent::Spaces(usize::try_from(i64::try_from(value.clone())?).unwrap_or(0))),
    };
    let (between_items, after_key) = match separators {
        Some(pair) => {
            let text = |at: usize| Ok::<_, Error>(pair.get_item(&Value::from(at))?.to_string());
            (text(0)?, text(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let style = Style { ensure_ascii, indent, between_items, after_key, sort_keys };
    let mut out = Bounded::new(state);
    style.value(&mut out, value, 0)?;
    Ok(out.into_text())
}

impl Style {
    fn value(&self, out: &mut Bounded, value: &Value, level: usize) -> Result<(), Error> {
        if level > MOST_LEVELS {
            return Err(too_deep());
        }
        out.visit()?;
        match value.kind() {
            ValueKind::None => out.push("null"),
            ValueKind::Bool => out.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push(&number(value)),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                out.push("[")?;
                let mut is_empty = true;
                for item in value.try_iter()? {
                    self.begin(out, std::mem::take(&mut is_empty), level + 1)?;
                    self.value(out, &item, level + 1)?;
                }
                self.end(out, is_empty, level)?;
                out.push("]")
            }
            ValueKind::Map => {
                out.push("{")?;
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for (at, key) in keys.iter().enumerate() {
                    self.begin(out, at == 0, level + 1)?;
                    match key.kind() {
                        ValueKind::String => self.text(out, key.as_str().unwrap_or_default())?,
                        ValueKind::None => out.push("\"null\"")?,
                        ValueKind::Bool => out.push(if key.is_true() { "\"true\"" } else { "\"false\"" })?,
                        ValueKind::Number => out.push(&format!("\"{}\"", number(key)))?,
                        _ => return Err(unserializable(key)),
                    }
                    out.push(&self.after_key)?;
                    self.value(out, &value.get_item(key)?, level + 1)?;
                }
                self.end(out, keys.is_empty(), level)?;
                out.push("}")
            }
            _ => Err(unserializable(value)),
        }
    }

    /// What stands before an item.
    fn begin(&self, out: &mut Bounded, is_first: bool, level: usize) -> Result<(), Error> {
        if !is_first {
            out.push(&self.between_items)?;
        }
        self.line(out, level)
    }

    /// What stands before the closing bracket.
    fn end(&self, out: &mut Bounded, is_empty: bool, level: usize) -> Result<(), Error> {
        if is_empty { Ok(()) } else { self.line(out, level) }
    }

    fn line(&self, out: &mut Bounded, level: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.push("\n")?;
        match indent {
            Indent::Text(text) => out.repeat(text, level),
            Indent::Spaces(count) => out.repeat(" ", count.saturating_mul(level)),
        }
    }

    fn text(&self, out: &mut Bounded, text: &str) -> Result<(), Error> {
        let mut written = String::with_capacity(text.len() + 2);
        written.push('"');
        for letter in text.chars() {
            match letter {
                '"' => written.push_str("\\\""),
                '\\' => written.push_str("\\\\"),
                '\n' => written.push_str("\\n"),
                '\r' => written.push_str("\\r"),
                '\t' => written.push_str("\\t"),
                '\u{8}' => written.push_str("\\b"),
                '\u{c}' => written.push_str("\\f"),
                '\0'..'\u{20}' => unit(&mut written, u32::from(letter)),
                _ if self.ensure_ascii && !letter.is_ascii() => {
                    letter.encode_utf16(&mut [0; 2]).iter().for_each(|half| unit(&mut written, u32::from(*half)));
                }
                _ => written.push(letter),
            }
        }
        written.push('"');
        out.push(&written)
    }
}

fn unit(written: &mut String, code: u32) {
    _ = write!(written, "\\u{code:04x}");
}

fn number(value: &Value) -> String {
    match as_float(value) {
        Some(number) if number.is_nan() => "NaN".to_owned(),
        Some(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Some(number) => float(number),
        None => value.to_string(),
    }
}

fn unserializable(value: &Value) -> Error {
    let problem = format!("tojson: an object of type {} is not JSON serializable", value.kind());
    Error::new(ErrorKind::InvalidOperation, problem)
}
