//! GGUF files as Transformers reads them: weights, logits, tokens; and files that are broken.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use peft::{
    AutoClass, Inputs,
    data::tokenizer::Tokenizer as _,
    files::TensorFile,
    models::{
        HfTokenizer,
        checkpoint::{self, LoadOptions, Loaded},
    },
};
use proptest::prelude::*;
use rstest::rstest;
use serde::Deserialize;

use crate::fixture::assert_close;

fn load(path: &Path) -> peft::Result<Loaded> {
    checkpoint::load(path, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex())
}

#[rstest]
fn weights_and_logits_are_those_of_transformers(#[files("gguf/*.gguf")] file: PathBuf) {
    let expected = TensorFile::read(&file.with_extension("safetensors"), "expected").unwrap().tensors;
    let Loaded { base, initialised, ignored, .. } = load(&file).unwrap();
    assert_eq!((initialised, ignored), (Vec::new(), Vec::new()));
    let ids = Tensor::from_data(expected["input_ids"].clone().convert::<i64>(), &Device::flex());
    let model = base.running();
    let inputs = model.check(Inputs { input_ids: Some(ids), ..Inputs::default() }).unwrap();
    let outputs = model.forward(&inputs).unwrap();
    assert_close("logits", &outputs.get::<3>("logits").unwrap().to_data(), &expected["logits"]);

    let folder = tempfile::tempdir().unwrap();
    checkpoint::save(&base, Some(&file), folder.path()).unwrap();
    let written = TensorFile::read(&folder.path().join("model.safetensors"), "written").unwrap().tensors;
    for (name, data) in expected.iter().filter(|(name, _)| !matches!(name.as_str(), "input_ids" | "logits")) {
        assert_close(name, &written[name], data);
    }
    // What was written is a model of its own, with its tokenizer.
    load(folder.path()).unwrap();
    let (own, copied) = (HfTokenizer::from_folder(&file).unwrap(), HfTokenizer::from_folder(folder.path()).unwrap());
    let text = "the cat sat at 12 mats!";
    assert_eq!(own.encode(text, None, 64).unwrap(), copied.encode(text, None, 64).unwrap());
    assert_eq!((own.pad_id(), own.eos_id()), (copied.pad_id(), copied.eos_id()));
    assert!(copied.has_chat_template());
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[rstest]
fn tokens_are_those_of_transformers(#[files("gguf/*.json")] file: PathBuf) {
    let texts: Vec<Text> = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let tokenizer = HfTokenizer::from_folder(&file.with_extension("gguf")).unwrap();
    for Text { text, ids } in texts {
        assert_eq!(tokenizer.encode(&text, None, 64).unwrap().ids, ids, "{text:?}");
    }
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf").join(name)).unwrap()
}

#[test]
fn a_folder_with_one_file_is_that_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.gguf"), fixture("qwen2.gguf")).unwrap();
    assert_eq!(load(folder.path()).unwrap().base.info.class_name, "Qwen2ForCausalLM");
    std::fs::write(folder.path().join("b.gguf"), fixture("qwen2.gguf")).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("several GGUF files") && error.contains("a.gguf"), "{error}");
}

#[test]
fn errors_name_the_file_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    };
    let whole = fixture("qwen2.gguf");
    let says = |bytes: &[u8], part: &str| {
        let text = error(bytes);
        assert!(text.contains("model.gguf") && text.contains(part), "{text}");
    };
    says(b"", "not a whole GGUF file");
    says(b"GGML....", "does not begin with `GGUF`");
    says(&[&whole[..4], &[9, 0, 0, 0], &whole[8..]].concat(), "version 9");
    says(&whole[..1000], "it ends within");
    says(&whole[..whole.len() - 64], "reaches beyond the end");
    says(&[&whole[..8], &[255; 8], &whole[16..]].concat(), "not a whole GGUF file");
    let text = String::from_utf8_lossy(&whole[..200]).into_owned();
    let at = text.find("qwen2").unwrap();
    says(&[&whole[..at], b"qwen9", &whole[at + 5..]].concat(), "architecture `qwen9` is not supported");
    // After a key stands the type of its value, in four bytes.
    let after = |key: &[u8]| whole.windows(key.len()).position(|part| part == key).unwrap() + key.len() + 4;
    for (key, number) in [("rope.freq_base", f32::NAN), ("attention.layer_norm_rms_epsilon", f32::INFINITY)] {
        let at = after(key.as_bytes());
        let changed = [&whole[..at], &number.to_le_bytes(), &whole[at + 4..]].concat();
        says(&changed, &format!("`qwen2.{key}`: not a finite number"));
    }
    // After a tensor's name stand the number of its dimensions, the dimensions, its type and its offset.
    let at = after(b"blk.0.attn_q.bias") + 8 + 4;
    let offset = u64::from_le_bytes(whole[at..at + 8].try_into().unwrap());
    let moved = |to: u64| [&whole[..at], &to.to_le_bytes(), &whole[at + 8..]].concat();
    says(&moved(offset + 4), "is not a multiple of the alignment 32");
    says(&moved(0), "overlap");
}

proptest! {
    /// Whatever bytes are changed, the file is read or refused: nothing panics, nothing takes memory that the file lacks.
    #[test]
    fn damaged_files_are_read_or_refused(changes in prop::collection::vec((0_usize..4000, any::<u8>()), 1..8), end in 1_usize..42_000) {
        let mut bytes = fixture("llama-old-quants.gguf");
        bytes.truncate(end.max(64));
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        _ = checkpoint::skeleton(&path, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex());
        _ = HfTokenizer::from_folder(&path);
    }
}
