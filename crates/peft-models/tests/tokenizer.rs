//! Tokenizers: cutting, windows and roles, with the word pieces of the encoder that comes with the examples.

use std::{
    fs,
    path::{Path, PathBuf},
};

use peft_core::data::tokenizer::{Encoding, Tokenizer};
use peft_models::HfTokenizer;
use serde_json::{Value, json};

fn tokenizer() -> HfTokenizer {
    HfTokenizer::from_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models/tiny-encoder")).unwrap()
}

/// What the tokens of one text cover, by their offsets.
fn pieces(encoding: &Encoding, sequence: usize, text: &str) -> Vec<String> {
    let spans = encoding.offsets.iter().zip(&encoding.sequences).filter(|(_, of)| **of == Some(sequence));
    spans.map(|((start, end), _)| text.chars().skip(*start).take(end - start).collect()).collect()
}

#[test]
fn offsets_count_characters() {
    let text = "“très” good food";
    let encoding = tokenizer().encode(text, None, 64).unwrap();
    let pieces = pieces(&encoding, 0, text);
    assert_eq!(pieces.concat(), text.replace(' ', ""));
    assert_eq!(pieces.last().unwrap(), "food");
}

#[test]
fn the_longer_text_is_cut_first() {
    let encoding = tokenizer().encode("good food", Some("a b c d e f g h"), 9).unwrap();
    assert_eq!((encoding.ids.len(), encoding.truncated), (9, true));
    let of = |sequence| encoding.sequences.iter().filter(|s| **s == Some(sequence)).count();
    assert_eq!((of(0), of(1)), (2, 4));
    assert!(!tokenizer().encode("good food", None, 9).unwrap().truncated);
}

#[test]
fn words_keep_their_numbers() {
    let words = ["good", "unbelievably", "food"].map(str::to_owned);
    let encoding = tokenizer().encode_words(&words, 32).unwrap();
    assert_eq!((encoding.words.first(), encoding.words.last()), (Some(&None), Some(&None)));
    let numbers: Vec<usize> = encoding.words.iter().flatten().copied().collect();
    assert!(numbers.is_sorted() && numbers.len() > 3);
    assert_eq!((numbers.first(), numbers.last()), (Some(&0), Some(&2)));
}

#[test]
fn windows_cover_the_context_and_overlap_by_the_stride() {
    let context = "one two three four five six seven eight nine ten";
    let tokens = tokenizer().encode_plain(context).unwrap().len();
    let windows = tokenizer().encode_windows("how good?", context, 10, 2).unwrap();
    assert!(windows.len() > 1 && windows.iter().all(|window| window.ids.len() <= 10));
    let contexts: Vec<_> = windows.iter().map(|window| pieces(window, 1, context)).collect();
    let starts = |window: &Encoding| {
        window
            .offsets
            .iter()
            .zip(&window.sequences)
            .filter(|(_, of)| **of == Some(1))
            .map(|(span, _)| *span)
            .collect::<Vec<_>>()
    };
    for [a, b] in windows.array_windows() {
        assert_eq!(starts(a)[starts(a).len() - 2..], starts(b)[..2]);
    }
    let distinct = contexts.iter().map(Vec::len).sum::<usize>() - 2 * (windows.len() - 1);
    assert_eq!(distinct, tokens);
    for window in &windows {
        assert_eq!(pieces(window, 0, "how good?"), ["how", "good", "?"]);
    }
}

#[test]
fn texts_that_cannot_be_cut_are_errors_that_say_why() {
    let tokenizer = tokenizer();
    let check = |result: peft_core::Result<usize>, words: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    };
    let windows = |max_length, stride| {
        tokenizer.encode_windows("how good?", "one two three four five six", max_length, stride).map(|all| all.len())
    };
    check(windows(5, 0), "leaves 0 of max_length 5");
    check(windows(9, 3), "must be more than the doc_stride of 3");
    assert_eq!(windows(64, 60).unwrap(), 1);
    check(tokenizer.encode("good", None, 2).map(|e| e.ids.len()), "2 special tokens");
}

#[test]
fn a_text_comes_back_without_special_tokens() {
    let tokenizer = tokenizer();
    let encoding = tokenizer.encode("good food", None, 16).unwrap();
    assert_eq!(tokenizer.decode(&encoding.ids).unwrap(), "good food");
    // Ids that only fill a vocabulary up say nothing.
    assert_eq!(tokenizer.decode(&[&encoding.ids[..], &[9_999_999]].concat()).unwrap(), "good food");
    assert_eq!(tokenizer.encode_plain("good food").unwrap(), encoding.ids[1..encoding.ids.len() - 1]);
}

#[test]
fn roles_come_from_the_files_beside_the_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models/tiny-encoder/tokenizer.json");
    fs::copy(source, folder.path().join("tokenizer.json")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let open = || HfTokenizer::from_folder(folder.path()).unwrap();

    write("config.json", r#"{"pad_token_id": 3, "eos_token_id": [7, 8]}"#);
    assert_eq!((open().pad_id(), open().eos_id()), (3, Some(7)));
    write("tokenizer_config.json", r#"{"pad_token": {"content": "[SEP]"}, "eos_token": "[CLS]"}"#);
    assert_eq!((open().token_to_id("[SEP]"), open().token_to_id("[CLS]")), (Some(open().pad_id()), open().eos_id()));

    write("tokenizer_config.json", "[");
    let text = HfTokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(text.contains("tokenizer_config.json: not a JSON object"), "{text}");
    write("tokenizer_config.json", "{}");
    write("tokenizer.json", "{}");
    assert!(HfTokenizer::from_folder(folder.path()).unwrap_err().to_string().contains("tokenizer.json: no tokenizer"));
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tokenizers")
}

/// A folder with files of `tests/tokenizers/files` by other names, and documents.
fn place(files: &Value, documents: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, own) in files.as_object().unwrap() {
        fs::copy(fixtures().join("files").join(own.as_str().unwrap()), folder.path().join(name)).unwrap();
    }
    for (name, document) in documents.as_object().unwrap() {
        fs::write(folder.path().join(name), document.to_string()).unwrap();
    }
    folder
}

/// `generate.py` there wrote what Transformers makes of each.
#[test]
fn tokenizer_files_and_their_settings_are_read_as_transformers_reads_them() {
    let expected: Value = serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    let texts: Vec<&str> = expected["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let words: Vec<String> = serde_json::from_value(expected["words"].clone()).unwrap();
    let pair = [0, 1].map(|at| expected["pair"][at].as_str().unwrap());
    let mut wrong = Vec::new();
    for case in expected["cases"].as_array().unwrap() {
        let folder = place(&case["files"], &case["documents"]);
        let tokenizer = match HfTokenizer::from_folder(folder.path()) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                wrong.push(format!("{}: {error}", case["name"]));
                continue;
            }
        };
        let mut check = |what: String, found: Result<Encoding, peft_core::Error>, ids: &Value| {
            let found = json!(found.unwrap().ids);
            if found != *ids {
                wrong.push(format!("{} {what}\n  found {found}\n  right {ids}", case["name"]));
            }
        };
        for (text, ids) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            check(format!("{text:?}"), tokenizer.encode(text, None, usize::MAX), ids);
        }
        check("pair".to_owned(), tokenizer.encode(pair[0], Some(pair[1]), usize::MAX), &case["pair"]);
        check("words".to_owned(), tokenizer.encode_words(&words, usize::MAX), &case["words"]);
        check("cut".to_owned(), tokenizer.encode(texts[1], None, 6), &case["cut"]);
        check("cut pair".to_owned(), tokenizer.encode(pair[0], Some(pair[1]), 6), &case["cut_pair"]);
        for (ids, text) in case["ids"].as_array().unwrap().iter().zip(case["decoded"].as_array().unwrap()) {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let found = tokenizer.decode(&ids).unwrap();
            if *text != found {
                wrong.push(format!("{} decodes {found:?}, right {text}", case["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_long_text_is_tokenized_as_far_as_it_is_kept() {
    for (file, document) in [
        ("bert.json", json!({ "tokenizer_class": "BertTokenizer" })),
        ("roberta.json", json!({ "tokenizer_class": "RobertaTokenizer" })),
        ("llama.json", json!({ "tokenizer_class": "LlamaTokenizer" })),
        ("t5.json", json!({ "tokenizer_class": "T5Tokenizer" })),
    ] {
        for side in ["left", "right"] {
            let mut document = document.clone();
            document["truncation_side"] = side.into();
            let folder = place(&json!({ "tokenizer.json": file }), &json!({ "tokenizer_config.json": document }));
            let tokenizer = HfTokenizer::from_folder(folder.path()).unwrap();
            let words: Vec<String> =
                (0..1200).map(|at| format!("film{} wörld, don't ({at})\n", at * 7919 % 1000)).collect();
            let long = words.concat();
            let whole = tokenizer.encode(&long, None, usize::MAX).unwrap();
            let specials = whole.sequences.iter().filter(|sequence| sequence.is_none()).count();
            for most in [specials + 1, 16, 61] {
                let kept = most - specials;
                let cut = tokenizer.encode(&long, None, most).unwrap();
                let inner = |encoding: &Encoding| -> Vec<_> {
                    let tokens = encoding.ids.iter().zip(&encoding.offsets).zip(&encoding.sequences);
                    tokens.filter(|(_, sequence)| sequence.is_some()).map(|((id, offset), _)| (*id, *offset)).collect()
                };
                let all = inner(&whole);
                let right = if side == "left" { &all[all.len() - kept..] } else { &all[..kept] };
                assert_eq!(inner(&cut), right, "{file} {side} {most}");
                assert!(cut.truncated);
                let pair = tokenizer.encode("hello", Some(&long), 20).unwrap();
                assert_eq!((pair.ids.len(), pair.truncated), (20, true), "{file} {side}");
                let words = tokenizer.encode_words(&words, most).unwrap();
                assert_eq!((words.ids.len(), words.truncated), (most, true), "{file} {side}");
            }
        }
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_how_to_make_one() {
    let folder = place(&json!({ "vocab.json": "vocab.json" }), &json!({ "config.json": { "model_type": "marian" } }));
    let error = HfTokenizer::from_folder(folder.path()).unwrap_err().to_string();
    for part in ["tokenizer.json: not found", "vocab.json", "AutoTokenizer.from_pretrained(\"MODEL\").save_pretrained"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_broken_tokenizer_file_is_an_error_that_names_it() {
    let whole: Value = serde_json::from_slice(&fs::read(fixtures().join("files/t5.json")).unwrap()).unwrap();
    let check = |part: &str, value: Value, words: &str| {
        let mut broken = whole.clone();
        broken[part] = value;
        let folder = place(&json!({}), &json!({ "tokenizer.json": broken }));
        let error = HfTokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: ") && error.contains(words), "{part}: {error}");
    };
    for table in ["AAAA", "!", "", "////f0FBQUE="] {
        let step = json!({ "type": "Precompiled", "precompiled_charsmap": table });
        check("normalizer", json!({ "type": "Sequence", "normalizers": [step] }), "precompiled_charsmap");
    }
    let unlisted =
        json!([{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }]);
    let template = json!({ "type": "TemplateProcessing", "single": unlisted, "pair": unlisted, "special_tokens": {} });
    check("post_processor", template.clone(), "`<s>` is not listed");
    check("post_processor", json!({ "type": "Sequence", "processors": [template] }), "`<s>` is not listed");
    let pair = json!([{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }]);
    let template = json!({ "type": "TemplateProcessing", "single": pair, "pair": pair, "special_tokens": {} });
    check("post_processor", json!({ "type": "Sequence", "processors": [template, "x"] }), "no tokenizer");
    check("model", json!({ "type": "BPE", "vocab": { "a": 0 }, "merges": [["a", "b"]] }), "no tokenizer");
    check("added_tokens", json!([{ "id": -1, "content": "x" }]), "no tokenizer");
}

#[test]
fn a_tokenizer_file_that_is_changed_anywhere_opens_or_is_refused() {
    for name in ["bert.json", "gpt2.json", "llama.json", "xlmr.json"] {
        let bytes = fs::read(fixtures().join("files").join(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut state = 17_u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..60 {
            let mut changed = bytes.clone();
            for _ in 0..=draw(3) {
                let at = draw(changed.len());
                changed[at] = b"0919{}[],:\"xZ-\\ "[draw(16)];
            }
            fs::write(folder.path().join("tokenizer.json"), &changed).unwrap();
            if let Ok(tokenizer) = HfTokenizer::from_folder(folder.path()) {
                _ = tokenizer.encode("The film, don't!", Some("\u{e9}"), 12);
                _ = tokenizer.decode(&[0, 1, 40, 4_000_000]);
            }
        }
    }
}
