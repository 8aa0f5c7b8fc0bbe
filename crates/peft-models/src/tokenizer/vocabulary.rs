//! `tokenizer.json` made from a vocabulary: `vocab.txt`, `vocab.json` with `merges.txt`, or a SentencePiece model.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use peft_core::{
    Error, Result,
    files::{read_bytes, read_text},
};
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::{
    class::{Class, Kind, LANGUAGES},
    sentencepiece::{PieceKind, SentencePiece},
    settings::{Settings, by_id},
};

/// Names of SentencePiece models.
const SENTENCE_PIECE: &[&str] = &["spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model"];

/// A tokenizer made from a vocabulary.
pub(crate) struct Made {
    /// The vocabulary's file.
    pub(crate) path: PathBuf,
    /// `tokenizer.json`.
    pub(crate) document: Value,
    /// Tokens that the vocabulary itself marks.
    pub(crate) special: Vec<AddedToken>,
    /// Roles that the vocabulary itself names.
    pub(crate) roles: Vec<(&'static str, String)>,
}

impl Made {
    /// Makes the tokenizer of a folder.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a vocabulary that the class is made from, with how to have one; [`Error::File`] for a
    /// broken one.
    pub(crate) fn of_folder(folder: &Path, class: Class, settings: &Settings) -> Result<Self> {
        let there = |name: &&str| folder.join(name).is_file();
        let found = SENTENCE_PIECE.iter().copied().find(there);
        match (class.kind(), found) {
            (Some(Kind::WordPiece), _) if there(&"vocab.txt") => word_piece(&folder.join("vocab.txt"), class, settings),
            (Some(Kind::ByteLevel), _) if there(&"vocab.json") && there(&"merges.txt") => byte_level(folder),
            (Some(Kind::Bpe | Kind::Unigram) | None, Some(name)) => sentence_piece(&folder.join(name), class, settings),
            _ => Err(missing(folder)),
        }
    }
}

/// Says how to make the file.
fn missing(folder: &Path) -> Error {
    let vocabularies = ["vocab.txt", "vocab.json", "merges.txt", "source.spm"].iter().chain(SENTENCE_PIECE).copied();
    let there: Vec<&str> = vocabularies.filter(|name| folder.join(name).is_file()).collect();
    let there = if there.is_empty() {
        String::new()
    } else {
        format!(" from {}, which this model's class is not made from here", there.join(" and "))
    };
    let what = format!(
        "a tokenizer in the format of the `tokenizers` library; make it{there} in Python: \
         AutoTokenizer.from_pretrained(\"MODEL\").save_pretrained(\"FOLDER\")"
    );
    Error::NotFound { path: folder.join("tokenizer.json"), what }
}

fn word_piece(path: &Path, class: Class, settings: &Settings) -> Result<Made> {
    let text = read_text(path, "a vocabulary of WordPiece")?;
    let ids = text.lines().enumerate().map(|(id, token)| (token.trim_end().to_owned(), Value::from(id)));
    let unknown = settings.role("unk_token").or_else(|| class.default_role("unk_token")).map(|token| token.content);
    let model = json!({
        "type": "WordPiece", "unk_token": unknown.unwrap_or_default(), "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": ids.collect::<Map<_, _>>(),
    });
    Ok(Made { path: path.to_owned(), document: document(model), special: Vec::new(), roles: Vec::new() })
}

fn byte_level(folder: &Path) -> Result<Made> {
    let (path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let broken = |error| Error::File { path: path.clone(), problem: format!("no vocabulary: {error}") };
    let vocab: Map<String, Value> =
        serde_json::from_str(&read_text(&path, "a vocabulary of byte pairs")?).map_err(broken)?;
    let text = read_text(&merges_path, "merges of byte pairs")?;
    let mut merges = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty()) {
        let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
        let problem = || format!("line {}: should be two tokens, found `{line}`", at + 1);
        let (left, right) = pair.ok_or_else(|| Error::File { path: merges_path.clone(), problem: problem() })?;
        merges.push(json!([left, right]));
    }
    let model = json!({ "type": "BPE", "vocab": vocab, "merges": merges });
    Ok(Made { path, document: document(model), special: Vec::new(), roles: Vec::new() })
}

fn sentence_piece(path: &Path, class: Class, settings: &Settings) -> Result<Made> {
    let bytes = read_bytes(path, "a SentencePiece model")?;
    let broken =
        |problem: String| Error::File { path: path.to_owned(), problem: format!("no SentencePiece model: {problem}") };
    let found = SentencePiece::read(&bytes).map_err(broken)?;
    let role =
        |role: &str, default: &str| settings.role(role).map_or_else(|| default.to_owned(), |token| token.content);
    let is_unigram = class.kind().map_or(found.is_unigram, |kind| kind == Kind::Unigram);
    let model = if is_unigram {
        let own = found.pieces.iter().map(|piece| json!([piece.text, piece.score]));
        let special = |text: &str| json!([text, 0.0]);
        let roles = [("bos_token", "<s>"), ("pad_token", "<pad>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
        // Fairseq's ids, which are one more than those of the model.
        let fairseq =
            || roles.map(|(name, default)| special(&role(name, default))).into_iter().chain(own.clone().skip(3));
        let mask = || special(&role("mask_token", "<mask>"));
        let position = |text: &str| found.pieces.iter().position(|piece| piece.text == text && piece.score == 0.0);
        let (vocab, unk_id): (Vec<Value>, Option<usize>) = match class {
            Class::T5 => {
                let extra =
                    class.default_extra(&Settings { config: extra_ids(settings), ..Settings::default() }, Vec::new());
                (own.chain(extra.iter().rev().map(|token| special(&token.content))).collect(), Some(2))
            }
            Class::XlmRoberta => (fairseq().chain([mask()]).collect(), Some(3)),
            Class::MBart => {
                (fairseq().chain(LANGUAGES.iter().map(|code| special(code))).chain([mask()]).collect(), Some(3))
            }
            Class::Albert => (own.collect(), Some(1)),
            Class::DebertaV2 => {
                (own.collect(), position(&role("unk_token", "[UNK]")).or(usize::try_from(found.unk_id).ok()))
            }
            _ => (own.collect(), usize::try_from(found.unk_id).ok()),
        };
        let byte_fallback = class == Class::Plain && found.byte_fallback;
        json!({ "type": "Unigram", "vocab": vocab, "unk_id": unk_id, "byte_fallback": byte_fallback })
    } else {
        let mut tokens: Vec<String> = found.pieces.iter().map(|piece| piece.text.clone()).collect();
        let merges = merges(&tokens);
        let unknown = match class {
            Class::Plain => {
                renamed(&mut tokens, settings);
                Some(found.unk_piece.clone())
            }
            Class::Gemma => Some(role("unk_token", "<unk>")),
            _ => None,
        };
        let vocab: Map<String, Value> =
            tokens.into_iter().zip(0_usize..).map(|(token, id)| (token, id.into())).collect();
        let byte_fallback = class != Class::Plain || found.byte_fallback;
        json!({
            "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unknown, "fuse_unk": true, "byte_fallback": byte_fallback,
        })
    };
    let mut document = document(model);
    let table = (!found.table.is_empty())
        .then(|| json!({ "type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(&found.table) }));
    document["normalizer"] = table.clone().unwrap_or_default();
    if class == Class::Plain {
        plain_parts(&mut document, table, found.byte_fallback);
    }
    let marked = found.pieces.iter().filter(|piece| piece.kind != PieceKind::Other);
    let special =
        marked.map(|piece| AddedToken::from(piece.text.as_str(), piece.kind == PieceKind::Control).normalized(false));
    let ends = [
        ("bos_token", found.bos_id, &found.bos_piece),
        ("eos_token", found.eos_id, &found.eos_piece),
        ("unk_token", found.unk_id, &found.unk_piece),
    ];
    let ends = ends.into_iter().filter(|(_, id, _)| class == Class::Plain && *id >= 0);
    let roles = ends.map(|(role, _, piece)| (role, piece.clone())).collect();
    Ok(Made { path: path.to_owned(), document, special: special.collect(), roles })
}

/// Of the settings that about T5's sentinels.
fn extra_ids(settings: &Settings) -> Map<String, Value> {
    settings.config.get("extra_ids").map(|count| ("extra_ids".to_owned(), count.clone())).into_iter().collect()
}

/// What no class stands for: spaces as `▁`, one piece of text.
fn plain_parts(document: &mut Value, table: Option<Value>, byte_fallback: bool) {
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let steps: Vec<Value> = table.into_iter().chain([spaces]).collect();
    document["normalizer"] = json!({ "type": "Sequence", "normalizers": steps });
    let mut decoders = vec![json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " })];
    if byte_fallback {
        decoders.extend([json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })]);
    }
    document["decoder"] = json!({ "type": "Sequence", "decoders": decoders });
}

/// Pieces that `added_tokens_decoder` calls by another name, as models fill unused ones.
fn renamed(tokens: &mut [String], settings: &Settings) {
    let mut known: HashSet<String> = tokens.iter().cloned().collect();
    for (id, name) in by_id(&settings.added) {
        if let Some(token) = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id))
            && token != name
            && known.insert(name.to_owned())
        {
            name.clone_into(token);
        }
    }
}

/// The merges of SentencePiece's byte pair encoding follow from the order of its pieces.
fn merges(tokens: &[String]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in ids.iter().map(|(token, id)| (*id, *token)) {
        let halves = token.char_indices().skip(1).enumerate().map(|(left, (at, _))| (left + 1, token.split_at(at)));
        let known = halves.filter(|(_, (left, right))| ids.contains_key(left) && ids.contains_key(right));
        // The earlier piece first, and of its halves the pair whose first is the shorter one.
        merges.extend(known.map(|(length, (left, right))| (id, length, left, right)));
    }
    merges.sort_by_key(|(id, length, ..)| (*id, *length));
    merges.into_iter().map(|(_, _, left, right)| json!([left, right])).collect()
}

fn document(model: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "model": model,
    })
}
