//! BLEU: word runs of a translation that a reference has (Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine
//! Translation", 2002), as `sacrebleu` computes it by default: the tokens of mteval-v13a, runs of 1 to 4, exponential smoothing.

use super::ngrams::{is_space, overlap, words};

/// The longest runs that are looked at.
const ORDER: usize = 4;

/// The score of a whole corpus, 0 to 100: the geometric mean of the precisions, less where the texts are too short.
///
/// A precision of no hits counts as half a hit, the next such as a quarter, and so on; 0 where nothing was found at all or no
/// text has four words.
pub fn bleu<A: AsRef<str>, B: AsRef<str>>(written: &[A], wanted: &[B]) -> f64 {
    let (mut found, mut all) = ([0_usize; ORDER], [0_usize; ORDER]);
    let (mut length, mut wanted_length) = (0, 0);
    for (written, wanted) in written.iter().zip(wanted) {
        let (written, wanted) = (tokens(written.as_ref()), tokens(wanted.as_ref()));
        length += written.len();
        wanted_length += wanted.len();
        for (n, (found, all)) in (1..).zip(found.iter_mut().zip(&mut all)) {
            let shared = overlap(n, &written, &wanted);
            *found += shared.common;
            *all += shared.first;
        }
    }
    if found.iter().all(|count| *count == 0) || all.contains(&0) {
        return 0.0;
    }
    let (mut share, mut logarithms) = (1.0, 0.0);
    for (found, all) in found.into_iter().zip(all) {
        let hits = match found {
            0 => {
                share /= 2.0;
                share
            }
            found => found as f64,
        };
        logarithms += (100.0 * hits / all as f64).ln();
    }
    let brevity = if length < wanted_length { 1.0 - wanted_length as f64 / length as f64 } else { 0.0 };
    (brevity + logarithms / ORDER as f64).exp()
}

/// The tokens of mteval-v13a: punctuation stands by itself, except for points, commas and dashes within numbers.
fn tokens(text: &str) -> Vec<String> {
    let mut text = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (name, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(name, character);
    }
    let mut line = String::from(" ");
    for c in text.chars() {
        match c {
            '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/' => line.extend([' ', c, ' ']),
            c => line.push(c),
        }
    }
    line.push(' ');
    let is_stop = |c: char| matches!(c, '.' | ',');
    let line = at_pairs(&line, |a, b| !a.is_ascii_digit() && is_stop(b), |a, b| [a, ' ', b, ' ']);
    let line = at_pairs(&line, |a, b| is_stop(a) && !b.is_ascii_digit(), |a, b| [' ', a, ' ', b]);
    let line = at_pairs(&line, |a, b| a.is_ascii_digit() && b == '-', |a, b| [a, ' ', b, ' ']);
    words(&line).map(str::to_owned).collect()
}

/// Rewrites neighbours that make a pair, from the left and each character once.
fn at_pairs(line: &str, is_pair: impl Fn(char, char) -> bool, write: impl Fn(char, char) -> [char; 4]) -> String {
    let mut written = String::with_capacity(line.len() + line.len() / 4);
    let mut rest = line.chars().peekable();
    while let Some(a) = rest.next() {
        match rest.next_if(|b| is_pair(a, *b)) {
            Some(b) => written.extend(write(a, b)),
            None => written.push(a),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_stands_by_itself_but_not_in_numbers() {
        let check = |text, expected| assert_eq!(tokens(text).join(" "), expected, "{text:?}");
        check("It's 1,000.5 (or so), said he.", "It's 1,000.5 ( or so ) , said he .");
        check("well-known 3-4, hyphen-\nated &quot;x&quot; &amp;lt;", "well-known 3 - 4 , hyphenated \" x \" <");
        check("a.b 1.b c.2 ...", "a . b 1 . b c . 2 . . .");
        check("<skipped>  ", "");
    }

    #[test]
    fn a_short_translation_is_worth_less() {
        // All that is there is right: e^(1 - 8/4).
        let found = bleu(&["a b c d"], &["a b c d e f g h"]);
        assert!((found - 100.0 * (-1.0_f64).exp()).abs() < 1e-9, "{found}");
        assert!((bleu(&["a b c d"], &["a b c d"]) - 100.0).abs() < 1e-9);
        assert_eq!(bleu(&["a b c"], &["a b c"]), 0.0);
        assert_eq!(bleu::<&str, &str>(&[], &[]), 0.0);
    }
}
