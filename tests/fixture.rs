//! The golden cases as models.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use peft::{
    AutoClass, BaseModel, Batch, CheckedBatch, Inputs, Labels, PeftConfig, PeftModel,
    adapter::AdapterFolder,
    files::TensorFile,
    models::checkpoint::{self, LoadOptions},
};

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

pub(crate) fn case(name: &str) -> PathBuf {
    golden().join(name)
}

pub(crate) fn base(case: &Path, device: &Device) -> BaseModel {
    base_of(case, &AdapterFolder::read(&case.join("adapter")).unwrap().config, device)
}

/// The case's model for another adapter.
pub(crate) fn base_of(case: &Path, config: &PeftConfig, device: &Device) -> BaseModel {
    let class = config.task().unwrap().map_or(AutoClass::MODEL, |task| task.auto_class.clone());
    checkpoint::load(&case.join("model"), &class, &LoadOptions::default(), device).unwrap().base
}

pub(crate) fn model(case: &Path) -> PeftModel {
    let device = Device::flex();
    PeftModel::from_pretrained(base(case, &device), &case.join("adapter"), &device).unwrap()
}

pub(crate) fn batch(case: &Path) -> Batch {
    batch_on(case, &Device::flex())
}

/// The case's batch on a device, its masks on the host as training has them.
pub(crate) fn batch_on(case: &Path, device: &Device) -> Batch {
    let tensors = TensorFile::read(&case.join("inputs.safetensors"), "inputs").unwrap().tensors;
    let table = |name: &str, device: &Device| {
        tensors.get(name).map(|data| Tensor::from_data(data.clone().convert::<i64>(), device))
    };
    let (ids, mask) = (|name: &str| table(name, device), |name: &str| table(name, &Device::flex()));
    let inputs = Inputs {
        input_ids: ids("input_ids"),
        attention_mask: mask("attention_mask"),
        token_type_ids: ids("token_type_ids"),
        decoder_input_ids: ids("decoder_input_ids"),
        decoder_attention_mask: mask("decoder_attention_mask"),
        ..Inputs::default()
    };
    let labels = ["labels", "start_positions", "end_positions"];
    let labels = labels.iter().filter_map(|name| Some(((*name).to_owned(), tensors.get(*name)?.clone())));
    Batch { inputs, labels: Labels(labels.collect()) }
}

pub(crate) fn expected(case: &Path) -> BTreeMap<String, TensorData> {
    TensorFile::read(&case.join("expected.safetensors"), "expected").unwrap().tensors
}

pub(crate) fn floats(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().try_to_vec::<f64>().unwrap()
}

/// Compares every output and the loss with what Python computed; returns the loss.
pub(crate) fn assert_outputs(
    model: &PeftModel,
    batch: &CheckedBatch,
    expected: &BTreeMap<String, TensorData>,
) -> Tensor<1> {
    let outputs = model.forward(&batch.inputs).unwrap();
    for (output, tensor) in outputs.iter() {
        assert_close(output, &tensor.clone().without_autodiff().to_data(), &expected[output]);
    }
    let loss = match outputs.get::<3>("last_hidden_state") {
        Ok(hidden) => hidden.square().mean(),
        Err(_) => model.loss(batch).unwrap().0,
    };
    assert_close("loss", &loss.clone().without_autodiff().to_data(), &expected["loss"]);
    loss
}

/// PyTorch and Burn sum in different orders; what differs more than this is another formula.
pub(crate) fn assert_close(name: &str, got: &TensorData, want: &TensorData) {
    let (got_values, want_values) = (floats(got), floats(want));
    assert_eq!(got_values.len(), want_values.len(), "{name}: {:?} against {:?}", got.shape(), want.shape());
    for (at, (g, w)) in got_values.iter().zip(&want_values).enumerate() {
        assert!((g - w).abs() <= 1e-5 + 1e-3 * w.abs(), "{name}[{at}]: {g} against {w}");
    }
}
