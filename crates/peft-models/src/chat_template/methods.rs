//! Methods of Python's values that templates call and MiniJinja lacks.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{limits::afford, repr::as_float};

/// What a template calls on a value.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    // MiniJinja takes steps for what a method makes, not for what it looks through.
    afford(
        state,
        value.as_str().map_or_else(|| value.len().unwrap_or(0).saturating_mul(size_of::<Value>()), str::len),
    )?;
    let found = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq => of_list(value, method, args)?,
        ValueKind::Map if method == "copy" => from_args(args).map(|()| Some(value.clone()))?,
        ValueKind::Number if method == "is_integer" => {
            let () = from_args(args)?;
            Some(as_float(value).is_none_or(|number| number.fract() == 0.0).into())
        }
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None => unknown_method_callback(state, value, method, args),
    }
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match method {
        "copy" => from_args(args).map(|()| Some(list.clone()))?,
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = list.try_iter()?.position(|item| item == *wanted);
            Some(at.ok_or_else(|| refused(format!("{wanted} is not in the list")))?.into())
        }
        _ => None,
    })
}

fn of_text(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let tuple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(Some(match method {
        "format" => {
            // The widths and precisions of its fields.
            for digits in text.split(|letter: char| !letter.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
                afford(state, digits.parse().unwrap_or(usize::MAX))?;
            }
            return Ok(None);
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,) = from_args::<(&str,)>(args)?;
            let (before, after) = text.split_once(not_empty(separator)?).map_or((text, None), |(a, b)| (a, Some(b)));
            tuple([before, after.map_or("", |_| separator), after.unwrap_or_default()])
        }
        "rpartition" => {
            let (separator,) = from_args::<(&str,)>(args)?;
            let (before, after) = text.rsplit_once(not_empty(separator)?).map_or((None, text), |(a, b)| (Some(a), b));
            tuple([before.unwrap_or_default(), before.map_or("", |_| separator), after])
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            from_the_right(text, separator, most.and_then(|most| usize::try_from(most).ok()))?
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            lines(text, keep_ends.unwrap_or(false)).into_iter().map(Value::from).collect()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = window(text, start, end).and_then(|(skipped, part)| {
                let at = if method.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) }?;
                Some(skipped + part.get(..at)?.chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if method.ends_with("find") => (-1).into(),
                None => return Err(refused("substring not found".to_owned())),
            }
        }
        "count" => {
            let (wanted, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            window(text, start, end).map_or(0, |(_, part)| part.matches(wanted).count()).into()
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (wanted, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let Some((_, part)) = window(text, start, end) else { return Ok(Some(false.into())) };
            let fits = |wanted: &str| match method {
                "startswith" => part.starts_with(wanted),
                _ => part.ends_with(wanted),
            };
            match wanted.as_str() {
                Some(wanted) => fits(wanted).into(),
                None => wanted.try_iter()?.any(|wanted| wanted.as_str().is_some_and(fits)).into(),
            }
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            padded(state, text, method, width, fill.unwrap_or(" "))?.into()
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let sign = text.get(..1).filter(|sign| matches!(*sign, "-" | "+")).unwrap_or_default();
            let digits = text.get(sign.len()..).unwrap_or_default();
            let signs = i64::try_from(sign.len()).unwrap_or_default();
            format!("{sign}{}", padded(state, digits, "rjust", width.saturating_sub(signs), "0")?).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = |letter: char| match letter.is_lowercase() {
                true => letter.to_uppercase().collect::<String>(),
                false => letter.to_lowercase().collect(),
            };
            text.chars().map(swapped).collect::<String>().into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().replace('ß', "ss").into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "istitle" => {
            let () = from_args(args)?;
            (text.chars().any(char::is_alphabetic) && title(text) == text).into()
        }
        "isdecimal" | "isdigit" => {
            let () = from_args(args)?;
            // Python counts ² as a digit, and ½ not.
            let is_digit = |letter: char| match letter {
                '⁰' | '¹' | '²' | '³' | '⁴'..='⁹' | '₀'..='₉' => method == "isdigit",
                _ => letter.is_ascii_digit() || is_decimal(letter),
            };
            (!text.is_empty() && text.chars().all(is_digit)).into()
        }
        "isidentifier" => {
            let () = from_args(args)?;
            let is_name = |letter: char| letter == '_' || letter.is_alphanumeric();
            (text.chars().all(is_name) && text.chars().next().is_some_and(|first| !first.is_numeric())).into()
        }
        "isprintable" => {
            let () = from_args(args)?;
            text.chars().all(|letter| letter == ' ' || !letter.is_control() && !letter.is_whitespace()).into()
        }
        _ => return Ok(None),
    }))
}

/// A digit of another script than Latin: their blocks have ten in a row, which Rust cannot tell from other numbers.
fn is_decimal(letter: char) -> bool {
    const ZEROS: [u32; 12] = [0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xe50, 0xed0, 0xf20, 0xff10];
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&u32::from(letter)))
}

/// The part of a text between two code points as Python counts them, and how many stand before it.
fn window(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    let count = i64::try_from(text.chars().count()).ok()?;
    let place = |at: i64| if at < 0 { (at + count).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(count)).min(count));
    if start > end {
        return None;
    }
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Some((start, text.get(byte(start)..byte(end))?))
}

fn not_empty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(refused("empty separator".to_owned())) } else { Ok(separator) }
}

fn from_the_right(text: &str, separator: Option<&str>, most: Option<usize>) -> Result<Value, Error> {
    let mut parts: Vec<&str> = match (separator, most) {
        (Some(separator), Some(most)) => text.rsplitn(most.saturating_add(1), not_empty(separator)?).collect(),
        (Some(separator), None) => text.rsplit(not_empty(separator)?).collect(),
        (None, most) => {
            let (mut parts, mut rest) = (Vec::new(), text.trim_end());
            while !rest.is_empty() {
                let split =
                    rest.rsplit_once(char::is_whitespace).filter(|_| most.is_none_or(|most| parts.len() < most));
                let (before, part) = split.unwrap_or((if split.is_none() { "" } else { rest }, rest));
                parts.push(if split.is_none() { rest.trim_start() } else { part });
                rest = before.trim_end();
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The lines of a text, by all ends of lines that Python knows.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |letter: char| {
        matches!(letter, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((at, end)) = rest.char_indices().find(|(_, letter)| is_end(*letter)) {
        let length = if rest.get(at..).is_some_and(|rest| rest.starts_with("\r\n")) { 2 } else { end.len_utf8() };
        let (line, after) = rest.split_at(at + length);
        found.push(if keep_ends { line } else { rest.get(..at).unwrap_or_default() });
        rest = after;
    }
    found.extend((!rest.is_empty()).then_some(rest));
    found
}

/// A text in the middle, at the left or at the right of a field.
fn padded(state: &State, text: &str, method: &str, width: i64, fill: &str) -> Result<String, Error> {
    if fill.chars().count() != 1 {
        return Err(refused("the fill character must be exactly one character long".to_owned()));
    }
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    afford(state, missing.saturating_mul(fill.len()))?;
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one to the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}

/// Each letter after something that is none in upper case, the others in lower.
fn title(text: &str) -> String {
    let (mut titled, mut is_inside) = (String::with_capacity(text.len()), false);
    for letter in text.chars() {
        if is_inside {
            titled.extend(letter.to_lowercase());
        } else {
            titled.extend(letter.to_uppercase());
        }
        is_inside = letter.is_alphabetic();
    }
    titled
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}
