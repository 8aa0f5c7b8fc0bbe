//! ROUGE: how much of a text another repeats (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), as the
//! Python package `rouge_score` computes it without a stemmer.

use super::{ngrams::overlap, ratio};

/// F1 of the words that both texts have in the same order, with anything between them: `2 · LCS / (words + words)`, 0 to 1.
pub fn rouge_l(written: &str, wanted: &str) -> f64 {
    let (written, wanted) = (words(written), words(wanted));
    f1(longest_common(&written, &wanted), written.len(), wanted.len())
}

/// F1 of the runs of `n` words that both texts have, 0 to 1.
pub fn rouge_n(n: usize, written: &str, wanted: &str) -> f64 {
    let found = overlap(n, &words(written), &words(wanted));
    f1(found.common, found.first, found.second)
}

/// Runs of `a` to `z` and `0` to `9`, in lower case.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn f1(common: usize, written: usize, wanted: usize) -> f64 {
    let (precision, recall) = (ratio(common as f64, written as f64), ratio(common as f64, wanted as f64));
    ratio(2.0 * precision * recall, precision + recall)
}

/// The length of the longest common subsequence.
fn longest_common(a: &[String], b: &[String]) -> usize {
    // `row[j]` is the length for what was seen of `a` and the first `j` of `b`.
    let mut row = vec![0; b.len() + 1];
    for one in a {
        let mut diagonal = 0;
        let mut before = 0;
        for (other, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            *cell = if one == other { diagonal + 1 } else { above.max(before) };
            (diagonal, before) = (above, *cell);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_the_same_order_count() {
        let check = |written, wanted, expected: f64| {
            let found = rouge_l(written, wanted);
            assert!((found - expected).abs() < 1e-12, "{written:?} {wanted:?}: {found}");
        };
        // "police the gunman" is not common in order, "the gunman" is: 2 of 4 and 2 of 4.
        check("the gunman kill police", "police killed the gunman", 0.5);
        check("Police-killed: THE gunman!", "police killed the gunman", 1.0);
        check("ça va", "a va", 1.0);
        check("", "police", 0.0);
        check("…", "…", 0.0);
    }

    #[test]
    fn runs_count_as_often_as_both_have_them() {
        // "a" twice of three, twice of two.
        assert!((rouge_n(1, "a a a", "a a") - 0.8).abs() < 1e-12);
        assert!((rouge_n(2, "a b c", "b c a b") - 0.8).abs() < 1e-12);
        assert_eq!(rouge_n(2, "a", "a"), 0.0);
    }
}
