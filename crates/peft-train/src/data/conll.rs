//! CoNLL columns: a word first and its tag last on a line, an empty line between sentences.

use peft_core::{Result, data::example::Row};
use serde_json::{Map, Value};

use super::Source;

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    let mut sentence = Sentence::default();
    for (line, text) in source.lines() {
        if text.trim().is_empty() {
            rows.extend(sentence.take(source));
            continue;
        }
        if text.starts_with("-DOCSTART-") {
            continue;
        }
        match word_and_tag(text) {
            Some((word, tag)) => sentence.push(line, word, tag),
            None => bad.push(line, format!("a word and its tag should stand here, found `{text}`")),
        }
    }
    rows.extend(sentence.take(source));
    bad.or(rows)
}

// Where there are tabs, a word may contain spaces.
fn word_and_tag(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_end();
    let (word, tag) = match text.split_once('\t') {
        Some((word, rest)) => (word, rest.rsplit('\t').next()?),
        None => (text.split_whitespace().next()?, text.split_once(char::is_whitespace)?.1.split_whitespace().last()?),
    };
    (!word.is_empty() && !tag.is_empty()).then_some((word, tag))
}

#[derive(Default)]
struct Sentence {
    line: usize,
    words: Vec<Value>,
    tags: Vec<Value>,
}

impl Sentence {
    fn push(&mut self, line: usize, word: &str, tag: &str) {
        if self.words.is_empty() {
            self.line = line;
        }
        self.words.push(word.into());
        self.tags.push(tag.into());
    }

    fn take(&mut self, source: &Source<'_>) -> Option<Row> {
        let Self { line, words, tags } = std::mem::take(self);
        let fields = || Map::from_iter([("tokens".to_owned(), words.into()), ("tags".to_owned(), tags.into())]);
        (line > 0).then(|| source.row(line, fields()))
    }
}
