//! Models in half precision, as large ones are run.

use std::path::PathBuf;

use burn::tensor::{DType, Device};
use peft::{
    CheckedBatch,
    adapter::AdapterFolder,
    models::checkpoint::{LoadOptions, load},
};
use rstest::rstest;

use crate::fixture::{batch, expected, floats};

#[rstest]
fn outputs_in_half_precision_are_near_those_in_single(
    #[files("golden/*_LM.default/expected.json")]
    #[files("golden/*.TOKEN_CLS.default/expected.json")]
    facts: PathBuf,
) {
    let case = facts.parent().unwrap();
    let options = LoadOptions { dtype: Some(DType::BF16), ..LoadOptions::default() };
    let config = AdapterFolder::read(&case.join("adapter")).unwrap().config;
    let plugin = config.task().unwrap().unwrap();
    let base = load(&case.join("model"), &plugin.auto_class, &options, &Device::flex()).unwrap().base;
    let batch = CheckedBatch::new(batch(case), Some(plugin.task), &base.info).unwrap();
    let logits = base.running().forward(&batch.inputs).unwrap().get::<3>("logits").unwrap();
    assert_eq!(logits.dtype(), DType::BF16);
    let (got, wanted) = (floats(&logits.into_data()), floats(&expected(case)["base.logits"]));
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let off = length(&mut got.iter().zip(&wanted).map(|(got, wanted)| got - wanted));
    let whole = length(&mut wanted.iter().copied());
    assert!(off < 0.03 * whole, "{off} of {whole}");
}
