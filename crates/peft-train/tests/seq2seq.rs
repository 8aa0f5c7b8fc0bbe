//! Training an encoder-decoder model from a recipe.

use std::{fs, path::Path};

use burn::tensor::Device;
use peft_train::{Event, Observer, Recipe, Silent, TrainOptions, TrainReport, prepare, train};
use serde_json::{Value, json};
use tempfile::TempDir;

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

/// A folder with a golden model and the tokenizer.
fn folder(case: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case).join("model");
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), model.join(file)).unwrap();
    }
    fs::write(model.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    folder
}

/// Trains a golden model to say its source again, which is in a column `text`.
fn run(case: &str, overrides: &[&str]) -> TrainReport {
    let folder = folder(case);
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

#[test]
fn written_answers_are_measured_and_may_pick_the_best() {
    let writing = ["training.predict_with_generate=true", "training.generation_max_length=8"];
    let run = |more: &[&str]| run("t5.SEQ_2_SEQ_LM.default", &[&writing, more].concat());
    let (one, many) = (
        run(&["training.max_steps=1"]),
        run(&[
            "training.max_steps=200",
            "training.eval_steps=50",
            "training.generation_num_beams=2",
            "training.load_best_model_at_end=true",
            "training.metric_for_best_model=rouge_l",
        ]),
    );
    let names = ["eval_loss", "perplexity", "rouge_l", "rouge_1", "rouge_2", "chrf", "bleu", "exact_match"];
    assert_eq!(many.metrics.keys().collect::<Vec<_>>(), names);
    for name in ["rouge_l", "chrf"] {
        assert!(many.metrics[name] > 1.5 * one.metrics[name], "{name}: {:?} {:?}", one.metrics, many.metrics);
    }
}

#[test]
fn writing_is_refused_where_nothing_can_be_written() {
    let folder = folder("t5.SEQ_2_SEQ_LM.default");
    fs::write(folder.path().join("rows.tsv"), "text\ttarget\tlabel\none two\tone\ta\nthree\ttwo\tb\n").unwrap();
    let error = |task: &str, eval: &str, training: &str| {
        let recipe = format!(
            "[model]\nmodel_name_or_path = \"model\"\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"{task}\"\n\
             [data]\ntrain = \"rows.tsv\"\n{eval}\n[training]\noutput_dir = \"out\"\n{training}\n"
        );
        let path = folder.path().join("recipe.toml");
        let prepared = Recipe::parse(&recipe, &path, &[]).and_then(|recipe| prepare(&recipe, &Device::flex()));
        prepared.unwrap_err().to_string()
    };
    let check = |message: String, says: &str| assert!(message.contains(says), "{message}");
    let (eval, on) = ("eval = \"rows.tsv\"", "predict_with_generate = true");
    check(error("SEQ_2_SEQ_LM", eval, "generation_num_beams = 2"), "predict_with_generate");
    check(error("SEQ_2_SEQ_LM", "", on), "nothing to evaluate on");
    check(error("SEQ_CLS", eval, on), "no row asks SEQ_CLS");
    check(error("SEQ_2_SEQ_LM", eval, &format!("{on}\ngeneration_max_length = 1")), "rows.tsv:2");
}

/// The notes of a run.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Note(note) = event {
            self.0.push((*note).to_owned());
        }
    }
}

#[test]
fn a_fresh_head_that_the_adapter_does_not_keep_is_pointed_out() {
    let folder = folder("t5.SEQ_2_SEQ_LM.default");
    fs::write(folder.path().join("train.tsv"), "text\tlabel\none two\ta\nthree\tb\n").unwrap();
    let notes = |adapter: &str| {
        let out = folder.path().join("out");
        let recipe = format!(
            "[model]\nmodel_name_or_path = \"model\"\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"SEQ_CLS\"\n{adapter}\n\
             [data]\ntrain = \"train.tsv\"\n[training]\noutput_dir = {out:?}\nmax_steps = 1\n"
        );
        let recipe = Recipe::parse(&recipe, &folder.path().join("recipe.toml"), &[]).unwrap();
        let mut notes = Notes::default();
        train(&recipe, &TrainOptions::new(Device::flex()), &mut notes).unwrap();
        fs::remove_dir_all(out).unwrap();
        notes.0.into_iter().filter(|note| note.contains("classification_head.out_proj.weight")).count()
    };
    assert_eq!(notes(""), 1);
    assert_eq!(notes("modules_to_save = [\"classification_head\"]"), 0);
}
