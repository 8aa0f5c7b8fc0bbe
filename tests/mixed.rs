//! Batches whose rows use different adapters, against PEFT (`mixed/generate.py`), and adapters trained together against the
//! same ones trained apart.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use peft::generate::{GenerationConfig, Generator};
use peft::train::{Optimizer, recipe::TrainingArguments};
use peft::{
    Batch, Inputs, PeftConfig, PeftModel, PeftType, TaskType,
    adapter::{AdapterFolder, rows::BASE},
    files::TensorFile,
};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{assert_close, base, base_of, batch, case, floats};

const ADAPTERS: [&str; 3] = ["red", "green", "blue"];

/// The model of a fixture with all its adapters.
fn model(folder: &Path) -> PeftModel {
    let device = Device::flex();
    let folders = ADAPTERS.map(|name| (name, AdapterFolder::read(&folder.join(name)).unwrap()));
    let golden = case(folder.file_name().unwrap().to_str().unwrap());
    let mut model = PeftModel::from_base(base_of(&golden, &folders[0].1.config, &device), &device);
    for (name, folder) in folders {
        model.load_adapter(name, folder).unwrap();
    }
    model
}

fn inputs(tensors: &BTreeMap<String, TensorData>) -> Inputs {
    let ids =
        |name: &str| tensors.get(name).map(|data| Tensor::from_data(data.clone().convert::<i64>(), &Device::flex()));
    Inputs {
        input_ids: ids("input_ids"),
        attention_mask: ids("attention_mask"),
        position_ids: ids("position_ids"),
        decoder_input_ids: ids("decoder_input_ids"),
        ..Inputs::default()
    }
}

fn facts(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap()
}

#[rstest]
fn rows_come_out_as_peft_computes_them(#[files("mixed/*/expected.json")] path: PathBuf) {
    let folder = path.parent().unwrap();
    let expected = TensorFile::read(&folder.join("expected.safetensors"), "expected").unwrap().tensors;
    let facts = facts(folder);
    let names: Vec<&str> = facts["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut model = model(folder);
    let inputs = model.check(inputs(&expected)).unwrap().inputs;
    let logits = |outputs: &peft::Outputs| {
        outputs.get::<3>("logits").map(|x| x.flatten::<2>(0, 1)).or_else(|_| outputs.get::<2>("logits")).unwrap()
    };
    let outputs = model.forward_by_rows(&inputs, &names).unwrap();
    // What stands at padding means nothing.
    let counted = |data: &TensorData| -> TensorData {
        let mask = floats(&expected["attention_mask"]);
        let width = floats(data).len() / mask.len();
        let is_causal = inputs.position_ids.is_some();
        let values = floats(data).into_iter().enumerate();
        let kept: Vec<f64> =
            values.filter(|(at, _)| !is_causal || mask[at / width] > 0.0).map(|(_, value)| value).collect();
        let count = kept.len();
        TensorData::new(kept, [count])
    };
    assert_close("logits", &counted(&logits(&outputs).without_autodiff().to_data()), &counted(&expected["logits"]));
    // Afterwards no adapter acts that did not act before.
    assert_close(
        "base.logits",
        &counted(&logits(&model.forward(&inputs).unwrap()).without_autodiff().to_data()),
        &counted(&expected["base.logits"]),
    );

    for (what, says, names) in [
        ("unknown", "no adapter named `violet`", [&["violet"], &names[1..]].concat()),
        ("length", "3 adapters are named for a batch of 6 rows", names[..3].to_vec()),
    ] {
        assert!(facts["refused_by_peft"][what].is_string());
        let error = model.forward_by_rows(&inputs, &names).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    for (search, beams) in [("greedy", 1), ("beams", 3)] {
        let Some(answers) = facts[search].as_array() else { continue };
        model.set_rows_of_beams(&names, beams).unwrap();
        let running = model.valid();
        let generator = Generator { model: &running, device: model.device(), tokenizer: None };
        let options = json!({ "max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "pad_token_id": 0, "decoder_start_token_id": 0 });
        let config = GenerationConfig::default().with(options.as_object().unwrap(), "case").unwrap();
        let (ids, mask) = (floats(&expected["input_ids"]), floats(&expected["attention_mask"]));
        let prompts: Vec<Vec<u32>> = ids
            .chunks(7)
            .zip(mask.chunks(7))
            .map(|(ids, mask)| {
                ids.iter().zip(mask).filter(|(_, mask)| **mask > 0.0).map(|(id, _)| *id as u32).collect()
            })
            .collect();
        let written = generator.generate(&prompts, &config, &mut ()).unwrap();
        for (written, wanted) in written.iter().zip(answers) {
            assert_eq!(json!(written.tokens), *wanted, "{search}");
        }
    }
}

fn lora(task: TaskType, options: &Value) -> PeftConfig {
    let config = PeftConfig::new(PeftType::new("LORA"), Some(task)).unwrap();
    options.as_object().unwrap().iter().fold(config, |config, (key, value)| config.with(key, value.clone()).unwrap())
}

#[test]
fn what_cannot_differ_by_row_says_so() {
    let device = Device::flex();
    let golden = case("bert.SEQ_CLS.default");
    let mut model = PeftModel::from_base(base(&golden, &device), &device);
    for (name, options) in [
        ("plain", json!({})),
        ("dora", json!({ "use_dora": true })),
        ("norm", json!({ "modules_to_save": ["LayerNorm"] })),
        ("places", json!({ "target_modules": ["position_embeddings"] })),
    ] {
        model.add_adapter(name, lora(TaskType::SEQ_CLS, &options), 1).unwrap();
    }
    let batch = model.check(batch(&golden)).unwrap();
    let rows = batch.inputs.batch().unwrap();
    for (name, says) in [
        ("dora", "uses DoRA"),
        ("norm", "LayerNorm.weight`, which acts on whole batches"),
        ("places", "position embeddings"),
        ("nobody", "no adapter named `nobody`"),
    ] {
        let mut names = vec!["plain"; rows];
        names[0] = name;
        let error = model.forward_by_rows(&batch.inputs, &names).unwrap_err();
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
    assert!(model.forward_by_rows(&batch.inputs, &[]).is_err());
    assert!(model.forward_by_rows(&batch.inputs, &vec![BASE; rows]).is_ok());
}

/// One adapter has a LoRA on a layer, the other a trained copy of it.
#[test]
fn rows_with_a_saved_module_and_rows_with_a_lora_on_it_come_out_as_alone() {
    let device = Device::flex();
    let golden = case("bert.SEQ_CLS.default");
    let mut model = PeftModel::from_base(base(&golden, &device), &device);
    let lora_on = |options: Value| lora(TaskType::SEQ_CLS, &options);
    let random = json!({ "target_modules": ["query", "value"], "init_lora_weights": false });
    model.add_adapter("lora", lora_on(random), 1).unwrap();
    let saving = json!({ "target_modules": ["value"], "modules_to_save": ["query", "word_embeddings"] });
    model.add_adapter("saved", lora_on(saving), 2).unwrap();
    // Copies as training would leave them.
    let moved = |(key, data): (String, TensorData)| {
        let values =
            floats(&data).into_iter().enumerate().map(|(at, value)| (value * 1.5 + 0.01 * (at % 7) as f64) as f32);
        (key, TensorData::new(values.collect::<Vec<_>>(), data.shape().clone()))
    };
    let state = model.state_dict("saved").unwrap().into_iter().map(moved).collect();
    model.load_state_dict("saved", state, Path::new("moved")).unwrap();
    let batch = model.check(batch(&golden)).unwrap();
    let rows = batch.inputs.batch().unwrap();
    let classes = |outputs: peft::Outputs| outputs.get::<2>("logits").unwrap().without_autodiff();
    let names: Vec<&str> = (0..rows).map(|row| ["lora", "saved", BASE][row % 3]).collect();
    let mixed = classes(model.forward_by_rows(&batch.inputs, &names).unwrap());
    for (row, name) in names.iter().enumerate() {
        match *name {
            BASE => model.set_active(&[]).unwrap(),
            name => model.set_active(&[name]).unwrap(),
        }
        let alone = classes(model.forward(&batch.inputs).unwrap());
        let of = |logits: &Tensor<2>| logits.clone().narrow(0, row, 1).into_data();
        assert_close(&format!("row {row}, {name}"), &of(&mixed), &of(&alone));
    }
}

#[test]
fn an_adapter_cannot_be_called_what_stands_for_none() {
    let device = Device::flex();
    let golden = case("bert.SEQ_CLS.default");
    let mut model = PeftModel::from_base(base(&golden, &device), &device);
    let error = model.add_adapter(BASE, lora(TaskType::SEQ_CLS, &json!({})), 1).unwrap_err().to_string();
    assert!(error.contains("`__base__` cannot name an adapter"), "{error}");
}

/// Some rows of a batch.
fn rows_of(batch: &Batch, rows: &[usize]) -> Batch {
    let all = batch.inputs.batch().unwrap();
    let places = Tensor::<1, burn::tensor::Int>::from_data(
        TensorData::new(rows.iter().map(|row| *row as i64).collect::<Vec<_>>(), [rows.len()]),
        &Device::flex(),
    );
    let of = |ids: &Option<Tensor<2, burn::tensor::Int>>| ids.clone().map(|ids| ids.select(0, places.clone()));
    let inputs = Inputs {
        input_ids: of(&batch.inputs.input_ids),
        attention_mask: of(&batch.inputs.attention_mask),
        token_type_ids: of(&batch.inputs.token_type_ids),
        ..Inputs::default()
    };
    Batch { inputs, labels: batch.labels.rows(rows, all).unwrap() }
}

/// Adapters of different ranks, learning rates and clipping norms; the rows of each lie apart.
#[rstest]
#[case::words("llama.CAUSAL_LM.default", TaskType::CAUSAL_LM)]
#[case::classes("bert.SEQ_CLS.default", TaskType::SEQ_CLS)]
fn adapters_trained_together_are_those_trained_apart(#[case] golden: &str, #[case] task: TaskType) {
    const STEPS: usize = 50;
    let device = Device::flex();
    let golden = case(golden);
    let batch = batch(&golden);
    let twice: Vec<usize> = (0..batch.inputs.batch().unwrap()).chain(0..batch.inputs.batch().unwrap()).collect();
    let batch = rows_of(&batch, &twice);
    let adapters = [
        ("red", json!({ "r": 4, "lora_alpha": 8 }), 2e-3, 1.0),
        ("green", json!({ "r": 2, "target_modules": "all-linear" }), 5e-4, 0.05),
        ("blue", json!({ "r": 7, "lora_alpha": 3 }), 1e-3, 0.0),
    ];
    let names: Vec<&str> = twice
        .iter()
        .enumerate()
        .map(|(at, _)| [adapters[0].0, BASE, adapters[1].0, adapters[2].0, adapters[0].0][at % 5])
        .collect();
    let arguments = |lr: f64, norm: f64| TrainingArguments {
        learning_rate: lr,
        max_grad_norm: norm,
        ..TrainingArguments::default()
    };

    let new = |which: &[usize]| {
        let config = lora(task.clone(), &adapters[which[0]].1);
        let mut model = PeftModel::from_base(base_of(&golden, &config, &device), &device);
        for at in which {
            model.add_adapter(adapters[*at].0, lora(task.clone(), &adapters[*at].1), 7 + *at as u64).unwrap();
        }
        model
    };
    let mut together = new(&[0, 1, 2]);
    let mut optimizers: Vec<_> = adapters
        .iter()
        .map(|(name, _, lr, norm)| (*lr, Optimizer::new(&arguments(*lr, *norm), &together.trainable_of(name).unwrap())))
        .collect();
    let mut losses: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let before = together.state_dict("green").unwrap();
    for _ in 0..STEPS {
        together.set_rows(&names).unwrap();
        let batch = together.check(batch.clone()).unwrap();
        let (each, _) = together.losses_by_adapter(&batch).unwrap();
        let mut gradients =
            together.gradients(&each.iter().map(|one| one.loss.clone()).reduce(|sum, loss| sum + loss).unwrap());
        for (lr, optimizer) in &mut optimizers {
            optimizer.take(&mut gradients);
            optimizer.step(&mut together, *lr).unwrap();
        }
        for one in each {
            losses.entry(one.adapter).or_default().push(one.loss.into_scalar::<f32>());
        }
    }
    assert_ne!(before, together.state_dict("green").unwrap());
    for (at, (name, _, lr, norm)) in adapters.iter().enumerate() {
        let rows: Vec<usize> = (0..names.len()).filter(|row| names[*row] == *name).collect();
        let batch = rows_of(&batch, &rows);
        let mut apart = new(&[at]);
        apart.set_active(&[name]).unwrap();
        let mut optimizer = Optimizer::new(&arguments(*lr, *norm), &apart.trainable());
        let batch = apart.check(batch).unwrap();
        for (step, found) in losses[*name].iter().enumerate() {
            let (loss, _) = apart.loss(&batch).unwrap();
            optimizer.accumulate(apart.gradients(&loss));
            optimizer.step(&mut apart, *lr).unwrap();
            let expected = loss.into_scalar::<f32>();
            assert!((found - expected).abs() < 1e-4 * expected.abs().max(0.1), "{name} {step}: {found} {expected}");
        }
        let expected = apart.state_dict(name).unwrap();
        for (key, found) in together.state_dict(name).unwrap() {
            assert_close(&format!("{name} {key}"), &found, &expected[&key]);
        }
    }
}
