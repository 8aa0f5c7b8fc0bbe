//! Long texts of which few tokens are kept: they are tokenized only as far as that.
//!
//! A text is cut before a space between two letters or digits of ASCII, and only for tokenizers none of whose tokens reaches
//! over such a place, so that the tokens on one side do not depend on the other side.

use tokenizers::Tokenizer;

/// How spaces are written in vocabularies.
const SPACES: [char; 3] = [' ', '▁', 'Ġ'];

/// Which part of a text is tokenized at first; four times that if it has too few tokens.
pub(super) fn first_room(max_length: usize) -> usize {
    max_length.saturating_mul(16).saturating_add(1024)
}

fn is_place(bytes: &[u8], at: usize) -> bool {
    let byte = |at: Option<usize>| at.and_then(|at| bytes.get(at)).copied().unwrap_or_default();
    byte(Some(at)) == b' '
        && byte(at.checked_sub(1)).is_ascii_alphanumeric()
        && byte(at.checked_add(1)).is_ascii_alphanumeric()
}

/// The text before the last place within so many bytes.
pub(super) fn start_of(text: &str, room: usize) -> Option<&str> {
    let bytes = text.as_bytes();
    (1..room.min(bytes.len())).rev().find(|at| is_place(bytes, *at)).and_then(|at| text.get(..at))
}

/// The text behind the first place within so many bytes of the end.
pub(super) fn end_of(text: &str, room: usize) -> Option<&str> {
    let bytes = text.as_bytes();
    (bytes.len().saturating_sub(room)..bytes.len())
        .find(|at| *at > 0 && is_place(bytes, *at))
        .and_then(|at| text.get(at..))
}

/// How many characters stand before the second place of a text that begins at one.
pub(super) fn first_word(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let second = (1..bytes.len()).find(|at| is_place(bytes, *at))?;
    text.get(..second).map(|word| word.chars().count())
}

/// Whether no token reaches over a place, which texts can be cut at.
pub(super) fn has_places(tokenizer: &Tokenizer) -> bool {
    let added = tokenizer.get_added_tokens_decoder();
    if added.values().any(|token| token.content.contains(char::is_whitespace)) {
        return false;
    }
    parts_words(tokenizer) || !has_inner_space(tokenizer)
}

/// Whether the pre-tokenizer parts words at spaces.
fn parts_words(tokenizer: &Tokenizer) -> bool {
    const SAMPLE: &str = "ab cd 12 ef gh 3 ij klm 456 n";
    let Ok(encoding) = tokenizer.encode_char_offsets(SAMPLE, false) else { return false };
    let tokens: Vec<_> = encoding.get_offsets().iter().zip(encoding.get_word_ids()).collect();
    let is_apart = |at: usize| {
        let before = tokens.iter().rev().find(|((start, _), _)| *start < at);
        let behind = tokens.iter().find(|((_, end), _)| *end > at);
        before
            .zip(behind)
            .is_some_and(|(((_, end), left), ((start, _), right))| *end <= at && at <= *start && left != right)
    };
    SAMPLE.match_indices(' ').all(|(at, _)| is_apart(at))
}

/// Whether a token of the vocabulary has a space behind something else.
fn has_inner_space(tokenizer: &Tokenizer) -> bool {
    let inner = |token: &String| {
        let behind = token.trim_start_matches(SPACES);
        behind.contains(SPACES)
    };
    tokenizer.get_vocab(true).keys().any(inner)
}
