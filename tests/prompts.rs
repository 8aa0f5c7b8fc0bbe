//! Prompts of every method against the numbers of Python PEFT (`prompts/generate.py`), and what PEFT cannot do.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use peft::generate::{GenerationConfig, Generator};
use peft::{
    Batch, Explanation, PeftConfig, PeftModel, PeftType, TaskType, adapter::AdapterFolder,
    files::PROMPT_ENCODER_WEIGHTS, model::peft_model::DEFAULT_ADAPTER,
};
use rstest::rstest;
use serde_json::{Map, Value};

use crate::fixture::{assert_close, assert_outputs, base_of, batch, case, expected, floats};

/// The case's name, and the model that it stands before.
fn names(folder: &Path) -> (String, PathBuf) {
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let (of_model, _) = name.rsplit_once('.').unwrap();
    let golden = case(&format!("{of_model}.default"));
    (name, golden)
}

fn open(folder: &Path, adapter: &Path) -> PeftModel {
    let (_, golden) = names(folder);
    let config = AdapterFolder::read(adapter).unwrap().config;
    let device = Device::flex();
    PeftModel::from_pretrained(base_of(&golden, &config, &device), adapter, &device).unwrap()
}

fn inputs(folder: &Path) -> Batch {
    let (name, golden) = names(folder);
    let mut batch = batch(&golden);
    if name.ends_with("multitask") {
        let rows = i64::try_from(batch.inputs.batch().unwrap()).unwrap();
        let tasks: Vec<i64> = (0..rows).map(|row| row % 2).collect();
        batch.inputs.task_ids = Some(Tensor::<1, Int>::from_data(TensorData::from(tasks.as_slice()), &Device::flex()));
    }
    batch
}

fn facts(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[rstest]
fn prompts_give_the_numbers_of_peft(#[files("prompts/*/expected.json")] path: PathBuf) {
    let folder = path.parent().unwrap();
    let expected = expected(folder);
    let mut model = open(folder, &folder.join("adapter"));
    let batch = model.check(inputs(folder)).unwrap();

    let loss = assert_outputs(&model, &batch, &expected);

    let gradients = model.gradients(&loss);
    let trainable = model.trainable();
    assert_eq!(trainable.len(), expected.keys().filter(|key| key.starts_with("grad.")).count(), "trainable tensors");
    for tensor in trainable {
        let key = format!("grad.{}", model.adapter(DEFAULT_ADAPTER).unwrap().file_key(&tensor));
        let gradient = match tensor.param.gradient(&gradients) {
            Some(gradient) => tensor.oriented(gradient).to_data(),
            None => TensorData::zeros::<f32, _>(tensor.to_file().shape()),
        };
        assert_close(&key, &gradient, &expected[&key]);
    }

    let (_, golden) = names(folder);
    let config = AdapterFolder::read(&folder.join("adapter")).unwrap().config;
    let explanation = Explanation::new(&base_of(&golden, &config, &Device::flex()), &config).unwrap();
    let explanation = serde_json::to_value(&explanation).unwrap();
    let facts = facts(&path);
    for fact in ["wrapper", "trainable_params", "all_params", "num_transformer_submodules", "num_virtual_tokens"] {
        assert_eq!(explanation[fact], facts[fact], "{fact}");
    }
}

/// What is written is what was read: PEFT's file has the table alone, ours beside it the encoder.
#[rstest]
fn prompts_are_written_as_peft_writes_them(#[files("prompts/*/expected.json")] path: PathBuf) {
    let folder = path.parent().unwrap().join("adapter");
    let copy = tempfile::tempdir().unwrap();
    open(path.parent().unwrap(), &folder).save(DEFAULT_ADAPTER, copy.path()).unwrap();
    let (theirs, ours) = (AdapterFolder::read(&folder).unwrap(), AdapterFolder::read(copy.path()).unwrap());
    assert_eq!(theirs.tensors.keys().collect::<Vec<_>>(), ours.tensors.keys().collect::<Vec<_>>());
    for (key, tensor) in &theirs.tensors {
        assert_close(key, &ours.tensors[key], tensor);
    }
    let both = |name: &str| [&folder, copy.path()].map(|folder| folder.join(name).exists());
    assert_eq!(both(PROMPT_ENCODER_WEIGHTS), [both(PROMPT_ENCODER_WEIGHTS)[0]; 2]);
    let mut wanted = theirs.config.to_map();
    // PEFT lists the heads once for each time that it adds them.
    let heads = theirs.config.modules_to_save();
    if !heads.is_empty() {
        wanted.insert("modules_to_save".to_owned(), heads.into());
    }
    assert_eq!(Value::from(ours.config.to_map()), Value::from(wanted));
}

#[rstest]
fn prompts_write_what_they_write_in_python(#[files("prompts/*_LM.*/expected.json")] path: PathBuf) {
    let Some(cases) = facts(&path)["generation"].as_array().cloned() else { return };
    let folder = path.parent().unwrap();
    let model = open(folder, &folder.join("adapter"));
    for case in cases {
        let read = |key: &str| serde_json::from_value::<Vec<Vec<u32>>>(case[key].clone()).unwrap();
        let options: Map<String, Value> = case["options"].as_object().unwrap().clone();
        let config = GenerationConfig::default().with(&options, "case").unwrap();
        let prompts = read("prompts");
        let written = write(&model, &prompts, &config).unwrap();
        let until_end = |tokens: &[u32]| {
            let end = tokens.iter().position(|token| *token == 40);
            end.map_or(tokens, |end| &tokens[..=end]).to_vec()
        };
        let written: Vec<Vec<u32>> = written.iter().map(|answer| until_end(answer)).collect();
        let wanted: Vec<Vec<u32>> = read("answers").iter().map(|answer| until_end(answer)).collect();
        assert_eq!(written, wanted, "{prompts:?}");
    }
}

/// PEFT refuses to train a prompt that it loads: it did not keep the encoder.
#[test]
fn a_prompt_without_its_encoder_is_trained_as_a_table() {
    for name in ["llama.CAUSAL_LM.p_tuning", "bert.SEQ_CLS.prefix_projection", "t5.SEQ_2_SEQ_LM.p_tuning_lstm"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts").join(name);
        let alone = tempfile::tempdir().unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(folder.join("adapter").join(file), alone.path().join(file)).unwrap();
        }
        let mut model = open(&folder, alone.path());
        let batch = model.check(inputs(&folder)).unwrap();
        let logits = model.forward(&batch.inputs).unwrap().get::<3>("logits").map(|logits| logits.to_data());
        if let Ok(logits) = logits {
            assert_close("logits", &logits, &expected(&folder)["logits"]);
        }
        let (loss, _) = model.loss(&batch).unwrap();
        let gradients = model.gradients(&loss);
        let trainable = model.trainable();
        let table = trainable.iter().find(|tensor| tensor.key == "prompt_embeddings").unwrap();
        let gradient = table.param.gradient(&gradients).unwrap().to_data();
        assert!(floats(&gradient).iter().any(|value| *value != 0.0), "{name}");
    }
}

#[test]
fn the_encoder_of_an_older_prompt_does_not_stay_in_the_folder() {
    let prompts = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
    let out = tempfile::tempdir().unwrap();
    for name in ["llama.CAUSAL_LM.p_tuning", "llama.CAUSAL_LM.prompt_tuning"] {
        open(&prompts.join(name), &prompts.join(name).join("adapter")).save(DEFAULT_ADAPTER, out.path()).unwrap();
    }
    assert!(!out.path().join(PROMPT_ENCODER_WEIGHTS).exists());
    open(&prompts.join("llama.CAUSAL_LM.prompt_tuning"), out.path());
}

#[test]
fn a_table_that_its_encoder_does_not_make_is_an_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/llama.CAUSAL_LM.p_tuning");
    let mut mixed = AdapterFolder::read(&folder.join("adapter")).unwrap();
    let table = mixed.tensors.get_mut("prompt_embeddings").unwrap();
    *table = TensorData::zeros::<f32, _>(table.shape().clone());
    let (_, golden) = names(&folder);
    let device = Device::flex();
    let mut model = PeftModel::from_base(base_of(&golden, &mixed.config, &device), &device);
    let error = model.load_adapter(DEFAULT_ADAPTER, mixed).unwrap_err().to_string();
    assert!(error.contains("prompt_embeddings") && error.contains(PROMPT_ENCODER_WEIGHTS), "{error}");
}

fn config(peft_type: &str, task: Option<TaskType>, options: &[(&str, Value)]) -> PeftConfig {
    let config = PeftConfig::new(PeftType::from(peft_type.to_owned()), task).unwrap();
    options.iter().fold(config, |config, (key, value)| config.with(key, value.clone()).unwrap())
}

/// What cannot work is refused from the configurations alone.
#[test]
fn impossible_prompts_are_refused_with_the_reason() {
    let tokens = |count: usize| ("num_virtual_tokens", Value::from(count));
    let causal = || Some(TaskType::CAUSAL_LM);
    for (model, config, reason) in [
        (
            "distilbert.SEQ_CLS",
            config("PREFIX_TUNING", Some(TaskType::SEQ_CLS), &[tokens(3)]),
            "takes no keys and values",
        ),
        ("albert.SEQ_CLS", config("PREFIX_TUNING", Some(TaskType::SEQ_CLS), &[tokens(3)]), "takes no keys and values"),
        ("llama.CAUSAL_LM", config("PROMPT_TUNING", None, &[tokens(3)]), "`task_type`"),
        ("gpt2.CAUSAL_LM", config("PROMPT_TUNING", causal(), &[tokens(24)]), "24 positions"),
        ("gpt2.CAUSAL_LM", config("PROMPT_TUNING", causal(), &[]), "`num_virtual_tokens`"),
        ("gpt2.CAUSAL_LM", config("PREFIX_TUNING", causal(), &[tokens(3), ("token_dim", 12.into())]), "has 16"),
        ("gpt2.CAUSAL_LM", config("P_TUNING", causal(), &[tokens(3), ("token_dim", 12.into())]), "16 dimensions"),
        ("bert.SEQ_CLS", config("CPT", Some(TaskType::SEQ_CLS), &[]), "CAUSAL_LM alone"),
        (
            "gpt2.CAUSAL_LM",
            config("PROMPT_TUNING", causal(), &[tokens(3), ("prompt_tuning_init", "TEXT".into())]),
            "prompt_tuning_init_text",
        ),
    ] {
        let base = base_of(&case(&format!("{model}.default")), &config, &Device::flex());
        let error = Explanation::new(&base, &config).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_evaluation_has_the_loss_that_training_has() {
    for name in ["llama.CAUSAL_LM.cpt", "gpt2.CAUSAL_LM.cpt", "llama.CAUSAL_LM.prompt_tuning"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts").join(name);
        let model = open(&folder, &folder.join("adapter"));
        let batch = model.check(inputs(&folder)).unwrap();
        let trained = model.loss(&batch).unwrap().0.without_autodiff().into_data();
        let running = model.valid();
        let loss = running.loss_for(model.task().unwrap().unwrap().task, &batch.labels).unwrap();
        assert_eq!(loss.weight(), model.loss_for(model.task().unwrap().unwrap().task, &batch.labels).unwrap().weight());
        let evaluated = loss.mean(&running.forward(&batch.inputs).unwrap()).unwrap();
        assert_close(name, &evaluated.into_data(), &trained);
    }
}

#[rstest]
#[case("llama.CAUSAL_LM.cpt")]
#[case("gpt2.CAUSAL_LM.cpt")]
fn a_saved_prompt_of_cpt_has_the_loss_of_cpt(#[case] name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts").join(name);
    let alone = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(folder.join("adapter").join(file), alone.path().join(file)).unwrap();
    }
    let model = open(&folder, alone.path());
    let (loss, _) = model.loss(&model.check(inputs(&folder)).unwrap()).unwrap();
    assert_close("loss", &loss.without_autodiff().into_data(), &expected(&folder)["loss"]);
}

/// The width of ELECTRA's words is not its hidden size, by which PEFT goes and fails.
#[test]
fn virtual_tokens_are_as_wide_as_words() {
    let config = config("PROMPT_TUNING", Some(TaskType::SEQ_CLS), &[("num_virtual_tokens", 3.into())]);
    let device = Device::flex();
    let golden = case("electra.SEQ_CLS.default");
    let mut model = PeftModel::new(base_of(&golden, &config, &device), config, &device, 1).unwrap();
    assert_eq!(model.adapter(DEFAULT_ADAPTER).unwrap().config.options["token_dim"], 8);
    let batch = batch(&golden);
    let [with, without] = [true, false].map(|enabled| {
        model.set_enabled(enabled);
        let batch = model.check(batch.clone()).unwrap();
        floats(&model.loss(&batch).unwrap().0.to_data())[0]
    });
    assert!(with.is_finite() && with != without);
}

#[test]
fn a_prompt_acts_alone_and_merges_into_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/llama.CAUSAL_LM.prompt_tuning");
    let mut model = open(&folder, &folder.join("adapter"));
    model.load_adapter("other", AdapterFolder::read(&folder.join("adapter")).unwrap()).unwrap();
    let error = model.set_active(&[DEFAULT_ADAPTER, "other"]).unwrap_err().to_string();
    assert!(error.contains("cannot act together"), "{error}");
    let error = model.merge().unwrap_err().to_string();
    assert!(error.contains("nothing to merge"), "{error}");
}

/// In generation the virtual tokens come before the prompt once, so that few positions are left for both.
#[test]
fn positions_of_virtual_tokens_are_counted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts/gpt2.CAUSAL_LM.prompt_tuning");
    let model = open(&folder, &folder.join("adapter"));
    let config = GenerationConfig { max_new_tokens: Some(20), ..GenerationConfig::default() };
    let run = |prompt: Vec<u32>| write(&model, &[prompt], &config);
    run(vec![5]).unwrap();
    let error = run(vec![5, 6]).unwrap_err().to_string();
    assert!(error.contains("21 positions"), "{error}");
}

/// A cache spares work and changes nothing.
#[rstest]
fn prompts_write_the_same_without_a_cache(#[files("prompts/*_LM.*/expected.json")] path: PathBuf) {
    let folder = path.parent().unwrap();
    let model = open(folder, &folder.join("adapter"));
    let prompts = [vec![5, 9, 17, 22], vec![30, 11]];
    let [with, without] = [true, false].map(|use_cache| {
        let new = Some(5);
        let start = Some(2);
        let config = GenerationConfig {
            max_new_tokens: new,
            use_cache,
            decoder_start_token_id: start,
            ..GenerationConfig::default()
        };
        write(&model, &prompts, &config).unwrap()
    });
    assert_eq!(with, without);
}

fn write(model: &PeftModel, prompts: &[Vec<u32>], config: &GenerationConfig) -> peft::Result<Vec<Vec<u32>>> {
    let running = model.valid();
    let generator = Generator { model: &running, device: model.device(), tokenizer: None };
    Ok(generator.generate(prompts, config, &mut ())?.into_iter().map(|answer| answer.tokens).collect())
}
