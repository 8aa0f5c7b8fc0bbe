//! Everything that Python PEFT computed for the cases in `golden/`, computed here: one test a folder.

use std::path::PathBuf;

use peft::{
    Explanation,
    adapter::{AdapterFolder, KEY_PREFIX},
};
use rstest::rstest;
use serde_json::Value;

use crate::fixture::{assert_close, assert_outputs, base, batch, expected, model};

#[rstest]
fn golden(#[files("golden/*/expected.json")] facts: PathBuf) {
    let case = facts.parent().unwrap();
    let expected = expected(case);
    let mut model = model(case);
    let batch = model.check(batch(case)).unwrap();

    let loss = assert_outputs(&model, &batch, &expected);

    let gradients = model.gradients(&loss);
    let trainable = model.trainable();
    let wanted = expected.keys().filter(|key| key.starts_with("grad.")).count();
    assert_eq!(trainable.len(), wanted, "trainable tensors");
    for tensor in trainable {
        let key = format!("grad.{KEY_PREFIX}{}", tensor.key);
        let gradient = tensor.param.gradient(&gradients).unwrap_or_else(|| panic!("{key}: no gradient"));
        assert_close(&key, &tensor.oriented(gradient).to_data(), &expected[&key]);
    }

    model.set_enabled(false);
    for (output, tensor) in model.forward(&batch.inputs).unwrap().iter() {
        let name = format!("base.{output}");
        assert_close(&name, &tensor.clone().without_autodiff().to_data(), &expected[&name]);
    }
    model.set_enabled(true);

    let folder = tempfile::tempdir().unwrap();
    let merged = model.merge().unwrap();
    peft::models::checkpoint::save(&merged, None, folder.path()).unwrap();
    let written = peft::files::TensorFile::read(&folder.path().join("model.safetensors"), "merged").unwrap().tensors;
    let tied = &model.base().info.tied;
    let stored = expected.keys().filter_map(|key| key.strip_prefix("merged."));
    for key in stored.clone() {
        let original = || tied.iter().find(|(copy, _)| copy == key).and_then(|(_, original)| written.get(original));
        let data = written.get(key).or_else(original).unwrap_or_else(|| panic!("{key}: not written"));
        assert_close(key, data, &expected[&format!("merged.{key}")]);
    }
    assert!(written.keys().all(|key| stored.clone().any(|known| known == key)), "{:?}", written.keys());

    let facts: Value = serde_json::from_str(&std::fs::read_to_string(&facts).unwrap()).unwrap();
    let config = AdapterFolder::read(&case.join("adapter")).unwrap().config;
    let mut explanation = Explanation::new(&base(case, &burn::tensor::Device::flex()), &config).unwrap();
    explanation.targeted.sort();
    let explanation = serde_json::to_value(&explanation).unwrap();
    for fact in ["wrapper", "targeted", "trainable_params", "all_params"] {
        assert_eq!(explanation[fact], facts[fact], "{fact}");
    }
}
