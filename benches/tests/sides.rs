//! The Rust sides of the comparison do the same training: this library's adapters, Burn's own `Lora` on the same model, and that
//! with Burn's operations alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use burn::tensor::{Device, TensorData};
use peft::{
    AutoClass, PeftConfig, PeftModel, PeftType, TaskType,
    adapter::AdapterFolder,
    files::write_safetensors,
    models::checkpoint::{self, LoadOptions},
};
use serde_json::{Value, json};

const STEPS: usize = 4;
const BATCHES: usize = 2;

/// The tiny encoder without dropout, an adapter for it and two batches.
fn prepare(folder: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny-encoder");
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(tiny.join("model.safetensors"), model.join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    for key in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
        config[key] = json!(0.0);
    }
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let device = Device::flex();
    let base = checkpoint::load(&model, &AutoClass::SEQUENCE_CLASSIFICATION, &LoadOptions::default(), &device);
    let config = PeftConfig::new(PeftType::LORA, Some(TaskType::SEQ_CLS)).unwrap();
    let config = config.with("target_modules", ["query", "value"].as_slice()).unwrap();
    let mut model = PeftModel::new(base.unwrap().base, config.clone(), &device, 5).unwrap();
    let mut tensors = model.state_dict("default").unwrap();
    // A fresh `B` is zero: the first loss would be right without the adapter.
    for (_, data) in tensors.iter_mut().filter(|(key, _)| key.contains("lora_B")) {
        let values = (0..data.shape().iter().product()).map(|n| (n % 7) as f32 * 0.1 - 0.3).collect::<Vec<_>>();
        *data = TensorData::new(values, data.shape().clone());
    }
    AdapterFolder::write(&folder.join("adapter"), "default", &config, &tensors).unwrap();
    let (rows, length) = (3, 8);
    let ids = (0_i64..).map(|n| n * 37 % 500 + 1).take(BATCHES * rows * length).collect::<Vec<_>>();
    let tensors = BTreeMap::from([
        ("attention_mask".to_owned(), TensorData::new(vec![1_i64; ids.len()], [BATCHES, rows, length])),
        ("input_ids".to_owned(), TensorData::new(ids, [BATCHES, rows, length])),
        ("labels".to_owned(), TensorData::new(vec![0_i64, 1, 1, 1, 0, 0], [BATCHES, rows])),
    ]);
    write_safetensors(&folder.join("batches.safetensors"), &tensors).unwrap();
}

fn run(case: &Value, folder: &Path) -> Value {
    let path = folder.join("case.json");
    fs::write(&path, case.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_compare-side")).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn numbers(figures: &Value, key: &str) -> Vec<f64> {
    figures[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The case of a side with that many adapters, each on all rows or on its own.
fn case(folder: &Path, lora: &str, adapters: usize, by_rows: bool) -> Value {
    json!({
        "kind": "train",
        "model": folder.join("model"),
        "adapter": folder.join("adapter"),
        "adapters": adapters,
        "by_rows": by_rows,
        "device": "cpu",
        "lora": lora,
        "dtype": "f32",
        "batches": folder.join("batches.safetensors"),
        "steps": STEPS,
        "training": { "learning_rate": 0.005, "weight_decay": 0.01, "max_grad_norm": 0.5 },
        "save": (lora == "ours" && !by_rows).then(|| folder.join("saved")),
        "started": 0.0,
    })
}

#[test]
fn burns_own_lora_trains_to_the_same_losses() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let case = |lora: &str| case(folder.path(), lora, 1, false);
    let ours = run(&case("ours"), folder.path());
    let losses = numbers(&ours, "losses");
    assert_eq!(losses.len(), STEPS);
    for lora in ["burn", "burn_plain"] {
        let burn = run(&case(lora), folder.path());
        assert_eq!(numbers(&burn, "step_seconds").len(), STEPS);
        for (found, expected) in losses.iter().zip(numbers(&burn, "losses")) {
            assert!((found - expected).abs() < 1e-4, "{losses:?} for {expected} of {lora}");
        }
    }
    assert!(losses[BATCHES] < losses[0] - 0.01, "{losses:?} learn nothing");
    for key in ["save_seconds", "load_seconds", "merge_seconds", "first_step_seconds", "peak_rss_bytes"] {
        assert!(ours[key].as_f64().unwrap() > 0.0, "{key}: {ours}");
    }
    assert_eq!(ours["tokens"], 24);
}

#[test]
fn an_adapter_for_each_row_starts_where_one_for_all_does() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let one = numbers(&run(&case(folder.path(), "ours", 1, false), folder.path()), "losses");
    let three = numbers(&run(&case(folder.path(), "ours", 3, true), folder.path()), "losses");
    assert!((one[0] - three[0]).abs() < 1e-5, "{one:?} {three:?}");
    assert!(three[BATCHES] < three[0] - 0.01, "{three:?} learn nothing");
}
