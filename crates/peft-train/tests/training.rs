//! Training from a recipe to an adapter folder, with the encoder that is shipped with the examples.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::{Device, TensorData};
use peft::{
    PeftModel,
    adapter::AdapterFolder,
    files::{TensorFile, write_safetensors},
    model::peft_model::DEFAULT_ADAPTER,
    models::checkpoint,
};
use peft_train::{
    Error, Event, Observer, Recipe, Silent, TrainOptions, TrainReport, checkpoint as checkpoints, labels, prepare,
    train,
};
use serde_json::Value;

mod kills;
mod resuming;

use crate::tagger::{self, StopAfter};

const RECIPE: &str = r#"[model]
model_name_or_path = "model"

[adapter]
peft_type = "LORA"
task_type = "TOKEN_CLS"
r = 2
target_modules = ["query", "value"]

[data]
train = "train.jsonl"
eval = "train.jsonl"

[training]
output_dir = "set by each test"
max_steps = 6
per_device_train_batch_size = 2
logging_steps = 2
eval_steps = 3
save_steps = 2
learning_rate = 1e-2
seed = 5
"#;

/// A folder with a model, twelve rows and a recipe.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tagger::model(&folder.path().join("model"));
        let rows: String = (0..12).map(|at| format!("{}\n", Value::from(tagger::row(at)))).collect();
        fs::write(folder.path().join("train.jsonl"), rows).unwrap();
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        Self { folder }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(&self, name: &str, overrides: &[&str]) -> Recipe {
        let mut all = vec![format!("training.output_dir={:?}", self.out(name).display().to_string())];
        all.extend(overrides.iter().map(|argument| (*argument).to_owned()));
        Recipe::read(&self.folder.path().join("recipe.toml"), &all).unwrap()
    }

    fn run(&self, name: &str, overrides: &[&str]) -> TrainReport {
        train(&self.recipe(name, overrides), &TrainOptions::new(Device::flex()), &mut Silent).unwrap()
    }

    fn resume(&self, name: &str, overrides: &[&str]) -> peft_train::Result<TrainReport> {
        let options = TrainOptions { resume: true, ..TrainOptions::new(Device::flex()) };
        train(&self.recipe(name, overrides), &options, &mut Silent)
    }

    /// Trains until the stop flag is set after `step`.
    fn stop_after(&self, name: &str, step: usize, overrides: &[&str]) -> Error {
        let stop = Arc::new(AtomicBool::new(false));
        let options = TrainOptions { stop: Arc::clone(&stop), ..TrainOptions::new(Device::flex()) };
        train(&self.recipe(name, overrides), &options, &mut StopAfter { step, stop }).unwrap_err()
    }

    fn weights(&self, name: &str) -> Vec<u8> {
        fs::read(self.out(name).join("adapter_model.safetensors")).unwrap()
    }

    /// The log without what the clock decides.
    fn log(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.out(name).join("trainer_log.jsonl")).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            line.retain(|key, _| !key.contains("second"));
            Value::Object(line)
        });
        lines.collect()
    }

    fn steps_saved(&self, name: &str) -> Vec<usize> {
        checkpoints::list(&self.out(name)).unwrap().into_iter().map(|(step, _)| step).collect()
    }
}

/// Without dropout and with a step that is proportional to the gradient, so that rounding stays rounding.
const PLAIN: &[&str] =
    &["training.adam_epsilon=1.0", "training.max_grad_norm=0", "training.lr_scheduler_type=constant"];

#[test]
fn accumulated_batches_train_as_one_large_batch_does() {
    let bench = Bench::new();
    tagger::without_dropout(&bench.out("model"));

    let with = |name, more: [&str; 2]| bench.run(name, &[PLAIN, &more].concat());
    let large = with("large", ["training.per_device_train_batch_size=6", "training.gradient_accumulation_steps=1"]);
    let small = with("small", ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=3"]);
    // A mean of means is off by more than 1e-3 here.
    assert!((large.train_loss - small.train_loss).abs() < 1e-5, "{} {}", large.train_loss, small.train_loss);
    let [large, small] = ["large", "small"].map(|name| AdapterFolder::read(&bench.out(name)).unwrap().tensors);
    assert!(!large.is_empty());
    for (key, large) in large {
        let [large, small] =
            [large, small[&key].clone()].map(|data| data.convert::<f32>().try_to_vec::<f32>().unwrap());
        let apart = large.iter().zip(&small).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Sums in another order.
        assert!(apart < 2e-6, "{key}: {apart}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_does_not() {
    let bench = Bench::new();
    let dropout = "adapter.lora_dropout=0.2";
    bench.run("first", &[dropout]);
    bench.run("second", &[dropout]);
    bench.run("third", &[dropout, "training.seed=6"]);
    assert_eq!(bench.weights("first"), bench.weights("second"));
    assert_ne!(bench.weights("first"), bench.weights("third"));
}

#[test]
fn a_resumed_run_ends_in_the_bits_of_one_that_never_stopped() {
    let bench = Bench::new();
    let overrides = ["adapter.lora_dropout=0.2", "training.load_best_model_at_end=true", "training.logging_steps=4"];
    let whole = bench.run("whole", &overrides);
    // Between two lines of the log and two checkpoints.
    let error = bench.stop_after("stopped", 3, &overrides);
    assert!(
        matches!(&error, Error::Interrupted { step: 3, checkpoint } if checkpoint.ends_with("checkpoint-3")),
        "{error}"
    );
    assert_eq!(error.exit_code(), 130);
    assert!(!bench.out("stopped").join("adapter_config.json").exists());
    let resumed = bench.resume("stopped", &overrides).unwrap();
    assert_eq!(bench.weights("whole"), bench.weights("stopped"));
    assert_eq!(bench.log("whole"), bench.log("stopped"));
    assert_eq!(
        (whole.train_loss, whole.metrics, whole.written_step),
        (resumed.train_loss, resumed.metrics, resumed.written_step)
    );
}

/// The recipe with another adapter.
fn with_adapter(bench: &Bench, keys: &str) {
    let (before, rest) = RECIPE.split_once("[adapter]").unwrap();
    let (_, after) = rest.split_once("[data]").unwrap();
    let text = format!("{before}[adapter]\ntask_type = \"TOKEN_CLS\"\nnum_virtual_tokens = 3\n{keys}\n[data]{after}");
    fs::write(bench.folder.path().join("recipe.toml"), text).unwrap();
}

/// With the methods that put vectors before the input PEFT cannot train this task.
#[test]
fn prompts_train_and_a_resumed_run_ends_in_the_same_bits() {
    for keys in [
        "peft_type = \"PROMPT_TUNING\"\nprompt_tuning_init = \"TEXT\"\nprompt_tuning_init_text = \"good day\"",
        "peft_type = \"PROMPT_TUNING\"\nprompt_tuning_init = \"SAMPLE_VOCAB\"",
        "peft_type = \"PREFIX_TUNING\"",
        "peft_type = \"PREFIX_TUNING\"\nprefix_projection = true\nencoder_hidden_size = 4",
        "peft_type = \"P_TUNING\"\nencoder_hidden_size = 4",
        "peft_type = \"P_TUNING\"\nencoder_hidden_size = 4\nencoder_reparameterization_type = \"LSTM\"\nencoder_dropout = 0.3",
        "peft_type = \"MULTITASK_PROMPT_TUNING\"",
    ] {
        let bench = Bench::new();
        with_adapter(&bench, keys);
        let whole = bench.run("whole", &[]);
        let error = bench.stop_after("stopped", 3, &[]);
        assert!(matches!(&error, Error::Interrupted { step: 3, .. }), "{error}");
        let resumed = bench.resume("stopped", &[]).unwrap();
        assert_eq!(bench.weights("whole"), bench.weights("stopped"), "{keys}");
        assert_eq!(whole.metrics, resumed.metrics, "{keys}");
        let encoder = |name: &str| fs::read(bench.out(name).join("prompt_encoder.safetensors")).ok();
        assert_eq!(encoder("whole"), encoder("stopped"), "{keys}");
        assert_eq!(encoder("whole").is_some(), keys.contains("encoder_hidden_size"), "{keys}");
    }
}

/// A finished prompt goes on: its folder has what training needs.
#[test]
fn a_saved_prompt_goes_on_to_the_bits_of_one_that_was_never_saved() {
    let bench = Bench::new();
    with_adapter(&bench, "peft_type = \"P_TUNING\"\nencoder_hidden_size = 4");
    bench.run("out", &[]);
    let recipe = bench.recipe("again", &[]);
    let prepared = prepare(&recipe, &Device::flex()).unwrap();
    let mut model = PeftModel::from_pretrained(prepared.base.clone(), &bench.out("out"), &Device::flex()).unwrap();
    let copy = bench.out("copy");
    model.save(DEFAULT_ADAPTER, &copy).unwrap();
    for file in ["adapter_model.safetensors", "prompt_encoder.safetensors", "adapter_config.json"] {
        assert_eq!(fs::read(bench.out("out").join(file)).unwrap(), fs::read(copy.join(file)).unwrap(), "{file}");
    }
    assert!(model.trainable().iter().any(|tensor| tensor.key == "prompt_encoder.mlp_head.0.weight"));
}

#[test]
fn rows_of_a_multitask_prompt_name_their_task() {
    let bench = Bench::new();
    with_adapter(&bench, "peft_type = \"MULTITASK_PROMPT_TUNING\"\nnum_tasks = 2");
    let error = train(&bench.recipe("out", &[]), &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("task_id"), "{error}");
    let rows = fs::read_to_string(bench.out("train.jsonl")).unwrap();
    let named: String = (0..)
        .zip(rows.lines())
        .map(|(at, row)| format!("{},\"task_id\":{}}}\n", &row[..row.len() - 1], at % 2))
        .collect();
    fs::write(bench.out("train.jsonl"), &named).unwrap();
    bench.run("out", &[]);
    fs::write(bench.out("train.jsonl"), named.replace("\"task_id\":1", "\"task_id\":2")).unwrap();
    let error = train(&bench.recipe("out", &[]), &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("0 to 1") && error.exit_code() == 3, "{error}");
}

#[test]
fn a_prompt_that_the_model_cannot_take_is_refused_before_its_weights_are_read() {
    let bench = Bench::new();
    with_adapter(&bench, "peft_type = \"PREFIX_TUNING\"");
    fs::remove_file(bench.out("model/model.safetensors")).unwrap();
    let recipe = bench.recipe("out", &["adapter.num_virtual_tokens=100000"]);
    let error = prepare(&recipe, &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("leave no room for text"), "{error}");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn virtual_tokens_take_positions_from_the_text() {
    let bench = Bench::new();
    with_adapter(&bench, "peft_type = \"PREFIX_TUNING\"");
    let most = prepare::preview(&bench.recipe("out", &[]), &Device::flex()).unwrap().base.info.max_positions.unwrap();
    let error = prepare::preview(&bench.recipe("out", &[&format!("data.max_length={most}")]), &Device::flex());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("left beside 3 virtual tokens"), "{error}");
}

#[test]
fn a_state_of_the_optimiser_that_does_not_fit_is_named_key_by_key() {
    let bench = Bench::new();
    bench.stop_after("out", 3, &[]);
    let path = bench.out("out").join("checkpoint-3/optimizer.safetensors");
    let whole = TensorFile::read(&path, "state").unwrap().tensors;
    let key = whole.keys().find_map(|key| key.strip_suffix("lora_A.weight.step")).unwrap().to_owned();
    // As the adapter's file has it: `[rank, d_in]`.
    let adapter = AdapterFolder::read(path.parent().unwrap()).unwrap().tensors;
    for (name, value) in &adapter {
        assert_eq!(whole[&format!("{name}.exp_avg")].shape(), value.shape(), "{name}");
        assert_eq!(whole[&format!("{name}.step")].clone().try_to_vec::<i64>().unwrap(), [3], "{name}");
    }
    assert_eq!(whole.len(), 3 * adapter.len());

    let mut broken = whole.clone();
    broken.remove(&format!("{key}lora_A.weight.exp_avg"));
    broken.insert(format!("{key}lora_A.weight.exp_avg_sq"), TensorData::from([1.0_f32]));
    broken.insert(format!("{key}lora_B.weight.step"), TensorData::from([-1_i64]));
    broken.insert("other.step".to_owned(), TensorData::from([1_i64]));
    write_safetensors(&path, &broken).unwrap();
    let error = bench.resume("out", &[]).unwrap_err();
    let message = error.to_string();
    for says in [
        "checkpoint-3/optimizer.safetensors".to_owned(),
        format!("`{key}lora_A.weight.exp_avg`: is missing, should be F32 [2, "),
        format!("`{key}lora_A.weight.exp_avg_sq`: is F32 [1], should be F32 [2, "),
        format!("`{key}lora_B.weight.step`: is no number of steps"),
        "`other.step`: optimizer state of no trainable parameter".to_owned(),
    ] {
        assert!(message.contains(&says), "{message}");
    }
    assert_eq!(error.exit_code(), 4);
    fs::remove_file(&path).unwrap();
    let error = bench.resume("out", &[]).unwrap_err();
    assert!(error.to_string().contains("optimizer.safetensors") && error.exit_code() == 6, "{error}");
    write_safetensors(&path, &whole).unwrap();
    bench.resume("out", &[]).unwrap();
}

#[test]
fn a_changed_recipe_or_changed_rows_are_not_resumed() {
    let bench = Bench::new();
    bench.stop_after("out", 3, &[]);
    let message = bench.resume("out", &["training.learning_rate=1e-3"]).unwrap_err().to_string();
    assert!(message.contains("`training.learning_rate` is 0.001 now and was 0.01"), "{message}");
    let message = bench.resume("out", &["adapter.r=4"]).unwrap_err().to_string();
    assert!(message.contains("`adapter.r`"), "{message}");
    let rows = fs::read_to_string(bench.out("train.jsonl")).unwrap();
    fs::write(bench.out("train.jsonl"), rows.replacen("good", "night", 1)).unwrap();
    let error = bench.resume("out", &[]).unwrap_err();
    assert!(error.to_string().contains("the training data has changed"), "{error}");
    assert_eq!(error.exit_code(), 2);
    fs::write(bench.out("train.jsonl"), rows).unwrap();
    let weights = bench.out("model/model.safetensors");
    let before = fs::read(&weights).unwrap();
    let mut tensors = TensorFile::read(&weights, "weights").unwrap().tensors;
    let moved = tensors.values_mut().next().unwrap();
    let values: Vec<f32> = moved.iter::<f32>().map(|value| value + 0.5).collect();
    *moved = TensorData::new(values, moved.shape().clone()).convert_dtype(moved.dtype());
    write_safetensors(&weights, &tensors).unwrap();
    let error = bench.resume("out", &[]).unwrap_err();
    assert!(error.to_string().contains("the base model in"), "{error}");
    assert_eq!(error.exit_code(), 2);
    fs::write(&weights, before).unwrap();
    assert!(bench.resume("out", &["training.logging_steps=1", "training.save_steps=5"]).is_ok());
}

#[test]
fn an_unfinished_run_is_not_overwritten_and_a_finished_one_is() {
    let bench = Bench::new();
    bench.stop_after("out", 2, &[]);
    let error = train(&bench.recipe("out", &[]), &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Resume { .. }) && error.to_string().contains("--resume"), "{error}");
    bench.resume("out", &[]).unwrap();
    let first = bench.weights("out");
    bench.run("out", &["training.seed=6", "training.save_steps=100"]);
    assert_ne!(bench.weights("out"), first);
    assert_eq!(bench.steps_saved("out"), [0; 0]);
}

#[test]
fn the_result_of_a_run_of_another_kind_is_not_replaced() {
    let bench = Bench::new();
    bench.run("out", &[]);
    let first = bench.weights("out");
    let refused = |overrides: &[&str], says: &str| {
        let recipe = bench.recipe("out", overrides);
        let error = train(&recipe, &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
        assert!(error.to_string().contains(says) && error.exit_code() == 2, "{error}");
        assert_eq!(bench.weights("out"), first);
    };
    fs::rename(bench.out("model"), bench.out("other")).unwrap();
    refused(&["model.model_name_or_path=\"other\""], "base model");
    fs::rename(bench.out("other"), bench.out("model")).unwrap();
    with_adapter(&bench, "peft_type = \"P_TUNING\"\nencoder_hidden_size = 4");
    refused(&[], "LORA for TOKEN_CLS");
    let text = RECIPE.replace("\"LORA\"", "\"FULL\"").replace("r = 2\ntarget_modules = [\"query\", \"value\"]\n", "");
    fs::write(bench.out("recipe.toml"), text).unwrap();
    refused(&[], "this recipe: FULL for TOKEN_CLS");
    // Versions before the manifest are known by their recipe and their log.
    let manifest = fs::read(bench.out("out/peft_manifest.json")).unwrap();
    fs::remove_file(bench.out("out/peft_manifest.json")).unwrap();
    refused(&[], "LORA for TOKEN_CLS");
    fs::write(bench.out("out/peft_manifest.json"), manifest).unwrap();
    // Whoever took the recipe away does not lose the adapter by it.
    fs::remove_file(bench.out("out/recipe.toml")).unwrap();
    refused(&[], "without its recipe");
}

#[test]
fn only_the_last_checkpoints_are_kept() {
    let bench = Bench::new();
    bench.run("all", &[]);
    bench.run("two", &["training.save_total_limit=2"]);
    bench.run("none", &["training.save_strategy=no"]);
    assert_eq!(bench.steps_saved("all"), [2, 4, 6]);
    assert_eq!(bench.steps_saved("two"), [4, 6]);
    assert_eq!(bench.steps_saved("none"), [0; 0]);
    assert_eq!(bench.weights("all"), bench.weights("two"));
}

#[test]
fn a_metric_that_no_evaluation_has_is_refused_before_the_first_step() {
    let bench = Bench::new();
    let prepared = |metric: &str| {
        prepare::preview(&bench.recipe("out", &[&format!("training.metric_for_best_model={metric}")]), &Device::flex())
    };
    let error = prepared("bleu").unwrap_err().to_string();
    assert!(
        ["recipe.toml", "metric_for_best_model", "`bleu`", "eval_loss, "].iter().all(|word| error.contains(word)),
        "{error}"
    );
    for metric in ["loss", "eval_loss", "eval_accuracy", "f1"] {
        assert!(prepared(metric).is_ok(), "{metric}");
    }
}

#[test]
fn the_best_adapter_is_the_result_if_asked_for() {
    let bench = Bench::new();
    // The loss only grows at this learning rate: the first evaluation stays the best.
    let wild = ["training.learning_rate=0.5", "training.metric_for_best_model=eval_loss", "training.eval_steps=1"];
    let report = bench.run("best", &[&wild[..], &["training.load_best_model_at_end=true"]].concat());
    assert!(report.written_step < report.steps, "{report:?}");
    let lowest =
        bench.log("best").iter().filter_map(|line| line.get("eval_loss")?.as_f64()).fold(f64::INFINITY, f64::min);
    assert!((report.metrics["eval_loss"] - lowest).abs() < 1e-12);

    // What was written measures as what was reported.
    let recipe = bench.recipe("best", &[]);
    let prepared = prepare(&recipe, &Device::flex()).unwrap();
    let model = PeftModel::from_pretrained(prepared.base.clone(), &bench.out("best"), &Device::flex()).unwrap();
    let context = prepared.context();
    let data = prepared.eval.as_ref().unwrap();
    let metrics = peft_train::evaluate::evaluate(&model, data, &context, None, 3, &mut Silent).unwrap();
    assert!((metrics["eval_loss"] - lowest).abs() < 1e-5, "{metrics:?} {lowest}");
}

#[test]
fn the_result_is_an_adapter_folder_with_its_classes_and_tokenizer() {
    let bench = Bench::new();
    let report = bench.run("out", &[]);
    assert_eq!((report.steps, report.written_step), (6, 6));
    assert!(report.train_loss.is_finite() && report.metrics.contains_key("eval_loss") && report.metrics.len() > 1);
    let files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "recipe.toml"];
    assert!(files.iter().all(|file| bench.out("out").join(file).is_file()));
    let folder = AdapterFolder::read(&bench.out("out")).unwrap();
    assert_eq!(folder.config.base_model_name_or_path.as_deref(), Some("model"));
    let found = labels::read(&bench.out("out")).unwrap().unwrap();
    assert_eq!(found.labels, ["O", "SHORT"]);
    let options = checkpoint::LoadOptions { labels: Some(found), ..Default::default() };
    let task = folder.config.task().unwrap().unwrap();
    let base = checkpoint::load(&bench.out("model"), &task.auto_class, &options, &Device::flex()).unwrap().base;
    let mut model = PeftModel::from_pretrained(base, &bench.out("out"), &Device::flex()).unwrap();
    assert_eq!(model.state_dict(DEFAULT_ADAPTER).unwrap().len(), folder.tensors.len());
}

#[test]
fn rows_without_anything_to_learn_end_before_the_first_step() {
    let bench = Bench::new();
    fs::write(bench.out("train.jsonl"), "").unwrap();
    let error = train(&bench.recipe("out", &[]), &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(error.to_string().contains("train.jsonl"), "{error}");
    assert!(!bench.out("out").exists());
}

#[test]
fn pairs_of_texts_learn_the_cosine_that_their_score_says() {
    let bench = Bench::new();
    let pairs =
        [("good day", "good day", 5), ("bad night", "the sun", 0), ("rain", "rain", 5), ("why", "a good day", 1)];
    let rows = pairs.map(|(text, pair, score)| format!("{text}\t{pair}\t{score}\n")).concat();
    fs::write(bench.out("pairs.tsv"), format!("text\ttext_pair\tscore\n{rows}")).unwrap();
    fs::write(bench.out("singles.tsv"), "text\ngood day\n").unwrap();
    let pairs = ["adapter.task_type=FEATURE_EXTRACTION", "data.train=pairs.tsv", "data.eval=pairs.tsv"];
    let error = prepare(&bench.recipe("out", &pairs), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("recipe.toml: `score_scale`") && error.exit_code() == 2, "{error}");
    let singles = ["adapter.task_type=FEATURE_EXTRACTION", "data.train=singles.tsv", "data.eval=singles.tsv"];
    let error = prepare(&bench.recipe("out", &singles), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("`text_pair` and `score`") && error.exit_code() == 3, "{error}");

    let scaled = [&pairs[..], &["data.score_scale=5", "training.eval_on_start=true", "training.max_steps=20"]].concat();
    let report = bench.run("out", &scaled);
    let first = bench.log("out").iter().find_map(|line| line.get("eval_loss")?.as_f64()).unwrap();
    assert!(report.metrics["eval_loss"] < first && report.metrics["pearson"] > 0.9, "{first} {:?}", report.metrics);
}

const NEW_MODEL: &str = r#"{"model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": true,
    "rms_norm_eps": 1e-6}"#;

#[test]
fn a_new_model_is_trained_whole_and_is_a_base_model_then() {
    let bench = Bench::new();
    let vocab = checkpoint::read_config(&bench.out("model")).unwrap()["vocab_size"].to_string();
    fs::write(bench.out("new.json"), NEW_MODEL.replace("VOCAB", &vocab)).unwrap();
    fs::write(bench.out("texts.txt"), "the good day\n\nthe bad night\n\nwhy a sun\n").unwrap();
    let recipe = RECIPE.replace("model_name_or_path = \"model\"", "config = \"new.json\"\ntokenizer = \"model\"");
    let recipe = recipe.replace("\"LORA\"", "\"FULL\"").replace("r = 2\ntarget_modules = [\"query\", \"value\"]\n", "");
    fs::write(bench.out("recipe.toml"), recipe.replace("train.jsonl", "texts.txt")).unwrap();
    let task = "adapter.task_type=CAUSAL_LM";
    let error = Recipe::read(&bench.out("recipe.toml"), &[task.to_owned()]).unwrap_err().to_string();
    assert!(error.contains("say init = \"random\""), "{error}");

    let overrides = [task, "model.init=random", "training.max_steps=40", "training.eval_on_start=true"];
    let report = bench.run("base", &overrides);
    let first = bench.log("base").iter().find_map(|line| line.get("eval_loss")?.as_f64()).unwrap();
    assert!(report.metrics["eval_loss"] < first / 2.0, "{first} {:?}", report.metrics);
    // A table of words, one layer of nine tensors, a norm; the output layer is the table still.
    let written = TensorFile::read(&bench.out("base").join("model.safetensors"), "weights").unwrap().tensors;
    assert_eq!(written.len(), 11);
    assert!(!written.contains_key("lm_head.weight") && !bench.out("base").join("adapter_config.json").exists());
    let total: usize = written.values().map(|data| data.num_elements()).sum();
    assert_eq!(report.trainable_params, total);

    // What was measured is what was written, with and without a pause on the way.
    let class = peft::AutoClass::CAUSAL_LM;
    let base = checkpoint::load(&bench.out("base"), &class, &Default::default(), &Device::flex()).unwrap().base;
    assert_eq!(base.info.config["tie_word_embeddings"], true);
    let stopped = bench.stop_after("paused", 17, &overrides);
    assert!(matches!(stopped, Error::Interrupted { .. }), "{stopped}");
    bench.resume("paused", &overrides).unwrap();
    assert_eq!(
        fs::read(bench.out("paused").join("model.safetensors")).unwrap(),
        fs::read(bench.out("base").join("model.safetensors")).unwrap()
    );

    fs::write(bench.out("recipe.toml"), RECIPE.replace("\"model\"", "\"base\"").replace("train.jsonl", "texts.txt"))
        .unwrap();
    let adapted = bench.run(
        "adapter",
        &[task, "adapter.target_modules=[\"q_proj\"]", "training.learning_rate=1e-6", "training.max_steps=1"],
    );
    assert!((adapted.metrics["eval_loss"] - report.metrics["eval_loss"]).abs() < 1e-3, "{:?}", adapted.metrics);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_without_a_result() {
    let bench = Bench::new();
    let wild = ["training.learning_rate=1e38", "training.max_grad_norm=0", "training.logging_steps=1"];
    let error = train(&bench.recipe("out", &wild), &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
    assert!(!bench.out("out").join("adapter_config.json").exists());
    let last = [&wild[..], &["training.max_steps=1", "training.learning_rate=1e300"]].concat();
    let error = train(&bench.recipe("out", &last), &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 1, .. }), "{error}");
}

#[derive(Default)]
struct Notes(Vec<String>);

impl Observer for Notes {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Note(note) = event {
            self.0.push((*note).to_owned());
        }
    }
}

/// The note on the layers that run again.
fn recomputing(bench: &Bench, name: &str, overrides: &[&str]) -> String {
    let mut notes = Notes::default();
    train(&bench.recipe(name, overrides), &TrainOptions::new(Device::flex()), &mut notes).unwrap();
    notes.0.into_iter().find(|note| note.starts_with("recomputing")).unwrap()
}

#[test]
fn layers_that_run_again_train_the_same_adapter_and_a_note_says_how_many() {
    let bench = Bench::new();
    bench.run("kept", &[]);
    // The lowest of the three has no gradient to hand on, the last is what the pass back begins with.
    let note = recomputing(&bench, "again", &["training.gradient_checkpointing=true"]);
    assert!(note.starts_with("recomputing 1 of 3 layers: about "), "{note}");
    assert_eq!(bench.weights("kept"), bench.weights("again"));
    // A prompt has gradients below the lowest layer.
    with_adapter(&bench, "peft_type = \"P_TUNING\"\nencoder_hidden_size = 4");
    bench.run("prompt", &[]);
    let note = recomputing(&bench, "prompt-again", &["training.gradient_checkpointing=true"]);
    assert!(note.starts_with("recomputing 2 of 3 layers: about "), "{note}");
    assert_eq!(bench.weights("prompt"), bench.weights("prompt-again"));
    let note = recomputing(&bench, "roomy", &["training.activation_memory_mb=1000"]);
    assert!(note.starts_with("recomputing none of 3 layers: about "), "{note}");
}

#[test]
fn what_cannot_run_again_is_refused() {
    let bench = Bench::new();
    with_adapter(&bench, "peft_type = \"PREFIX_TUNING\"");
    let recipe = bench.recipe("out", &["training.activation_memory_mb=10"]);
    let error = train(&recipe, &TrainOptions::new(Device::flex()), &mut Silent).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("activation_memory_mb") && message.contains("PREFIX_TUNING does not work"), "{message}");
    assert_eq!(error.exit_code(), 2);
    let both =
        ["training.output_dir=\"out\"", "training.gradient_checkpointing=true", "training.activation_memory_mb=1"];
    let both = both.map(str::to_owned);
    let error = Recipe::read(&bench.folder.path().join("recipe.toml"), &both).unwrap_err().to_string();
    assert!(error.contains("keep one of the two"), "{error}");
}

#[test]
fn steps_that_cannot_be_captured_are_plain_ones_and_a_note_says_why() {
    let bench = Bench::new();
    bench.run("plain", &[]);
    let mut notes = Notes::default();
    let recipe = bench.recipe("captured", &["training.captured_steps=true"]);
    train(&recipe, &TrainOptions::new(Device::flex()), &mut notes).unwrap();
    assert!(notes.0.contains(&"captured_steps: CUDA graphs are off: only a GPU records".to_owned()), "{:?}", notes.0);
    assert_eq!((bench.weights("plain"), bench.log("plain")), (bench.weights("captured"), bench.log("captured")));
}

#[test]
fn padding_to_a_multiple_changes_nothing_but_rounding() {
    let bench = Bench::new();
    tagger::without_dropout(&bench.out("model"));
    let (plain, padded) =
        (bench.run("plain", PLAIN), bench.run("padded", &[PLAIN, &["training.pad_to_multiple_of=16"]].concat()));
    assert!((plain.train_loss - padded.train_loss).abs() < 1e-5, "{} {}", plain.train_loss, padded.train_loss);
    let nothing = ["training.output_dir=\"out\"", "training.pad_to_multiple_of=0"].map(str::to_owned);
    let error = Recipe::read(&bench.folder.path().join("recipe.toml"), &nothing).unwrap_err().to_string();
    assert!(error.contains("pad_to_multiple_of") && error.contains("at least 1"), "{error}");
}
