//! What a template may take: it is a program that came with a model, and no conversation needs more than this.

use minijinja::{Error, ErrorKind, State};
use serde_json::Value;

/// Steps for a template without any text; those of real templates take some thousand.
const FUEL: u64 = 2_000_000;
/// Steps for each byte of the conversation: templates look through all messages for each of them.
const FUEL_OF_BYTE: u64 = 64;
const MOST_FUEL: u64 = 50_000_000;
/// How many bytes of text are one step.
const BYTES_OF_FUEL: u64 = 64;
/// What each value takes that is printed, besides its text.
const BYTES_OF_VALUE: usize = 64;
/// The longest template, and its longest line: MiniJinja counts lines and columns in 16 bits.
const MOST_BYTES: usize = 1 << 20;
const MOST_LINES: usize = 60_000;
/// How deep an expression may be: the parser goes one call down for each sign, operator, filter and bracket.
const MOST_OPERATORS: usize = 1000;
/// How often any two characters of the template are looked at to find that out, on average.
const MOST_LOOKS: usize = 64;
/// How deep lists in lists may be that are printed.
pub(super) const MOST_LEVELS: usize = 200;

/// The steps for a conversation.
pub(super) fn fuel(messages: &[Value], tools: Option<&Value>) -> u64 {
    let bytes: u64 = messages.iter().chain(tools).map(bytes).sum();
    bytes.saturating_mul(FUEL_OF_BYTE).saturating_add(FUEL).min(MOST_FUEL)
}

fn bytes(value: &Value) -> u64 {
    let length = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
    match value {
        Value::String(text) => length(text),
        Value::Array(items) => items.iter().map(|item| 1 + bytes(item)).sum(),
        Value::Object(pairs) => pairs.iter().map(|(key, value)| 1 + length(key) + bytes(value)).sum(),
        _ => 1,
    }
}

/// Text that grows no longer than what a template has left of its steps.
#[derive(Debug)]
pub(super) struct Bounded {
    text: String,
    left: usize,
}

impl Bounded {
    pub(super) fn new(state: &State) -> Self {
        let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(BYTES_OF_FUEL));
        Self { text: String::new(), left: usize::try_from(left).unwrap_or(usize::MAX) }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Error> {
        self.left = self.left.checked_sub(text.len()).ok_or_else(|| Error::from(ErrorKind::OutOfFuel))?;
        self.text.push_str(text);
        Ok(())
    }

    /// Text many times.
    pub(super) fn repeat(&mut self, text: &str, count: usize) -> Result<(), Error> {
        let length = text.len().checked_mul(count).filter(|length| *length <= self.left);
        if length.is_none() {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        self.push(&text.repeat(count))
    }

    /// One more value: lists that hold each other may have many without any text.
    pub(super) fn visit(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(BYTES_OF_VALUE).ok_or_else(|| Error::from(ErrorKind::OutOfFuel))?;
        Ok(())
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// Takes the steps for text of that length, before it is made.
pub(super) fn afford(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES_OF_FUEL)
}

/// Refuses what would be too deep for the parser.
///
/// # Errors
/// With what is wrong.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    if source.len() > MOST_BYTES {
        return Err(format!("it has {} bytes, more than {MOST_BYTES}", source.len()));
    }
    let lines = source.lines().count();
    let longest = source.lines().map(str::len).max().unwrap_or_default();
    if lines > MOST_LINES || longest > MOST_LINES {
        return Err(format!("it has {lines} lines of up to {longest} bytes, more than {MOST_LINES}"));
    }
    let bytes = source.as_bytes();
    let mut looks = source.len().saturating_mul(MOST_LOOKS);
    // Each place where a tag could begin is looked at by itself, so that neither comments nor strings can hide one.
    for (at, pair) in bytes.windows(2).enumerate() {
        if !matches!(pair, b"{{" | b"{%") {
            continue;
        }
        let line = || bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        let looked = look(bytes.get(at + 2..).unwrap_or_default()).ok_or_else(|| {
            format!("line {}: an expression with more than {MOST_OPERATORS} signs and operators in a row", line())
        })?;
        let Some(left) = looks.checked_sub(looked) else {
            return Err(format!("line {}: tags within tags", line()));
        };
        looks = left;
    }
    let branches = source.matches("elif").count();
    if branches > MOST_OPERATORS {
        return Err(format!("{branches} times `elif`, more than {MOST_OPERATORS}"));
    }
    Ok(())
}

/// How many bytes a tag takes; nothing if its expressions are too deep.
fn look(tag: &[u8]) -> Option<usize> {
    // What stands around the place, and how many operators each has since its last comma.
    let mut open = vec![(b' ', 0_usize)];
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(&byte) = tag.get(at) {
        at += 1;
        let next = tag.get(at).copied().unwrap_or_default();
        let add = match byte {
            b'"' | b'\'' => {
                while let Some(&inside) = tag.get(at) {
                    at += if inside == b'\\' { 2 } else { 1 };
                    if inside == byte {
                        break;
                    }
                }
                0
            }
            b'(' | b'[' | b'{' => {
                // It may be one of many that follow on each other: `a()()()`.
                open.last_mut()?.1 += 1;
                depth += 1;
                open.push((byte, 0));
                0
            }
            b'}' | b'%' if next == b'}' && open.iter().all(|(bracket, _)| *bracket != b'{') => break,
            b')' | b']' | b'}' => {
                // What stood in the brackets is as deep as what comes after them, not more.
                if open.len() > 1 {
                    let inner = open.pop().map_or(0, |(_, inner)| inner);
                    depth = depth.saturating_sub(inner);
                }
                0
            }
            b',' => {
                let level = open.last_mut()?;
                depth = depth.saturating_sub(std::mem::take(&mut level.1));
                0
            }
            b'a'..=b'z' => {
                let length = 1 + tag.get(at..)?.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
                let word = tag.get(at - 1..at - 1 + length)?;
                at += length - 1;
                usize::from(matches!(word, b"not" | b"and" | b"or" | b"is" | b"in" | b"if" | b"else"))
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'~' | b'<' | b'>' | b'=' | b'!' | b'|' | b'.' => 1,
            _ => 0,
        };
        depth += add;
        open.last_mut()?.1 += add;
        if depth > MOST_OPERATORS {
            return None;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn expressions_that_are_too_deep_are_found_wherever_they_hide() {
        let deep = "-".repeat(1500);
        for source in [
            format!("a\n{{{{ {deep}1 }}}}"),
            format!("{{{{ {}1 }}}}", "not ".repeat(1500)),
            format!("{{{{ 1{} }}}}", "+1".repeat(1500)),
            format!("{{{{ a{} }}}}", ".b".repeat(1500)),
            format!("{{{{ a{} }}}}", "|upper".repeat(1500)),
            format!("{{{{ a{} }}}}", "()".repeat(1500)),
            format!("{{{{ {}1{} }}}}", "(".repeat(1500), ")".repeat(1500)),
            format!("{{{{ {}1{} }}}}", "[[-".repeat(500), "]]".repeat(500)),
            format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(800)),
            "{#".repeat(50_000),
            "\n".repeat(80_000),
            format!("{{% raw %}}{{{{ \"{{% endraw %}}{{{{ {deep}1 }}}}"),
            format!("{{# {{{{ \" #}}{{{{ {deep}1 }}}}"),
            format!("{{{{ {{'a': {{}}}} }}}}{{{{ '}}}}' {deep}1 }}}}"),
            format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(1500)),
            "{{".repeat(400_000),
            "x".repeat(2_000_000),
        ] {
            assert!(check_source(&source).is_err(), "{}", source.chars().take(60).collect::<String>());
        }
        let list = "-1, 'a' ~ b, {'c': d.e}, (f, -g), ".repeat(1000);
        for source in [
            format!("{{{{ [{list}] }}}}"),
            "{% if a and b %}{{ -c }}{% elif not d %}{{ '-----' }}{% endif %}".repeat(500),
            format!("{}\n{{# {}\n #}}", deep.repeat(10), deep.repeat(10)),
            format!("{{{{ '{}' }}}}", deep.repeat(10)),
        ] {
            assert_eq!(check_source(&source), Ok(()), "{}", source.chars().take(60).collect::<String>());
        }
    }
}
