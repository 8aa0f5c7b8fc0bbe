//! CoNLL-U, the layout of Universal Dependencies: ten columns a word.

use peft_core::{Result, data::example::Row};
use serde_json::{Map, Value};

use super::Source;

const COLUMNS: usize = 10;

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    let mut sentence = Sentence::default();
    for (line, text) in source.lines() {
        if text.trim().is_empty() {
            rows.extend(std::mem::take(&mut sentence).row(source));
            continue;
        }
        if text.starts_with('#') {
            continue;
        }
        let cells: Vec<&str> = text.split('\t').collect();
        let [id, form, _, upos, xpos, ..] = cells.as_slice() else {
            bad.push(line, format!("{} of {COLUMNS} tab-separated columns", cells.len()));
            continue;
        };
        // `4-5` spans words that follow, `8.1` is not in the text.
        if id.contains(['-', '.']) {
            continue;
        }
        if cells.len() != COLUMNS || id.parse::<usize>().is_err() {
            bad.push(line, format!("a word's number and {COLUMNS} columns should stand here, found {cells:?}"));
            continue;
        }
        sentence.push(line, form, upos, xpos);
    }
    rows.extend(sentence.row(source));
    bad.or(rows)
}

#[derive(Default)]
struct Sentence {
    line: usize,
    forms: Vec<Value>,
    upos: Vec<Value>,
    xpos: Vec<Value>,
}

impl Sentence {
    fn push(&mut self, line: usize, form: &str, upos: &str, xpos: &str) {
        if self.forms.is_empty() {
            self.line = line;
        }
        self.forms.push(form.into());
        self.upos.push(upos.into());
        self.xpos.push(xpos.into());
    }

    fn row(self, source: &Source<'_>) -> Option<Row> {
        let columns = [("tokens", self.forms), ("tags", self.upos), ("xpos", self.xpos)];
        let fields = columns.map(|(name, values)| (name.to_owned(), Value::from(values)));
        (self.line > 0).then(|| source.row(self.line, Map::from_iter(fields)))
    }
}
