//! Text from files and users as it may go to a terminal: no control characters, no passwords, no line without end.

/// Characters that a line of a message has at most; of a longer one the middle is left out.
const LONGEST_LINE: usize = 1200;
/// Lines that a message has at most.
const MOST_LINES: usize = 60;

/// A message for a person: on lines of bounded length, of which only the first begins at the margin.
pub(crate) fn message(text: &str) -> String {
    let text = without_secrets(text);
    let mut lines = text.lines();
    let mut shown: Vec<String> = lines.by_ref().take(MOST_LINES).map(|line| printable(&shortened(line))).collect();
    let left = lines.count();
    if left > 0 {
        shown.push(format!("… and {left} more lines"));
    }
    // What a file holds must not look like a message of the program's own.
    for line in shown.iter_mut().skip(1).filter(|line| !line.starts_with(' ')) {
        line.insert_str(0, "  ");
    }
    shown.join("\n")
}

/// The text with control characters, and those that turn or hide what stands beside them, in an escaped form; line breaks and
/// tabs stay.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts_on_terminals(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

fn acts_on_terminals(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        // Direction marks, invisible characters and separators of lines.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{ad}' => true,
        c => c.is_control(),
    }
}

/// The beginning and the end of a long line.
fn shortened(line: &str) -> String {
    let length = line.chars().count();
    if length <= LONGEST_LINE {
        return line.to_owned();
    }
    let half = LONGEST_LINE / 2;
    let head: String = line.chars().take(half).collect();
    let tail: String = line.chars().skip(length - half).collect();
    format!("{head} … ({} characters) … {tail}", length - 2 * half)
}

/// The text without the user names and passwords of addresses, and without tokens of the Hub.
fn without_secrets(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end =
            after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '`' | '"' | '?' | '#')).unwrap_or(after.len());
        let authority = after.get(..end).unwrap_or_default();
        rest = match authority.rfind('@') {
            Some(at) => {
                shown.push_str("***");
                after.get(at..).unwrap_or_default()
            }
            None => after,
        };
    }
    shown.push_str(rest);
    without_tokens(&shown)
}

fn without_tokens(text: &str) -> String {
    /// How tokens of the Hub begin, and how many characters follow at least.
    const PREFIX: &str = "hf_";
    const SHORTEST: usize = 20;
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(PREFIX) {
        shown.push_str(before);
        shown.push_str(PREFIX);
        let length = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
        rest = after;
        if length >= SHORTEST && !before.ends_with(|c: char| c.is_alphanumeric()) {
            shown.push_str("***");
            rest = after.get(length..).unwrap_or_default();
        }
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_and_do_not_act() {
        assert_eq!(printable("a\u{1b}[31mb\u{7}\u{202e}\tc\nd"), "a\\u{1b}[31mb\\u{7}\\u{202e}\tc\nd");
        assert_eq!(message("first\r\nerror: second"), "first\n  error: second");
    }

    #[test]
    fn long_lines_keep_their_beginning_and_their_end() {
        let line = message(&format!("`{}` should be short", "x".repeat(200_000)));
        assert!(line.chars().count() < 1300 && line.starts_with("`xx") && line.ends_with("should be short"), "{line}");
        let lines = message(&"a\n".repeat(1000));
        assert!(lines.ends_with("… and 940 more lines"), "{lines}");
    }

    #[test]
    fn passwords_are_not_repeated() {
        assert_eq!(message("http://me:secret@host/x and https://host/a@b"), "http://***@host/x and https://host/a@b");
        let token = format!("hf_{}", "aB3".repeat(11));
        assert_eq!(message(&format!("token {token}, hf_hub")), "token hf_***, hf_hub");
    }
}
