//! What happens to checkpoints that are not exactly the model: other prefixes, missing heads, shards, broken files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use peft_core::{
    AutoClass, DynTensor, Error, Inputs,
    files::{TensorFile, write_safetensors},
    plugins::task::LabelSet,
};
use peft_models::checkpoint::{LoadOptions, Loaded, load, read_config, save, skeleton};
use serde_json::json;
use tempfile::TempDir;

type Tensors = BTreeMap<String, TensorData>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case).join("model")
}

fn tensors(folder: &Path) -> Tensors {
    TensorFile::read(&folder.join("model.safetensors"), "weights").unwrap().tensors
}

/// A golden model with its tensors changed.
fn changed(case: &str, change: impl FnOnce(&mut Tensors)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden(case).join("config.json"), folder.path().join("config.json")).unwrap();
    let mut all = tensors(&golden(case));
    change(&mut all);
    write_safetensors(&folder.path().join("model.safetensors"), &all).unwrap();
    folder
}

fn open(folder: &Path, class: &AutoClass) -> Result<Loaded, Error> {
    load(folder, class, &LoadOptions::default(), &Device::flex())
}

fn parameters(loaded: &Loaded) -> BTreeMap<String, DynTensor> {
    let mut all = BTreeMap::new();
    let info = &loaded.base.info;
    loaded.base.module.boxed_clone().map_params(&|path| info.rename(path), &mut |name, param| {
        assert!(!param.is_trainable(), "{name}");
        all.insert(name.to_owned(), param.tensor());
        param
    });
    all
}

const SEQ_CLS: AutoClass = AutoClass::SEQUENCE_CLASSIFICATION;

#[test]
fn saving_gives_the_file_that_was_loaded() {
    for (case, class) in [
        ("bert.SEQ_CLS.default", SEQ_CLS),
        ("llama.CAUSAL_LM.default", AutoClass::CAUSAL_LM),
        ("llama.CAUSAL_LM.tied-all-linear", AutoClass::CAUSAL_LM),
        ("t5.SEQ_2_SEQ_LM.default", AutoClass::SEQ2SEQ_LM),
        ("bart.SEQ_CLS.default", SEQ_CLS),
        ("mbart.SEQ_2_SEQ_LM.default", AutoClass::SEQ2SEQ_LM),
        ("marian.SEQ_2_SEQ_LM.two-vocabularies", AutoClass::SEQ2SEQ_LM),
    ] {
        let source = golden(case);
        let folder = tempfile::tempdir().unwrap();
        let loaded = open(&source, &class).unwrap();
        save(&loaded.base, Some(&source), folder.path()).unwrap();
        assert_eq!(tensors(folder.path()), tensors(&source), "{case}");
        let again = open(folder.path(), &class).unwrap();
        assert_eq!(again.base.info.config["architectures"], json!([loaded.base.info.class_name]));
    }
}

#[test]
fn a_model_with_a_weight_that_is_no_number_is_not_written() {
    let mut loaded = open(&golden("llama.CAUSAL_LM.default"), &AutoClass::CAUSAL_LM).unwrap();
    let info = loaded.base.info.clone();
    loaded.base.module = loaded.base.module.map_params(&|path| info.rename(path), &mut |name, param| match name {
        "model.norm.weight" => peft_core::DynParam::R1(param.get::<1>().unwrap().map(|weight| weight * f32::NAN)),
        _ => param,
    });
    let folder = tempfile::tempdir().unwrap();
    let error = save(&loaded.base, None, folder.path()).unwrap_err();
    assert!(error.exit_code() == 7 && error.to_string().contains("model.norm.weight"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn parameters_that_no_longer_are_the_same_are_saved_apart() {
    let mut loaded = open(&golden("llama.CAUSAL_LM.tied-all-linear"), &AutoClass::CAUSAL_LM).unwrap();
    let info = loaded.base.info.clone();
    loaded.base.module = loaded.base.module.map_params(&|path| info.rename(path), &mut |name, param| match name {
        "lm_head.weight" => {
            let param = param.get::<2>().unwrap();
            peft_core::DynParam::R2(param.map(|weight| weight * 2.0))
        }
        _ => param,
    });
    let folder = tempfile::tempdir().unwrap();
    save(&loaded.base, None, folder.path()).unwrap();
    let again = open(folder.path(), &AutoClass::CAUSAL_LM).unwrap();
    assert_eq!(again.base.info.config["tie_word_embeddings"], json!(false));
    let (was, is) = (parameters(&loaded), parameters(&again));
    assert_eq!(was["lm_head.weight"].to_data(), is["lm_head.weight"].to_data());
}

#[test]
fn tied_parameters_count_once_and_share_their_identity() {
    let tree = open(&golden("llama.CAUSAL_LM.tied-all-linear"), &AutoClass::CAUSAL_LM).unwrap().base.tree();
    let stored = tensors(&golden("llama.CAUSAL_LM.tied-all-linear"));
    assert!(tree.get("lm_head").is_some() && !stored.contains_key("lm_head.weight"));
    assert_eq!(tree.num_params(), stored.values().map(TensorData::num_elements).sum::<usize>());
}

#[test]
fn words_load_from_any_of_their_names() {
    for (case, words) in [("t5.SEQ_2_SEQ_LM.default", ""), ("bart.SEQ_2_SEQ_LM.default", "model.")] {
        let shared = format!("{words}shared.weight");
        let names =
            [&shared, &format!("{words}encoder.embed_tokens.weight"), &format!("{words}decoder.embed_tokens.weight")]
                .map(Clone::clone);
        let expected = tensors(&golden(case)).remove(&shared).unwrap();
        for kept in names.iter().chain(&["lm_head.weight".to_owned()]) {
            let folder = changed(case, |all| {
                let table = all.remove(&shared).unwrap();
                all.insert(kept.clone(), table);
            });
            let loaded = open(folder.path(), &AutoClass::SEQ2SEQ_LM).unwrap();
            let all = parameters(&loaded);
            assert!(names.iter().all(|name| all[name].to_data() == expected), "{kept}");
            assert_eq!(all["lm_head.weight"].clone().transposed().to_data(), expected, "{kept}");
        }
    }
}

#[test]
fn tables_that_differ_in_the_file_are_not_tied() {
    let case = "t5.SEQ_2_SEQ_LM.default";
    let folder = changed(case, |all| {
        let table = all["shared.weight"].clone();
        all.insert("encoder.embed_tokens.weight".to_owned(), table.clone());
        let doubled: Vec<f32> = table.try_to_vec::<f32>().unwrap().into_iter().map(|value| value * 2.0).collect();
        all.insert("lm_head.weight".to_owned(), TensorData::new(doubled, table.shape().clone()));
    });
    let loaded = open(folder.path(), &AutoClass::SEQ2SEQ_LM).unwrap();
    let words = tensors(&golden(case))["shared.weight"].num_elements();
    let tied = open(&golden(case), &AutoClass::SEQ2SEQ_LM).unwrap();
    assert_eq!(loaded.base.tree().num_params(), tied.base.tree().num_params() + words);
    let again = tempfile::tempdir().unwrap();
    save(&loaded.base, None, again.path()).unwrap();
    let written = tensors(again.path());
    assert!(written.contains_key("lm_head.weight") && !written.contains_key("encoder.embed_tokens.weight"));
    // The scale of the states before the output layer does not follow what is tied.
    let again = open(again.path(), &AutoClass::SEQ2SEQ_LM).unwrap();
    assert_eq!(again.base.info.config["scale_decoder_outputs"], json!(true));
    assert_eq!(parameters(&again)["lm_head.weight"].to_data(), parameters(&loaded)["lm_head.weight"].to_data());
}

#[test]
fn where_one_table_of_words_differs_all_are_written() {
    let mut loaded = open(&golden("bart.SEQ_2_SEQ_LM.default"), &AutoClass::SEQ2SEQ_LM).unwrap();
    let info = loaded.base.info.clone();
    loaded.base.module = loaded.base.module.map_params(&|path| info.rename(path), &mut |name, param| match name {
        "lm_head.weight" => peft_core::DynParam::R2(param.get::<2>().unwrap().map(|weight| weight * 2.0)),
        _ => param,
    });
    let folder = tempfile::tempdir().unwrap();
    save(&loaded.base, None, folder.path()).unwrap();
    // With `tie_word_embeddings` false Transformers ties none of them.
    assert_eq!(read_config(folder.path()).unwrap()["tie_word_embeddings"], json!(false));
    let names = ["lm_head", "model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"];
    let written = tensors(folder.path());
    assert!(names.iter().all(|name| written.contains_key(&format!("{name}.weight"))), "{:?}", written.keys());
    let again = tempfile::tempdir().unwrap();
    save(&open(folder.path(), &AutoClass::SEQ2SEQ_LM).unwrap().base, None, again.path()).unwrap();
    assert_eq!(tensors(again.path()), written);
}

#[test]
fn a_missing_bias_of_the_logits_is_zero() {
    let folder = changed("bart.SEQ_2_SEQ_LM.default", |all| drop(all.remove("final_logits_bias")));
    let loaded = open(folder.path(), &AutoClass::SEQ2SEQ_LM).unwrap();
    let bias = parameters(&loaded)["final_logits_bias"].to_data().try_to_vec::<f32>().unwrap();
    assert!(loaded.initialised.is_empty() && bias.iter().all(|value| *value == 0.0));
}

#[test]
fn a_skeleton_has_the_names_and_shapes_of_the_loaded_model() {
    for (case, class) in [("bert.SEQ_CLS.default", SEQ_CLS), ("llama.CAUSAL_LM.default", AutoClass::CAUSAL_LM)] {
        let planned = skeleton(&golden(case), &class, &LoadOptions::default(), &Device::flex()).unwrap().tree();
        let loaded = open(&golden(case), &class).unwrap().base.tree();
        let facts = |tree: &peft_core::ModuleTree| {
            tree.params().map(|(name, param)| (name, param.shape.clone())).collect::<Vec<_>>()
        };
        assert_eq!(facts(&planned), facts(&loaded));
    }
}

#[test]
fn backbones_load_with_and_without_a_prefix() {
    let backbone = open(&golden("bert.SEQ_CLS.default"), &AutoClass::MODEL).unwrap();
    assert_eq!(
        (backbone.initialised.len(), backbone.ignored),
        (0, vec!["classifier.bias".into(), "classifier.weight".into()])
    );

    let headed = open(&golden("bert.FEATURE_EXTRACTION.default"), &SEQ_CLS).unwrap();
    assert_eq!(headed.initialised, ["classifier.weight", "classifier.bias"]);

    let questions = open(&golden("llama.CAUSAL_LM.default"), &AutoClass::QUESTION_ANSWERING).unwrap();
    assert_eq!(questions.initialised, ["qa_outputs.weight", "qa_outputs.bias"]);
    assert_eq!(questions.ignored, ["lm_head.weight"]);

    let writer = open(&golden("bart.none.default"), &AutoClass::SEQ2SEQ_LM).unwrap();
    assert!(writer.initialised.is_empty() && writer.ignored.is_empty());
    let halves = open(&golden("bart.SEQ_2_SEQ_LM.default"), &AutoClass::MODEL).unwrap();
    assert_eq!(halves.ignored, ["final_logits_bias"]);
    let classifier = open(&golden("t5.SEQ_2_SEQ_LM.default"), &SEQ_CLS).unwrap();
    assert!(classifier.initialised.iter().all(|name| name.starts_with("classification_head.")));
    let encoder = open(&golden("t5.SEQ_2_SEQ_LM.default"), &AutoClass::TOKEN_CLASSIFICATION).unwrap();
    assert!(!encoder.ignored.is_empty() && encoder.ignored.iter().all(|name| name.starts_with("decoder.")));
}

#[test]
fn heads_of_encoders_come_and_go() {
    let tokens = AutoClass::TOKEN_CLASSIFICATION;
    for (model_type, head) in [
        ("deberta-v2", &["classifier.bias", "classifier.weight", "pooler.dense.bias", "pooler.dense.weight"][..]),
        ("distilbert", &["classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight"]),
        ("modernbert", &["classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight"]),
    ] {
        let backbone = open(&golden(&format!("{model_type}.SEQ_CLS.default")), &AutoClass::MODEL).unwrap();
        assert_eq!(
            (backbone.initialised.len(), backbone.ignored.iter().map(String::as_str).collect()),
            (0, head.to_vec())
        );
        let headed = open(&golden(&format!("{model_type}.FEATURE_EXTRACTION.default")), &SEQ_CLS).unwrap();
        let mut initialised: Vec<_> = headed.initialised.iter().map(String::as_str).collect();
        initialised.sort_unstable();
        assert_eq!((initialised, headed.ignored.len()), (head.to_vec(), 0));
    }
    let roberta = open(&golden("roberta.SEQ_CLS.default"), &AutoClass::MODEL).unwrap();
    assert_eq!(roberta.initialised, ["pooler.dense.weight", "pooler.dense.bias"]);
    let roberta = open(&golden("roberta.FEATURE_EXTRACTION.default"), &tokens).unwrap();
    assert_eq!(roberta.initialised, ["classifier.weight", "classifier.bias"]);
    assert_eq!(roberta.ignored, ["pooler.dense.bias", "pooler.dense.weight"]);
}

#[test]
fn the_pooler_may_be_missing_or_too_much() {
    let without = changed("bert.FEATURE_EXTRACTION.default", |all| all.retain(|name, _| !name.starts_with("pooler")));
    assert_eq!(
        open(without.path(), &AutoClass::MODEL).unwrap().initialised,
        ["pooler.dense.weight", "pooler.dense.bias"]
    );
    let tokens = open(&golden("bert.FEATURE_EXTRACTION.default"), &AutoClass::TOKEN_CLASSIFICATION).unwrap();
    assert_eq!(tokens.ignored, ["pooler.dense.bias", "pooler.dense.weight"]);
}

#[test]
fn fresh_heads_follow_from_the_seed() {
    let head = |seed| {
        let options = LoadOptions { seed, ..LoadOptions::default() };
        let loaded = load(&golden("bert.FEATURE_EXTRACTION.default"), &SEQ_CLS, &options, &Device::flex()).unwrap();
        parameters(&loaded)["classifier.weight"].to_data()
    };
    assert_eq!(head(1), head(1));
    assert_ne!(head(1), head(2));
}

#[test]
fn labels_of_the_data_decide_the_size_of_a_fresh_head() {
    let labels = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
    let labels = Some(LabelSet { labels, problem_type: "single_label_classification" });
    let options = LoadOptions { labels, ..LoadOptions::default() };
    let fresh = load(&golden("bert.FEATURE_EXTRACTION.default"), &SEQ_CLS, &options, &Device::flex()).unwrap();
    assert_eq!(fresh.base.tree().get("classifier").unwrap().weight_dims(), Some((16, 5)));
    assert_eq!(fresh.base.info.label(4), "e");

    let text = load(&golden("bert.SEQ_CLS.default"), &SEQ_CLS, &options, &Device::flex()).unwrap_err().to_string();
    assert!(text.contains("`classifier.weight`: has shape [3, 16], the model needs [5, 16]"), "{text}");
}

#[test]
fn every_misfit_is_reported_at_once() {
    let folder = changed("bert.SEQ_CLS.default", |all| {
        all.remove("bert.encoder.layer.0.attention.self.query.weight");
        all.insert("bert.encoder.layer.7.output.dense.bias".into(), TensorData::zeros::<f32, _>([16]));
        all.insert("bert.encoder.layer.1.output.dense.bias".into(), TensorData::zeros::<f32, _>([3]));
        all.insert("bert.embeddings.LayerNorm.bias".into(), TensorData::zeros::<i64, _>([16]));
        // Neither of these is a parameter or a part of this model.
        all.insert("bert.embeddings.position_ids".into(), TensorData::zeros::<i64, _>([1, 24]));
        all.insert("cls.predictions.bias".into(), TensorData::zeros::<f32, _>([41]));
    });
    let error = open(folder.path(), &SEQ_CLS).unwrap_err();
    let Error::Tensors { problems, .. } = error else { unreachable!("{error}") };
    let mut problems = problems;
    problems.sort();
    assert_eq!(
        problems,
        [
            "`bert.embeddings.LayerNorm.bias`: holds I64; supported are F32, F16, BF16 and F64",
            "`bert.encoder.layer.0.attention.self.query.weight`: missing (the model needs it with shape [16, 16])",
            "`bert.encoder.layer.1.output.dense.bias`: has shape [3], the model needs [16]",
            "`bert.encoder.layer.7.output.dense.bias` [16]: nothing in the model takes this tensor",
        ]
    );
}

#[test]
fn norms_of_converted_checkpoints_are_found() {
    let folder = changed("bert.SEQ_CLS.default", |all| {
        let old = |name: &str| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        };
        *all = std::mem::take(all).into_iter().map(|(name, data)| (old(&name), data)).collect();
    });
    assert_eq!(open(folder.path(), &SEQ_CLS).unwrap().initialised, Vec::<String>::new());
}

#[test]
fn shards_are_one_model() {
    let folder = changed("bert.SEQ_CLS.default", |_| {});
    let mut all = tensors(folder.path());
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let second = all.split_off("bert.encoder.layer.1");
    let mut weight_map = serde_json::Map::new();
    for (file, part) in [("model-00001-of-00002.safetensors", &all), ("model-00002-of-00002.safetensors", &second)] {
        write_safetensors(&folder.path().join(file), part).unwrap();
        weight_map.extend(part.keys().map(|name| (name.clone(), file.into())));
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"metadata": {}, "weight_map": weight_map}).to_string()).unwrap();
    let whole = parameters(&open(&golden("bert.SEQ_CLS.default"), &SEQ_CLS).unwrap());
    let sharded = parameters(&open(folder.path(), &SEQ_CLS).unwrap());
    assert!(whole.iter().all(|(name, value)| sharded[name].to_data() == value.to_data()));

    weight_map.insert("bert.pooler.dense.bias".to_owned(), "../elsewhere.safetensors".into());
    fs::write(&index, json!({"weight_map": weight_map}).to_string()).unwrap();
    assert!(open(folder.path(), &SEQ_CLS).unwrap_err().to_string().contains("should name a file in this folder"));
}

#[test]
fn half_precision_is_widened_unless_it_is_asked_for() {
    let folder = changed("llama.CAUSAL_LM.default", |all| {
        *all = std::mem::take(all).into_iter().map(|(name, data)| (name, data.convert_dtype(DType::BF16))).collect();
    });
    let ids = Tensor::from_data([[5, 6, 7]], &Device::flex());
    let run = |dtype| {
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let loaded = load(folder.path(), &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap();
        let model = loaded.base.running();
        let inputs = model.check(Inputs { input_ids: Some(ids.clone()), ..Inputs::default() }).unwrap();
        model.forward(&inputs).unwrap().get::<3>("logits").unwrap()
    };
    let (single, half) = (run(None), run(Some(DType::BF16)));
    assert_eq!((single.dtype(), half.dtype()), (DType::F32, DType::BF16));
    let difference = (single - half.cast(DType::F32)).abs().max().into_scalar::<f32>();
    assert!(difference < 0.05, "{difference}");
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let check = |change: &dyn Fn(&Path), code: u8, words: &str| {
        let folder = changed("bert.SEQ_CLS.default", |_| {});
        change(folder.path());
        let error = open(folder.path(), &SEQ_CLS).unwrap_err();
        assert!(error.to_string().contains(words) && error.exit_code() == code, "{} {error}", error.exit_code());
    };
    let config = |text: &'static str| move |folder: &Path| fs::write(folder.join("config.json"), text).unwrap();
    let weights = |change: fn(Vec<u8>) -> Vec<u8>| {
        move |folder: &Path| {
            let path = folder.join("model.safetensors");
            fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        }
    };
    check(&|folder| fs::remove_file(folder.join("config.json")).unwrap(), 6, "config.json: not found");
    check(&config("{"), 3, "config.json: not a JSON object");
    check(&config("{}"), 2, "`model_type`: missing");
    check(&config(r#"{"model_type": "bertt"}"#), 2, "did you mean `bert`?");
    check(&config(r#"{"model_type": "bert"}"#), 2, "config.json: `");
    check(&|folder| fs::remove_file(folder.join("model.safetensors")).unwrap(), 6, "model.safetensors: not found");
    check(&weights(|bytes| bytes[..bytes.len() - 4].to_vec()), 3, "model.safetensors: not a whole safetensors file");
    check(&weights(|_| Vec::new()), 3, "model.safetensors: not a whole safetensors file");
    check(&weights(|bytes| [u64::MAX.to_le_bytes().to_vec(), bytes[8..].to_vec()].concat()), 3, "header too large");
}

#[test]
fn a_head_that_the_architecture_lacks_is_refused() {
    let error = open(&golden("bert.SEQ_CLS.default"), &AutoClass::CAUSAL_LM).unwrap_err();
    assert!(error.to_string().contains("the task needs AutoModelForCausalLM"), "{error}");
}
