//! Tokenizers as Hugging Face publishes them: `tokenizer.json`, with the special tokens' roles from the files beside it.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use peft_core::{
    Error, Result,
    chat::{Conversation, RenderedChat},
    files::read_text,
    tokenizer::{Encoding, Tokenizer},
};
use serde_json::{Map, Value};
use tokenizers::{
    EncodeInput, InputSequence, PostProcessor, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::{chat_template::ChatTemplate, gguf};

/// A Hugging Face tokenizer.
pub struct HfTokenizer {
    whole: tokenizers::Tokenizer,
    /// Cutting is a setting of a tokenizer, and copying one takes milliseconds: a run needs one or two of them.
    cutting: RwLock<HashMap<Cut, Arc<tokenizers::Tokenizer>>>,
    pad_id: u32,
    eos_id: Option<u32>,
    chat_template: Option<ChatTemplate>,
    /// The special tokens' texts by their roles: `bos_token`, `eos_token`, ….
    special_tokens: Map<String, Value>,
}

/// Roles of special tokens that chat templates may name.
const ROLES: &[&str] = &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// How texts are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cut {
    max_length: usize,
    /// Tokens that windows share; none where the rest is dropped.
    stride: Option<usize>,
}

impl fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HfTokenizer");
        debug.field("tokens", &self.whole.get_vocab_size(true)).field("pad_id", &self.pad_id);
        debug.field("eos_id", &self.eos_id).finish_non_exhaustive()
    }
}

impl HfTokenizer {
    /// Reads `tokenizer.json` of a model's folder, and the roles of special tokens from `tokenizer_config.json`,
    /// `special_tokens_map.json` and `config.json`; of a GGUF file what its metadata says.
    ///
    /// # Errors
    /// [`Error::NotFound`] without `tokenizer.json`; [`Error::File`] if one of the files is broken.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        if let Some(path) = gguf::file_of(folder)? {
            let documents = gguf::tokenizer::read(&gguf::GgufFile::open(&path)?)?;
            let whole = parsed(&path, &documents.tokenizer.to_string())?;
            let template = documents.config.get("chat_template").and_then(Value::as_str).map(str::to_owned);
            let template = |tokens| Ok(template.map(|source| ChatTemplate::new(&source, tokens)));
            return Self::new(&path, whole, &[documents.config], &Map::new(), template);
        }
        let path = folder.join("tokenizer.json");
        let text = read_text(&path, "a tokenizer in the format of the `tokenizers` library")?;
        let whole = parsed(&path, &text)?;
        let files = ["tokenizer_config.json", "special_tokens_map.json"];
        let roles = files.map(|name| optional_object(&folder.join(name))).into_iter().collect::<Result<Vec<_>>>()?;
        let config = optional_object(&folder.join("config.json"))?;
        let template = roles.first().and_then(|config| config.get("chat_template"));
        Self::new(&path, whole, &roles, &config, |tokens| ChatTemplate::of_folder(folder, template, tokens))
    }

    fn new(
        path: &Path,
        mut whole: tokenizers::Tokenizer,
        roles: &[Map<String, Value>],
        config: &Map<String, Value>,
        template: impl FnOnce(Map<String, Value>) -> Result<Option<ChatTemplate>>,
    ) -> Result<Self> {
        let broken = |problem: String| Error::File { path: path.to_owned(), problem };
        let padding = whole.get_padding().map(|padding| padding.pad_id);
        whole.with_padding(None);
        whole.with_truncation(None).map_err(|error| broken(error.to_string()))?;

        let text_of_role = |role: &str| {
            let content = |map: &Map<String, Value>| match map.get(role)? {
                Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_owned),
                token => token.as_str().map(str::to_owned),
            };
            roles.iter().find_map(content)
        };
        let by_role = |role: &str| text_of_role(role).and_then(|token| whole.token_to_id(&token));
        let by_id = |key: &str| {
            let value = config.get(key)?;
            let first = value.as_array().and_then(|ids| ids.first()).unwrap_or(value);
            first.as_u64().and_then(|id| u32::try_from(id).ok())
        };
        let eos_id = by_role("eos_token").or_else(|| by_id("eos_token_id"));
        let pad_id = by_role("pad_token").or_else(|| by_id("pad_token_id")).or(padding).or(eos_id).unwrap_or(0);
        let texts = ROLES.iter().filter_map(|role| Some(((*role).to_owned(), text_of_role(role)?.into())));
        let special_tokens: Map<String, Value> = texts.collect();
        let chat_template = template(special_tokens.clone())?;
        Ok(Self { whole, cutting: RwLock::default(), pad_id, eos_id, chat_template, special_tokens })
    }

    /// The same tokenizer with another chat template, such as one that a checkpoint's metadata holds.
    #[must_use]
    pub fn with_chat_template(self, source: &str) -> Self {
        let chat_template = Some(ChatTemplate::new(source, self.special_tokens.clone()));
        Self { chat_template, ..self }
    }

    /// The tokenizer that cuts in this way, made at the first call.
    fn cutting(&self, cut: Cut) -> Result<Arc<tokenizers::Tokenizer>> {
        if let Some(known) = self.cutting.read().unwrap_or_else(PoisonError::into_inner).get(&cut) {
            return Ok(Arc::clone(known));
        }
        let mut tokenizer = self.whole.clone();
        let params = TruncationParams {
            max_length: cut.max_length,
            stride: cut.stride.unwrap_or(0),
            strategy: if cut.stride.is_some() {
                TruncationStrategy::OnlySecond
            } else {
                TruncationStrategy::LongestFirst
            },
            direction: TruncationDirection::Right,
        };
        tokenizer.with_truncation(Some(params)).map_err(failed)?;
        let tokenizer = Arc::new(tokenizer);
        self.cutting.write().unwrap_or_else(PoisonError::into_inner).insert(cut, Arc::clone(&tokenizer));
        Ok(tokenizer)
    }

    /// How many special tokens it adds to one text or a pair.
    fn specials(&self, is_pair: bool) -> usize {
        self.whole.get_post_processor().map_or(0, |processor| processor.added_tokens(is_pair))
    }

    fn encode_cut(&self, input: EncodeInput<'_>, max_length: usize) -> Result<Encoding> {
        let specials = self.specials(matches!(input, EncodeInput::Dual(..)));
        if max_length <= specials {
            let problem = format!("max_length {max_length} leaves no room for text beside {specials} special tokens");
            return Err(Error::Data(problem));
        }
        let tokenizer = self.cutting(Cut { max_length, stride: None })?;
        let encoding = tokenizer.encode_char_offsets(input, true).map_err(failed)?;
        Ok(converted(&encoding, !encoding.get_overflowing().is_empty()))
    }
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding> {
        let input = match pair {
            Some(pair) => (text, pair).into(),
            None => text.into(),
        };
        self.encode_cut(input, max_length)
    }

    fn encode_words(&self, words: &[String], max_length: usize) -> Result<Encoding> {
        self.encode_cut(EncodeInput::Single(InputSequence::from(words)), max_length)
    }

    fn encode_windows(&self, question: &str, context: &str, max_length: usize, stride: usize) -> Result<Vec<Encoding>> {
        let asked = self.whole.encode_fast(question, false).map_err(failed)?.len();
        let room = max_length.saturating_sub(self.specials(true) + asked);
        if room <= stride {
            // No window could move on, which matters only if there is more than one.
            let encoding = self.whole.encode_char_offsets((question, context), true).map_err(failed)?;
            if encoding.len() <= max_length {
                return Ok(vec![converted(&encoding, false)]);
            }
            return Err(Error::Data(format!(
                "a question of {asked} tokens leaves {room} of max_length {max_length} for the context, which must be more \
                 than the doc_stride of {stride}: {question:?}"
            )));
        }
        let tokenizer = self.cutting(Cut { max_length, stride: Some(stride) })?;
        let first = tokenizer.encode_char_offsets((question, context), true).map_err(failed)?;
        let is_cut = !first.get_overflowing().is_empty();
        Ok(std::iter::once(&first).chain(first.get_overflowing()).map(|window| converted(window, is_cut)).collect())
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.whole.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.whole.decode(ids, true).map_err(failed)
    }

    fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.whole.decode(ids, false).map_err(failed)
    }

    fn pad_id(&self) -> u32 {
        self.pad_id
    }

    fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.whole.token_to_id(token)
    }

    fn encode_rendered(&self, text: &str, max_length: usize) -> Result<Encoding> {
        let mut encoding = converted(&self.whole.encode_char_offsets(text, false).map_err(failed)?, false);
        encoding.truncate(max_length);
        Ok(encoding)
    }

    fn render_chat(&self, conversation: &Conversation<'_>) -> Result<RenderedChat> {
        match &self.chat_template {
            Some(template) => template.render(conversation),
            None => Err(Error::Data(
                "the tokenizer has no chat template: put a `chat_template.jinja` beside its tokenizer.json".to_owned(),
            )),
        }
    }

    fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    fn is_special(&self, id: u32) -> bool {
        self.eos_id == Some(id) || self.whole.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.whole.id_to_token(id)
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Data(format!("the tokenizer failed: {error}"))
}

fn parsed(path: &Path, text: &str) -> Result<tokenizers::Tokenizer> {
    let broken = |error| Error::File { path: path.to_owned(), problem: format!("no tokenizer: {error}") };
    text.parse().map_err(broken)
}

fn converted(encoding: &tokenizers::Encoding, truncated: bool) -> Encoding {
    let word = |word: &Option<u32>| word.and_then(|word| usize::try_from(word).ok());
    Encoding {
        ids: encoding.get_ids().to_vec(),
        type_ids: encoding.get_type_ids().to_vec(),
        offsets: encoding.get_offsets().to_vec(),
        words: encoding.get_word_ids().iter().map(word).collect(),
        sequences: encoding.get_sequence_ids(),
        truncated,
    }
}

/// The JSON object in a file; an empty one if there is no such file.
fn optional_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = read_text(path, "a tokenizer file")?;
    serde_json::from_str(&text)
        .map_err(|e| Error::File { path: path.to_owned(), problem: format!("not a JSON object: {e}") })
}
