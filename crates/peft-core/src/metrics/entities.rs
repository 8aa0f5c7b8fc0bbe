//! Entities in tagged sentences, by the rules of `seqeval`'s default mode, which forgives an `I-` without its `B-`.

use std::collections::HashSet;

use super::classification::{Counts, PrecisionRecallF1};

/// A run of words that one entity covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entity {
    /// Its type: `PER` of `B-PER`; `_` of a bare `B`.
    pub kind: String,
    /// Its first word.
    pub start: usize,
    /// The word after its last.
    pub end: usize,
}

/// The entities of one sentence, from its tags (`B-`, `I-`, `E-`, `S-` and `O`).
///
/// An entity goes on while tags of its type follow that do not begin a new one; a change of type begins one, whatever the
/// tag's letter says.
pub fn entities(tags: &[impl AsRef<str>]) -> Vec<Entity> {
    let mut found = Vec::new();
    let (mut last, mut open) = (('O', "_"), 0);
    let end = std::iter::once(('O', "_"));
    for (at, tag) in tags.iter().map(|tag| split(tag.as_ref())).chain(end).enumerate() {
        if ends(last, tag) {
            found.push(Entity { kind: last.1.to_owned(), start: open, end: at });
        }
        if starts(last, tag) {
            open = at;
        }
        last = tag;
    }
    found
}

/// Precision, recall and F1 of exact matches: same sentence, same words, same type.
pub fn entity_scores<T: AsRef<str>>(truth: &[Vec<T>], predicted: &[Vec<T>]) -> PrecisionRecallF1 {
    let mut counts = Counts::default();
    for (truth, predicted) in truth.iter().zip(predicted) {
        let truth: HashSet<Entity> = entities(truth).into_iter().collect();
        let predicted: HashSet<Entity> = entities(predicted).into_iter().collect();
        counts.hits += truth.intersection(&predicted).count();
        counts.truth += truth.len();
        counts.predicted += predicted.len();
    }
    counts.values()
}

/// Whether a tag names the beginning or the inside of an entity.
pub fn is_entity_tag(tag: &str) -> bool {
    tag.starts_with("B-") || tag.starts_with("I-")
}

fn split(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    let Some(letter) = letters.next() else { return ('O', "_") };
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (letter, if kind.is_empty() { "_" } else { kind })
}

fn ends((last, last_kind): (char, &str), (tag, kind): (char, &str)) -> bool {
    match (last, tag) {
        ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O') => true,
        ('O', _) => false,
        _ => last_kind != kind,
    }
}

fn starts((last, last_kind): (char, &str), (tag, kind): (char, &str)) -> bool {
    match (last, tag) {
        (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I') => true,
        (_, 'O') => false,
        _ => last_kind != kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tags: &str, expected: &[(&str, usize, usize)]) {
        let tags: Vec<&str> = tags.split_whitespace().collect();
        let found = entities(&tags);
        let found: Vec<_> = found.iter().map(|e| (e.kind.as_str(), e.start, e.end)).collect();
        assert_eq!(found, expected, "{tags:?}");
    }

    #[test]
    fn tags_become_entities() {
        check("O B-PER I-PER O B-LOC", &[("PER", 1, 3), ("LOC", 4, 5)]);
        check("B-PER B-PER I-PER", &[("PER", 0, 1), ("PER", 1, 3)]);
        check("I-PER I-PER O I-LOC", &[("PER", 0, 2), ("LOC", 3, 4)]);
        check("B-PER I-LOC I-LOC", &[("PER", 0, 1), ("LOC", 1, 3)]);
        check("S-PER B-LOC I-LOC E-LOC I-LOC", &[("PER", 0, 1), ("LOC", 1, 4), ("LOC", 4, 5)]);
        check("B-creative-work I-creative-work", &[("creative-work", 0, 2)]);
        check("B I O", &[("_", 0, 2)]);
        check("O O", &[]);
        check("", &[]);
    }

    #[test]
    fn only_exact_matches_count() {
        let sentences = |lines: &[&'static str]| -> Vec<Vec<&'static str>> {
            lines.iter().map(|line| line.split_whitespace().collect()).collect()
        };
        // The example of seqeval's manual: one of two entities found.
        let truth = sentences(&["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]);
        let predicted = sentences(&["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]);
        let scores = entity_scores(&truth, &predicted);
        assert_eq!((scores.precision, scores.recall, scores.f1), (0.5, 0.5, 0.5));
        assert_eq!(entity_scores::<&str>(&[], &[]), PrecisionRecallF1::default());
    }

    #[test]
    fn an_entity_of_another_type_is_no_match() {
        let scores = entity_scores(&[vec!["B-PER", "O", "B-LOC"]], &[vec!["B-ORG", "O", "B-LOC"]]);
        assert_eq!((scores.precision, scores.recall, scores.f1), (0.5, 0.5, 0.5));
    }
}
