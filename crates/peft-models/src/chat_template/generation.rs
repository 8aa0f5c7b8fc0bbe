//! `{% generation %}` blocks: what a template says the assistant wrote.
//!
//! The tag is one of Transformers' own. A filter block sees the same text, and marks it with two noncharacters.

use std::ops::Range;

use peft_core::data::chat::RenderedChat;

/// The filter that stands for the tag.
pub(super) const FILTER: &str = "__generation";

const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// The template with a filter block for each generation block, and whether there was one.
pub(super) fn as_filter(source: &str) -> (String, bool) {
    let mut found = false;
    let mut pieces = source.split("{%");
    let mut result = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        result.push_str("{%");
        let Some((tag, rest)) = piece.split_once("%}") else {
            result.push_str(piece);
            continue;
        };
        let word = tag.trim_matches(['-', '+']).trim();
        let other = match word {
            "generation" => format!("filter {FILTER}"),
            "endgeneration" => "endfilter".to_owned(),
            _ => {
                result.push_str(piece);
                continue;
            }
        };
        found = true;
        result.push_str(&tag.replacen(word, &format!(" {other} "), 1));
        result.push_str("%}");
        result.push_str(rest);
    }
    (result, found)
}

pub(super) fn mark(text: String) -> String {
    format!("{START}{text}{END}")
}

/// The text without its marks, and where they stood.
pub(super) fn unmarked(text: &str, marks: bool) -> RenderedChat {
    if !marks {
        return RenderedChat { text: text.to_owned(), generated: None };
    }
    let (mut plain, mut count, mut start) = (String::with_capacity(text.len()), 0, 0);
    let mut generated: Vec<Range<usize>> = Vec::new();
    for letter in text.chars() {
        match letter {
            START => start = count,
            END if start < count => generated.push(start..count),
            END => {}
            _ => {
                plain.push(letter);
                count += 1;
            }
        }
    }
    RenderedChat { text: plain, generated: Some(generated) }
}
