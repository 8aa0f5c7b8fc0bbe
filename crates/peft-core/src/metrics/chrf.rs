//! chrF: character runs that two texts share (Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015), as
//! `sacrebleu` computes it by default: runs of 1 to 6, recall twice as important, white space left out.

use super::ngrams::{Overlap, overlap, words};

/// The longest runs that are looked at.
const ORDER: usize = 6;

/// Recall counts so many times as much as precision.
const BETA: f64 = 2.0;

/// The score of a whole corpus, 0 to 100: `(1 + β²) · P · R / (β² · P + R)`, where `P` and `R` are means over the lengths of
/// runs that both sides have.
pub fn chrf<A: AsRef<str>, B: AsRef<str>>(written: &[A], wanted: &[B]) -> f64 {
    let mut sums = [Overlap::default(); ORDER];
    for (written, wanted) in written.iter().zip(wanted) {
        let (written, wanted) = (letters(written.as_ref()), letters(wanted.as_ref()));
        for (n, sum) in (1..).zip(&mut sums) {
            let found = overlap(n, &written, &wanted);
            // Where nothing could be found nothing is held against the one who wrote.
            sum.first += if found.second > 0 { found.first } else { 0 };
            sum.second += found.second;
            sum.common += found.common;
        }
    }
    let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0.0);
    for Overlap { first, second, common } in sums.into_iter().filter(|sum| sum.first > 0 && sum.second > 0) {
        precision += common as f64 / first as f64;
        recall += common as f64 / second as f64;
        lengths += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall, factor) = (precision / lengths, recall / lengths, BETA * BETA);
    100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
}

fn letters(text: &str) -> Vec<char> {
    words(text).flat_map(str::chars).collect()
}
