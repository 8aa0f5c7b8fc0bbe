//! The first line of a table: the columns' names.

use std::collections::HashSet;

use peft_core::Result;

use super::Source;

/// Judges the names of columns: each there, and once. Only the first may be missing, beside others: pandas writes the index of a
/// table so unless it is told `index=False`.
pub(super) fn check(source: &Source<'_>, names: &[&str]) -> Result<()> {
    let mut seen = HashSet::new();
    for (column, name) in (1..).zip(names) {
        if name.is_empty() && column == 1 && names.len() > 1 {
            continue;
        }
        if name.is_empty() {
            return Err(source.broken(format!("the header has no name for column {column}: {names:?}")));
        }
        if !seen.insert(name) {
            return Err(source.broken(format!("the header has column `{name}` twice")));
        }
    }
    Ok(())
}

/// What to say of a header that is one column with separators of another format in it.
pub(crate) fn other_separator(names: &[&str]) -> Option<String> {
    let [name] = names else { return None };
    let separators = [(';', "semicolons"), ('\t', "tabs"), (',', "commas"), ('|', "bars")];
    let (_, found) = separators.into_iter().find(|(separator, _)| name.contains(*separator))?;
    Some(format!("its columns seem to be separated by {found}: a .csv file has commas, a .tsv file tabs"))
}

/// What is wrong with a row that has not as many cells as the header.
pub(super) fn ragged(cells: usize, names: &[&str]) -> String {
    let s = if cells == 1 { "" } else { "s" };
    let hint = other_separator(names).map(|separator| format!("; {separator}")).unwrap_or_default();
    format!("{cells} cell{s}, but the header has {} ({}){hint}", names.len(), names.join(", "))
}
