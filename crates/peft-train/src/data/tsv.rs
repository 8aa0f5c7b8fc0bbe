//! Tab-separated values: a tab always ends a cell, a quote is a quote.

use peft_core::{Result, data::example::Row};

use super::{Source, header, text_fields};

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    let text = source.text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(source.broken("the file is empty: its first line should name the columns"));
    }
    let mut lines = (1..).zip(text.lines());
    let names: Vec<&str> = lines.next().map(|(_, header)| header.split('\t').collect()).unwrap_or_default();
    header::check(source, &names)?;
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    for (line, text) in lines {
        let cells = text.split('\t').count();
        if cells == names.len() {
            rows.push(source.row(line, text_fields(&names, text.split('\t'))));
        } else {
            bad.push(line, header::ragged(cells, &names));
        }
    }
    bad.or(rows)
}
