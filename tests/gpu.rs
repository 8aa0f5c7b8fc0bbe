//! Whole models on a GPU: what the tests of single operations cannot see. Mesa's software Vulkan is GPU enough.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{DType, Device, Tensor, TensorData};
use peft::train::{Recipe, Silent, TrainOptions, train};
use peft::{PeftModel, adapter::AdapterFolder, backends::device};
use rstest::rstest;

use crate::{
    fixture::{assert_outputs, base, batch_on, case, expected, floats},
    recompute::Run,
};

fn gpu() -> Device {
    device::parse(Some("wgpu")).unwrap()
}

#[rstest]
fn outputs_are_pythons(
    #[values("bert.SEQ_CLS.default", "llama.CAUSAL_LM.default", "t5.SEQ_2_SEQ_LM.default")] name: &str,
) {
    let (case, gpu) = (case(name), gpu());
    let model = PeftModel::from_pretrained(base(&case, &gpu), &case.join("adapter"), &gpu).unwrap();
    assert_outputs(&model, &batch_on(&case, &gpu), &expected(&case));
}

#[test]
fn a_mask_on_the_gpu_hides_what_one_on_the_host_does() {
    let (case, gpu) = (case("qwen2.SEQ_CLS.left-padded"), gpu());
    let model = PeftModel::from_pretrained(base(&case, &gpu), &case.join("adapter"), &gpu).unwrap();
    let mut batch = batch_on(&case, &gpu);
    let mask = batch.inputs.attention_mask.take().unwrap();
    batch.inputs.attention_mask = Some(Tensor::from_data(mask.into_data(), &gpu));
    assert_outputs(&model, &batch, &expected(&case));
}

#[rstest]
fn gradients_are_the_processors_whether_or_not_layers_run_again(
    #[values("bert.SEQ_CLS.default", "gemma2.CAUSAL_LM.default", "qwen2.SEQ_CLS.left-padded")] name: &str,
) {
    let case = case(name);
    let run = |device: &Device| Run::on(device, &case, |_| {});
    let (expected_loss, expected, _) = run(&Device::flex()).gradients(0);
    let there = run(&gpu());
    let (loss, gradients, _) = there.gradients(0);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 + 1e-3 * b.abs();
    assert!(near(floats(&loss)[0], floats(&expected_loss)[0]), "{loss:?} {expected_loss:?}");
    assert_eq!(gradients.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (key, gradient) in &gradients {
        let all = floats(gradient).into_iter().zip(floats(&expected[key]));
        all.for_each(|(a, b)| assert!(near(a, b), "{key}: {a} against {b}"));
    }
    let (_, again, calls) = there.gradients(usize::MAX);
    assert!(calls > 0);
    assert_eq!(gradients, again);
}

#[test]
fn of_a_base_in_half_precision_the_adapter_is_in_single() {
    let gpu = gpu();
    let Some(dtype) =
        [(DType::F16, "f16"), (DType::BF16, "bf16")].into_iter().find(|(dtype, _)| gpu.supports_dtype(*dtype))
    else {
        return;
    };
    let half = format!("model.dtype={}", dtype.1);
    let (loss, found) = trained(&gpu, &[&half, "training.gradient_checkpointing=true"]);
    let (expected_loss, expected) = trained(&Device::flex(), &[]);
    assert!((loss - expected_loss).abs() < 1e-2, "{loss} {expected_loss}");
    let (mut off, mut whole) = (0.0, 0.0);
    for (key, tensor) in &found {
        assert_eq!(tensor.dtype(), DType::F32, "{key}");
        // Fresh ones are zero, and every step is of one size, however large the gradient.
        if key.contains("lora_B") {
            for (found, expected) in floats(tensor).into_iter().zip(floats(&expected[key])) {
                off += (found - expected).powi(2);
                whole += expected.powi(2);
            }
        }
    }
    assert!(whole > 0.0 && off < 0.1 * whole, "{off} of {whole}");
}

/// Trains an encoder for two steps: the loss and the adapter.
fn trained(device: &Device, more: &[&str]) -> (f64, BTreeMap<String, TensorData>) {
    let folder = tempfile::tempdir().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let rows = fs::read_to_string(examples.join("data/vader-sentiment/train.tsv")).unwrap();
    let rows: Vec<_> = rows.lines().take(9).collect();
    fs::write(folder.path().join("train.tsv"), rows.join("\n") + "\n").unwrap();
    let recipe = format!(
        "[model]\nmodel_name_or_path = {:?}\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"SEQ_CLS\"\nr = 4\n\
         lora_dropout = 0.1\n[data]\ntrain = \"train.tsv\"\nmax_length = 16\noverflow = \"truncate\"\n\
         [training]\noutput_dir = {:?}\nmax_steps = 2\nlearning_rate = 1e-3\nper_device_train_batch_size = 8\n",
        examples.join("models/tiny-encoder"),
        folder.path().join("out"),
    );
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    let more: Vec<String> = more.iter().map(|argument| (*argument).to_owned()).collect();
    let recipe = Recipe::read(&folder.path().join("recipe.toml"), &more).unwrap();
    let report = train(&recipe, &TrainOptions::new(device.clone()), &mut Silent).unwrap();
    (report.train_loss, AdapterFolder::read(&folder.path().join("out")).unwrap().tensors)
}
