//! Data files of several layouts, read into rows.
//!
//! A file is judged whole before a row of it is used: one error names up to ten bad rows with their lines. Text is UTF-8, with
//! or without a byte order mark.

mod bad_rows;
mod conll;
mod conllu;
mod csv;
mod folder;
mod header;
mod json;
mod jsonl;
mod tsv;
mod txt;

use std::{path::Path, sync::Arc};

use peft::{Error, Result, error::nearest, example::Row, files::read_bytes};
use serde_json::{Map, Value};

use bad_rows::BadRows;
pub use folder::{Part, has_part, read_part};

/// A layout of data files.
#[derive(Debug)]
struct Layout {
    extension: &'static str,
    holds: &'static str,
    parse: fn(&Source<'_>) -> Result<Vec<Row>>,
}

const LAYOUTS: &[Layout] = &[
    Layout { extension: "tsv", holds: "a header and tab-separated cells, without quoting", parse: tsv::parse },
    Layout { extension: "csv", holds: "a header and comma-separated cells, quoted as in RFC 4180", parse: csv::parse },
    Layout { extension: "jsonl", holds: "one JSON object a line", parse: jsonl::parse },
    Layout { extension: "json", holds: "an array of objects, or SQuAD's layout", parse: json::parse },
    Layout {
        extension: "conll",
        holds: "a word and its tag a line, an empty line between sentences",
        parse: conll::parse,
    },
    Layout { extension: "conllu", holds: "CoNLL-U: words with their parts of speech", parse: conllu::parse },
    Layout { extension: "txt", holds: "plain text, a row for each paragraph", parse: txt::parse },
];

/// A file's text while it is read.
struct Source<'a> {
    file: Arc<Path>,
    text: &'a str,
}

impl Source<'_> {
    fn row(&self, line: usize, fields: Map<String, Value>) -> Row {
        Row { file: Arc::clone(&self.file), line, fields }
    }

    fn broken(&self, problem: impl Into<String>) -> Error {
        Error::File { path: self.file.to_path_buf(), problem: problem.into() }
    }

    /// The lines with their numbers from 1, without their ends.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    fn bad_rows(&self) -> BadRows {
        BadRows::new(Arc::clone(&self.file))
    }
}

/// Reads a data file; its extension says how.
///
/// | extension | holds | columns |
/// |---|---|---|
/// | `tsv` | a header, then tab-separated cells; no quoting | as in the header |
/// | `csv` | a header, then cells as in RFC 4180 | as in the header |
/// | `jsonl` | a JSON object a line | the object's keys |
/// | `json` | an array of objects | the objects' keys; `line` is the object's number |
/// | `json` | SQuAD 1.1 or 2.0 | `question`, `context`, `answers`, `id`, `title`, `is_impossible`; `line` is the question's number |
/// | `conll` | word and tag (the last column), an empty line between sentences | `tokens`, `tags` |
/// | `conllu` | CoNLL-U | `tokens`, `tags` (universal part of speech), `xpos` |
/// | `txt` | paragraphs between empty lines | `text` |
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`]; [`Error::File`] if the layout is unknown, the text is not UTF-8, there is no header or
/// no row; [`Error::Data`] with file and line of the first ten rows that are bad.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    // The layout first: a wrong name is found before a large file is read.
    let layout = layout_of(path)?;
    parse(layout, path, read_bytes(path, "a data file")?)
}

fn layout_of(path: &Path) -> Result<&'static Layout> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    LAYOUTS.iter().find(|layout| layout.extension == extension).ok_or_else(|| {
        let near = nearest(&extension, LAYOUTS.iter().map(|layout| layout.extension));
        let hint = near.map(|near| format!(" (did you mean `.{near}`?)")).unwrap_or_default();
        let known: Vec<_> = LAYOUTS.iter().map(|layout| format!(".{}: {}", layout.extension, layout.holds)).collect();
        let found = if extension.is_empty() { "no extension".to_owned() } else { format!("extension `.{extension}`") };
        Error::File {
            path: path.to_owned(),
            problem: format!("{found} is no layout of data files{hint}; there are\n  {}", known.join("\n  ")),
        }
    })
}

fn parse(layout: &Layout, path: &Path, bytes: Vec<u8>) -> Result<Vec<Row>> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        Error::File { path: path.to_owned(), problem: format!("line {line} is not UTF-8 text: {}", error.utf8_error()) }
    })?;
    let source = Source { file: Arc::from(path), text: text.strip_prefix('\u{feff}').unwrap_or(&text) };
    let rows = (layout.parse)(&source)?;
    if rows.is_empty() {
        return Err(source.broken(format!("no rows; a .{} file holds {}", layout.extension, layout.holds)));
    }
    Ok(rows)
}

/// The columns of a row from their names and texts.
fn text_fields<'a>(names: &[&str], cells: impl IntoIterator<Item = &'a str>) -> Map<String, Value> {
    names.iter().zip(cells).map(|(name, cell)| ((*name).to_owned(), Value::from(cell))).collect()
}

#[cfg(test)]
mod tests;
