//! Conversations: their messages in one form, and which parts of the rendered text are learnt.

use std::ops::Range;

use peft_core::{
    Result,
    data::{
        chat::{Conversation, RenderedChat},
        example::{EncodeContext, Row},
    },
};
use serde_json::{Map, Value};

/// The messages of a column, objects with `role` and `content`; ShareGPT's `from` and `value` become these.
pub(crate) fn messages(row: &Row, column: &str) -> Result<Vec<Value>> {
    let value = row.fields.get(column).ok_or_else(|| row.missing(column))?;
    let Value::Array(list) = value else {
        return Err(row.error(format!("column `{column}` should be a list of messages, found {}", short(value))));
    };
    if list.is_empty() {
        return Err(row.error(format!("column `{column}` has no message")));
    }
    list.iter().enumerate().map(|(at, one)| message(row, &format!("{column}[{at}]"), one)).collect()
}

fn message(row: &Row, place: &str, value: &Value) -> Result<Value> {
    let unfit = || {
        row.error(format!("`{place}` should have `role` and `content`, or `from` and `value`, found {}", short(value)))
    };
    let fields = value.as_object().ok_or_else(unfit)?;
    if fields.get("role").is_some_and(Value::is_string) {
        return Ok(value.clone());
    }
    let (Some(Value::String(from)), Some(said)) = (fields.get("from"), fields.get("value")) else {
        return Err(unfit());
    };
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "model" => "assistant",
        "system" => "system",
        "tool" | "function" | "function_response" | "observation" => "tool",
        other => {
            let problem = format!("`{place}` is from `{other}`; known are human, gpt, system and tool");
            return Err(row.error(problem));
        }
    };
    let fields = [("role".to_owned(), role.into()), ("content".to_owned(), said.clone())];
    Ok(Value::Object(Map::from_iter(fields)))
}

fn short(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    if text.chars().count() > SHOWN { text.chars().take(SHOWN).chain("…".chars()).collect() } else { text }
}

/// What the assistant may call in a row: a list, or its JSON as text.
pub(crate) fn tools(row: &Row, context: &EncodeContext<'_>) -> Result<Option<Value>> {
    let Some(column) = context.optional("tools", row) else { return Ok(None) };
    match row.fields.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|error| row.error(format!("column `{column}` should hold a list of tools: {error}"))),
        Some(list) => Ok(Some(list.clone())),
    }
}

/// A conversation with what renders it.
pub(crate) struct Chat<'a> {
    pub(crate) row: &'a Row,
    pub(crate) context: &'a EncodeContext<'a>,
    pub(crate) messages: &'a [Value],
    pub(crate) tools: Option<&'a Value>,
}

impl Chat<'_> {
    /// The text of the first `count` messages.
    pub(crate) fn render(&self, count: usize, add_generation_prompt: bool) -> Result<RenderedChat> {
        let messages = self.messages.get(..count).unwrap_or(self.messages);
        let conversation = Conversation { messages, tools: self.tools, add_generation_prompt };
        self.context.tokenizer.render_chat(&conversation).map_err(|error| self.row.error(error))
    }

    /// What follows the first `count` messages and the beginning of the assistant's turn, in code points.
    pub(crate) fn after(&self, count: usize, whole: &str) -> Result<Range<usize>> {
        let prompt = self.render(count, true)?.text;
        if !whole.starts_with(&prompt) {
            return Err(self.unstable(count));
        }
        Ok(prompt.chars().count()..whole.chars().count())
    }

    /// The assistant's turns in the text of the whole conversation, in code points: what the template's generation blocks
    /// wrote, or, where it has none, what each turn adds to the text before it.
    pub(crate) fn assistant(&self, whole: &RenderedChat) -> Result<Vec<Range<usize>>> {
        if let Some(generated) = &whole.generated {
            return Ok(generated.clone());
        }
        let mut turns = Vec::new();
        for (at, message) in self.messages.iter().enumerate() {
            if message.get("role").and_then(Value::as_str) != Some("assistant") {
                continue;
            }
            let upto = self.render(at + 1, false)?.text;
            if !whole.text.starts_with(&upto) {
                return Err(self.unstable(at + 1));
            }
            turns.push(self.after(at, &upto)?);
        }
        Ok(turns)
    }

    fn unstable(&self, count: usize) -> peft_core::Error {
        self.row.error(format!(
            "which tokens are the assistant's cannot be told: the chat template has no {{% generation %}} block, and its text \
             of the first {count} messages is not the beginning of its text of all; put {{% generation %}} and \
             {{% endgeneration %}} around what the assistant says"
        ))
    }
}
