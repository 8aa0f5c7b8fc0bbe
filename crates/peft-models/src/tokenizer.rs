//! Tokenizers as Hugging Face publishes them: `tokenizer.json` or a vocabulary, with the settings in the files beside it.
//!
//! What a folder's files make is what `AutoTokenizer` of Transformers makes of them: the settings' class gives the parts,
//! then tokens are added, then the special tokens at the ends.

mod class;
mod judged;
mod parts;
mod sentencepiece;
mod settings;
mod shortened;
mod vocabulary;

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use peft_core::{
    Error, Result,
    data::{
        chat::{Conversation, RenderedChat},
        tokenizer::{Encoding, Tokenizer},
    },
    files::read_text,
};
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, EncodeInput, InputSequence, ModelWrapper, PostProcessor, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use crate::{chat_template::ChatTemplate, gguf};
use class::Class;
use judged::{guarded, parsed};
use settings::{Settings, TOKENIZER_CONFIG, id_of_role};
use shortened::{end_of, first_room, first_word, has_places, start_of};
use vocabulary::Made;

/// A Hugging Face tokenizer.
pub struct HfTokenizer {
    /// The file that it was made from, for messages.
    path: PathBuf,
    whole: tokenizers::Tokenizer,
    /// Which end of a text is cut.
    cut_side: TruncationDirection,
    /// Whether long texts may be cut before they are tokenized, found out at the first.
    has_places: OnceLock<bool>,
    /// Cutting is a setting of a tokenizer, and copying one takes milliseconds: a run needs one or two of them.
    cutting: RwLock<HashMap<Cut, Arc<tokenizers::Tokenizer>>>,
    pad_id: u32,
    eos_id: Option<u32>,
    /// Whether decoded texts lose the spaces before punctuation.
    cleans_up: bool,
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
    /// Reads `tokenizer.json` of a model's folder, or makes the tokenizer from a vocabulary there, with the settings in
    /// `tokenizer_config.json` and the files beside it; of a GGUF file what its metadata says.
    ///
    /// # Errors
    /// [`Error::NotFound`] without `tokenizer.json` and without a vocabulary; [`Error::File`] if one of the files is broken.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        if let Some(path) = gguf::file_of(folder)? {
            let documents = gguf::tokenizer::read(&gguf::GgufFile::open(&path)?)?;
            let whole = parsed(&path, &documents.tokenizer.to_string())?;
            let template = documents.config.get("chat_template").and_then(Value::as_str).map(str::to_owned);
            let template = |tokens| Ok(template.map(|source| ChatTemplate::new(&source, tokens)));
            let settings = Settings { config: documents.config, ..Settings::default() };
            return Self::new(path, whole, Class::Plain, &settings, template);
        }
        let settings = Settings::of_folder(folder)?;
        let template = settings.config.get("chat_template").cloned();
        let (path, whole, class, settings) = opened(folder, settings)?;
        Self::new(path, whole, class, &settings, |tokens| ChatTemplate::of_folder(folder, template.as_ref(), tokens))
    }

    fn new(
        path: PathBuf,
        mut whole: tokenizers::Tokenizer,
        class: Class,
        settings: &Settings,
        template: impl FnOnce(Map<String, Value>) -> Result<Option<ChatTemplate>>,
    ) -> Result<Self> {
        let broken = |problem: String| Error::File { path: path.clone(), problem };
        let padding = whole.get_padding().map(|padding| padding.pad_id);
        let of_file = whole.get_truncation().map_or(TruncationDirection::Right, |truncation| truncation.direction);
        let cut_side = match settings.text("truncation_side") {
            None => of_file,
            Some("left") => TruncationDirection::Left,
            Some("right") => TruncationDirection::Right,
            Some(other) => {
                let problem = format!("`truncation_side`: should be left or right, found {other}");
                return Err(Error::File { path: path.with_file_name(TOKENIZER_CONFIG), problem });
            }
        };
        whole.with_padding(None);
        whole.with_truncation(None).map_err(|error| broken(error.to_string()))?;
        whole.set_encode_special_tokens(settings.flag("split_special_tokens").unwrap_or(false));

        let text_of_role = |role: &str| {
            let token = if settings.names_role(role) { settings.role(role) } else { class.default_role(role) };
            token.map(|token| token.content).filter(|token| whole.token_to_id(token).is_some())
        };
        let by_role = |role: &str| text_of_role(role).and_then(|token| whole.token_to_id(&token));
        let by_id = |key: &str| id_of_role(&settings.model, key);
        // A token that was added for its role alone may be none of the model's.
        let words = settings.model.get("vocab_size").and_then(Value::as_u64);
        let has_word = |id: &u32| words.is_none_or(|words| u64::from(*id) < words);
        let eos_id = by_role("eos_token").filter(has_word).or_else(|| by_id("eos_token_id"));
        let pad_id =
            by_role("pad_token").filter(has_word).or_else(|| by_id("pad_token_id")).or(padding).or(eos_id).unwrap_or(0);
        let texts = ROLES.iter().filter_map(|role| Some(((*role).to_owned(), text_of_role(role)?.into())));
        let special_tokens: Map<String, Value> = texts.collect();
        let chat_template = template(special_tokens.clone())?;
        // Byte pairs have spaces of their own.
        let is_bpe = matches!(whole.get_model(), ModelWrapper::BPE(_));
        let forced = settings.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output");
        let cleans_up =
            settings.flag("clean_up_tokenization_spaces").unwrap_or(false) && (!is_bpe || forced.unwrap_or(false));
        let (cutting, has_places) = (RwLock::default(), OnceLock::new());
        Ok(Self {
            path,
            whole,
            cut_side,
            has_places,
            cutting,
            pad_id,
            eos_id,
            cleans_up,
            chat_template,
            special_tokens,
        })
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
            // Windows are all of a text, in its order.
            direction: if cut.stride.is_some() { TruncationDirection::Right } else { self.cut_side },
        };
        tokenizer.with_truncation(Some(params)).map_err(|error| self.failed(&error))?;
        let tokenizer = Arc::new(tokenizer);
        self.cutting.write().unwrap_or_else(PoisonError::into_inner).insert(cut, Arc::clone(&tokenizer));
        Ok(tokenizer)
    }

    /// How many special tokens it adds to one text or a pair.
    fn specials(&self, is_pair: bool) -> usize {
        self.whole.get_post_processor().map_or(0, |processor| processor.added_tokens(is_pair))
    }

    fn encode_cut(&self, input: EncodeInput<'_>, max_length: usize) -> Result<Encoding> {
        let tokenizer = self.cutting(Cut { max_length, stride: None })?;
        let encoding = self.run(|| tokenizer.encode_char_offsets(input, true))?;
        Ok(converted(&encoding, !encoding.get_overflowing().is_empty()))
    }

    fn check_room(&self, is_pair: bool, max_length: usize) -> Result<()> {
        let specials = self.specials(is_pair);
        if max_length > specials {
            return Ok(());
        }
        let problem = format!("max_length {max_length} leaves no room for text beside {specials} special tokens");
        Err(Error::Data(problem))
    }

    /// Whether long texts may be cut before they are tokenized.
    fn has_places(&self) -> bool {
        *self.has_places.get_or_init(|| guarded(|| has_places(&self.whole)).unwrap_or(false))
    }

    /// What a long text is cut to, of which so many tokens are kept, tokenized only as far as that; none for a short text.
    fn encode_shortened(&self, text: &str, max_length: usize) -> Result<Option<Encoding>> {
        let mut room = first_room(max_length);
        while room < text.len() / 2 && self.has_places() {
            if self.cut_side == TruncationDirection::Right {
                if let Some(start) = start_of(text, room) {
                    let encoding = self.encode_cut(start.into(), max_length)?;
                    if encoding.truncated {
                        return Ok(Some(encoding));
                    }
                }
            } else if let Some(end) = end_of(text, room) {
                let mut encoding = self.encode_cut(end.into(), max_length)?;
                // The first word may be other tokens where it begins a text.
                let kept = encoding.sequences.iter().zip(&encoding.offsets).find(|(sequence, _)| sequence.is_some());
                if encoding.truncated && kept.zip(first_word(end)).is_some_and(|((_, kept), first)| kept.0 >= first) {
                    let before = text.len() - end.len();
                    encoding.shift(text.get(..before).map_or(0, |before| before.chars().count()));
                    return Ok(Some(encoding));
                }
            }
            room = room.saturating_mul(4);
        }
        Ok(None)
    }

    /// A pair of which the longer text is far longer, with that cut to what may be kept of it.
    fn shortened_pair<'t>(&self, texts: (&'t str, &'t str), max_length: usize) -> Result<(&'t str, &'t str)> {
        let is_second = texts.1.len() > texts.0.len();
        let (short, long) = if is_second { texts } else { (texts.1, texts.0) };
        let mut room = first_room(max_length);
        while room < long.len() / 2 && short.len() < room && self.has_places() {
            let part = if self.cut_side == TruncationDirection::Right { start_of } else { end_of }(long, room);
            if let Some(part) = part {
                let most = max_length.max(self.encode_plain(short)?.len());
                // Behind the first word, which may be other tokens where it begins a text.
                let first = first_word(part).unwrap_or(usize::MAX);
                if self.encode_plain(part)?.len() > most.saturating_add(first) {
                    return Ok(if is_second { (short, part) } else { (part, short) });
                }
            }
            room = room.saturating_mul(4);
        }
        Ok(texts)
    }

    /// Of a text that goes on, the part that stays as it is when more is decoded behind it.
    pub fn settled<'t>(&self, text: &'t str) -> &'t str {
        const LONGEST: usize = " n't".len();
        match text.rfind(' ') {
            Some(at) if self.cleans_up && text.len() - at < LONGEST => text.get(..at).unwrap_or(text),
            _ => text,
        }
    }

    fn decoded(&self, ids: &[u32], skips_special: bool) -> Result<String> {
        let text = self.run(|| self.whole.decode(ids, skips_special))?;
        Ok(if self.cleans_up { cleaned_up(text) } else { text })
    }

    /// Asks the tokenizer, which fails and panics.
    fn run<T>(&self, ask: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        let broken =
            |problem| Error::File { path: self.path.clone(), problem: format!("the tokenizer failed: {problem}") };
        guarded(ask).map_err(broken)?.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &tokenizers::Error) -> Error {
        Error::Data(format!("{}: the tokenizer failed: {error}", self.path.display()))
    }
}

/// The tokenizer of a folder as its class makes it.
fn opened(folder: &Path, mut settings: Settings) -> Result<(PathBuf, tokenizers::Tokenizer, Class, Settings)> {
    let path = folder.join("tokenizer.json");
    let wished = Class::of(&settings);
    let (path, mut whole, of_vocabulary, is_file) = if path.exists() {
        let text = read_text(&path, "a tokenizer in the format of the `tokenizers` library")?;
        let whole = parsed(&path, &text)?;
        (path, whole, Vec::new(), true)
    } else {
        let made = Made::of_folder(folder, wished, &settings)?;
        for (role, text) in made.roles {
            settings.config.entry(role).or_insert_with(|| text.into());
        }
        let whole = parsed(&made.path, &made.document.to_string())?;
        (made.path, whole, made.special, false)
    };
    let class = if is_file { wished.fitting(&whole) } else { wished };
    let in_file = |error: Error| match error {
        Error::Data(problem) => Error::File { path: path.clone(), problem },
        other => other,
    };
    class.set_parts(&mut whole, &settings).map_err(in_file)?;
    let tokens = tokens_to_add(&whole, class, &settings, of_vocabulary);
    let added = guarded(|| whole.add_tokens(&tokens));
    added.map_err(|problem| Error::File { path: path.clone(), problem: format!("cannot add tokens: {problem}") })?;
    let flag = |key: &str| if is_file { None } else { settings.flag(key) };
    let ends = [flag("add_bos_token"), flag("add_eos_token")];
    let has_ends = !is_file || class == Class::GptNeoX || whole.get_post_processor().is_none();
    let ends = has_ends.then_some((ends[0].unwrap_or(false), ends[1].unwrap_or(false)));
    class.set_ends(&mut whole, &settings, ends).map_err(in_file)?;
    Ok((path, whole, class, settings))
}

/// Tokens of the settings, then those of the roles, then special ones without a role, as Transformers adds them.
fn tokens_to_add(
    whole: &tokenizers::Tokenizer,
    class: Class,
    settings: &Settings,
    of_vocabulary: Vec<AddedToken>,
) -> Vec<AddedToken> {
    let known = whole.get_added_tokens_decoder();
    let mut tokens: Vec<AddedToken> = settings.added.iter().map(|(_, token)| token.clone()).collect();
    tokens.retain(|token| !known.values().any(|known| is_same(known, token)));
    let roles = ROLES
        .iter()
        .filter_map(|role| if settings.names_role(role) { settings.role(role) } else { class.default_role(role) });
    let extra = settings.extra().unwrap_or_else(|| class.default_extra(settings, of_vocabulary));
    for token in roles.chain(settings.own_roles()).chain(extra) {
        let is_there = |other: &AddedToken| other.content == token.content;
        if !known.values().any(is_there) && !tokens.iter().any(is_there) {
            tokens.push(token);
        }
    }
    tokens
}

/// Without the spaces that word pieces leave before punctuation and in English contractions.
fn cleaned_up(text: String) -> String {
    const RULES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    RULES.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

/// Whether two tokens are the same to their flags.
fn is_same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |token: &AddedToken| [token.single_word, token.lstrip, token.rstrip, token.normalized, token.special];
    a.content == b.content && flags(a) == flags(b)
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding> {
        self.check_room(pair.is_some(), max_length)?;
        match pair {
            Some(pair) => self.encode_cut(self.shortened_pair((text, pair), max_length)?.into(), max_length),
            None => match self.encode_shortened(text, max_length)? {
                Some(encoding) => Ok(encoding),
                None => self.encode_cut(text.into(), max_length),
            },
        }
    }

    fn encode_words(&self, words: &[String], max_length: usize) -> Result<Encoding> {
        self.check_room(false, max_length)?;
        let mut room = max_length.saturating_mul(2);
        while room < words.len() / 2 && self.cut_side == TruncationDirection::Right {
            // Each word is tokenized by itself.
            let first = words.get(..room).unwrap_or(words);
            let encoding = self.encode_cut(EncodeInput::Single(InputSequence::from(first)), max_length)?;
            if encoding.truncated {
                return Ok(encoding);
            }
            room = room.saturating_mul(4);
        }
        self.encode_cut(EncodeInput::Single(InputSequence::from(words)), max_length)
    }

    fn encode_windows(&self, question: &str, context: &str, max_length: usize, stride: usize) -> Result<Vec<Encoding>> {
        let asked = self.encode_plain(question)?.len();
        let room = max_length.saturating_sub(self.specials(true) + asked);
        if room <= stride {
            // No window could move on, which matters only if there is more than one.
            let encoding = self.run(|| self.whole.encode_char_offsets((question, context), true))?;
            if encoding.len() <= max_length {
                return Ok(vec![converted(&encoding, false)]);
            }
            return Err(Error::Data(format!(
                "a question of {asked} tokens leaves {room} of max_length {max_length} for the context, which must be more \
                 than the doc_stride of {stride}: {question:?}"
            )));
        }
        let tokenizer = self.cutting(Cut { max_length, stride: Some(stride) })?;
        let first = self.run(|| tokenizer.encode_char_offsets((question, context), true))?;
        let is_cut = !first.get_overflowing().is_empty();
        Ok(std::iter::once(&first).chain(first.get_overflowing()).map(|window| converted(window, is_cut)).collect())
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.run(|| self.whole.encode_fast(text, false))?.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, true)
    }

    fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, false)
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
        let mut room = first_room(max_length);
        while room < text.len() / 2 && self.has_places() {
            if let Some(start) = start_of(text, room) {
                let encoding = self.run(|| self.whole.encode_char_offsets(start, false))?;
                if encoding.len() > max_length {
                    let mut encoding = converted(&encoding, true);
                    encoding.truncate(max_length);
                    return Ok(encoding);
                }
            }
            room = room.saturating_mul(4);
        }
        let mut encoding = converted(&self.run(|| self.whole.encode_char_offsets(text, false))?, false);
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
