//! Comma-separated values as in RFC 4180.

use ::csv::{ReaderBuilder, StringRecord};
use peft_core::{Error, Result, data::example::Row};

use super::{Source, header, text_fields};

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    // Rows of other lengths are accepted here, to be told of together below.
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source.text.as_bytes());
    let broken = |error: ::csv::Error| -> Error { source.broken(format!("not a table: {error}")) };
    let mut names = StringRecord::new();
    if !reader.read_record(&mut names).map_err(broken)? {
        return Err(source.broken("the file is empty: its first line should name the columns"));
    }
    let names: Vec<&str> = names.iter().collect();
    header::check(source, &names)?;
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    let mut record = StringRecord::new();
    let (mut start, mut line) = (byte(&reader), 1 + newlines(source, 0, byte(&reader)));
    while reader.read_record(&mut record).map_err(broken)? {
        let end = byte(&reader);
        let text = source.text.get(start..end).unwrap_or_default();
        // The reader skips empty lines before a record.
        let first = line + text.find(|c| c != '\n' && c != '\r').map_or(0, |at| lines_in(text, at));
        // Every quote inside a quoted cell is doubled, so that their number is even.
        if text.matches('"').count() % 2 == 1 {
            bad.push(first, "an odd number of quotes: one is never closed, or one inside a cell is not doubled");
        } else if record.len() != names.len() {
            bad.push(first, header::ragged(record.len(), &names));
        } else {
            rows.push(source.row(first, text_fields(&names, record.iter())));
        }
        line += newlines(source, start, end);
        start = end;
    }
    bad.or(rows)
}

fn byte<R: std::io::Read>(reader: &::csv::Reader<R>) -> usize {
    usize::try_from(reader.position().byte()).unwrap_or(usize::MAX)
}

fn newlines(source: &Source<'_>, start: usize, end: usize) -> usize {
    source.text.get(start..end).map_or(0, |text| lines_in(text, text.len()))
}

fn lines_in(text: &str, end: usize) -> usize {
    text.bytes().take(end).filter(|byte| *byte == b'\n').count()
}
