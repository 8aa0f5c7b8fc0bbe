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
mod parquet;
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
    reader: Reader,
}

/// How a layout is read.
#[derive(Debug)]
enum Reader {
    /// From the text of a whole file.
    Text(fn(&Source<'_>) -> Result<Vec<Row>>),
    /// From the file, in which rows are no text.
    File(fn(&Path) -> Result<Vec<Row>>),
}

impl Layout {
    const fn text(extension: &'static str, parse: fn(&Source<'_>) -> Result<Vec<Row>>, holds: &'static str) -> Self {
        Self { extension, holds, reader: Reader::Text(parse) }
    }

    /// The rows of a file, of which there must be some.
    fn some(&self, path: &Path, rows: Vec<Row>) -> Result<Vec<Row>> {
        if rows.is_empty() {
            let problem = format!("no rows; a .{} file holds {}", self.extension, self.holds);
            return Err(Error::File { path: path.to_owned(), problem });
        }
        Ok(rows)
    }
}

const LAYOUTS: &[Layout] = &[
    Layout::text("tsv", tsv::parse, "a header and tab-separated cells, without quoting"),
    Layout::text("csv", csv::parse, "a header and comma-separated cells, quoted as in RFC 4180"),
    Layout::text("jsonl", jsonl::parse, "one JSON object a line"),
    Layout::text("json", json::parse, "an array of objects, or SQuAD's layout"),
    Layout::text("conll", conll::parse, "a word and its tag a line, an empty line between sentences"),
    Layout::text("conllu", conllu::parse, "CoNLL-U: words with their parts of speech"),
    Layout::text("txt", txt::parse, "plain text, a row for each paragraph"),
    Layout { extension: "parquet", holds: "typed columns", reader: Reader::File(parquet::parse) },
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
/// | `parquet` | columns of texts, numbers, lists and structs | the columns' names; `line` is the row's number |
///
/// # Errors
/// [`Error::NotFound`], [`Error::Io`]; [`Error::File`] if the layout is unknown, the text is not UTF-8, there is no header or
/// no row; [`Error::Data`] with file and line of the first ten rows that are bad.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    // The layout first: a wrong name is found before a large file is read.
    let layout = layout_of(path)?;
    let rows = match layout.reader {
        Reader::Text(parse) => parse_text(path, read_bytes(path, "a data file")?, parse)?,
        Reader::File(parse) => parse(path)?,
    };
    layout.some(path, rows)
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

fn parse_text(path: &Path, bytes: Vec<u8>, parse: fn(&Source<'_>) -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        Error::File { path: path.to_owned(), problem: format!("line {line} is not UTF-8 text: {}", error.utf8_error()) }
    })?;
    parse(&Source { file: Arc::from(path), text: text.strip_prefix('\u{feff}').unwrap_or(&text) })
}

/// The columns of a row from their names and texts.
fn text_fields<'a>(names: &[&str], cells: impl IntoIterator<Item = &'a str>) -> Map<String, Value> {
    names.iter().zip(cells).map(|(name, cell)| ((*name).to_owned(), Value::from(cell))).collect()
}

#[cfg(test)]
mod tests;
