//! A row of any shape as two kinds: texts, or messages.

use peft_core::{
    Result,
    data::example::{EncodeContext, Row},
};
use serde_json::{Value, json};

use crate::{conversation::messages, shape::Shape};

/// What is read and what follows it.
pub(crate) enum Parts<'r> {
    /// Two texts, of which the first may be empty.
    Texts { prompt: String, completion: &'r str },
    /// A conversation, of which the first `prompt` messages are only read; none where the row does not say.
    Messages { messages: Vec<Value>, prompt: Option<usize> },
}

impl<'r> Parts<'r> {
    pub(crate) fn of(row: &'r Row, context: &EncodeContext<'_>) -> Result<Self> {
        let shape = Shape::of(row, context)?;
        let column = context.column(shape.role());
        match shape {
            Shape::Text => Ok(Self::Texts { prompt: String::new(), completion: row.text(column)? }),
            Shape::Messages | Shape::Conversations => {
                Ok(Self::Messages { messages: messages(row, column)?, prompt: None })
            }
            Shape::Prompt if row.fields.get(column).is_some_and(Value::is_array) => {
                let mut all = messages(row, column)?;
                let prompt = all.len();
                if context.labelled || context.optional("completion", row).is_some() {
                    all.extend(messages(row, context.column("completion"))?);
                }
                Ok(Self::Messages { messages: all, prompt: Some(prompt) })
            }
            Shape::Prompt => {
                let prompt = row.text(column)?.to_owned();
                Ok(Self::Texts { prompt, completion: answer(row, "completion", context)? })
            }
            Shape::Instruction => {
                let instruction = row.text(column)?;
                let output = answer(row, "output", context)?;
                let input = context.optional("input", row).map(|column| row.text(column)).transpose()?;
                let input = input.filter(|input| !input.is_empty());
                if context.tokenizer.has_chat_template() {
                    let asked =
                        input.map_or_else(|| instruction.to_owned(), |input| format!("{instruction}\n\n{input}"));
                    let mut all = vec![json!({ "role": "user", "content": asked })];
                    if context.labelled || !output.is_empty() {
                        all.push(json!({ "role": "assistant", "content": output }));
                    }
                    return Ok(Self::Messages { messages: all, prompt: Some(1) });
                }
                let input = input.map(|input| format!("### Input:\n{input}\n\n")).unwrap_or_default();
                let prompt = format!("### Instruction:\n{instruction}\n\n{input}### Response:\n");
                Ok(Self::Texts { prompt, completion: output })
            }
        }
    }
}

/// The text of a column that only labelled rows must have.
fn answer<'r>(row: &'r Row, role: &str, context: &EncodeContext<'_>) -> Result<&'r str> {
    let column = context.column(role);
    if context.labelled || row.fields.contains_key(column) { row.text(column) } else { Ok("") }
}
