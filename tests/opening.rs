//! Opening what others wrote: the class of the model that an adapter is for, vocabularies that grew, folders as trainers leave them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, TensorData};
use peft::{
    AutoClass, Error, PeftConfig, PeftModel, PeftType, TaskType,
    adapter::AdapterFolder,
    files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, TensorFile, write_safetensors},
    models::{
        BaseFor, ClassSource, ModelClass,
        checkpoint::{self, LoadOptions},
    },
    plugins::task::LabelSet,
};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{assert_outputs, batch, case, expected, floats};

const WORDS: &str = "llama.CAUSAL_LM.default";
const CLASSES: &str = "bert.SEQ_CLS.default";

/// A copy of a case's adapter with other keys in its configuration.
fn adapter(case_name: &str, keys: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = case(case_name).join("adapter");
    fs::copy(from.join(ADAPTER_WEIGHTS), folder.path().join(ADAPTER_WEIGHTS)).unwrap();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(from.join(ADAPTER_CONFIG)).unwrap()).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(folder.path().join(ADAPTER_CONFIG), config.to_string()).unwrap();
    folder
}

fn base_for(case_name: &str, folder: &Path) -> peft::Result<BaseFor> {
    let adapters = [("default".to_owned(), AdapterFolder::read(folder)?)];
    BaseFor::adapters(&case(case_name).join("model"), &adapters, LoadOptions::default())
}

/// That outputs and loss are those of Python.
fn assert_numbers(model: &PeftModel, case_name: &str) {
    let case = case(case_name);
    assert_outputs(model, &model.check(batch(&case)).unwrap(), &expected(&case));
}

fn open(case_name: &str, folder: &Path) -> peft::Result<PeftModel> {
    let device = Device::flex();
    let base = base_for(case_name, folder)?.load(&case(case_name).join("model"), &device)?.base;
    PeftModel::from_pretrained(base, folder, &device)
}

#[rstest]
fn task_auto_mapping_and_keys_name_one_class(#[files("golden/*.default/expected.json")] facts: PathBuf) {
    let folder = facts.parent().unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let model = folder.join("model");
    let of = |keys: Value| {
        let folder = AdapterFolder::read(adapter(name, &keys).path()).unwrap();
        ModelClass::of_adapter(&model, &folder).unwrap()
    };
    let by_task = of(json!({}));
    if by_task.source != ClassSource::TaskType {
        return;
    }
    let class_name = checkpoint::skeleton(&model, &by_task.class, &LoadOptions::default(), &Device::flex()).unwrap();
    let mapping = json!({
        "base_model_class": class_name.info.class_name,
        "parent_library": "transformers.models.some.modeling_some",
    });
    let by_mapping = of(json!({ "task_type": null, "auto_mapping": mapping }));
    assert_eq!((by_mapping.class, by_mapping.source), (by_task.class.clone(), ClassSource::AutoMapping));
    let by_keys = of(json!({ "task_type": null }));
    assert_eq!((by_keys.class, by_keys.source), (by_task.class, ClassSource::Keys));
}

#[rstest]
#[case(WORDS, json!({ "base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama" }))]
#[case(CLASSES, json!(null))]
#[case("t5.SEQ_2_SEQ_LM.default", json!({ "base_model_class": "T5ForConditionalGeneration", "parent_library": "transformers" }))]
fn an_adapter_without_a_task_gives_pythons_numbers(#[case] name: &str, #[case] mapping: Value) {
    let folder = adapter(name, &json!({ "task_type": null, "auto_mapping": mapping }));
    let model = open(name, folder.path()).unwrap();
    assert_eq!(model.explanation().unwrap().wrapper, "PeftModel");
    assert_numbers(&model, name);
}

#[test]
fn a_class_that_we_lack_is_named_and_not_replaced_by_another() {
    let mapping = json!({ "base_model_class": "BertForMaskedLM", "parent_library": "transformers.models.bert" });
    let keys = json!({ "task_type": null, "auto_mapping": mapping, "base_model_name_or_path": "org/words" });
    let message = open(CLASSES, adapter(CLASSES, &keys).path()).unwrap_err().to_string();
    assert!(message.contains("BertForMaskedLM") && message.contains("org/words"), "{message}");
}

#[test]
fn names_without_peft_s_prefix_are_those_of_the_model() {
    let folder = adapter(WORDS, &json!({}));
    let file = folder.path().join(ADAPTER_WEIGHTS);
    let tensors = TensorFile::read(&file, "adapter").unwrap().tensors;
    let bare = tensors.into_iter().map(|(key, data)| (key.replace("base_model.model.", ""), data)).collect();
    write_safetensors(&file, &bare).unwrap();
    assert_numbers(&open(WORDS, folder.path()).unwrap(), WORDS);
}

/// The adapter as PEFT writes it after the vocabulary grew by `more`: with embeddings of that size, for old words the base's own.
fn grown(name: &str, more: usize) -> tempfile::TempDir {
    let folder = adapter(name, &json!({}));
    let (info, weights) = {
        let base = base_for(name, folder.path()).unwrap();
        let skeleton = base.skeleton(&case(name).join("model")).unwrap();
        (skeleton.info, TensorFile::read(&case(name).join("model/model.safetensors"), "model").unwrap().tensors)
    };
    let file = folder.path().join(ADAPTER_WEIGHTS);
    let mut tensors = TensorFile::read(&file, "adapter").unwrap().tensors;
    for module in [&info.input_embedding, &info.output_embedding].into_iter().flatten() {
        let own = [module, info.input_embedding.as_ref().unwrap()];
        let own = own.iter().find_map(|module| weights.get(&format!("{module}.weight"))).unwrap();
        let &[words, width] = own.shape().as_slice() else { panic!("a table") };
        let mut values: Vec<f32> = own.clone().convert::<f32>().try_to_vec::<f32>().unwrap();
        values.extend((0..more * width).map(|at| (at as f32 * 0.7).sin() * 0.1));
        let data = TensorData::new(values, [words + more, width]);
        tensors.insert(format!("base_model.model.{module}.weight"), data);
    }
    write_safetensors(&file, &tensors).unwrap();
    folder
}

#[rstest]
#[case(WORDS)]
#[case("llama.CAUSAL_LM.tied-all-linear")]
#[case("gpt2.CAUSAL_LM.default")]
#[case("t5.SEQ_2_SEQ_LM.default")]
#[case("bart.SEQ_2_SEQ_LM.default")]
#[case("gemma2.CAUSAL_LM.default")]
#[case("opt.CAUSAL_LM.default")]
#[case(CLASSES)]
fn an_adapter_of_a_grown_vocabulary_opens_and_merges(#[case] name: &str) {
    let (case, more) = (case(name), 3);
    let folder = grown(name, more);
    let mut model = open(name, folder.path()).unwrap();
    let words = |folder: &Path| checkpoint::read_config(folder).unwrap()["vocab_size"].as_u64().unwrap() as usize;
    let old = words(&case.join("model"));
    assert_eq!(model.info().number("vocab_size"), Some(old + more));

    // Old words have the scores that they had.
    let outputs = model.forward(&model.check(batch(&case)).unwrap().inputs).unwrap();
    if let Ok(logits) = outputs.get::<3>("logits") {
        let [rows, length, wide] = logits.dims();
        assert_eq!(wide, old + more);
        let old_words = logits.slice([0..rows, 0..length, 0..old]).without_autodiff().to_data();
        crate::fixture::assert_close("logits", &old_words, &expected(&case)["logits"]);
    }

    let merged = tempfile::tempdir().unwrap();
    checkpoint::save(&model.merge().unwrap(), None, merged.path()).unwrap();
    assert_eq!(words(merged.path()), old + more);
    let class = model.info().class.clone();
    let again = checkpoint::load(merged.path(), &class, &LoadOptions::default(), &Device::flex()).unwrap();
    assert!(again.initialised.is_empty(), "{:?}", again.initialised);

    // Written again, nothing of it is lost.
    let saved = tempfile::tempdir().unwrap();
    model.save("default", saved.path()).unwrap();
    let read = |folder: &Path| TensorFile::read(&folder.join(ADAPTER_WEIGHTS), "adapter").unwrap().tensors;
    let (before, after) = (read(folder.path()), read(saved.path()));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (key, data) in before {
        let near = floats(&data).iter().zip(floats(&after[&key])).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near, "{key}");
    }
}

#[test]
fn two_vocabularies_on_one_model_are_refused() {
    let (one, other) = (grown(WORDS, 2), grown(WORDS, 5));
    let read = |name: &str, folder: &Path| (name.to_owned(), AdapterFolder::read(folder).unwrap());
    let adapters = [read("en", one.path()), read("de", other.path())];
    let error = BaseFor::adapters(&case(WORDS).join("model"), &adapters, LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`de`") && error.to_string().contains("vocabulary"), "{error}");
}

#[rstest]
#[case("orthogonal")]
#[case("eva")]
#[case("lora_ga")]
#[case("gaussian")]
#[case("EVA")]
fn how_a_saved_adapter_began_means_nothing_for_its_numbers(#[case] word: &str) {
    let folder = adapter(WORDS, &json!({ "init_lora_weights": word, "inference_mode": false }));
    assert_numbers(&open(WORDS, folder.path()).unwrap(), WORDS);
}

#[rstest]
#[case("pissa", true, "path_initial_model_for_weight_conversion")]
#[case("olora", true, "path_initial_model_for_weight_conversion")]
#[case("eva", false, "a new adapter cannot start with `eva`")]
#[case("pissa_niter_4", false, "a new adapter cannot start with `pissa_niter_4`")]
#[case("xyz", true, "`xyz` is not supported")]
fn starts_that_we_lack_are_refused_with_the_reason(#[case] word: &str, #[case] saved: bool, #[case] says: &str) {
    let error = if saved {
        open(WORDS, adapter(WORDS, &json!({ "init_lora_weights": word })).path()).unwrap_err()
    } else {
        let config = PeftConfig::new(PeftType::LORA, Some(TaskType::CAUSAL_LM)).unwrap();
        let config = config.with("init_lora_weights", word).unwrap();
        let base = checkpoint::load(
            &case(WORDS).join("model"),
            &AutoClass::CAUSAL_LM,
            &LoadOptions::default(),
            &Device::flex(),
        );
        PeftModel::new(base.unwrap().base, config, &Device::flex(), 1).unwrap_err()
    };
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn the_only_adapter_below_a_folder_is_taken_and_several_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let add = |name: &str| {
        let below = folder.path().join(name);
        fs::rename(adapter(WORDS, &json!({})).keep(), &below).unwrap();
        below
    };
    let only = add("default");
    assert_eq!(AdapterFolder::read(folder.path()).unwrap().path, only);
    add("checkpoint-3");
    let error = AdapterFolder::read(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    assert!(error.to_string().contains("`checkpoint-3`, `default`"), "{error}");
}

#[test]
fn a_model_s_folder_is_no_adapter_and_the_error_says_so() {
    let error = AdapterFolder::read(&case(WORDS).join("model")).unwrap_err();
    assert!(error.to_string().contains("the folder of a model"), "{error}");
}

fn labels(count: usize) -> Option<LabelSet> {
    let labels = (0..count).map(|class| format!("c{class}")).collect();
    Some(LabelSet { labels, problem_type: "single_label_classification" })
}

#[test]
fn a_head_for_other_classes_gives_way_where_that_is_asked_for() {
    let (model, class) = (case(CLASSES).join("model"), AutoClass::SEQUENCE_CLASSIFICATION);
    let load = |ignore_mismatched_sizes| {
        let options = LoadOptions { labels: labels(5), ignore_mismatched_sizes, ..LoadOptions::default() };
        checkpoint::load(&model, &class, &options, &Device::flex())
    };
    let error = load(false).unwrap_err().to_string();
    assert!(error.contains("ignore_mismatched_sizes"), "{error}");
    let loaded = load(true).unwrap();
    assert_eq!(loaded.initialised, ["classifier.weight", "classifier.bias"]);
    assert_eq!(loaded.replaced.len(), 2);
}

#[rstest]
#[case("roberta.SEQ_CLS.default", AutoClass::TOKEN_CLASSIFICATION)]
#[case("roberta.TOKEN_CLS.default", AutoClass::SEQUENCE_CLASSIFICATION)]
#[case(CLASSES, AutoClass::TOKEN_CLASSIFICATION)]
fn the_head_of_another_task_is_left_out_for_a_fresh_one(#[case] name: &str, #[case] class: AutoClass) {
    let options = LoadOptions { labels: labels(6), ..LoadOptions::default() };
    let loaded = checkpoint::load(&case(name).join("model"), &class, &options, &Device::flex()).unwrap();
    assert!(loaded.initialised.iter().any(|name| name.starts_with("classifier.")), "{:?}", loaded.initialised);
    assert!(loaded.replaced.iter().all(|name| name.starts_with("classifier.")) && !loaded.replaced.is_empty());
}

#[rstest]
fn an_adapter_opens_with_the_head_it_was_trained_with(#[files("golden/*_CLS.*/expected.json")] facts: PathBuf) {
    let name = facts.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let model = open(name, adapter(name, &json!({})).path()).unwrap();
    let base = checkpoint::read_config(&case(name).join("model")).unwrap();
    let classes = base.get("id2label").and_then(Value::as_object).map_or(2, serde_json::Map::len);
    assert_eq!(model.info().num_labels(), classes, "{name}");
}

#[rstest]
#[case(CLASSES)]
#[case("distilbert.SEQ_CLS.default")]
fn the_head_that_an_adapter_brings_decides_how_many_classes_there_are(#[case] name: &str) {
    let folder = adapter(name, &json!({}));
    let file = folder.path().join(ADAPTER_WEIGHTS);
    let mut tensors = TensorFile::read(&file, "adapter").unwrap().tensors;
    let width = tensors["base_model.model.classifier.weight"].shape()[1];
    tensors.insert("base_model.model.classifier.weight".into(), TensorData::new(vec![0.1_f32; 7 * width], [7, width]));
    tensors.insert("base_model.model.classifier.bias".into(), TensorData::new(vec![0.1_f32; 7], [7]));
    write_safetensors(&file, &tensors).unwrap();
    assert_eq!(open(name, folder.path()).unwrap().info().num_labels(), 7);
}

#[test]
fn an_adapter_of_another_architecture_says_which_base_it_was_trained_on() {
    let folder = adapter(CLASSES, &json!({ "task_type": "SEQ_CLS", "base_model_name_or_path": "org/tiny-bert" }));
    let error = open("llama.SEQ_CLS.default", folder.path()).unwrap_err().to_string();
    assert!(error.contains("org/tiny-bert") && error.contains("LlamaForSequenceClassification"), "{error}");
}
