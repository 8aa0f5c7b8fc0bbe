//! What is measured of texts that a model wrote, against those that it was to write.

use super::{
    bleu::bleu,
    chrf::chrf,
    ratio,
    rouge::{rouge_l, rouge_n},
};
use crate::metrics::Metrics;

/// `rouge_l`, `rouge_1` and `rouge_2` (means of F1, 0 to 1), `chrf` and `bleu` (of the corpus, 0 to 100), and `exact_match`,
/// the share of texts that are equal but for white space around them, 0 to 100.
pub fn compare(written: &[&str], wanted: &[&str]) -> Metrics {
    let count = written.len().min(wanted.len()) as f64;
    let mean = |score: fn(&str, &str) -> f64| {
        ratio(written.iter().zip(wanted).map(|(written, wanted)| score(written, wanted)).sum(), count)
    };
    let is_equal = |written: &str, wanted: &str| if written.trim() == wanted.trim() { 100.0 } else { 0.0 };
    let values = [
        ("rouge_l", mean(rouge_l)),
        ("rouge_1", mean(|written, wanted| rouge_n(1, written, wanted))),
        ("rouge_2", mean(|written, wanted| rouge_n(2, written, wanted))),
        ("chrf", chrf(written, wanted)),
        ("bleu", bleu(written, wanted)),
        ("exact_match", mean(is_equal)),
    ];
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_have_all_there_is() {
        let found = compare(&["a b c d\n", "x"], &["a b c d", "y"]);
        assert_eq!(found["exact_match"], 50.0);
        assert_eq!(found["rouge_l"], 0.5);
        assert_eq!(found.keys().next().map(String::as_str), Some("rouge_l"));
        assert!(compare(&[], &[]).values().all(|value| *value == 0.0));
    }
}
