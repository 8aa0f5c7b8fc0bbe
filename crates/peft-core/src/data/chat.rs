//! Conversations, and the text that a tokenizer's chat template makes of them.

use std::ops::Range;

use serde_json::Value;

/// A conversation to be rendered.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// Objects with `role` and `content`, and whatever else the template reads.
    pub messages: &'a [Value],
    /// What the assistant may call, as the template expects it.
    pub tools: Option<&'a Value>,
    /// Whether the text ends with the beginning of an assistant's turn.
    pub add_generation_prompt: bool,
}

/// The text of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// The text, special tokens included.
    pub text: String,
    /// What the template's `{% generation %}` blocks wrote, in code points; none if the template has no such block.
    pub generated: Option<Vec<Range<usize>>>,
}
