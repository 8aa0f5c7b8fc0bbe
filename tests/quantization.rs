//! Packed weights as bitsandbytes has them: codes, files, models; and adapters on top.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use peft::{
    AutoClass, BaseModel, Batch, Inputs, Labels, PeftConfig, PeftModel, PeftType, TaskType,
    backends::ops::{FourBit, PackedMatrix, PackedParts, Packing, ScaleParts, quantize, quantize_q8_0},
    files::TensorFile,
    models::{
        QuantizationConfig,
        checkpoint::{self, LoadOptions},
        quantization::QuantType,
    },
};
use rstest::rstest;

use crate::fixture::assert_close;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("quantization")
}

fn tensors(file: &str) -> BTreeMap<String, TensorData> {
    TensorFile::read(&folder().join(file), "expected").unwrap().tensors
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.clone().try_into_vec::<f32>().unwrap()
}

fn bytes(data: &TensorData) -> Vec<u8> {
    data.bytes().to_vec()
}

const PACKINGS: [(&str, Packing); 5] = [
    ("nf4", Packing::FourBit { codes: FourBit::Nf4, nested: false }),
    ("nf4.nested", Packing::FourBit { codes: FourBit::Nf4, nested: true }),
    ("fp4", Packing::FourBit { codes: FourBit::Fp4, nested: false }),
    ("fp4.nested", Packing::FourBit { codes: FourBit::Fp4, nested: true }),
    ("int8", Packing::Int8),
];

#[rstest]
fn codes_and_scales_are_those_of_bitsandbytes(
    #[values("whole", "uneven", "rest", "odd", "long")] name: &str,
    #[values(0, 1, 2, 3, 4)] packing: usize,
) {
    let (kind, packing) = PACKINGS[packing];
    let expected = tensors("matrices.safetensors");
    let of = |part: &str| &expected[&format!("{name}.{kind}.{part}")];
    let values = &expected[&format!("{name}.values")];
    let &[d_out, d_in] = values.shape().as_slice() else { panic!("a matrix") };
    let parts = quantize(&floats(values), [d_out, d_in], packing).unwrap();
    assert_eq!(parts.codes, bytes(of("codes")));
    match &parts.scales {
        ScaleParts::Plain(scales) => assert_eq!(scales, &floats(of("absmax"))),
        ScaleParts::Nested { codes, absmax, map, offset, .. } => {
            assert_eq!(map, &floats(&expected["map"]));
            assert_eq!(codes, &bytes(of("absmax")));
            let close =
                |ours: f32, theirs: f32| assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{ours} {theirs}");
            absmax.iter().zip(floats(of("nested_absmax"))).for_each(|(ours, theirs)| close(*ours, theirs));
            close(*offset, floats(of("offset"))[0]);
        }
    }
    if name != "long" {
        let dense = PackedMatrix::new(parts, &Device::flex()).unwrap().dense().transpose().into_data();
        assert_close(name, &dense, of("dense"));
    }
}

#[test]
fn blocks_of_eight_bits_are_those_of_the_gguf_package() {
    let expected = tensors("q8_0.safetensors");
    let (values, blocks) = (&expected["values"], &expected["blocks"]);
    let &[d_out, d_in] = values.shape().as_slice() else { panic!("a matrix") };
    assert_eq!(quantize_q8_0(&floats(values), [d_out, d_in]).unwrap().codes, bytes(blocks));
}

fn load(model: &str, quantization: QuantizationConfig) -> peft::Result<BaseModel> {
    let options = LoadOptions { quantization, ..LoadOptions::default() };
    checkpoint::load(&folder().join(model), &AutoClass::CAUSAL_LM, &options, &Device::flex()).map(|loaded| loaded.base)
}

fn packed_as(kind: &str) -> QuantizationConfig {
    QuantizationConfig {
        load_in_4bit: kind != "int8",
        load_in_8bit: kind == "int8",
        bnb_4bit_quant_type: if kind == "nf4" { QuantType::Nf4 } else { QuantType::Fp4 },
        bnb_4bit_use_double_quant: kind == "nf4",
        ..QuantizationConfig::default()
    }
}

fn logits(base: &BaseModel, ids: &TensorData) -> TensorData {
    let ids = Tensor::from_data(ids.clone().convert::<i64>(), &Device::flex());
    let model = base.running();
    let inputs = model.check(Inputs { input_ids: Some(ids), ..Inputs::default() }).unwrap();
    let outputs = model.forward(&inputs).unwrap();
    outputs.get::<3>("logits").unwrap().into_data()
}

#[rstest]
fn packed_checkpoints_load_and_are_written_as_they_were(#[values("nf4", "fp4", "int8")] kind: &str) {
    let expected = tensors(&format!("{kind}.safetensors"));
    let base = load(kind, QuantizationConfig::default()).unwrap();
    assert_eq!(base.quantized.iter().count(), 14);
    assert_close("logits", &logits(&base, &expected["input_ids"]), &expected["logits"]);

    let written = tempfile::tempdir().unwrap();
    checkpoint::save(&base, None, written.path()).unwrap();
    let (own, theirs) = (written.path().join("model.safetensors"), folder().join(kind).join("model.safetensors"));
    let [own, theirs] = [own, theirs].map(|file| TensorFile::read(&file, "weights").unwrap().tensors);
    assert_eq!(own.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, data) in theirs.iter().filter(|(name, _)| !name.contains("quant_state")) {
        assert_eq!(
            (data.dtype(), data.shape(), data.bytes()),
            (own[name].dtype(), own[name].shape(), own[name].bytes())
        );
    }
    let again =
        checkpoint::load(written.path(), &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex()).unwrap();
    assert_eq!(logits(&again.base, &expected["input_ids"]), logits(&base, &expected["input_ids"]));
}

#[rstest]
fn packing_while_loading_gives_the_same_model(#[values("nf4", "fp4", "int8")] kind: &str) {
    let expected = tensors(&format!("{kind}.safetensors"));
    let base = load("dense", packed_as(kind)).unwrap();
    let theirs = load(kind, QuantizationConfig::default()).unwrap();
    let mut largest = 0.0_f32;
    for ((name, own), (_, theirs)) in base.quantized.iter().zip(theirs.quantized.iter()) {
        assert_eq!(own.stored(name)[0], theirs.stored(name)[0]);
        let [own, theirs] = [own, theirs].map(|weight| floats(&weight.dense().into_data()));
        let distances = own.iter().zip(&theirs).map(|(own, theirs)| (own - theirs).abs() / theirs.abs().max(1e-9));
        largest = distances.fold(largest, f32::max);
    }
    if kind != "nf4" {
        assert_eq!(largest, 0.0);
        assert_close("logits", &logits(&base, &expected["input_ids"]), &expected["logits"]);
    }
    // The mean of the scales depends on the order of its sum, and a scale between two codes on the mean.
    assert!(largest < 0.03, "{largest}");
    let dense = load("dense", QuantizationConfig::default()).unwrap();
    assert_eq!(base.tree().num_params(), dense.tree().num_params());
}

fn lora(base: BaseModel, dora: bool) -> PeftModel {
    let config = PeftConfig::new(PeftType::new("LORA"), Some(TaskType::new("CAUSAL_LM"))).unwrap();
    let config = config.with("target_modules", "all-linear").unwrap().with("use_dora", dora).unwrap();
    let config = config.with("init_lora_weights", false).unwrap();
    PeftModel::new(base, config, &Device::flex(), 3).unwrap()
}

fn batch(ids: &TensorData) -> Batch {
    let ids = Tensor::from_data(ids.clone().convert::<i64>(), &Device::flex());
    Batch {
        inputs: Inputs { input_ids: Some(ids.clone()), ..Inputs::default() },
        labels: Labels(BTreeMap::from([("labels".to_owned(), ids.into_data())])),
    }
}

/// Loss, and gradients by key, of an adapter on a base.
fn trained(base: BaseModel, dora: bool, ids: &TensorData) -> (TensorData, BTreeMap<String, TensorData>) {
    let mut model = lora(base, dora);
    model.set_training(true);
    let (loss, _) = model.loss(&model.check(batch(ids)).unwrap()).unwrap();
    let gradients = model.gradients(&loss);
    let grads = model.trainable().into_iter().map(|tensor| {
        let grad = tensor.param.gradient(&gradients).expect("every tensor of the adapter is trained");
        (tensor.key.clone(), grad.to_data())
    });
    (loss.without_autodiff().into_data(), grads.collect())
}

#[rstest]
fn adapters_on_packed_weights_train_as_on_the_unpacked(
    #[values("nf4", "fp4", "int8")] kind: &str,
    #[values(false, true)] dora: bool,
) {
    let ids = &tensors("nf4.safetensors")["input_ids"];
    let base = load(kind, QuantizationConfig::default()).unwrap();
    let (dense_loss, dense) = trained(base.clone().dequantized(), dora, ids);
    let (loss, packed) = trained(base, dora, ids);
    assert_close("loss", &loss, &dense_loss);
    assert_eq!(packed.keys().collect::<Vec<_>>(), dense.keys().collect::<Vec<_>>());
    packed.iter().for_each(|(key, grad)| assert_close(key, grad, &dense[key]));
}

#[rstest]
fn merging_gives_dense_weights_or_packs_them_again(#[values("nf4", "int8")] kind: &str) {
    let ids = &tensors("nf4.safetensors")["input_ids"];
    let run = |base: &BaseModel| logits(base, ids);
    let mut model = lora(load(kind, QuantizationConfig::default()).unwrap(), false);
    let batch = model.check(batch(ids)).unwrap();
    let adapted = model.forward(&batch.inputs).unwrap().get::<3>("logits").unwrap().without_autodiff().into_data();
    let merged = model.merge().unwrap();
    assert!(merged.quantized.is_empty());
    assert_close("merged", &run(&merged), &adapted);

    let repacked = model.merge_requantized().unwrap();
    assert_eq!(repacked.quantized.iter().count(), 14);
    let name = "model.layers.0.mlp.down_proj.weight";
    let [before, after] =
        [model.base(), &repacked].map(|base| base.quantized.get(name).unwrap().stored(name)[0].1.clone());
    assert_ne!(before, after);
    // Rounded to the nearest codes of the sums, which is what packing the merged model gives.
    let folder = tempfile::tempdir().unwrap();
    checkpoint::save(&merged, None, folder.path()).unwrap();
    let options = LoadOptions { quantization: packed_as(kind), ..LoadOptions::default() };
    let packed = checkpoint::load(folder.path(), &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap();
    assert_eq!(run(&repacked), run(&packed.base));
}

#[test]
fn what_cannot_be_packed_names_the_key() {
    let refused = |model: &str, quantization: QuantizationConfig| load(model, quantization).unwrap_err().to_string();
    let nf4 = || packed_as("nf4");
    for (model, quantization, key, word) in [
        ("dense", QuantizationConfig { load_in_8bit: true, ..nf4() }, "load_in_8bit", "keep one"),
        ("dense", QuantizationConfig { load_in_4bit: false, ..nf4() }, "bnb_4bit_quant_type", "load_in_4bit"),
        ("int8", nf4(), "load_in_4bit", "packed already"),
        (
            "dense",
            QuantizationConfig { llm_int8_skip_modules: Some(vec!["nobody".into()]), ..nf4() },
            "llm_int8_skip_modules",
            "nobody",
        ),
    ] {
        let error = refused(model, quantization);
        assert!(error.contains(key) && error.contains(word), "{error}");
    }
    let skip = |names: &[&str]| {
        let llm_int8_skip_modules = Some(names.iter().map(|name| (*name).to_owned()).collect());
        load("dense", QuantizationConfig { llm_int8_skip_modules, ..nf4() }).unwrap().quantized.iter().count()
    };
    assert_eq!(skip(&["lm_head"]), 14);
    assert_eq!(skip(&["down_proj", "model.layers.0"]), 6);
    let full = PeftConfig::new(PeftType::new("FULL"), Some(TaskType::new("CAUSAL_LM"))).unwrap();
    let error =
        PeftModel::new(load("nf4", QuantizationConfig::default()).unwrap(), full, &Device::flex(), 0).unwrap_err();
    assert!(error.to_string().contains("peft_type"), "{error}");
}

#[test]
fn broken_packed_checkpoints_are_refused() {
    let broken = |change: &dyn Fn(&mut BTreeMap<String, TensorData>)| {
        let copy = tempfile::tempdir().unwrap();
        let mut weights = TensorFile::read(&folder().join("nf4/model.safetensors"), "weights").unwrap().tensors;
        change(&mut weights);
        std::fs::copy(folder().join("nf4/config.json"), copy.path().join("config.json")).unwrap();
        peft::files::write_safetensors(&copy.path().join("model.safetensors"), &weights).unwrap();
        let loaded = checkpoint::load(copy.path(), &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex());
        loaded.unwrap_err().to_string()
    };
    let weight = "model.layers.1.self_attn.q_proj.weight";
    for (part, word) in
        [(".absmax", "missing"), (".nested_absmax", "missing"), (".nested_quant_map", "missing"), ("", "missing")]
    {
        let error = broken(&|weights| _ = weights.remove(&format!("{weight}{part}")));
        assert!(error.contains(&format!("{weight}{part}")) && error.contains(word), "{error}");
    }
    let state = format!("{weight}.quant_state.bitsandbytes__nf4");
    let text = |text: &str| TensorData::new(text.as_bytes().to_vec(), [text.len()]);
    for (text, word) in [
        (text("{"), "description"),
        (text(r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [48, 49]}"#), "[48, 49]"),
        (
            text(
                r#"{"quant_type": "nf4", "blocksize": 0, "dtype": "float32", "shape": [48, 48], "nested_blocksize": 256, "nested_offset": 0}"#,
            ),
            "blocks of 0",
        ),
        (
            text(
                r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [48, 48], "nested_blocksize": 0, "nested_offset": 0}"#,
            ),
            "scales",
        ),
    ] {
        let error = broken(&|weights| _ = weights.insert(state.clone(), text.clone()));
        assert!(error.contains(word), "{error}");
    }
    let error = broken(&|weights| _ = weights.insert(weight.to_owned(), TensorData::new(vec![0_u8; 7], [7, 1])));
    assert!(error.contains(weight) && error.contains("bytes"), "{error}");
    let parts = PackedParts { codes: vec![0; 4], ..quantize(&[0.0; 6], [2, 3], Packing::Int8).unwrap() };
    assert!(PackedMatrix::new(parts, &Device::flex()).unwrap_err().contains("bytes"));
}

#[rstest]
fn gguf_weights_and_tables_that_stay_packed_give_the_same_model(
    #[values("llama-k-quants", "llama-old-quants")] name: &str,
) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gguf").join(format!("{name}.gguf"));
    let load = |keep_gguf_packed: bool| {
        let quantization = QuantizationConfig { keep_gguf_packed, ..QuantizationConfig::default() };
        let options = LoadOptions { quantization, ..LoadOptions::default() };
        checkpoint::load(&file, &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap().base
    };
    let (packed, dense) = (load(true), load(false));
    let ids = &TensorFile::read(&file.with_extension("safetensors"), "expected").unwrap().tensors["input_ids"];
    assert_close("logits", &logits(&packed, ids), &logits(&dense, ids));
    assert!(packed.bytes() < dense.bytes(), "{} of {}", packed.bytes(), dense.bytes());
    assert_eq!(packed.tree().num_params(), dense.tree().num_params());

    let ((loss, grads), (dense_loss, dense_grads)) = (trained(packed.clone(), false, ids), trained(dense, false, ids));
    assert_close("loss", &loss, &dense_loss);
    grads.iter().for_each(|(key, grad)| assert_close(key, grad, &dense_grads[key]));

    // Checkpoints have no place for blocks: they are written as floats.
    let folder = tempfile::tempdir().unwrap();
    checkpoint::save(&packed, Some(&file), folder.path()).unwrap();
    let written = checkpoint::load(folder.path(), &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex());
    assert_close("written", &logits(&written.unwrap().base, ids), &logits(&packed, ids));
}

#[test]
fn a_packed_table_takes_adapters_and_trained_copies() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gguf/llama-old-quants.gguf");
    let ids = &TensorFile::read(&file.with_extension("safetensors"), "expected").unwrap().tensors["input_ids"];
    let run = |keep_gguf_packed: bool, key: &str, value: &str, dora: bool| {
        let quantization = QuantizationConfig { keep_gguf_packed, ..QuantizationConfig::default() };
        let options = LoadOptions { quantization, ..LoadOptions::default() };
        let base = checkpoint::load(&file, &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap().base;
        let config = PeftConfig::new(PeftType::new("LORA"), Some(TaskType::new("CAUSAL_LM"))).unwrap();
        let config = config.with("target_modules", ["q_proj", "embed_tokens"].as_slice()).unwrap();
        let config = config.with("init_lora_weights", false).unwrap().with("use_dora", dora).unwrap();
        let config = if key.is_empty() { config } else { config.with(key, [value].as_slice()).unwrap() };
        let mut model = PeftModel::new(base, config, &Device::flex(), 3).unwrap();
        let (loss, _) = model.loss(&model.check(batch(ids)).unwrap()).unwrap();
        let merged = logits(&model.merge().unwrap(), ids);
        (loss.without_autodiff().into_data(), merged)
    };
    for (key, value, dora) in [("", "", false), ("", "", true), ("modules_to_save", "lm_head", false)] {
        let ((loss, merged), (dense_loss, dense_merged)) = (run(true, key, value, dora), run(false, key, value, dora));
        assert_close("loss", &loss, &dense_loss);
        assert_close("merged", &merged, &dense_merged);
    }
}

/// A GGUF file's model as a checkpoint of floats, and the ids that it is tried with.
fn as_floats(name: &str) -> (tempfile::TempDir, TensorData) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gguf").join(format!("{name}.gguf"));
    let folder = tempfile::tempdir().unwrap();
    let loaded = checkpoint::load(&file, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex()).unwrap();
    checkpoint::save(&loaded.base, None, folder.path()).unwrap();
    let mut expected = tensors(&format!("../gguf/{name}.safetensors"));
    (folder, expected.remove("input_ids").unwrap())
}

const EMBEDDINGS: fn() -> QuantizationConfig =
    || QuantizationConfig { load_embeddings_in_8bit: true, ..QuantizationConfig::default() };

#[rstest]
#[case::tied("llama-k-quants", &["lm_head.weight", "model.embed_tokens.weight"])]
#[case::told_apart("llama-old-quants", &["lm_head.weight", "model.embed_tokens.weight"])]
fn a_table_in_eight_bits_trains_as_its_floats_and_near_the_dense(#[case] name: &str, #[case] packed_names: &[&str]) {
    let (folder, ids) = as_floats(name);
    let load = |quantization: QuantizationConfig, dtype: Option<DType>| {
        let options = LoadOptions { quantization, dtype, ..LoadOptions::default() };
        checkpoint::load(folder.path(), &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap().base
    };
    let (packed, dense) = (load(EMBEDDINGS(), None), load(QuantizationConfig::default(), None));
    assert_eq!(packed.quantized.iter().map(|(name, _)| name).collect::<Vec<_>>(), packed_names);
    assert!(packed.quantized.iter().all(|(_, weight)| weight.kind() == "Q8_0"));
    assert_eq!(packed.tree().num_params(), dense.tree().num_params());
    assert!(packed.bytes() < dense.bytes(), "{} of {}", packed.bytes(), dense.bytes());

    let (dense_loss, _) = trained(dense, false, &ids);
    let (unpacked_loss, unpacked_grads) = trained(packed.clone().dequantized(), false, &ids);
    let (loss, grads) = trained(packed.clone(), false, &ids);
    assert_close("loss", &loss, &unpacked_loss);
    grads.iter().for_each(|(key, grad)| assert_close(key, grad, &unpacked_grads[key]));
    let [loss, dense_loss] = [loss, dense_loss].map(|loss| floats(&loss)[0]);
    assert!((loss - dense_loss).abs() < 5e-3 * dense_loss, "{loss} {dense_loss}");

    let half = logits(&load(EMBEDDINGS(), Some(DType::BF16)), &ids);
    assert_eq!(half.dtype(), DType::BF16);

    // Checkpoints have no place for blocks: they are written as floats.
    let written = tempfile::tempdir().unwrap();
    checkpoint::save(&packed, None, written.path()).unwrap();
    let again = checkpoint::load(written.path(), &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex());
    assert_close("written", &logits(&again.unwrap().base, &ids), &logits(&packed, &ids));
}

#[test]
fn a_table_in_eight_bits_goes_with_linear_layers_in_four_and_is_merged_dense() {
    let (folder, ids) = as_floats("llama-old-quants");
    let load = |folder: &Path, quantization: QuantizationConfig| {
        let options = LoadOptions { quantization, ..LoadOptions::default() };
        checkpoint::load(folder, &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap().base
    };
    let both = QuantizationConfig { load_embeddings_in_8bit: true, ..packed_as("nf4") };
    let base = load(folder.path(), both.clone());
    let count =
        |base: &BaseModel, kind: &str| base.quantized.iter().filter(|(_, weight)| weight.kind() == kind).count();
    assert_eq!((count(&base, "nf4"), count(&base, "Q8_0")), (14, 2));
    let skipped = Some(vec!["lm_head".to_owned()]);
    let kept = load(folder.path(), QuantizationConfig { llm_int8_skip_modules: skipped, ..both });
    assert_eq!((count(&kept, "nf4"), count(&kept, "Q8_0")), (14, 1));

    let mut model = lora(base, false);
    for (merged, packed) in [(model.merge_requantized().unwrap(), 14), (model.merge().unwrap(), 0)] {
        let written = tempfile::tempdir().unwrap();
        checkpoint::save(&merged, None, written.path()).unwrap();
        let again = load(written.path(), QuantizationConfig::default());
        assert_eq!((count(&again, "nf4"), count(&again, "Q8_0")), (packed, 0));
        assert_close("written", &logits(&again, &ids), &logits(&merged, &ids));
    }
}

#[test]
fn a_table_of_many_words_is_packed_like_a_small_one() {
    let (folder, _) = as_floats("llama-old-quants");
    let config = folder.path().join("config.json");
    let mut changed: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    changed["vocab_size"] = 40_000.into();
    std::fs::write(&config, changed.to_string()).unwrap();
    let dense = checkpoint::random(&config, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &Device::flex()).unwrap();
    checkpoint::save(&dense, None, folder.path()).unwrap();
    let written = TensorFile::read(&folder.path().join("model.safetensors"), "weights").unwrap().tensors;
    let options = LoadOptions { quantization: EMBEDDINGS(), ..LoadOptions::default() };
    let base = checkpoint::load(folder.path(), &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap().base;
    let name = "model.embed_tokens.weight";
    let whole = quantize_q8_0(&floats(&written[name]), [40_000, 32]).unwrap();
    let packed = base.quantized.get(name).unwrap().as_any().downcast_ref::<PackedMatrix>().unwrap();
    assert_eq!(packed.parts(), whole);
}

#[test]
fn a_table_that_a_gguf_file_has_in_blocks_stays_in_them() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gguf/llama-old-quants.gguf");
    let options = LoadOptions { quantization: EMBEDDINGS(), ..LoadOptions::default() };
    let base = checkpoint::load(&file, &AutoClass::CAUSAL_LM, &options, &Device::flex()).unwrap().base;
    let kinds: Vec<_> = base.quantized.iter().map(|(name, weight)| (name, weight.kind())).collect();
    assert_eq!(kinds, [("lm_head.weight", "Q8_0"), ("model.embed_tokens.weight", "Q4_1")]);
}

#[test]
fn tables_that_cannot_have_eight_bits_are_refused() {
    let bart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/bart.SEQ_2_SEQ_LM.default/model");
    let options = LoadOptions { quantization: EMBEDDINGS(), ..LoadOptions::default() };
    let shared = checkpoint::load(&bart, &AutoClass::SEQ2SEQ_LM, &options, &Device::flex());
    for (error, word) in
        [(load("dense", EMBEDDINGS()).unwrap_err(), "rows of 48"), (shared.unwrap_err(), "same memory")]
    {
        let error = error.to_string();
        assert!(error.contains("load_embeddings_in_8bit") && error.contains(word), "{error}");
    }
}
