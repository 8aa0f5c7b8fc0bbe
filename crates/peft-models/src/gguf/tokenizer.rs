//! The tokenizer in a GGUF file as the documents that Hugging Face keeps beside a model.

use std::collections::HashMap;

use peft_core::Result;
use serde_json::{Map, Value, json};

use super::GgufFile;

/// `tokenizer.json` and `tokenizer_config.json`.
#[derive(Debug)]
pub(crate) struct TokenizerDocuments {
    pub(crate) tokenizer: Value,
    pub(crate) config: Map<String, Value>,
}

/// The kinds of tokens, by `tokenizer.ggml.token_type`.
const NORMAL: f64 = 1.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// Where pieces of words begin and end for byte-level vocabularies of GPT-2's kind.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Reads the tokenizer.
///
/// # Errors
/// [`peft_core::Error::File`] if the file has none, or one of a kind that is not supported.
pub(crate) fn read(file: &GgufFile) -> Result<TokenizerDocuments> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let missing = |name: &str| file.error(format!("`{}`: missing; the file has no tokenizer", key(name)));
    let tokens = file.texts(&key("tokens")).ok_or_else(|| missing("tokens"))?;
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let kinds = file.numbers(&key("token_type")).unwrap_or_default();
    let kind = |id: usize| kinds.get(id).copied().unwrap_or(NORMAL);
    let flag = |name: &str, default: bool| file.get(&key(name)).and_then(|flag| flag.as_bool()).unwrap_or(default);
    let id = |name: &str| {
        let id = file.get(&key(name)).and_then(|id| id.as_u64())?;
        usize::try_from(id).ok().filter(|id| *id < tokens.len())
    };

    let model = file.metadata.text(&key("model")).ok_or_else(|| missing("model"))?;
    let mut tokenizer = match model {
        "gpt2" => byte_level(file, &tokens)?,
        "llama" => sentence_piece(file, &tokens, flag("add_space_prefix", true), id("unknown_token_id"))?,
        other => {
            let problem = format!("`tokenizer.ggml.model`: `{other}` is not supported (supported: gpt2, llama)");
            return Err(file.error(problem));
        }
    };
    let added = tokens.iter().enumerate().filter(|(id, _)| [CONTROL, USER_DEFINED].contains(&kind(*id)));
    let added = added.map(|(id, token)| {
        let special = kind(id) == CONTROL;
        json!({ "id": id, "content": token, "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false })
    });
    tokenizer["added_tokens"] = added.collect();
    tokenizer["version"] = "1.0".into();
    let ends = [("add_bos_token", "bos_token_id", model == "llama"), ("add_eos_token", "eos_token_id", false)];
    let [front, back] = ends.map(|(wish, role, default)| id(role).filter(|_| flag(wish, default)));
    if front.is_some() || back.is_some() {
        tokenizer["post_processor"] = template(front, back, &tokens);
    }

    let roles = [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ];
    let roles = roles.iter().filter_map(|(role, key)| Some(((*role).to_owned(), (*tokens.get(id(key)?)?).into())));
    let mut config: Map<String, Value> = roles.collect();
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    if let Some(template) = file.metadata.text("tokenizer.chat_template") {
        config.insert("chat_template".to_owned(), template.into());
    }
    Ok(TokenizerDocuments { tokenizer, config })
}

fn vocabulary(tokens: &[&str]) -> Value {
    tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), Value::from(id))).collect::<Map<_, _>>().into()
}

/// Byte pair encoding over bytes, as GPT-2 has it.
fn byte_level(file: &GgufFile, tokens: &[&str]) -> Result<Value> {
    let merges = file.texts("tokenizer.ggml.merges");
    let merges = merges.ok_or_else(|| file.error("`tokenizer.ggml.merges`: missing"))?;
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let splits = match file.metadata.text("tokenizer.ggml.pre").unwrap_or("default") {
        "default" | "gpt-2" | "gpt2" => vec![split(GPT2)],
        "smollm" => vec![digits, split(GPT2)],
        "llama-bpe" | "llama3" | "llama-v3" => vec![split(LLAMA3)],
        "qwen2" => vec![split(QWEN2)],
        other => {
            let known = "default, gpt-2, smollm, llama-bpe, qwen2";
            return Err(file.error(format!("`tokenizer.ggml.pre`: `{other}` is not supported (supported: {known})")));
        }
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let splits: Vec<Value> = splits.into_iter().chain([bytes.clone()]).collect();
    let normalizer =
        if file.metadata.text("tokenizer.ggml.pre") == Some("qwen2") { json!({ "type": "NFC" }) } else { Value::Null };
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": splits },
        "model": { "type": "BPE", "vocab": vocabulary(tokens), "merges": merges, "ignore_merges": false },
        "decoder": bytes,
    }))
}

/// SentencePiece's byte pair encoding, whose merges follow from the pieces' scores.
fn sentence_piece(file: &GgufFile, tokens: &[&str], space_first: bool, unknown: Option<usize>) -> Result<Value> {
    let scores = file.numbers("tokenizer.ggml.scores");
    let scores = scores.ok_or_else(|| file.error("`tokenizer.ggml.scores`: missing"))?;
    let score = |id: usize| scores.get(id).copied().unwrap_or(0.0);
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = halves.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?)));
        merges.extend(known.map(|(left, right)| (score(id), left, right)));
    }
    // The best piece first; of its halves those that are the better pieces, that is to say the earlier ones.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let merges: Vec<Value> =
        merges.iter().map(|(_, left, right)| json!([tokens.get(*left), tokens.get(*right)])).collect();
    let space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let first = space_first.then(|| json!({ "type": "Prepend", "prepend": "▁" }));
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    decoders.extend(space_first.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 })));
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": first.into_iter().chain([space]).collect::<Vec<_>>() },
        "pre_tokenizer": null,
        "model": {
            "type": "BPE", "vocab": vocabulary(tokens), "merges": merges, "fuse_unk": true, "byte_fallback": true,
            "unk_token": unknown.and_then(|id| tokens.get(id)),
        },
        "decoder": { "type": "Sequence", "decoders": decoders },
    }))
}

/// Special tokens at the ends of a text.
fn template(front: Option<usize>, back: Option<usize>, tokens: &[&str]) -> Value {
    let named = |id: Option<usize>| id.and_then(|id| Some((id, *tokens.get(id)?)));
    let special = |id: Option<usize>, of: usize| {
        named(id).map(|(_, token)| json!({ "SpecialToken": { "id": token, "type_id": of } }))
    };
    let text = |name: &str, of: usize| {
        let sequence = json!({ "Sequence": { "id": name, "type_id": of } });
        special(front, of).into_iter().chain([sequence]).chain(special(back, of)).collect::<Vec<_>>()
    };
    let pair: Vec<Value> = text("A", 0).into_iter().chain(text("B", 1)).collect();
    let specials = [front, back].into_iter().filter_map(named);
    let specials: Map<String, Value> = specials
        .map(|(id, token)| (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] })))
        .collect();
    json!({ "type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": specials })
}
