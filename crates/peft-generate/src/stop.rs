//! Stop strings: an answer ends with the token that completes one of them.

use peft_core::data::tokenizer::Tokenizer;

/// Tokens that are looked at beside those a stop string may have: what a tokenizer does at a text's beginning is far away.
const MARGIN: usize = 8;

/// Looks for stop strings in what was read and written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stops<'a> {
    tokenizer: &'a dyn Tokenizer,
    strings: &'a [String],
    /// How many of the last tokens may hold one.
    reach: usize,
}

impl<'a> Stops<'a> {
    pub(crate) fn new(tokenizer: &'a dyn Tokenizer, strings: &'a [String]) -> Self {
        // A token has a byte at least.
        let reach = strings.iter().map(String::len).max().unwrap_or(0) + MARGIN;
        Self { tokenizer, strings, reach }
    }

    /// Whether the last token completes a stop string, which may have begun in the prompt.
    pub(crate) fn ends(&self, tokens: &[u32]) -> bool {
        let recent = tokens.get(tokens.len().saturating_sub(self.reach)..).unwrap_or_default();
        let Some((_, before)) = recent.split_last() else { return false };
        let text = |ids: &[u32]| self.tokenizer.decode_with_special(ids).unwrap_or_default();
        let (all, before) = (text(recent), text(before));
        // Half a character is shown as a replacement until the rest is there.
        let all = all.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let old: usize =
            all.chars().zip(before.chars()).take_while(|(now, then)| now == then).map(|(c, _)| c.len_utf8()).sum();
        self.strings.iter().any(|stop| all.rfind(stop).is_some_and(|at| at + stop.len() > old))
    }
}

/// The text before the first stop string.
pub fn before_stop<'t>(text: &'t str, stop_strings: &[String]) -> &'t str {
    let first = stop_strings.iter().filter_map(|stop| text.find(stop)).min();
    first.and_then(|at| text.get(..at)).unwrap_or(text)
}

/// The text that stays whatever follows: what comes before the first stop string, whole or begun.
pub fn settled<'t>(text: &'t str, stop_strings: &[String]) -> &'t str {
    let text = before_stop(text, stop_strings);
    let is_begun = |at: &usize| {
        let rest = text.get(*at..).unwrap_or_default();
        stop_strings.iter().any(|stop| stop.starts_with(rest))
    };
    let begun = text.char_indices().map(|(at, _)| at).find(is_begun);
    begun.and_then(|at| text.get(..at)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(strings: &[&str]) -> Vec<String> {
        strings.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(before_stop("one. two\n three", &stops(&["\n", ". "])), "one");
        assert_eq!(before_stop("one", &stops(&["\n"])), "one");
        assert_eq!(before_stop("one", &[]), "one");
    }

    #[test]
    fn the_beginning_of_a_stop_string_is_held_back() {
        let check = |text, expected| assert_eq!(settled(text, &stops(&["STOP", "\n\n"])), expected, "{text:?}");
        check("say", "say");
        check("say S", "say ");
        check("say STO", "say ");
        check("say STx", "say STx");
        check("say STSTO", "say ST");
        check("say\n", "say");
        check("say STOPPED", "say ");
        check("é\n", "é");
    }
}
