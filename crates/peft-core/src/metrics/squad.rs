//! The SQuAD benchmark's comparison of an answer with the right ones (Rajpurkar et al. 2016, 2018).

use super::{ngrams::overlap, ratio};

/// A text as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.
///
/// Articles are `a`, `an` and `the` between characters that are neither letters, digits nor `_`.
pub fn normalize(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let (mut kept, mut word) = (String::with_capacity(bare.len()), String::new());
    for c in bare.chars().map(Some).chain([None]) {
        match c {
            Some(c) if c.is_alphanumeric() => word.push(c),
            other => {
                if !matches!(word.as_str(), "a" | "an" | "the") {
                    kept.push_str(&word);
                } else {
                    kept.push(' ');
                }
                word.clear();
                kept.extend(other);
            }
        }
    }
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// 1 if the answer is one of the right ones after [`normalize`], else 0. Without right answers the empty one is right.
pub fn exact_match(answer: &str, right: &[&str]) -> f64 {
    best(answer, right, |answer, right| f64::from(u8::from(answer == right)))
}

/// The harmonic mean of precision and recall of the answer's words, 0 to 1, for the right answer that it is nearest to.
///
/// Where one of the two has no words, 1 if both have none, else 0. Without right answers the empty one is right.
pub fn f1(answer: &str, right: &[&str]) -> f64 {
    best(answer, right, |answer, right| {
        let (answer, right): (Vec<_>, Vec<_>) =
            (answer.split_whitespace().collect(), right.split_whitespace().collect());
        if answer.is_empty() || right.is_empty() {
            return f64::from(u8::from(answer.is_empty() && right.is_empty()));
        }
        let common = overlap(1, &answer, &right).common;
        ratio(2.0 * common as f64, (answer.len() + right.len()) as f64)
    })
}

fn best(answer: &str, right: &[&str], score: impl Fn(&str, &str) -> f64) -> f64 {
    let answer = normalize(answer);
    let right = if right.is_empty() { &[""] } else { right };
    right.iter().map(|right| score(&answer, &normalize(right))).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_without_case_punctuation_and_articles() {
        let check = |text, expected| assert_eq!(normalize(text), expected, "{text:?}");
        check("The  Norman's   castle, a ruin.", "normans castle ruin");
        check("an\tEagle", "eagle");
        check("theatre", "theatre");
        check("10–a–b", "10– –b");
        check("U.S.A.", "usa");
        check("the", "");
        check("", "");
    }

    #[test]
    fn the_nearest_right_answer_counts() {
        assert_eq!(exact_match("the Eagle", &["falcon", "eagle!"]), 1.0);
        assert_eq!(exact_match("eagles", &["eagle"]), 0.0);
        // Two of three words found, two of two right: 2 * 2 / (3 + 2).
        assert_eq!(f1("big black cat", &["dog", "black cat"]), 0.8);
        // A repeated word counts as often as it is there.
        assert_eq!(f1("cat cat", &["cat"]), 2.0 / 3.0);
        assert_eq!(f1("dog", &["cat"]), 0.0);
    }

    #[test]
    fn silence_is_right_where_there_is_no_answer() {
        assert_eq!((exact_match("", &[]), f1("", &[])), (1.0, 1.0));
        assert_eq!((exact_match("cat", &[]), f1("cat", &[])), (0.0, 0.0));
        assert_eq!((exact_match("the", &[""]), f1("the", &[""])), (1.0, 1.0));
    }
}
