//! Training an encoder-decoder model from a recipe.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path};

use burn::tensor::Device;
use peft_train::{Recipe, Silent, TrainOptions, TrainReport, train};
use serde_json::{Value, json};

const WORDS: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "eight"];

/// A tokenizer of a few words that closes each text with `</s>`.
fn tokenizer() -> Value {
    let special = ["<pad>", "</s>", "<unk>"];
    let words = special.into_iter().chain(["copy:"]).chain(WORDS);
    let vocab: serde_json::Map<String, Value> =
        words.enumerate().map(|(id, word)| (word.to_owned(), id.into())).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let (text, end) =
        (json!({ "Sequence": { "id": "A", "type_id": 0 } }), json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } }));
    json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, end],
            "pair": [text, { "Sequence": { "id": "B", "type_id": 0 } }, end],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    })
}

/// Trains a golden model to say its source again, which is in a column `text`.
fn run(case: &str, overrides: &[&str]) -> TrainReport {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case).join("model");
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), model.join(file)).unwrap();
    }
    fs::write(model.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let rows = (0..16).map(|row| {
        let text: Vec<_> = WORDS.iter().cycle().skip(row).step_by(1 + row % 3).take(1 + row % 4).copied().collect();
        format!("{0}\t{0}\n", text.join(" "))
    });
    fs::write(folder.path().join("train.tsv"), format!("text\ttarget\n{}", rows.collect::<String>())).unwrap();
    let out = folder.path().join("out");
    let recipe = format!(
        r#"[model]
model_name_or_path = "model"

[adapter]
peft_type = "LORA"
task_type = "SEQ_2_SEQ_LM"
r = 8
lora_alpha = 32
target_modules = "all-linear"
modules_to_save = ["lm_head"]

[data]
train = "train.tsv"
eval = "train.tsv"
source_prefix = "copy: "
max_length = 8
max_target_length = 6

[training]
output_dir = {out:?}
max_steps = 60
per_device_train_batch_size = 8
learning_rate = 2e-2
seed = 1
"#
    );
    let path = folder.path().join("recipe.toml");
    fs::write(&path, recipe).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|argument| (*argument).to_owned()).collect();
    let recipe = Recipe::read(&path, &overrides).unwrap();
    train(&recipe, &TrainOptions::new(Device::flex()), &mut Silent).unwrap()
}

#[test]
fn training_makes_the_target_likely() {
    for case in ["t5.SEQ_2_SEQ_LM.default", "mbart.SEQ_2_SEQ_LM.default"] {
        let (one, many) = (run(case, &["training.max_steps=1"]), run(case, &[]));
        let (before, after) = (one.metrics["eval_loss"], many.metrics["eval_loss"]);
        assert!(after < 0.6 * before, "{case}: {before} before, {after} after");
        assert!((many.metrics["perplexity"] - after.exp()).abs() < 1e-3 * after.exp(), "{:?}", many.metrics);
    }
}
