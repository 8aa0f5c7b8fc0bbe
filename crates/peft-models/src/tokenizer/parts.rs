//! The parts of a tokenizer that its class makes: normalizer, pre-tokenizer, decoder and post-processor.

use peft_core::{Error, Result};
use serde_json::{Value, json};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use super::{class::Class, settings::Settings};

/// Qwen's pieces of words.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Class {
    /// Puts the class's normalizer, pre-tokenizer and decoder in the place of those that are there. A table of characters
    /// that the normalizer has stays.
    pub(crate) fn set_parts(self, tokenizer: &mut Tokenizer, settings: &Settings) -> Result<()> {
        let table = serde_json::to_value(tokenizer.get_normalizer()).map_err(unfit)?;
        let Some(parts) = self.parts(settings, precompiled(&table)) else { return Ok(()) };
        tokenizer.with_normalizer(made::<NormalizerWrapper>(parts.normalizer)?);
        tokenizer.with_pre_tokenizer(made::<PreTokenizerWrapper>(parts.pre_tokenizer)?);
        tokenizer.with_decoder(made::<DecoderWrapper>(parts.decoder)?);
        Ok(())
    }

    fn parts(self, settings: &Settings, table: Option<&Value>) -> Option<Parts> {
        let flag = |key: &str, default: bool| settings.flag(key).unwrap_or(default);
        let first_space = |default: bool| if flag("add_prefix_space", default) { "always" } else { "never" };
        Some(match self {
            Self::Plain => return None,
            Self::Bert => Parts {
                normalizer: json!({
                    "type": "BertNormalizer", "clean_text": true,
                    "handle_chinese_chars": flag("tokenize_chinese_chars", true),
                    "strip_accents": settings.flag("strip_accents"), "lowercase": flag("do_lower_case", true),
                }),
                pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
                decoder: json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
            },
            Self::Gpt2 | Self::Roberta => Parts {
                normalizer: Value::Null,
                pre_tokenizer: byte_level(flag("add_prefix_space", false), true),
                decoder: byte_level(true, true),
            },
            Self::GptNeoX => Parts {
                normalizer: json!({ "type": "NFC" }),
                pre_tokenizer: byte_level(flag("add_prefix_space", false), true),
                decoder: byte_level(true, true),
            },
            Self::Qwen2 => {
                let split =
                    json!({ "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false });
                Parts {
                    normalizer: json!({ "type": "NFC" }),
                    pre_tokenizer: pre_tokenizers(vec![split, byte_level(flag("add_prefix_space", false), false)]),
                    decoder: byte_level(true, true),
                }
            }
            Self::T5 | Self::MBart => Parts {
                normalizer: if self == Self::T5 { table.cloned().unwrap_or_default() } else { Value::Null },
                pre_tokenizer: pre_tokenizers(vec![json!({ "type": "WhitespaceSplit" }), metaspace("always", true)]),
                decoder: metaspace("always", true),
            },
            Self::XlmRoberta => Parts {
                normalizer: table.cloned().unwrap_or_default(),
                pre_tokenizer: pre_tokenizers(vec![
                    json!({ "type": "WhitespaceSplit" }),
                    metaspace(first_space(true), true),
                ]),
                decoder: metaspace(first_space(true), true),
            },
            Self::Albert => {
                let replace = |text: &str| json!({ "type": "Replace", "pattern": { "String": text }, "content": "\"" });
                let mut steps = vec![replace("``"), replace("''")];
                if !flag("keep_accents", false) {
                    steps.extend([json!({ "type": "NFKD" }), json!({ "type": "StripAccents" })]);
                }
                if flag("do_lower_case", true) {
                    steps.push(json!({ "type": "Lowercase" }));
                }
                steps.extend(table.cloned());
                Parts {
                    normalizer: json!({ "type": "Sequence", "normalizers": steps }),
                    pre_tokenizer: pre_tokenizers(vec![
                        json!({ "type": "WhitespaceSplit" }),
                        metaspace(first_space(true), true),
                    ]),
                    decoder: metaspace(first_space(true), true),
                }
            }
            Self::DebertaV2 => {
                let mut steps = Vec::new();
                if flag("do_lower_case", false) {
                    steps.push(json!({ "type": "Lowercase" }));
                }
                steps.extend([
                    json!({ "type": "Replace", "pattern": { "Regex": r"\s{2,}|[\n\r\t]" }, "content": " " }),
                    json!({ "type": "NFC" }),
                    json!({ "type": "Strip", "strip_left": false, "strip_right": true }),
                ]);
                let space = if flag("add_prefix_space", true) { "always" } else { "first" };
                let punctuation = json!({ "type": "Punctuation", "behavior": "Isolated" });
                let punctuation = flag("split_by_punct", false).then_some(punctuation);
                Parts {
                    normalizer: json!({ "type": "Sequence", "normalizers": steps }),
                    pre_tokenizer: pre_tokenizers(punctuation.into_iter().chain([metaspace(space, true)]).collect()),
                    decoder: metaspace(space, true),
                }
            }
            Self::Llama => {
                let has_space = flag("add_prefix_space", true);
                let scheme = match (has_space, flag("legacy", false)) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                Parts {
                    normalizer: Value::Null,
                    pre_tokenizer: metaspace(scheme, false),
                    decoder: byte_fallback(has_space),
                }
            }
            Self::Gemma => Parts {
                normalizer: json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }),
                pre_tokenizer: json!({
                    "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
                }),
                decoder: byte_fallback(false),
            },
        })
    }

    /// Puts the class's post-processor in the place of that which is there. `added_ends` are `add_bos_token` and
    /// `add_eos_token`, which count where there is no `tokenizer.json`.
    pub(crate) fn set_ends(
        self,
        tokenizer: &mut Tokenizer,
        settings: &Settings,
        added_ends: Option<(bool, bool)>,
    ) -> Result<()> {
        let role = |role: &str| {
            let token = if settings.names_role(role) { settings.role(role) } else { self.default_role(role) };
            token.and_then(|token| Some((tokenizer.token_to_id(&token.content)?, token.content)))
        };
        let around = |first: Option<&str>, last: &[&str]| {
            // `[CLS] $A [SEP]`, and for a pair `[SEP] $B [SEP]`, of which all belongs to the second text but the first.
            let (first, last) = (first.map(&role), last.iter().map(|name| role(name)).collect::<Option<Vec<_>>>());
            Some((first.map_or(Some(None), |first| first.map(Some))?, last?))
        };
        let processor = match self {
            Self::Bert | Self::DebertaV2 | Self::Albert => {
                let Some((Some(cls), seps)) = around(Some("cls_token"), &["sep_token"]) else { return Ok(()) };
                let single = [&[piece(&cls, 0), sequence("A", 0)][..], &pieces(&seps, 0)].concat();
                let pair = [&single[..], &[sequence("B", 1)], &pieces(&seps, 1)].concat();
                template(&single, &pair, &[&[cls][..], &seps].concat())
            }
            Self::Roberta => {
                let (Some(sep), Some(cls)) = (role("sep_token"), role("cls_token")) else { return Ok(()) };
                json!({
                    "type": "RobertaProcessing", "sep": [sep.1, sep.0], "cls": [cls.1, cls.0],
                    "trim_offsets": settings.flag("trim_offsets").unwrap_or(true),
                    "add_prefix_space": settings.flag("add_prefix_space").unwrap_or(false),
                })
            }
            Self::T5 => {
                let Some((_, ends)) = around(None, &["eos_token"]) else { return Ok(()) };
                let single = [&[sequence("A", 0)][..], &pieces(&ends, 0)].concat();
                let pair = [&single[..], &[sequence("B", 0)], &pieces(&ends, 0)].concat();
                template(&single, &pair, &ends)
            }
            Self::XlmRoberta => {
                let Some((Some(bos), ends)) = around(Some("bos_token"), &["eos_token"]) else { return Ok(()) };
                let single = [&[piece(&bos, 0), sequence("A", 0)][..], &pieces(&ends, 0)].concat();
                let pair = [&single[..], &pieces(&ends, 0), &[sequence("B", 0)], &pieces(&ends, 0)].concat();
                template(&single, &pair, &[&[bos][..], &ends].concat())
            }
            Self::MBart => {
                let Some((_, mut ends)) = around(None, &["eos_token"]) else { return Ok(()) };
                let language = settings.text("src_lang").unwrap_or("en_XX");
                ends.extend(tokenizer.token_to_id(language).map(|id| (id, language.to_owned())));
                let single = [&[sequence("A", 0)][..], &pieces(&ends, 0)].concat();
                let pair = [&[sequence("A", 0), sequence("B", 0)][..], &pieces(&ends, 0)].concat();
                template(&single, &pair, &ends)
            }
            Self::GptNeoX | Self::Gpt2 | Self::Qwen2 | Self::Llama | Self::Gemma | Self::Plain => {
                let Some((has_bos, has_eos)) = added_ends else { return Ok(()) };
                let end = |wanted: bool, name: &str| wanted.then(|| role(name)).flatten();
                let ends = [end(has_bos, "bos_token"), end(has_eos, "eos_token")];
                let text = |name: &str, of: usize| {
                    let [first, last] = ends.each_ref().map(|end| end.as_ref().map(|end| piece(end, of)));
                    first.into_iter().chain([sequence(name, of)]).chain(last).collect::<Vec<_>>()
                };
                let single = text("A", 0);
                template(
                    &single,
                    &[single.clone(), text("B", 1)].concat(),
                    &ends.iter().flatten().cloned().collect::<Vec<_>>(),
                )
            }
        };
        tokenizer.with_post_processor(made::<PostProcessorWrapper>(processor)?);
        Ok(())
    }
}

struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

/// The table of characters among the steps of a normalizer.
fn precompiled(normalizer: &Value) -> Option<&Value> {
    let steps =
        normalizer.get("normalizers").and_then(Value::as_array).map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    steps.iter().find(|step| step.get("type").and_then(Value::as_str) == Some("Precompiled"))
}

fn made<T: serde::de::DeserializeOwned>(part: Value) -> Result<Option<T>> {
    serde_json::from_value(part).map_err(unfit)
}

fn unfit(error: serde_json::Error) -> Error {
    Error::Data(format!("the tokenizer's parts do not fit: {error}"))
}

fn byte_level(first_space: bool, use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": first_space, "trim_offsets": true, "use_regex": use_regex })
}

fn metaspace(prepend_scheme: &str, split: bool) -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": split })
}

fn pre_tokenizers(steps: Vec<Value>) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

fn byte_fallback(first_space: bool) -> Value {
    let strip = first_space.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    let steps = [
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    json!({ "type": "Sequence", "decoders": steps.into_iter().chain(strip).collect::<Vec<_>>() })
}

fn sequence(name: &str, of: usize) -> Value {
    json!({ "Sequence": { "id": name, "type_id": of } })
}

fn piece((_, token): &(u32, String), of: usize) -> Value {
    json!({ "SpecialToken": { "id": token, "type_id": of } })
}

fn pieces(tokens: &[(u32, String)], of: usize) -> Vec<Value> {
    tokens.iter().map(|token| piece(token, of)).collect()
}

fn template(single: &[Value], pair: &[Value], tokens: &[(u32, String)]) -> Value {
    let listed =
        tokens.iter().map(|(id, token)| (token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] })));
    let listed: serde_json::Map<String, Value> = listed.collect();
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": listed })
}
