//! One JSON document: an array of objects, or the layout of SQuAD.

use peft_core::{Result, data::example::Row};
use serde_json::{Map, Value};

use super::Source;

pub(super) fn parse(source: &Source<'_>) -> Result<Vec<Row>> {
    let document =
        serde_json::from_str(source.text).map_err(|error| source.broken(format!("not valid JSON: {error}")))?;
    match document {
        Value::Array(objects) => array(source, objects),
        Value::Object(mut squad) if squad.get("data").is_some_and(Value::is_array) => match squad.remove("data") {
            Some(Value::Array(articles)) => squad_rows(source, &articles),
            _ => Ok(Vec::new()),
        },
        other => Err(source.broken(format!(
            "the document should be an array of objects, or SQuAD's object with `data`; found {}",
            kind(&other)
        ))),
    }
}

/// What a JSON value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn array(source: &Source<'_>, objects: Vec<Value>) -> Result<Vec<Row>> {
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    for (number, object) in (1..).zip(objects) {
        match object {
            Value::Object(fields) => rows.push(source.row(number, fields)),
            other => bad.push(number, format!("the array should hold objects, found {}", kind(&other))),
        }
    }
    bad.or(rows)
}

/// A row for each question: `data[].paragraphs[].qas[]`.
fn squad_rows(source: &Source<'_>, articles: &[Value]) -> Result<Vec<Row>> {
    let (mut rows, mut bad) = (Vec::new(), source.bad_rows());
    let mut number = 0;
    for (article_idx, article) in articles.iter().enumerate() {
        let Some(paragraphs) = list(article, "paragraphs") else {
            bad.push(number + 1, format!("data[{article_idx}] has no list `paragraphs`"));
            continue;
        };
        for (paragraph_idx, paragraph) in paragraphs.iter().enumerate() {
            let place = format!("data[{article_idx}].paragraphs[{paragraph_idx}]");
            let (Some(Value::String(context)), Some(questions)) = (paragraph.get("context"), list(paragraph, "qas"))
            else {
                bad.push(number + 1, format!("{place} should have the text `context` and the list `qas`"));
                continue;
            };
            for (question_idx, question) in questions.iter().enumerate() {
                number += 1;
                match squad_row(article, context, question) {
                    Ok(fields) => rows.push(source.row(number, fields)),
                    Err(problem) => bad.push(number, format!("{place}.qas[{question_idx}] {problem}")),
                }
            }
        }
    }
    bad.or(rows)
}

fn squad_row(
    article: &Value,
    context: &str,
    question: &Value,
) -> std::result::Result<Map<String, Value>, &'static str> {
    let Some(text @ Value::String(_)) = question.get("question") else { return Err("has no text `question`") };
    let mut fields = Map::new();
    fields.insert("question".to_owned(), text.clone());
    fields.insert("context".to_owned(), context.into());
    // Questions without answers are those to be answered, and the unanswerable ones of SQuAD 2.
    match question.get("answers") {
        Some(answers @ Value::Array(_)) => fields.insert("answers".to_owned(), answers.clone()),
        Some(_) => return Err("should have a list `answers`"),
        None => None,
    };
    let (id, is_impossible) = (question.get("id"), question.get("is_impossible"));
    for (key, value) in [("id", id), ("title", article.get("title")), ("is_impossible", is_impossible)] {
        fields.extend(value.map(|value| (key.to_owned(), value.clone())));
    }
    Ok(fields)
}

fn list<'a>(value: &'a Value, key: &str) -> Option<&'a [Value]> {
    value.get(key)?.as_array().map(Vec::as_slice)
}
