//! Whether a file has the columns that its task needs, said once for the file: which are missing, which there are, and how to
//! name the one that is meant.

use std::collections::{BTreeMap, BTreeSet};

use peft_core::{Error, Result, Task, data::example::Row, error::nearest};

use crate::data::other_separator;

/// What columns are called in published data sets and by other programs, by the role that they play here.
const ELSEWHERE: &[(&str, &[&str])] = &[
    (
        "label",
        &["labels", "class", "category", "target", "sentiment", "intent", "topic", "stars", "rating", "score", "y"],
    ),
    (
        "text",
        &[
            "sentence",
            "sentence1",
            "text1",
            "review",
            "content",
            "body",
            "comment",
            "tweet",
            "document",
            "premise",
            "question1",
            "utterance",
            "title",
            "input",
            "query",
        ],
    ),
    ("text_pair", &["sentence2", "text2", "hypothesis", "question2", "text_b", "pair"]),
    ("score", &["similarity", "similarity_score", "label", "labels"]),
    ("tokens", &["words", "token", "forms", "sentence"]),
    ("tags", &["ner_tags", "ner", "labels", "label", "pos_tags", "upos", "chunk_tags", "tag", "xpos"]),
    ("question", &["query", "questions"]),
    ("context", &["passage", "paragraph", "document", "text"]),
    ("answers", &["answer"]),
    ("target", &["summary", "highlights", "translation", "output", "tgt", "targets", "answer", "labels", "completion"]),
    ("source", &["document", "article", "input", "src", "dialogue", "inputs", "prompt"]),
    ("prompt", &["question", "query", "problem", "user"]),
    ("completion", &["response", "answer", "chosen", "assistant", "output", "target", "solution"]),
    ("messages", &["conversation", "dialog", "dialogue", "chat"]),
    ("output", &["response", "answer"]),
];

/// Most columns that a message lists.
const LISTED: usize = 30;

/// Judges each file of the rows: the roles of `columns` and those that the task needs must be there, in one row at least. A row
/// that lacks what others have is for the task to tell of.
///
/// # Errors
/// [`Error::File`] with the missing columns, those that there are, and what to write.
pub(crate) fn check(rows: &[Row], task: &dyn Task, columns: &BTreeMap<String, String>, labelled: bool) -> Result<()> {
    for rows in rows.chunk_by(|a, b| a.file == b.file) {
        let there: BTreeSet<&str> = rows.iter().flat_map(|row| row.fields.keys().map(String::as_str)).collect();
        let named = |role: &'static str| columns.get(role).map_or(role, String::as_str);
        let mut missing: Vec<(&str, &str)> = Vec::new();
        for column in task.columns().iter().filter(|column| labelled || !column.learnt) {
            let needed = column.required || columns.contains_key(column.role);
            if needed && !there.contains(named(column.role)) {
                missing.push((column.role, named(column.role)));
            }
        }
        let one_of = task.alternatives();
        let has_one = one_of.iter().any(|role| there.contains(named(role)) || columns.contains_key(*role));
        let (Some(first), false) = (rows.first(), missing.is_empty() && (one_of.is_empty() || has_one)) else {
            continue;
        };
        let mut problems: Vec<String> = missing.iter().map(|(_, name)| format!("no column `{name}`")).collect();
        if !one_of.is_empty() && !has_one {
            let names: Vec<String> = one_of.iter().map(|role| format!("`{}`", named(role))).collect();
            problems.push(format!("no column {}", names.join(" or ")));
            missing.extend(
                one_of
                    .iter()
                    .map(|role| (*role, named(role)))
                    .filter(|(role, name)| meant(role, name, &there).is_some())
                    .take(1),
            );
        }
        let names: Vec<&str> = there.iter().copied().collect();
        let cure = other_separator(&names).unwrap_or_else(|| cure(&missing, &there));
        let problem = format!("{} (columns: {}); {cure}", problems.join(", "), listed(&there));
        return Err(Error::File { path: first.file.to_path_buf(), problem });
    }
    Ok(())
}

/// Judges that one row at least has a column, which `key` names.
///
/// # Errors
/// As [`check`].
pub(crate) fn has(rows: &[Row], column: &str, key: &str) -> Result<()> {
    let there: BTreeSet<&str> = rows.iter().flat_map(|row| row.fields.keys().map(String::as_str)).collect();
    let (Some(first), false) = (rows.first(), there.contains(column)) else { return Ok(()) };
    let near = nearest(column, there.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
    let hint = near.unwrap_or_else(|| format!("; name it by {key}"));
    let problem = format!("no column `{column}` (columns: {}){hint}", listed(&there));
    Err(Error::File { path: first.file.to_path_buf(), problem })
}

fn listed(there: &BTreeSet<&str>) -> String {
    // Spaces around a name are seen by nobody.
    let name = |name: &&str| if name.trim() == *name { (*name).to_owned() } else { format!("{name:?}") };
    let shown = there.iter().take(LISTED).map(name).collect::<Vec<_>>().join(", ");
    if there.len() > LISTED { format!("{shown}, … {} in all", there.len()) } else { shown }
}

/// How to name the columns that are meant.
fn cure(missing: &[(&str, &str)], there: &BTreeSet<&str>) -> String {
    let mut free = there.clone();
    let mut written = Vec::with_capacity(missing.len());
    for (role, name) in missing {
        let column = meant(role, name, &free);
        written.extend(column.map(|column| (*role, column)));
        if let Some(column) = column {
            free.remove(column);
        }
    }
    match written.first() {
        Some((role, column)) => {
            let keys: Vec<String> = written.iter().map(|(role, column)| format!("{role} = \"{column}\"")).collect();
            let argument = format!("{role}={column}");
            let argument = if argument.contains(char::is_whitespace) { format!("{argument:?}") } else { argument };
            format!("write {} in [data] of the recipe, or --column {argument} on the command line", keys.join(" and "))
        }
        None => {
            let role = missing.first().map_or("text", |(role, _)| role);
            format!(
                "name the column that is meant: {role} = \"NAME\" in [data] of the recipe, or --column {role}=NAME on the command line"
            )
        }
    }
}

/// The column that probably plays a role: one of nearly that name, else one that other programs call so.
fn meant<'a>(role: &str, name: &str, there: &BTreeSet<&'a str>) -> Option<&'a str> {
    let known = || ELSEWHERE.iter().filter(|(of, _)| *of == role).flat_map(|(_, names)| names.iter());
    let elsewhere =
        || known().find_map(|known| there.iter().find(|column| column.eq_ignore_ascii_case(known)).copied());
    nearest(name, there.iter().copied()).or_else(elsewhere)
}
