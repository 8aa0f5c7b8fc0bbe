//! What a row asks to be written: the completion of a prompt, or the last answer of a conversation.

use peft_core::{
    Result,
    data::example::{EncodeContext, Row},
    plugins::task::GenerationPrompt,
};
use serde_json::Value;

use crate::{
    conversation::{Chat, tools},
    parts::Parts,
    shape::Shape,
};

/// The prompt and what is wanted; none for a row that is a whole text, or a conversation without an answer to be compared.
pub(crate) fn asked(row: &Row, context: &EncodeContext<'_>) -> Result<Option<GenerationPrompt>> {
    if Shape::of(row, context)? == Shape::Text {
        return Ok(None);
    }
    let most = context.options.max_length;
    let (encoding, wanted) = match Parts::of(row, context)? {
        Parts::Texts { prompt, completion } => {
            let mut encoding = context.tokenizer.encode(&prompt, None, most)?;
            // What closes a text would close the prompt before anything is written.
            if let Some(last) = encoding.sequences.iter().rposition(Option::is_some) {
                let truncated = encoding.truncated;
                encoding.truncate(last + 1);
                encoding.truncated = truncated;
            }
            (encoding, context.labelled.then(|| completion.to_owned()))
        }
        Parts::Messages { messages, prompt } => {
            let is_answer = |message: &Value| message.get("role").and_then(Value::as_str) == Some("assistant");
            let is_answered = messages.last().is_some_and(is_answer);
            let count = prompt.unwrap_or(messages.len() - usize::from(is_answered));
            let wanted = messages.get(count).and_then(|answer| answer.get("content")).and_then(Value::as_str);
            if count == 0 || context.labelled && wanted.is_none() {
                return Ok(None);
            }
            let tools = tools(row, context)?;
            let chat = Chat { row, context, messages: &messages, tools: tools.as_ref() };
            let encoding = context.tokenizer.encode_rendered(&chat.render(count, true)?.text, most)?;
            (encoding, wanted.filter(|_| context.labelled).map(str::to_owned))
        }
    };
    let example = context.example(row, &encoding)?;
    Ok(example.map(|example| GenerationPrompt { prompt: example.input_ids, reference: wanted }))
}
