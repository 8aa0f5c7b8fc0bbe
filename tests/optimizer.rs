//! Steps of training's own optimiser on every kind of trained tensor: Burn's AdamW does the same, module by module.

use std::collections::BTreeMap;

use burn::{
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, TensorData},
};
use peft::train::{Optimizer, recipe::TrainingArguments};
use peft::{PeftConfig, PeftModel, PeftType, TaskType, model::peft_model::DEFAULT_ADAPTER};
use serde_json::{Value, json};

use crate::fixture::{assert_close, base_of, batch, case, floats};

/// Without clipping, which Burn has for one tensor at a time; with an epsilon that leaves rounding what it is.
fn arguments() -> TrainingArguments {
    TrainingArguments { max_grad_norm: 0.0, weight_decay: 0.1, adam_epsilon: 1e-3, ..TrainingArguments::default() }
}

fn model(golden: &str, peft_type: &'static str, task: TaskType, options: &Value) -> PeftModel {
    let config = PeftConfig::new(PeftType::new(peft_type), Some(task)).unwrap();
    let options = options.as_object().unwrap().iter();
    let config = options.fold(config, |config, (key, value)| config.with(key, value.clone()).unwrap());
    let device = Device::flex();
    PeftModel::new(base_of(&case(golden), &config, &device), config, &device, 7).unwrap()
}

fn check(
    golden: &str,
    peft_type: &'static str,
    task: TaskType,
    options: &Value,
    lr: f64,
) -> BTreeMap<String, TensorData> {
    let batch = batch(&case(golden));
    let arguments = arguments();
    let mut ours = model(golden, peft_type, task.clone(), options);
    let mut optimizer = Optimizer::new(&arguments, &ours.trainable());
    let mut burns = model(golden, peft_type, task, options);
    let mut adamw = AdamWConfig::new()
        .with_epsilon(arguments.adam_epsilon as f32)
        .with_weight_decay(arguments.weight_decay as f32)
        .init();
    let before = ours.state_dict(DEFAULT_ADAPTER).unwrap();
    for _ in 0..4 {
        let batch = ours.check(batch.clone()).unwrap();
        optimizer.accumulate(ours.gradients(&ours.loss(&batch).unwrap().0));
        optimizer.step(&mut ours, lr).unwrap();
        let gradients = burns.gradients(&burns.loss(&batch).unwrap().0);
        burns.step(&mut adamw, lr, gradients);
    }
    let (found, expected) = (ours.state_dict(DEFAULT_ADAPTER).unwrap(), burns.state_dict(DEFAULT_ADAPTER).unwrap());
    assert!(found.keys().eq(expected.keys()));
    assert!(found.iter().any(|(key, value)| floats(value) != floats(&before[key])), "{peft_type}: nothing was trained");
    for (key, value) in &found {
        assert_close(&format!("{peft_type} {key}"), value, &expected[key]);
    }
    found
}

#[test]
fn a_step_is_that_of_burns_adamw() {
    let lora = json!({ "r": 2, "target_modules": "all-linear", "bias": "all", "modules_to_save": ["classifier"] });
    check("bert.SEQ_CLS.default", "LORA", TaskType::SEQ_CLS, &lora, 1e-2);
    let encoder = json!({ "num_virtual_tokens": 3, "encoder_hidden_size": 4 });
    check("bert.SEQ_CLS.default", "P_TUNING", TaskType::SEQ_CLS, &encoder, 1e-2);
}

/// Their embedding is their output layer: one value in two places, whose gradients have to add up in every step.
#[test]
fn tied_parameters_stay_one() {
    check("gpt2.CAUSAL_LM.default", "FULL", TaskType::CAUSAL_LM, &json!({}), 1e-2);
}

/// A step looks after tied parameters of every adapter there is, and must leave the prompt of another in place.
#[test]
fn a_prompt_is_trained_beside_an_adapter_with_tied_parameters() {
    let golden = "gpt2.CAUSAL_LM.default";
    let mut model = model(golden, "FULL", TaskType::CAUSAL_LM, &json!({}));
    let config = PeftConfig::new(PeftType::new("PROMPT_TUNING"), Some(TaskType::CAUSAL_LM)).unwrap();
    model.add_adapter("prompt", config.with("num_virtual_tokens", 3).unwrap(), 7).unwrap();
    model.set_active(&["prompt"]).unwrap();
    let batch = model.check(batch(&case(golden))).unwrap();
    let mut adamw = AdamWConfig::new().init();
    let mut states = vec![model.state_dict("prompt").unwrap()];
    for _ in 0..2 {
        let gradients = model.gradients(&model.loss(&batch).unwrap().0);
        model.step(&mut adamw, 1e-2, gradients);
        states.push(model.state_dict("prompt").unwrap());
    }
    for (before, after) in states.iter().zip(states.iter().skip(1)) {
        assert!(
            before.keys().eq(after.keys()) && before.iter().all(|(key, value)| floats(value) != floats(&after[key]))
        );
    }
}

#[test]
fn tokens_that_move_too_far_are_pulled_back() {
    let options = json!({ "cpt_token_ids": [5, 9, 17], "cpt_tokens_type_mask": [1, 2, 4] });
    let found = check("gpt2.CAUSAL_LM.default", "CPT", TaskType::CAUSAL_LM, &options, 1.0);
    let delta = found.iter().find(|(key, _)| key.contains("delta")).unwrap().1;
    let width = delta.shape()[1];
    let reach = 0.1 * (width as f64 / 2048.0).sqrt();
    for (row, reach) in floats(delta).chunks(width).zip([reach, reach, 1e-10]) {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!(length <= reach * 1.0001, "{length} for {reach}");
    }
}

/// The values of each tensor before and after a step in which those of `with_gradient` have a gradient of ones.
fn step(optimizer: &mut Optimizer, model: &mut PeftModel, with_gradient: &[usize]) -> Vec<(Vec<f64>, Vec<f64>)> {
    let tensors = model.trainable();
    let mut gradients = GradientsParams::new();
    for at in with_gradient {
        let param = tensors[*at].param.get::<2>().unwrap();
        gradients.register(param.id, param.val().inner().ones_like());
    }
    optimizer.accumulate(gradients);
    optimizer.step(model, 0.01);
    let values = |tensor: &peft::adapter::AdapterTensor| floats(&tensor.param.tensor().to_data());
    tensors.iter().map(values).zip(model.trainable().iter().map(values)).collect()
}

#[test]
fn a_tensor_without_a_gradient_stays_and_counts_no_step() {
    let options = json!({ "r": 2, "target_modules": ["query"] });
    let mut model = model("bert.FEATURE_EXTRACTION.default", "LORA", TaskType::FEATURE_EXTRACTION, &options);
    let arguments = TrainingArguments { max_grad_norm: 0.0, weight_decay: 0.0, ..TrainingArguments::default() };
    let mut optimizer = Optimizer::new(&arguments, &model.trainable());
    for with_gradient in [[0, 2], [0, 2], [0, 1]] {
        for (at, (before, after)) in step(&mut optimizer, &mut model, &with_gradient).into_iter().enumerate() {
            // While all its gradients are one, a step of Adam is of the learning rate, if it counts its own steps.
            let moved = if with_gradient.contains(&at) { 0.01 } else { 0.0 };
            for (before, after) in before.into_iter().zip(after) {
                assert!((before - after - moved).abs() < 1e-6, "tensor {at}: from {before} to {after}");
            }
        }
    }
    assert!(optimizer.step(&mut model, 0.01).is_none());
}
