//! Which tokenizer of Transformers a folder's is: its class makes the parts of the tokenizer from the settings.

use serde_json::{Map, Value};
use tokenizers::{AddedToken, ModelWrapper};

use super::settings::Settings;

/// A class of tokenizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// `TokenizersBackend`: what `tokenizer.json` says.
    Plain,
    Bert,
    Gpt2,
    GptNeoX,
    Qwen2,
    Roberta,
    T5,
    Albert,
    XlmRoberta,
    MBart,
    DebertaV2,
    Llama,
    Gemma,
}

/// What a tokenizer's model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    WordPiece,
    /// Byte pair encoding over bytes that are written as letters.
    ByteLevel,
    /// Byte pair encoding of SentencePiece, with bytes for what is not in the vocabulary.
    Bpe,
    Unigram,
}

/// The class by the name in `tokenizer_class`, without `Fast`.
fn named(name: &str) -> Class {
    match name {
        "BertTokenizer"
        | "DistilBertTokenizer"
        | "ElectraTokenizer"
        | "MobileBertTokenizer"
        | "ConvBertTokenizer"
        | "SqueezeBertTokenizer"
        | "LayoutLMTokenizer" => Class::Bert,
        "GPT2Tokenizer" => Class::Gpt2,
        "GPTNeoXTokenizer" => Class::GptNeoX,
        "Qwen2Tokenizer" => Class::Qwen2,
        "RobertaTokenizer" | "BartTokenizer" | "LongformerTokenizer" | "LEDTokenizer" => Class::Roberta,
        "T5Tokenizer" => Class::T5,
        "AlbertTokenizer" => Class::Albert,
        "XLMRobertaTokenizer" => Class::XlmRoberta,
        "MBartTokenizer" => Class::MBart,
        "DebertaV2Tokenizer" => Class::DebertaV2,
        "LlamaTokenizer" => Class::Llama,
        "GemmaTokenizer" => Class::Gemma,
        _ => Class::Plain,
    }
}

/// The class that Transformers registers for a `model_type`; none for one without.
fn registered(model_type: &str) -> Option<Class> {
    Some(match model_type {
        "bert" | "distilbert" | "electra" => Class::Bert,
        "gpt2" | "opt" => Class::Gpt2,
        "gpt_neox" => Class::GptNeoX,
        "qwen2" | "qwen3" => Class::Qwen2,
        "roberta" | "bart" => Class::Roberta,
        "t5" | "mt5" => Class::T5,
        "albert" => Class::Albert,
        "xlm-roberta" => Class::XlmRoberta,
        "mbart" => Class::MBart,
        "deberta-v2" => Class::DebertaV2,
        "gemma" | "gemma2" | "gemma3_text" => Class::Gemma,
        "mistral" | "modernbert" | "phi3" => Class::Plain,
        _ => return None,
    })
}

impl Class {
    /// As `AutoTokenizer` chooses it: the class that the files name, unless the model's is the plain one.
    pub(crate) fn of(settings: &Settings) -> Self {
        let model_type = settings.model.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let named = class_name(&settings.config).or_else(|| class_name(&settings.model)).map(named);
        match (registered(model_type), named) {
            // The class that the files of Qwen 2 name is often wrong.
            (Some(registered @ (Self::Plain | Self::Qwen2)), _) if model_type != "qwen3" => registered,
            (registered, named) => named.or(registered).unwrap_or(Self::Plain),
        }
    }

    /// What its tokenizers compute; none for a plain one.
    pub(crate) fn kind(self) -> Option<Kind> {
        match self {
            Self::Plain => None,
            Self::Bert => Some(Kind::WordPiece),
            Self::Gpt2 | Self::GptNeoX | Self::Qwen2 | Self::Roberta => Some(Kind::ByteLevel),
            Self::Llama | Self::Gemma => Some(Kind::Bpe),
            Self::T5 | Self::Albert | Self::XlmRoberta | Self::MBart | Self::DebertaV2 => Some(Kind::Unigram),
        }
    }

    /// The class if a tokenizer is of its kind, else the plain one: another's parts would make nonsense of its model.
    pub(crate) fn fitting(self, tokenizer: &tokenizers::Tokenizer) -> Self {
        let fits = match (self.kind(), tokenizer.get_model()) {
            (Some(Kind::WordPiece), ModelWrapper::WordPiece(_)) | (Some(Kind::Unigram), ModelWrapper::Unigram(_)) => {
                true
            }
            (Some(Kind::ByteLevel), ModelWrapper::BPE(_)) => {
                let parts = serde_json::to_string(&tokenizer.get_pre_tokenizer()).unwrap_or_default();
                parts.contains("\"ByteLevel\"")
            }
            (Some(Kind::Bpe), ModelWrapper::BPE(bpe)) => bpe.byte_fallback,
            _ => false,
        };
        if fits { self } else { Self::Plain }
    }

    /// The token that a role has where the files do not name one.
    pub(crate) fn default_role(self, role: &str) -> Option<AddedToken> {
        let text = match (self, role) {
            (Self::Bert | Self::DebertaV2, "unk_token") => "[UNK]",
            (Self::Bert | Self::DebertaV2, "pad_token") => "[PAD]",
            (Self::Bert | Self::DebertaV2 | Self::Albert, "sep_token") => "[SEP]",
            (Self::Bert | Self::DebertaV2 | Self::Albert, "cls_token") => "[CLS]",
            (Self::Bert | Self::DebertaV2 | Self::Albert, "mask_token") => "[MASK]",
            (Self::DebertaV2 | Self::Albert, "bos_token") => "[CLS]",
            (Self::DebertaV2 | Self::Albert, "eos_token") => "[SEP]",
            (Self::Gpt2 | Self::GptNeoX, "unk_token" | "bos_token" | "eos_token") => "<|endoftext|>",
            (Self::GptNeoX, "pad_token") => "<|padding|>",
            (Self::Qwen2, "unk_token" | "eos_token" | "pad_token") => "<|endoftext|>",
            (Self::Gemma, "bos_token") => "<bos>",
            (Self::Gemma, "eos_token") => "<eos>",
            (Self::Roberta | Self::XlmRoberta | Self::MBart, "bos_token" | "cls_token")
            | (Self::Llama, "bos_token") => "<s>",
            (Self::Roberta | Self::XlmRoberta | Self::MBart, "eos_token" | "sep_token") => "</s>",
            (Self::T5 | Self::Llama, "eos_token") => "</s>",
            (Self::MBart, "mask_token") => return Some(AddedToken::from("<mask>", true).normalized(true).lstrip(true)),
            (Self::Roberta | Self::XlmRoberta | Self::Gemma, "mask_token") => "<mask>",
            (Self::Roberta | Self::XlmRoberta | Self::MBart | Self::T5 | Self::Albert | Self::Gemma, "pad_token") => {
                "<pad>"
            }
            (Self::Plain | Self::Bert | Self::DebertaV2 | Self::Gpt2 | Self::GptNeoX | Self::Qwen2, _) => return None,
            (_, "unk_token") => "<unk>",
            _ => return None,
        };
        Some(AddedToken::from(text, true))
    }

    /// Special tokens that it adds where the files name none; `of_vocabulary` are those of a vocabulary file.
    pub(crate) fn default_extra(self, settings: &Settings, of_vocabulary: Vec<AddedToken>) -> Vec<AddedToken> {
        let special = |text: String| AddedToken::from(text, true);
        match self {
            Self::T5 => {
                let count = settings.config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100).min(MOST_EXTRA_IDS);
                let has_some = of_vocabulary.iter().any(|token| token.content.contains("<extra_id_"));
                let own = (0..if has_some { 0 } else { count }).map(|id| special(format!("<extra_id_{id}>")));
                of_vocabulary.into_iter().chain(own).collect()
            }
            Self::MBart => {
                let own = of_vocabulary.into_iter().filter(|token| !LANGUAGES.contains(&token.content.as_str()));
                LANGUAGES.iter().map(|code| special((*code).to_owned())).chain(own).collect()
            }
            _ => of_vocabulary,
        }
    }
}

fn class_name(config: &Map<String, Value>) -> Option<&str> {
    let name = config.get("tokenizer_class")?.as_str()?;
    Some(name.strip_suffix("Fast").unwrap_or(name))
}

/// Most sentinels of T5 that are believed.
const MOST_EXTRA_IDS: u64 = 10_000;

/// MBart's languages, in the order of their ids.
pub(crate) const LANGUAGES: &[&str] = &[
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX",
    "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN",
    "zh_CN",
];
