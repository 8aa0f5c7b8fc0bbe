//! Tokenizers: cutting, windows and roles, with the word pieces of the encoder that comes with the examples.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path};

use peft_core::tokenizer::{Encoding, Tokenizer};
use peft_models::HfTokenizer;

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
    write("tokenizer.json", "{}");
    assert!(HfTokenizer::from_folder(folder.path()).unwrap_err().to_string().contains("tokenizer.json: no tokenizer"));
}
