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
#[cfg_attr(not(feature = "parquet"), path = "data/without_parquet.rs")]
mod parquet;
mod tsv;
mod txt;

use std::{io::Read, path::Path, sync::Arc};

use peft_core::{
    Error, Result,
    data::example::Row,
    error::nearest,
    files::{read_bytes, text_of},
};
use serde_json::{Map, Value};

use bad_rows::BadRows;
pub use folder::{Part, has_part, read_part};
pub(crate) use header::other_separator;

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

/// The formats that [`read_stream`] knows: the extensions of text files.
pub fn stream_formats() -> impl Iterator<Item = &'static str> {
    LAYOUTS.iter().filter(|layout| matches!(layout.reader, Reader::Text(_))).map(|layout| layout.extension)
}

/// Reads rows from a stream in one of the [`stream_formats`], JSON Lines if none is given; `name` is what messages call it.
///
/// # Errors
/// As [`read_rows`], and for a format that is unknown.
pub fn read_stream(mut stream: impl Read, name: &str, format: Option<&str>) -> Result<Vec<Row>> {
    let path = Path::new(name);
    let error = |problem: String| Error::File { path: path.to_owned(), problem };
    let layout = LAYOUTS.iter().find(|layout| layout.extension == format.unwrap_or("jsonl"));
    let Some((layout, Reader::Text(parse))) = layout.map(|layout| (layout, &layout.reader)) else {
        let known = stream_formats().collect::<Vec<_>>().join(", ");
        return Err(error(format!("unknown format `{}`; supported are {known}", format.unwrap_or_default())));
    };
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|source| Error::Io { path: path.to_owned(), action: "read", source })?;
    let first = bytes.iter().copied().find(|byte| byte.is_ascii_graphic());
    if format.is_none() && first.is_some_and(|first| first != b'{') {
        let problem = "is not JSON Lines, one object a line; name its format, such as --format csv or --format tsv";
        return Err(error(problem.to_owned()));
    }
    layout.some(path, parse_text(path, bytes, *parse)?)
}

/// Whether a file's extension is that of data.
pub(crate) fn is_data_file(path: &Path) -> bool {
    layout_of(path).is_ok()
}

/// What the reader of a file of plain text should know: that its rows are paragraphs, where one has several lines.
pub fn note_on_paragraphs(rows: &[Row]) -> Option<String> {
    let is_text = |row: &Row| row.file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
    let lines = |row: &Row| row.text("text").map_or(1, |text| text.lines().count());
    let first = rows.iter().find(|row| is_text(row) && lines(row) > 1)?;
    let of_file = || rows.iter().filter(|row| row.file == first.file);
    let (count, lines) = (of_file().count(), of_file().map(lines).sum::<usize>());
    let s = if count == 1 { "" } else { "s" };
    Some(format!(
        "{}: {lines} lines are {count} row{s}: a row of a .txt file is a paragraph; put an empty line between the rows, or write \
         a .tsv or .csv file with a header",
        first.file.display()
    ))
}

fn layout_of(path: &Path) -> Result<&'static Layout> {
    if path == Path::new("-") {
        let problem = "standard input can be read once, and these rows are needed by name: write them to a file";
        return Err(Error::File { path: path.to_owned(), problem: problem.to_owned() });
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    LAYOUTS.iter().find(|layout| layout.extension == extension).ok_or_else(|| {
        let near = nearest(&extension, LAYOUTS.iter().map(|layout| layout.extension));
        let hint = near.map(|near| format!(" (did you mean `.{near}`?)")).unwrap_or_default();
        let known: Vec<_> = LAYOUTS.iter().map(|layout| format!(".{}: {}", layout.extension, layout.holds)).collect();
        let found = if extension.is_empty() { "no extension".to_owned() } else { format!("extension `.{extension}`") };
        Error::File {
            path: path.to_owned(),
            problem: format!(
                "cannot tell the format of the data: {found}{hint}; supported are\n  {}",
                known.join("\n  ")
            ),
        }
    })
}

fn parse_text(path: &Path, bytes: Vec<u8>, parse: fn(&Source<'_>) -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    parse(&Source { file: Arc::from(path), text: &text_of(path, bytes)? })
}

/// The columns of a row from their names and texts; a column without a name is left out.
fn text_fields<'a>(names: &[&str], cells: impl IntoIterator<Item = &'a str>) -> Map<String, Value> {
    names
        .iter()
        .zip(cells)
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, cell)| ((*name).to_owned(), Value::from(cell)))
        .collect()
}

#[cfg(test)]
mod tests;
