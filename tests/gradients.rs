//! Gradients against finite differences, and who receives them.

use std::path::PathBuf;

use burn::{
    module::ParamId,
    tensor::{Device, Distribution, Tensor, TensorData},
};
use peft::{
    DynParam, FrozenWeight,
    plugins::tuner::{LayerTuner, LinearCall},
    tuners::lora::{InitLoraWeights, LoraLinear},
};
use proptest::prelude::*;
use rstest::rstest;

use crate::fixture::{batch, case, floats, model};

#[test]
fn only_the_adapter_receives_gradients_and_every_tensor_of_it_does() {
    let case = case("bert.SEQ_CLS.default");
    let mut model = model(&case);
    let (loss, _) = model.loss(&model.check(batch(&case)).unwrap()).unwrap();
    let gradients = model.gradients(&loss);
    let trainable = model.trainable();
    assert_eq!(gradients.len(), trainable.len());
    for tensor in trainable {
        let gradient = tensor.param.gradient(&gradients).unwrap_or_else(|| panic!("{}", tensor.key));
        assert_eq!(gradient.shape(), tensor.param.shape());
    }
}

#[rstest]
fn gradients_come_through_dropout(#[files("golden/*.TOKEN_CLS.default/expected.json")] facts: PathBuf) {
    let case = facts.parent().unwrap();
    let mut model = model(case);
    model.set_training(true);
    let (loss, _) = model.loss(&model.check(batch(case)).unwrap()).unwrap();
    let gradients = model.gradients(&loss);
    for tensor in model.trainable() {
        let gradient = tensor.param.gradient(&gradients).unwrap_or_else(|| panic!("{}", tensor.key));
        assert!(floats(&gradient.to_data()).iter().all(|value| value.is_finite()), "{}", tensor.key);
    }
}

/// `sum(y ⊙ probe)` of a LoRA layer in f64.
fn value(
    layer: &LoraLinear,
    x: &Tensor<2>,
    w: &Tensor<2>,
    probe: &Tensor<2>,
    a: &Tensor<2>,
    b: &Tensor<2>,
) -> Tensor<1> {
    let named = [("lora_A.weight", a), ("lora_B.weight", b)];
    let params: Vec<_> = named
        .iter()
        .map(|(name, tensor)| {
            ((*name).into(), DynParam::R2(burn::module::Param::initialized(ParamId::new(), (*tensor).clone())))
        })
        .collect();
    let call = LinearCall { input: x.clone(), weight: FrozenWeight::Dense(w.clone()), bias: None, training: false };
    let output = layer.forward(&peft::plugins::tuner::Tensors::new(&params), &call, x.clone().matmul(w.clone()));
    (output * probe.clone()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn lora_gradients_agree_with_finite_differences_in_f64(
        d_in in 1..6_usize, d_out in 1..6_usize, rank in 1..5_usize, tokens in 1..5_usize, seed in any::<u64>(),
    ) {
        let device = Device::flex();
        device.seed(seed);
        let random = |rows: usize, columns: usize| {
            Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), (&device, burn::tensor::DType::F64))
        };
        let layer = LoraLinear { d_in, d_out, rank, scale: 0.7, dropout: 0.0, init: InitLoraWeights::Default(true) };
        let (x, w, probe) = (random(tokens, d_in), random(d_in, d_out), random(tokens, d_out));
        let (a, b) = (random(rank, d_in), random(d_out, rank));
        let tracked = |t: &Tensor<2>| Tensor::<2>::from_data(t.to_data(), (&device.clone().autodiff(), burn::tensor::DType::F64)).require_grad();
        let (ta, tb, tx) = (tracked(&a), tracked(&b), tracked(&x));
        let grads = value(&layer, &tx, &w, &probe, &ta, &tb).backward();
        let slope = |at: usize, of: usize| {
            let nudged = |step: f64| {
                let nudge = |t: &Tensor<2>, here: bool| {
                    let shape = t.dims();
                    let mut values = t.to_data().try_to_vec::<f64>().unwrap();
                    if here { values[at] += step; }
                    Tensor::<2>::from_data(TensorData::new(values, shape), (&device, burn::tensor::DType::F64))
                };
                value(&layer, &nudge(&x, of == 2), &w, &probe, &nudge(&a, of == 0), &nudge(&b, of == 1)).into_scalar::<f64>()
            };
            (nudged(1e-5) - nudged(-1e-5)) / 2e-5
        };
        for (of, tensor) in [&ta, &tb, &tx].into_iter().enumerate() {
            let gradient = tensor.grad(&grads).unwrap().to_data().try_to_vec::<f64>().unwrap();
            for (at, g) in gradient.iter().enumerate() {
                let s = slope(at, of);
                prop_assert!((g - s).abs() <= 1e-7 * (1.0 + s.abs()), "{of}[{at}]: {g} against {s}");
            }
        }
    }
}
