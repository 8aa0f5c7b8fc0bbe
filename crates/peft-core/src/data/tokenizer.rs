//! What a task needs of a tokenizer, so that tasks know none.

use std::fmt::Debug;

use crate::{
    Error, Result,
    data::chat::{Conversation, RenderedChat},
};

/// A text as token ids, with where each token came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// The segment of each token.
    pub type_ids: Vec<u32>,
    /// Start and end of each token in its text, in Unicode code points.
    pub offsets: Vec<(usize, usize)>,
    /// The word each token belongs to; none for special tokens.
    pub words: Vec<Option<usize>>,
    /// 0 for the first text, 1 for the second; none for special tokens.
    pub sequences: Vec<Option<usize>>,
    /// Whether the text was cut.
    pub truncated: bool,
}

impl Encoding {
    /// Moves the offsets by so many characters that stand before the text.
    pub fn shift(&mut self, characters: usize) {
        let of_text = self.offsets.iter_mut().zip(&self.sequences).filter(|(_, sequence)| sequence.is_some());
        for (offset, _) in of_text {
            *offset = (offset.0 + characters, offset.1 + characters);
        }
    }

    /// Leaves the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.truncated |= self.ids.len() > length;
        self.ids.truncate(length);
        self.type_ids.truncate(length);
        self.offsets.truncate(length);
        self.words.truncate(length);
        self.sequences.truncate(length);
    }
}

/// Text to token ids and back.
pub trait Tokenizer: Debug + Send + Sync {
    /// Encodes one text or a pair with the tokenizer's special tokens, cut to `max_length` tokens (the longer text first).
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding>;

    /// Encodes a text that is split into words already; `words` of the result index them.
    ///
    /// # Errors
    /// If the tokenizer fails on a word.
    fn encode_words(&self, words: &[String], max_length: usize) -> Result<Encoding>;

    /// Encodes a question and a context, cutting only the context into windows of at most `max_length` tokens which
    /// overlap by `stride` tokens.
    ///
    /// # Errors
    /// If the question alone fills a window.
    fn encode_windows(&self, question: &str, context: &str, max_length: usize, stride: usize) -> Result<Vec<Encoding>>;

    /// Encodes a text without special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    fn encode_plain(&self, text: &str) -> Result<Vec<u32>>;

    /// Token ids back to text, special tokens left out, and ids without a token, which vocabularies are filled up with.
    ///
    /// # Errors
    /// If the tokenizer fails on the ids.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// Token ids back to text, special tokens as they are written.
    ///
    /// # Errors
    /// If the tokenizer fails on the ids.
    fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.decode(ids)
    }

    /// The token that fills short rows.
    fn pad_id(&self) -> u32;

    /// The token that ends a text, if there is one.
    fn eos_id(&self) -> Option<u32>;

    /// The id of a token by its text.
    fn token_to_id(&self, token: &str) -> Option<u32>;

    /// Encodes a text that holds its special tokens already, such as a rendered conversation, cut to `max_length` tokens.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    fn encode_rendered(&self, text: &str, max_length: usize) -> Result<Encoding> {
        self.encode(text, None, max_length)
    }

    /// The text of a conversation in the words of the chat template.
    ///
    /// # Errors
    /// If there is no chat template, or it refuses the conversation.
    fn render_chat(&self, _conversation: &Conversation<'_>) -> Result<RenderedChat> {
        Err(Error::Data("the tokenizer has no chat template".to_owned()))
    }

    /// Whether there is a chat template.
    fn has_chat_template(&self) -> bool {
        false
    }

    /// Whether a token marks something, such as the end of a turn, rather than being text.
    fn is_special(&self, id: u32) -> bool {
        self.eos_id() == Some(id)
    }

    /// A token as the vocabulary writes it.
    fn id_to_token(&self, _id: u32) -> Option<String> {
        None
    }
}
