//! Plain text: a row for each paragraph; line ends inside a paragraph are kept.

use peft_core::{Result, data::example::Row};

use super::{Source, text_fields};

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    let lines: Vec<(usize, &str)> = source.lines().collect();
    let paragraphs = lines.chunk_by(|(_, a), (_, b)| a.trim().is_empty() == b.trim().is_empty());
    let rows = paragraphs.filter_map(|paragraph| {
        let (line, first) = paragraph.first()?;
        let text = paragraph.iter().map(|(_, text)| *text).collect::<Vec<_>>().join("\n");
        (!first.trim().is_empty()).then(|| source.row(*line, text_fields(&["text"], [text.as_str()])))
    });
    Ok(rows.collect())
}
