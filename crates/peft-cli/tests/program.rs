//! The program as its users meet it: kills and resumes, exit codes, stdout and stderr.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use burn::tensor::{DType, TensorData};
use peft::files::{TensorFile, write_safetensors};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap()
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case).canonicalize().unwrap()
}

fn peft(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    command.current_dir(folder).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    peft(folder, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder with a recipe for a few steps on a few rows, dropout included.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let data = fs::read_to_string(examples().join("data/vader-sentiment/train.tsv")).unwrap();
    let rows: Vec<&str> = data.lines().take(49).collect();
    fs::write(folder.path().join("train.tsv"), rows.join("\n") + "\n").unwrap();
    let recipe = format!(
        r#"[model]
model_name_or_path = "{}"

[adapter]
peft_type = "LORA"
task_type = "SEQ_CLS"
r = 4
lora_dropout = 0.1

[data]
train = "train.tsv"
eval = "train.tsv"
max_length = 32
overflow = "truncate"

[training]
output_dir = "out"
max_steps = 9
per_device_train_batch_size = 4
gradient_accumulation_steps = 2
learning_rate = 1e-3
save_steps = 2
eval_steps = 3
load_best_model_at_end = false
logging_steps = 2
seed = 5
"#,
        examples().join("models/tiny-encoder").display()
    );
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    folder
}

fn adapter(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("out/adapter_model.safetensors")).unwrap()
}

/// A training that has said `line`, and what else it says.
fn train_until(folder: &Path, arguments: &[&str], line: &str) -> (Child, Lines<BufReader<ChildStderr>>) {
    let mut child = peft(folder, &[&["train", "recipe.toml"], arguments].concat()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|found| found.unwrap().contains(line)), "the run ended before it said `{line}`");
    (child, lines)
}

#[test]
fn the_same_seed_gives_the_same_adapter_and_a_killed_run_resumes_to_the_same_bits() {
    let whole = workplace();
    let done = run(whole.path(), &["train", "recipe.toml", "--quiet"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let expected = adapter(whole.path());

    let again = workplace();
    assert!(run(again.path(), &["train", "recipe.toml", "--quiet"]).status.success());
    assert_eq!(adapter(again.path()), expected, "same seed, other bits");

    let killed = workplace();
    for checkpoint in ["out/checkpoint-2", "out/checkpoint-6"] {
        let resume: &[&str] = if checkpoint.ends_with('2') { &[] } else { &["--resume"] };
        let (mut child, _said) = train_until(killed.path(), resume, &format!("saved {checkpoint}"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let resumed = run(killed.path(), &["train", "recipe.toml", "--quiet", "--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_eq!(adapter(killed.path()), expected, "resumed to other bits");
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_a_checkpoint_and_exit_code_130() {
    let folder = workplace();
    let arguments = ["training.max_steps=2000", "training.save_steps=1900", "training.eval_steps=1900"];
    let (child, said) = train_until(folder.path(), &arguments, "loss");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let said = said.map(Result::unwrap).collect::<Vec<_>>().join("\n");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130), "{said}");
    let kept = fs::read_dir(folder.path().join("out")).unwrap();
    let kept = kept.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("checkpoint-")).count();
    assert_eq!(kept, 1);
    assert!(said.contains("--resume"), "{said}");
}

#[test]
fn wrong_input_ends_with_the_documented_exit_code_and_says_what_is_wrong() {
    let folder = workplace();
    fs::write(folder.path().join("ragged.tsv"), "text\tlabel\nfine\tpositive\nno label\n").unwrap();
    fs::write(
        folder.path().join("typo.toml"),
        fs::read_to_string(folder.path().join("recipe.toml")).unwrap().replace("max_steps", "max_stpes"),
    )
    .unwrap();
    fs::write(folder.path().join("file"), "in the way").unwrap();
    let model = golden("bert.SEQ_CLS.default").join("model").display().to_string();
    let adapter = golden("bert.SEQ_CLS.default").join("adapter").display().to_string();
    let other = golden("llama.CAUSAL_LM.default").join("adapter").display().to_string();
    let inputs = golden("bert.SEQ_CLS.default").join("inputs.safetensors").display().to_string();
    let table: &[(&[&str], i32, &[&str])] = &[
        (&["train", "nowhere.toml"], 6, &["nowhere.toml"]),
        (&["train", "typo.toml"], 2, &["typo.toml:18:1", "max_stpes", "max_steps"]),
        (&["train", "recipe.toml", "training.sede=1"], 2, &["sede", "seed"]),
        (&["train", "recipe.toml", "training.seed=soon"], 2, &["seed", "soon"]),
        (&["train", "recipe.toml", "adapter.r=0"], 2, &["`r`", "at least 1"]),
        (&["train", "recipe.toml", "adapter.task_type=SEQ_CLASS"], 2, &["SEQ_CLASS", "SEQ_CLS"]),
        (&["train", "recipe.toml", "adapter.peft_type=LORE"], 2, &["LORE", "LORA"]),
        (&["train", "recipe.toml", "adapter.target_modules=[\"qery\"]"], 4, &["qery", "query"]),
        (&["train", "recipe.toml", "data.train=nowhere.tsv"], 6, &["nowhere.tsv"]),
        (&["train", "recipe.toml", "data.train=ragged.tsv"], 3, &["ragged.tsv:3"]),
        (&["train", "recipe.toml", "model.model_name_or_path=nowhere"], 6, &["nowhere"]),
        (&["train", "recipe.toml", "training.output_dir=file"], 2, &["file"]),
        (&["explain", "--model", &model, "--adapter", "nowhere"], 6, &["nowhere"]),
        (&["merge", "--model", &model, "--adapter", &other, "--output", "merged"], 4, &["AutoModelForCausalLM"]),
        (&["merge", "--model", &model, "--adapter", &adapter, "--output", &model], 2, &["base model's own folder"]),
        (
            &["forward", "--model", &model, "--adapter", &adapter, "--inputs", "file", "--output", "o"],
            3,
            &["file", "safetensors"],
        ),
        (
            &["forward", "--model", &model, "--adapter", &adapter, "--inputs", &inputs, "--output", "no/where"],
            1,
            &["no/where"],
        ),
        (&["plugins", "--device", "cuda:0"], 0, &[]),
        (&["doctor", "--device", "abacus"], 2, &["abacus", "cpu"]),
        (&["inspect", "nowhere"], 6, &["nowhere"]),
    ];
    for (arguments, code, words) in table {
        let output = run(folder.path(), arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {message}");
        assert!(!message.contains("panicked"), "{arguments:?}: {message}");
        for word in *words {
            assert!(message.contains(word), "{arguments:?}: `{message}` should say `{word}`");
        }
    }
    assert!(!folder.path().join("merged").exists() && !folder.path().join("o").exists(), "something was half written");
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "in the way");
}

#[test]
fn an_error_of_a_configuration_names_its_file_and_key() {
    let folder = workplace();
    let model = golden("bert.SEQ_CLS.default").join("model").display().to_string();
    let check = |content: &str, code: i32, says: &str| {
        let name = if content.starts_with('{') || content.starts_with('[') { "config.json" } else { "config.toml" };
        fs::write(folder.path().join(name), content).unwrap();
        let output = run(folder.path(), &["explain", "--model", &model, "--config", name]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{content}: {message}");
        assert!(message.starts_with(&format!("error: {name}: {says}")), "{content}: {message}");
    };
    check(r#"{"peft_type": "LORA","#, 2, "not valid JSON: EOF");
    check("[1]", 2, "should hold one JSON object");
    check("peft_type = ", 2, "TOML parse error at line 1");
    check("peft_type = 'LORA'\nlora_alhpa = 3", 2, "`lora_alhpa`: unknown key; did you mean `lora_alpha`?");
    check(r#"{"task_type": "SEQ_CLS"}"#, 2, "`peft_type`: missing; one of ");
    check(r#"{"peft_type": "LORE"}"#, 2, "`peft_type`: unknown tuner `LORE`");
    check(r#"{"peft_type": "LORA", "task_type": "SEQ_CLASS"}"#, 2, "`task_type`: unknown task `SEQ_CLASS`");
    let lora = |rest: &str| format!(r#"{{"peft_type": "LORA", "task_type": "SEQ_CLS", {rest}}}"#);
    check(&lora(r#""r": 0"#), 2, "`r`: rank 0: must be at least 1");
    check(&lora(r#""r": "eight""#), 2, "`r`: invalid type");
    check(&lora(r#""lora_bias": true"#), 2, "`lora_bias`: ");
    check(&lora(r#""target_modules": ["qery"]"#), 4, "target_modules [qery] select no module");
    check(&lora(r#""target_modules": ["query", "valeu"]"#), 2, "`target_modules`: `valeu` (did you mean `value`?)");
    check(&lora(r#""target_modules": ["LayerNorm"]"#), 4, "target module `bert.embeddings.LayerNorm` is a Norm");
    check(&lora(r#""target_modules": "(query""#), 2, "`target_modules`: `(query` is not a regular expression");
    check(&lora(r#""modules_to_save": ["poolr"]"#), 2, "`modules_to_save`: `poolr` names no module");
    check(&lora(r#""rank_pattern": {"keyy": 4}"#), 2, "`rank_pattern`: `keyy` matches no adapted module");

    fs::write(folder.path().join("strange.json"), lora(r#""lora_alhpa": 3"#)).unwrap();
    let explained = run(folder.path(), &["explain", "--model", &model, "--config", "strange.json"]);
    let note = "note: `lora_alhpa` is unknown here and has no effect; did you mean `lora_alpha`?";
    assert!(text(&explained.stdout).contains(note), "{}", text(&explained.stdout));

    // The model's side of it.
    fs::create_dir(folder.path().join("model")).unwrap();
    let config = folder.path().join("model/config.json");
    let explain = |content: &str| {
        fs::write(&config, content).unwrap();
        let output = run(folder.path(), &["explain", "--model", "model", "--config", "strange.json"]);
        (output.status.code(), text(&output.stderr))
    };
    for (content, code, says) in [
        ("{", 3, "not a JSON object"),
        ("{}", 2, "`model_type`: missing"),
        (r#"{"model_type": "berta"}"#, 2, "`model_type`: unknown architecture `berta`"),
        (r#"{"model_type": "bert"}"#, 2, "`hidden_size`: missing"),
        (r#"{"model_type": "marian"}"#, 4, "the task needs AutoModelForSequenceClassification"),
    ] {
        let (found, message) = explain(content);
        assert_eq!(found, Some(code), "{content}: {message}");
        let place = format!("error: {}: {says}", Path::new("model").join("config.json").display());
        assert!(message.starts_with(&place), "{content}: {message}");
    }
    let trained = run(folder.path(), &["train", "recipe.toml", "--dry-run", "adapter.r=0"]);
    assert!(text(&trained.stderr).contains("error: recipe.toml: `r`: rank 0"), "{}", text(&trained.stderr));
}

#[test]
fn results_are_on_stdout_and_everything_else_on_stderr() {
    let folder = workplace();
    let model = golden("bert.SEQ_CLS.default").join("model").display().to_string();
    let adapter = golden("bert.SEQ_CLS.default").join("adapter").display().to_string();
    for verb in
        [&["plugins"][..], &["doctor"], &["explain", "--model", &model, "--adapter", &adapter], &["inspect", &adapter]]
    {
        let output = run(folder.path(), &[verb, &["--json"]].concat());
        assert!(output.status.success(), "{verb:?}: {}", text(&output.stderr));
        let document: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        assert!(document.is_object(), "{verb:?}");
        let plain = run(folder.path(), verb);
        assert!(plain.status.success() && !plain.stdout.is_empty(), "{verb:?}");
        assert!(!text(&plain.stdout).contains('\u{1b}'), "{verb:?}: colours without a terminal");
    }
    let trained = run(folder.path(), &["train", "recipe.toml", "--json", "training.max_steps=1"]);
    let last: serde_json::Value = serde_json::from_str(text(&trained.stdout).lines().last().unwrap()).unwrap();
    for key in [
        "train_loss",
        "eval_loss",
        "accuracy",
        "steps",
        "tokens_per_second",
        "step_seconds_median",
        "peak_rss_bytes",
        "output_dir",
    ] {
        assert!(last.get(key).is_some(), "no {key} in {last}");
    }
}

#[test]
fn a_dry_run_names_each_of_several_adapters_whatever_its_name() {
    let folder = workplace();
    let dry_run = || -> serde_json::Value {
        let done = run(folder.path(), &["train", "recipe.toml", "--dry-run", "--json"]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    };
    assert_eq!(dry_run().get("adapter"), None);
    let recipe = folder.path().join("recipe.toml");
    let several = "[[adapters]]\nname = \"default\"\ntrain = \"train.tsv\"\n\
                   [[adapters]]\nname = \"other\"\ntrain = \"train.tsv\"\n";
    fs::write(&recipe, fs::read_to_string(&recipe).unwrap() + several).unwrap();
    let document = dry_run();
    let names: Vec<_> = document["adapters"].as_array().unwrap().iter().map(|one| &one["adapter"]).collect();
    assert_eq!(names, ["default", "other"]);
}

#[test]
fn inputs_that_the_model_cannot_take_are_refused_by_name() {
    let (folder, case) = (tempfile::tempdir().unwrap(), golden("bert.SEQ_CLS.default"));
    let (model, adapter) = (case.join("model"), case.join("adapter"));
    let integers = |values: &[i64], shape: &[usize]| TensorData::new(values.to_vec(), shape.to_vec());
    for (name, data) in [
        ("input_ids", integers(&[], &[0, 3])),
        ("input_ids", integers(&[1, 2, 1 << 40], &[1, 3])),
        ("attention_mask", integers(&[1, 1, 1 << 40], &[1, 3])),
        ("token_type_ids", integers(&[0, 0, 9], &[1, 3])),
        ("position_ids", integers(&[0, 1, 9000], &[1, 3])),
        ("position_ids", integers(&[i64::MAX; 3], &[1, 3])),
    ] {
        let mut tensors = BTreeMap::from([("input_ids".to_owned(), integers(&[1, 2, 3], &[1, 3]))]);
        tensors.insert(name.to_owned(), data);
        write_safetensors(&folder.path().join("in.safetensors"), &tensors).unwrap();
        let arguments = ["--inputs", "in.safetensors", "--output", "out.safetensors", "--model"];
        let of = [model.to_str().unwrap(), "--adapter", adapter.to_str().unwrap()];
        let output = run(folder.path(), &[&["forward"], &arguments[..], &of].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{message}");
        assert!(message.contains("in.safetensors") && message.contains(name), "{message}");
        assert!(!folder.path().join("out.safetensors").exists());
    }
}

/// Every number of an adapter is made NaN.
fn broken(adapter: &Path, folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::copy(adapter.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    let tensors = TensorFile::read(&adapter.join("adapter_model.safetensors"), "adapter").unwrap().tensors;
    let nan = |(key, data): (String, TensorData)| (key, TensorData::full::<f32, _>(data.shape().clone(), f32::NAN));
    let tensors: BTreeMap<_, _> = tensors.into_iter().map(nan).collect();
    write_safetensors(&folder.join("adapter_model.safetensors"), &tensors).unwrap();
}

#[test]
fn what_is_not_finite_is_no_answer() {
    let (folder, case) = (tempfile::tempdir().unwrap(), golden("bert.SEQ_CLS.default"));
    broken(&case.join("adapter"), &folder.path().join("broken"));
    let (model, inputs) = (case.join("model"), case.join("inputs.safetensors"));
    let of = ["--model", model.to_str().unwrap(), "--adapter", "broken"];
    let forward = ["forward", "--inputs", inputs.to_str().unwrap(), "--output", "out.safetensors"];
    let output = run(folder.path(), &[&forward[..], &of].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{message}");
    assert!(message.contains("broken: ") && message.contains("lora_A.weight` is not finite"), "{message}");
    assert!(!folder.path().join("out.safetensors").exists());
}

#[test]
fn labels_that_the_loss_ignores_are_not_broken_weights() {
    let (folder, case) = (tempfile::tempdir().unwrap(), golden("llama.CAUSAL_LM.default"));
    let mut tensors = TensorFile::read(&case.join("inputs.safetensors"), "inputs").unwrap().tensors;
    let shape = tensors["labels"].shape().clone();
    tensors.insert("labels".to_owned(), TensorData::full::<i64, _>(shape, -100));
    write_safetensors(&folder.path().join("in.safetensors"), &tensors).unwrap();
    let (model, adapter) = (case.join("model"), case.join("adapter"));
    let of = ["forward", "--model", model.to_str().unwrap(), "--adapter", adapter.to_str().unwrap()];
    let output =
        run(folder.path(), &[&of[..], &["--inputs", "in.safetensors", "--output", "out.safetensors"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("no label counts"), "{}", text(&output.stderr));
}

#[test]
fn a_damaged_adapter_configuration_is_a_file_that_is_broken() {
    let (folder, case) = (tempfile::tempdir().unwrap(), golden("bert.SEQ_CLS.default"));
    fs::create_dir(folder.path().join("adapter")).unwrap();
    fs::write(folder.path().join("adapter/adapter_config.json"), "{").unwrap();
    let (model, inputs) = (case.join("model"), case.join("inputs.safetensors"));
    let of = ["forward", "--model", model.to_str().unwrap(), "--adapter", "adapter"];
    let data = ["--inputs", inputs.to_str().unwrap(), "--output", "out.safetensors"];
    let output = run(folder.path(), &[&of[..], &data].concat());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("adapter_config.json: not valid JSON"), "{}", text(&output.stderr));
}

#[test]
fn scores_are_judged_by_eval_as_by_train() {
    let folder = workplace();
    let model = examples().join("models/tiny-encoder").display().to_string();
    fs::write(folder.path().join("pairs.tsv"), "text\ttext_pair\tscore\na\tb\t4\nc\td\t1\ne\tf\t2\n").unwrap();
    let recipe = format!(
        "[model]\nmodel_name_or_path = {model:?}\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"FEATURE_EXTRACTION\"\n\
         [data]\ntrain = \"pairs.tsv\"\nscore_scale = 5.0\n[training]\noutput_dir = \"out\"\nmax_steps = 1\n"
    );
    fs::write(folder.path().join("pairs.toml"), recipe).unwrap();
    assert!(run(folder.path(), &["train", "pairs.toml", "--quiet"]).status.success());
    let eval = ["eval", "--model", &model, "--adapter", "out", "--data", "pairs.tsv"];
    assert!(run(folder.path(), &eval).status.success());
    fs::remove_file(folder.path().join("out/recipe.toml")).unwrap();
    let output = run(folder.path(), &eval);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("`score_scale`"), "{}", text(&output.stderr));
    assert!(run(folder.path(), &[&eval[..], &["--score-scale", "5"]].concat()).status.success());
    let missing = ["eval", "--model", &model, "--adapter", "out", "--data", "none.tsv"];
    for format in [&[][..], &["--format", "tsv"]] {
        assert_eq!(run(folder.path(), &[&missing[..], format].concat()).status.code(), Some(6), "{format:?}");
    }
}

#[test]
fn a_base_model_that_is_not_finite_gives_no_answer_wherever_that_is() {
    for case in ["bert.SEQ_CLS.default", "llama.CAUSAL_LM.default", "t5.SEQ_2_SEQ_LM.default"] {
        let (folder, case) = (tempfile::tempdir().unwrap(), golden(case));
        fs::create_dir(folder.path().join("model")).unwrap();
        fs::copy(case.join("model/config.json"), folder.path().join("model/config.json")).unwrap();
        let tensors = TensorFile::read(&case.join("model/model.safetensors"), "model").unwrap().tensors;
        let (inputs, adapter) = (case.join("inputs.safetensors"), case.join("adapter"));
        let layers =
            tensors.keys().filter(|key| ["layer.0", "layers.0", "block.0"].iter().any(|part| key.contains(part)));
        let weights: Vec<&String> = layers.filter(|key| key.ends_with("weight")).collect();
        assert!(weights.len() > 6, "{weights:?}");
        for key in weights {
            let mut broken = tensors.clone();
            broken.insert(key.clone(), TensorData::full::<f32, _>(tensors[key].shape().clone(), f32::NAN));
            write_safetensors(&folder.path().join("model/model.safetensors"), &broken).unwrap();
            let of = ["forward", "--model", "model", "--adapter", adapter.to_str().unwrap()];
            let data = ["--inputs", inputs.to_str().unwrap(), "--output", "out.safetensors"];
            let output = run(folder.path(), &[&of[..], &data].concat());
            assert_eq!(output.status.code(), Some(7), "{key}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn a_merged_model_is_of_the_type_that_the_base_model_is_of() {
    let (folder, case) = (tempfile::tempdir().unwrap(), golden("llama.CAUSAL_LM.default"));
    let half = folder.path().join("half");
    fs::create_dir(&half).unwrap();
    let tensors = TensorFile::read(&case.join("model/model.safetensors"), "model").unwrap().tensors;
    let tensors: BTreeMap<_, _> =
        tensors.into_iter().map(|(key, data)| (key, data.convert_dtype(DType::BF16))).collect();
    write_safetensors(&half.join("model.safetensors"), &tensors).unwrap();
    let config = fs::read_to_string(case.join("model/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["dtype"] = "bfloat16".into();
    fs::write(half.join("config.json"), config.to_string()).unwrap();
    let adapter = case.join("adapter");
    let merge = ["merge", "--model", "half", "--adapter", adapter.to_str().unwrap(), "--output"];
    for (more, dtype, name) in
        [(&["merged"][..], DType::BF16, "bfloat16"), (&["wide", "--dtype", "f32"][..], DType::F32, "float32")]
    {
        let output = run(folder.path(), &[&merge[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let merged = folder.path().join(more[0]);
        let tensors = TensorFile::read(&merged.join("model.safetensors"), "merged").unwrap().tensors;
        assert!(tensors.values().all(|data| data.dtype() == dtype), "{name}");
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(merged.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["dtype"], name);
    }
}

#[test]
fn every_verb_has_help_with_an_example() {
    let folder = workplace();
    for verb in ["train", "eval", "predict", "explain", "forward", "merge", "inspect", "plugins", "doctor", "data"] {
        let output = run(folder.path(), &[verb, "--help"]);
        assert!(output.status.success() && text(&output.stdout).contains("Example"), "{verb}");
    }
}

#[test]
fn a_model_writes_text_greedily_drawn_and_in_beams() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden("../gguf/llama-old-quants.gguf").display().to_string();
    let generate = |more: &[&str]| run(folder.path(), &[&["generate", "--model", &model][..], more].concat());
    let plain = generate(&["--prompt", "the cat", "max_new_tokens=6"]);
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    assert!(text(&plain.stderr).contains("tokens/s"));
    let streamed = generate(&["--prompt", "the cat", "--stream", "max_new_tokens=6"]);
    assert_eq!(text(&plain.stdout), text(&streamed.stdout));

    let json = |more: &[&str]| {
        let out =
            generate(&[&["--json", "--prompt", "the cat", "--prompt", "a mat", "max_new_tokens=6"][..], more].concat());
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out.stderr)))
    };
    let greedy = json(&[]);
    assert_eq!((greedy.as_array().unwrap().len(), &greedy[1]["prompt"]), (2, &"a mat".into()));
    assert_eq!(format!("{}\n", greedy[0]["text"].as_str().unwrap()), text(&plain.stdout));
    assert_eq!(json(&["temperature=0"]), greedy);
    let drawn = ["do_sample=true", "temperature=2.5", "top_k=0"];
    assert_eq!(json(&[&drawn[..], &["seed=3"]].concat()), json(&[&drawn[..], &["seed=3"]].concat()));
    assert_ne!(json(&[&drawn[..], &["seed=3"]].concat()), json(&[&drawn[..], &["seed=4"]].concat()));
    let beams = json(&["num_beams=3", "num_return_sequences=2"]);
    assert_eq!((beams.as_array().unwrap().len(), &beams[2]["prompt"]), (4, &"a mat".into()));
    assert!(beams[0]["score"].as_f64() >= beams[1]["score"].as_f64());
    assert!(json(&["--chat"])[0]["text"].is_string());

    let refused = [
        (&["--prompt", "x", "temprature=3"][..], "`temprature` is not a generation option"),
        (&["--prompt", "x", "--stream", "num_beams=2"], "--stream is for one prompt"),
    ];
    for (arguments, part) in refused {
        let out = generate(arguments);
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains(part) && out.stdout.is_empty(), "{}", text(&out.stderr));
    }
}

/// The tiny encoder as `org/tiny` at `v1`, in a cache that Python might have filled.
fn cache() -> tempfile::TempDir {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("hub/models--org--tiny");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/v1"), COMMIT).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(examples().join("models/tiny-encoder").join(file), snapshot.join(file)).unwrap();
    }
    cache
}

#[test]
fn hub_ids_are_found_in_the_cache_while_offline() {
    let (folder, cache) = (workplace(), cache());
    let offline = |arguments: &[&str]| {
        let mut command = peft(folder.path(), arguments);
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT"] {
            command.env_remove(name);
        }
        let output = command.env("HF_HOME", cache.path()).env("HF_HUB_OFFLINE", "1").output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let model = "model.model_name_or_path=org/tiny@v1";
    let (code, _, message) = offline(&["train", "recipe.toml", model, "training.max_steps=2"]);
    assert_eq!(code, 0, "{message}");
    // As PEFT writes it, so that Python finds the base too.
    let config = fs::read_to_string(folder.path().join("out/adapter_config.json")).unwrap();
    assert!(config.contains("\"base_model_name_or_path\": \"org/tiny\""), "{config}");
    assert!(config.contains("\"revision\": \"v1\""), "{config}");
    let resolved = fs::read_to_string(folder.path().join("out/recipe.toml")).unwrap();
    assert!(resolved.contains("model_name_or_path = \"org/tiny@v1\""), "{resolved}");

    let (code, metrics, message) =
        offline(&["eval", "--model", "org/tiny@v1", "--adapter", "out", "--data", "train.tsv", "--json"]);
    assert!(code == 0 && metrics.contains("accuracy"), "{metrics} {message}");
    let (code, facts, _) = offline(&["doctor", "--json"]);
    assert!(code == 0 && facts.contains("\"offline\":true") && facts.contains("\"token\":false"), "{facts}");

    let hub = cache.path().join("hub").display().to_string();
    for arguments in [
        &["train", "recipe.toml", "model.model_name_or_path=org/other"][..],
        &["explain", "--model", "org/other", "--adapter", "out"],
        &["eval", "--model", "org/tiny@v1", "--adapter", "org/other", "--data", "train.tsv"],
        &["generate", "--model", "org/other", "--prompt", "x"],
    ] {
        let (code, _, message) = offline(arguments);
        assert_eq!(code, 6, "{arguments:?}: {message}");
        for word in ["org/other: not found", "HF_HUB_OFFLINE", &hub] {
            assert!(message.contains(word), "{arguments:?}: `{message}` should say `{word}`");
        }
    }
}

/// What a run prints, which has to succeed.
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let done = run(folder, arguments);
    assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

#[test]
fn the_result_of_full_fine_tuning_is_measured_without_an_adapter_as_its_training_measured_it() {
    let folder = workplace();
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    let recipe = recipe.replace("\"LORA\"", "\"FULL\"").replace("r = 4\nlora_dropout = 0.1\n", "");
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    let trained = printed(folder.path(), &["train", "recipe.toml", "training.max_steps=3", "--json", "-q"]);
    let trained: serde_json::Value = serde_json::from_str(&trained).unwrap();
    let measured = printed(folder.path(), &["eval", "--model", "out", "--data", "train.tsv", "--json", "-q"]);
    let measured: serde_json::Value = serde_json::from_str(&measured).unwrap();
    for name in ["eval_loss", "accuracy"] {
        let [trained, measured] = [&trained, &measured].map(|metrics| metrics[name].as_f64().unwrap());
        assert!((trained - measured).abs() < 1e-4, "{name}: {trained} in training, {measured} afterwards");
    }
    let answers = printed(folder.path(), &["predict", "--model", "out", "--data", "train.tsv", "-q"]);
    assert_eq!(answers.lines().count(), 48);
}

#[test]
fn the_base_model_may_be_left_out_also_where_only_the_recipe_knows_the_way_to_it() {
    let folder = workplace();
    let beside = folder.path().join("work");
    fs::create_dir_all(beside.join("base")).unwrap();
    for file in fs::read_dir(examples().join("models/tiny-encoder")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, beside.join("base").join(file.file_name().unwrap())).unwrap();
    }
    for file in ["recipe.toml", "train.tsv"] {
        fs::copy(folder.path().join(file), beside.join(file)).unwrap();
    }
    let train = ["train", "work/recipe.toml", "model.model_name_or_path=base", "training.max_steps=1", "-q"];
    printed(folder.path(), &train);
    let predict = |model: &[&str]| {
        printed(folder.path(), &[&["predict", "--adapter", "out", "--data", "train.tsv", "-q"], model].concat())
    };
    assert_eq!(predict(&[]), predict(&["--model", "work/base"]));
    assert!(printed(folder.path(), &["explain", "--adapter", "out"]).contains("classifier"));

    // Adapters of different models have none in common.
    fs::create_dir(folder.path().join("other")).unwrap();
    let config = fs::read_to_string(folder.path().join("out/adapter_config.json")).unwrap();
    fs::write(folder.path().join("other/adapter_config.json"), config.replace("\"base\"", "\"org/other\"")).unwrap();
    fs::copy(
        folder.path().join("out/adapter_model.safetensors"),
        folder.path().join("other/adapter_model.safetensors"),
    )
    .unwrap();
    let both = ["predict", "--adapter", "a=out", "--adapter", "b=other", "--data", "train.tsv"];
    let refused = run(folder.path(), &both);
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("org/other") && message.contains("--model"), "{message}");
}

#[cfg(unix)]
#[test]
fn paths_of_adapters_that_are_not_utf_8_are_taken() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let folder = workplace();
    printed(folder.path(), &["train", "recipe.toml", "training.max_steps=1", "-q"]);
    fs::rename(folder.path().join("out"), folder.path().join(OsStr::from_bytes(b"o\xff"))).unwrap();
    for given in [b"o\xff".as_slice(), b"tone=o\xff"] {
        let mut command = peft(folder.path(), &["predict", "--data", "train.tsv", "-q", "--adapter"]);
        let done = command.arg(OsStr::from_bytes(given)).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert_eq!(text(&done.stdout).lines().count(), 48);
    }
}

#[test]
fn explain_of_a_model_alone_and_of_a_recipe_says_what_can_be_adapted() {
    let folder = workplace();
    let model = examples().join("models/tiny-encoder");
    let alone = printed(folder.path(), &["explain", "--model", model.to_str().unwrap()]);
    assert!(alone.contains("SEQ_CLS") && alone.contains("query"), "{alone}");
    let recipe = printed(folder.path(), &["explain", "--config", "recipe.toml"]);
    assert!(recipe.contains("query") && recipe.contains("classifier"), "{recipe}");
    let neither = run(folder.path(), &["explain"]);
    let message = text(&neither.stderr);
    assert!(message.contains("--model"), "{message}");
}

#[test]
#[cfg(target_os = "linux")]
fn running_out_of_memory_is_one_line_and_exit_code_5() {
    let folder = workplace();
    let command = format!(
        "ulimit -v 3000000; exec '{}' train recipe.toml adapter.r=2000000000 --no-memory-check -q",
        env!("CARGO_BIN_EXE_peft")
    );
    let output = Command::new("bash").current_dir(folder.path()).args(["-c", &command]).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{message}");
    assert!(message.starts_with("error: out of memory") && message.lines().count() == 1, "{message}");
}

#[test]
fn what_a_file_holds_does_not_talk_to_the_terminal() {
    let folder = workplace();
    fs::write(folder.path().join("train.tsv"), "text\t\u{1b}]0;owned\u{7}\u{1b}[31mlabel\nx\ty\tz\n").unwrap();
    let output = run(folder.path(), &["train", "recipe.toml", "--dry-run"]);
    let message = text(&output.stderr);
    assert!(message.contains("train.tsv") && message.contains("\\u{1b}"), "{message}");
    assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "{message:?}");
}

#[test]
fn a_long_value_is_quoted_in_part() {
    let folder = workplace();
    let config =
        format!(r#"{{"peft_type": "LORA", "task_type": "SEQ_CLS", "target_modules": "{}"}}"#, "x".repeat(200_000));
    fs::write(folder.path().join("c.json"), config).unwrap();
    let model = examples().join("models/tiny-encoder");
    let output = run(folder.path(), &["explain", "--model", &model.display().to_string(), "--config", "c.json"]);
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("xxx") && message.len() < 2500, "{message}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_stderr_does_not_end_a_training() {
    let folder = workplace();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = peft(folder.path(), &["train", "recipe.toml"]).stderr(full).status().unwrap();
    assert!(status.success() && folder.path().join("out/adapter_model.safetensors").exists());
}
