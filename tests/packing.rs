//! Packed examples give the numbers that they give one by one.

use burn::tensor::Device;
use peft::train::packing::{check_kept_apart, pack};
use peft::{
    Batch, Task,
    batch::IGNORE,
    causal_lm::CausalLm,
    data::example::{Example, Label, Padding, collate, collate_to},
};

use crate::fixture::{base, case, model};

fn example(ids: &[u32], prompt: usize) -> Example {
    let label = |(at, id): (usize, &u32)| if at < prompt { IGNORE } else { i64::from(*id) };
    let labels = Label::Tokens(ids.iter().enumerate().map(label).collect());
    Example { input_ids: ids.to_vec(), labels: [("labels", labels)].into(), ..Example::default() }
}

fn examples() -> Vec<Example> {
    vec![example(&[5, 9, 13], 1), example(&[7, 3, 3, 8, 20, 11, 2], 3), example(&[30, 4, 21, 2, 6], 0)]
}

fn batch(examples: &[Example]) -> Batch {
    collate(&examples.iter().collect::<Vec<_>>(), 0, false, &Device::flex())
}

/// The mean loss over all labels, and how many they are.
fn loss(examples: &[Example]) -> (f64, f64) {
    let batch = batch(examples);
    let weight = CausalLm.loss(&batch.labels, &peft::ModelInfo::custom()).unwrap().weight();
    let model = model(&case("llama.CAUSAL_LM.default"));
    (f64::from(model.loss(&model.check(batch).unwrap()).unwrap().0.into_scalar::<f32>()), weight)
}

fn check(packed: &[Example]) {
    let alone: Vec<(f64, f64)> = examples().chunks(1).map(loss).collect();
    let labels: f64 = alone.iter().map(|(_, weight)| weight).sum();
    let mean = alone.iter().map(|(loss, weight)| loss * weight).sum::<f64>() / labels;
    let (found, weight) = loss(packed);
    assert_eq!(weight, labels);
    assert!((found - mean).abs() < 1e-5, "{found} is not {mean}");
}

#[test]
fn the_loss_of_packed_examples_is_theirs() {
    let one = pack(examples(), 24);
    assert_eq!(one.iter().map(|e| e.parts.clone()).collect::<Vec<_>>(), [vec![7, 5, 3]]);
    check(&one);
    // Two sequences, the shorter one padded.
    let two = pack(examples(), 11);
    assert_eq!(two.iter().map(|e| e.parts.clone()).collect::<Vec<_>>(), [vec![7, 3], vec![5]]);
    check(&two);
}

#[test]
fn rows_may_be_padded_beyond_the_longest() {
    let (examples, model) = (examples(), model(&case("llama.CAUSAL_LM.default")));
    let loss = |least, length: usize| {
        let examples: Vec<_> = examples.iter().collect();
        let batch = collate_to(Padding { least, left: false }, &examples, 0, false, &Device::flex());
        let tokens = batch.inputs.attention_mask.clone().unwrap().sum().into_scalar::<i64>();
        let labels = batch.labels.get("labels").unwrap().shape().as_slice().to_vec();
        assert_eq!(
            (batch.inputs.input_ids.clone().unwrap().dims(), labels, tokens),
            ([3, length], vec![3, length], 15)
        );
        model.loss(&model.check(batch).unwrap()).unwrap().0.into_scalar::<f32>()
    };
    let (longest, longer) = (loss(0, 7), loss(16, 16));
    assert!((longest - longer).abs() < 1e-5, "{longest} {longer}");
}

#[test]
fn without_their_limits_they_would_see_each_other() {
    let mut packed = pack(examples(), 24);
    let (apart, _) = loss(&packed);
    packed[0].parts.clear();
    let (together, _) = loss(&packed);
    assert!((apart - together).abs() > 1e-4, "{apart} and {together}");
}

#[test]
fn a_model_that_keeps_them_apart_may_pack() {
    let device = Device::flex();
    check_kept_apart(&base(&case("llama.CAUSAL_LM.default"), &device), &examples(), 0, &device).unwrap();
}
