//! Base models against the numbers of Transformers.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData, Tolerance, s};
use peft_core::{AutoClass, BaseModel, CheckedInputs, Inputs, files::TensorFile};
use peft_models::checkpoint::{LoadOptions, load, read_config};
use serde_json::{Map, Value, json};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

fn inputs(case: &str) -> Inputs {
    let file = TensorFile::read(&folder(case).join("inputs.safetensors"), "inputs").unwrap();
    let get = |name: &str| file.tensors.get(name).map(|t| Tensor::<2, Int>::from_data(t.clone(), &Device::flex()));
    Inputs {
        input_ids: get("input_ids"),
        attention_mask: get("attention_mask"),
        token_type_ids: get("token_type_ids"),
        ..Inputs::default()
    }
}

/// What the model says without its adapter.
fn expected(case: &str) -> Vec<(String, TensorData)> {
    let file = TensorFile::read(&folder(case).join("expected.safetensors"), "outputs").unwrap();
    let of_base = |(name, data): (String, TensorData)| Some((name.strip_prefix("base.")?.to_owned(), data));
    let tensors: Vec<_> = file.tensors.into_iter().filter_map(of_base).collect();
    assert!(!tensors.is_empty());
    tensors
}

/// Compares every output, without a graph and with one: the two take different paths through attention.
fn check(case: &str, class: &AutoClass, class_name: &str) {
    let device = Device::flex();
    let model = load(&folder(case).join("model"), class, &LoadOptions::default(), &device).unwrap();
    assert_eq!((model.initialised, model.ignored), (vec![], vec![]));
    assert_eq!(model.base.info.class_name, class_name);
    let mut inputs = inputs(case);
    if *class == AutoClass::QUESTION_ANSWERING {
        // PEFT's wrapper for this task takes token types and does not pass them on.
        inputs.token_type_ids = None;
    }
    let inputs = CheckedInputs::new(inputs, &model.base.info).unwrap();
    let tracked = model.base.module.boxed_clone().to_device(&device.autodiff());
    for outputs in [model.base.module.forward(&inputs), tracked.forward(&inputs)] {
        for (name, expected) in expected(case) {
            let (_, found) = outputs.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no output {name}"));
            // What the different order of sums in f32 makes of values around 1.
            found.to_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 5e-6));
        }
    }
}

#[test]
fn encoders_give_the_numbers_of_transformers() {
    for (model_type, family) in [
        ("albert", "Albert"),
        ("bert", "Bert"),
        ("deberta-v2", "DebertaV2"),
        ("distilbert", "DistilBert"),
        ("electra", "Electra"),
        ("modernbert", "ModernBert"),
        ("roberta", "Roberta"),
    ] {
        let check = |task: &str, class: &AutoClass, head: &str| {
            check(&format!("{model_type}.{task}.default"), class, &format!("{family}{head}"));
        };
        check("FEATURE_EXTRACTION", &AutoClass::MODEL, "Model");
        check("SEQ_CLS", &AutoClass::SEQUENCE_CLASSIFICATION, "ForSequenceClassification");
        check("TOKEN_CLS", &AutoClass::TOKEN_CLASSIFICATION, "ForTokenClassification");
        check("QUESTION_ANS", &AutoClass::QUESTION_ANSWERING, "ForQuestionAnswering");
    }
    let class = AutoClass::SEQUENCE_CLASSIFICATION;
    check("xlm-roberta.SEQ_CLS.default", &class, "XLMRobertaForSequenceClassification");
}

#[test]
fn older_modernbert_configurations_mean_the_same() {
    let case = folder("modernbert.SEQ_CLS.mean-all-linear-biases");
    let class = AutoClass::SEQUENCE_CLASSIFICATION;
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("model/model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut config = read_config(&case.join("model")).unwrap();
    config.shift_remove("rope_parameters").unwrap();
    config.insert("global_rope_theta".to_owned(), 500.0.into());
    config.insert("local_rope_theta".to_owned(), 50.0.into());
    let logits = |config: &Map<String, Value>| {
        std::fs::write(copy.path().join("config.json"), Value::from(config.clone()).to_string()).unwrap();
        let base = load(copy.path(), &class, &LoadOptions::default(), &Device::flex()).unwrap().base;
        let inputs = CheckedInputs::new(inputs("modernbert.SEQ_CLS.mean-all-linear-biases"), &base.info).unwrap();
        base.module.forward(&inputs).get::<2>("logits").unwrap().into_data()
    };
    let base = expected("modernbert.SEQ_CLS.mean-all-linear-biases").into_iter().find(|(name, _)| name == "logits");
    logits(&config).assert_approx_eq::<f32>(&base.unwrap().1, Tolerance::rel_abs(1e-4, 5e-6));

    let types = json!(["full_attention", "sliding_attention", "full_attention"]);
    config.insert("layer_types".to_owned(), types);
    let listed = logits(&config);
    config.shift_remove("layer_types").unwrap();
    config.insert("global_attn_every_n_layers".to_owned(), 2.into());
    logits(&config).assert_eq(&listed, true);
}

#[test]
fn llama_gives_the_numbers_of_transformers() {
    check("llama.CAUSAL_LM.default", &AutoClass::CAUSAL_LM, "LlamaForCausalLM");
    check("llama.CAUSAL_LM.tied-all-linear", &AutoClass::CAUSAL_LM, "LlamaForCausalLM");
    check("llama.CAUSAL_LM.rope-llama3", &AutoClass::CAUSAL_LM, "LlamaForCausalLM");
    check("llama.SEQ_CLS.default", &AutoClass::SEQUENCE_CLASSIFICATION, "LlamaForSequenceClassification");
    check("llama.TOKEN_CLS.default", &AutoClass::TOKEN_CLASSIFICATION, "LlamaForTokenClassification");
    check("llama.QUESTION_ANS.default", &AutoClass::QUESTION_ANSWERING, "LlamaForQuestionAnswering");
}

#[test]
fn the_last_token_is_told_by_the_mask_where_there_is_no_pad_token() {
    let case = folder("llama.SEQ_CLS.default");
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("model/model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(case.join("model/config.json")).unwrap();
    let without = config.replace("\"pad_token_id\": 0", "\"pad_token_id\": null");
    assert_ne!(config, without);
    std::fs::write(copy.path().join("config.json"), without).unwrap();
    let class = AutoClass::SEQUENCE_CLASSIFICATION;
    let load = |from: &Path| load(from, &class, &LoadOptions::default(), &Device::flex()).unwrap().base;
    let (base, by_id) = (load(copy.path()), load(&case.join("model")));

    let inputs = inputs("llama.SEQ_CLS.default");
    let logits = |base: &BaseModel| {
        let inputs = CheckedInputs::new(inputs.clone(), &base.info).unwrap();
        base.module.forward(&inputs).get::<2>("logits").unwrap().into_data()
    };
    logits(&base).assert_eq(&logits(&by_id), true);

    let unmasked = Inputs { attention_mask: None, ..inputs.clone() };
    assert!(CheckedInputs::new(unmasked, &base.info).unwrap_err().to_string().contains("`pad_token_id`"));
    let ids = inputs.input_ids.map(|ids| ids.slice(s![0..1]));
    CheckedInputs::new(Inputs { input_ids: ids, ..Inputs::default() }, &base.info).unwrap();
}
