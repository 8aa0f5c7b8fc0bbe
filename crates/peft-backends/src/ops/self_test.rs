//! Each operation on a device against the same of Burn's own operations in double precision, forward and back.

use std::panic::{self, AssertUnwindSafe};

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor, TensorData, activation};

use crate::{
    kernels::{attention_mask::Sight, attention_weights::Weights, host::gate::Gate, low_rank_rows::Run},
    ops::{
        adapted::{Adapted, Weight},
        attention::attention,
        gated::{gelu_tanh_gated, silu_gated},
        gated_mlp::gated_mlp,
        gelu::{gelu, gelu_tanh},
        layer_norm::layer_norm,
        linear_cross_entropies::linear_cross_entropies,
        lora_linear::{LowRank, linear, lora_linear},
        low_rank_by_rows::low_rank_by_rows,
        rms_norm::rms_norm,
        rotary::rotate,
        softmax::softmax,
    },
};

/// What was found of an operation on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTest {
    /// The operation's name.
    pub operation: &'static str,
    /// How far the result and the gradients are off, as a share of their length; or why there is none.
    pub found: Result<f64, String>,
}

impl SelfTest {
    /// The share that single precision may be off by.
    pub const WITHIN: f64 = 1e-4;

    /// Whether the operation is right.
    pub fn passes(&self) -> bool {
        self.found.as_ref().is_ok_and(|off| *off <= Self::WITHIN)
    }
}

/// Does each operation of this crate on the device in single precision, with odd sizes, and compares it with the same in double
/// precision on the processor. Takes seconds on a GPU, where kernels are compiled first.
pub fn self_test(device: &Device) -> Vec<SelfTest> {
    let device = device.clone().inner();
    let inputs = random(37, 52);
    let all = CASES.iter().map(|case| {
        // A driver that fails makes its runtime panic.
        let run = || off(case, &inputs, &device);
        let found = panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("the device failed".to_owned()));
        SelfTest { operation: case.name, found }
    });
    all.collect()
}

fn off(case: &Case, inputs: &[Tensor<2>; 3], device: &Device) -> Result<f64, String> {
    let double = |x: Tensor<2>| x.without_autodiff().to_device(&Device::flex()).cast(FloatDType::F64);
    let run = |operation: Operation, inputs: [Tensor<2>; 3]| {
        let leaves = inputs.map(|x| x.autodiff().require_grad());
        let y = operation(&leaves)?;
        let gradients = y.clone().sin().sum().backward();
        let found = std::iter::once(Some(double(y))).chain(leaves.map(|x| x.grad(&gradients).map(double)));
        Some(found.collect::<Vec<_>>())
    };
    let fast = run(case.fast, inputs.clone().map(|x| x.to_device(device)));
    let plain = run(case.plain, inputs.clone().map(|x| x.cast(FloatDType::F64)));
    let (Some(fast), Some(plain)) = (fast, plain) else { return Err("there is no fast version of it here".to_owned()) };
    let length = |x: Tensor<2>| x.square().sum().sqrt().into_scalar::<f64>();
    let share = |(found, expected): (Option<Tensor<2>>, Option<Tensor<2>>)| match (found, expected) {
        (None, None) => 0.0,
        (Some(found), Some(expected)) => length(found - expected.clone()) / length(expected).max(1e-30),
        _ => f64::INFINITY,
    };
    // Not `max`, which passes over what is no number.
    Ok(fast.into_iter().zip(plain).map(share).fold(0.0, |most, share| if share <= most { most } else { share }))
}

/// Three matrices of one shape, with a multiple of four columns, to one; none if there is no fast version of it for them.
pub(crate) type Operation = fn(&[Tensor<2>; 3]) -> Option<Tensor<2>>;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) fast: Operation,
    /// The same of Burn's own operations.
    pub(crate) plain: Operation,
}

impl Case {
    /// An operation that does the plain one itself where it has no fast one, as in double precision.
    pub(crate) const fn new(name: &'static str, both: Operation) -> Self {
        Self { name, fast: both, plain: both }
    }
}

const SCALE: f64 = 0.5;

pub(crate) const CASES: [Case; 14] = [
    Case::new("gelu", |x| Some(gelu(x[0].clone()))),
    Case::new("gelu_tanh", |x| Some(gelu_tanh(x[0].clone()))),
    Case::new("silu_gated", |x| Some(silu_gated(x[0].clone(), x[1].clone()))),
    Case::new("gelu_tanh_gated", |x| Some(gelu_tanh_gated(x[0].clone(), x[1].clone()))),
    Case::new("softmax", |x| Some(softmax(x[0].clone()))),
    Case::new("rms_norm", |x| Some(rms_norm(x[0].clone(), row(&x[1]), 1.0, 1e-6))),
    Case::new("layer_norm", |x| {
        Some(layer_norm(x[0].clone(), Some(x[1].clone()), 0.0, row(&x[2]), Some(row(&x[1])), 1e-3))
    }),
    Case::new("linear", |x| Some(linear(x[0].clone(), x[1].clone().transpose(), None))),
    Case {
        name: "lora_linear",
        fast: |x| {
            let [a, b] = factors(x);
            lora_linear(&x[0], &x[1].clone().transpose(), None, LowRank { a, b, scale: SCALE, drop: 0.0 })
        },
        plain: |x| {
            let [a, b] = factors(x);
            let frozen = x[0].clone().matmul(x[1].clone().transpose());
            Some(frozen + x[0].clone().matmul(a.transpose()).matmul(b.transpose()) * SCALE)
        },
    },
    // Two adapters of different ranks, and rows of neither between theirs.
    Case::new("low_rank_by_rows", |x| {
        let [a, b] = factors(x);
        let rows = x[0].dims()[0];
        let adapter = |rank| {
            let (a, b) = (a.clone().narrow(0, 0, rank), b.clone().narrow(1, 0, rank));
            LowRank { a, b, scale: SCALE, drop: 0.0 }
        };
        let runs = [(0..rows / 3, 0), (2 * rows / 3..rows, 1)].map(|(rows, adapter)| Run { rows, adapter });
        let y = x[0].clone().matmul(x[1].clone().transpose()) * 0.1;
        Some(low_rank_by_rows(y, &x[1], vec![adapter(rows.div_ceil(3)), adapter(rows)], &runs))
    }),
    Case {
        name: "gated_mlp",
        fast: |x| Some(gated_mlp(x[0].clone(), Gate::Silu, mlp(x))),
        plain: |x| {
            let dense = |layer: Adapted| {
                let Weight::Dense(weight) = layer.weight else { unreachable!("it is made dense below") };
                layer.low_rank.map_or(weight.clone(), |low_rank| {
                    weight + low_rank.a.transpose().matmul(low_rank.b.transpose()) * low_rank.scale
                })
            };
            let [gate, up, down] = mlp(x).map(dense);
            Some((activation::silu(x[0].clone().matmul(gate)) * x[0].clone().matmul(up)).matmul(down))
        },
    },
    Case {
        name: "attention",
        fast: |x| {
            let [q, k, v] = x.each_ref().map(heads);
            let weights = Weights { scale: SCALE, soft_cap: None, drop: 0.0 };
            let sight = Sight { causal: true, ..Sight::default() };
            attention(&q, &k, &v, &sight, weights).map(|y| y.swap_dims(1, 2).reshape(x[0].dims()))
        },
        plain: |x| {
            let [q, k, v] = x.each_ref().map(heads);
            let [_, _, length, _] = q.dims();
            let later = Tensor::<2>::ones([length, length], &Device::flex()).triu(1).bool().unsqueeze::<4>();
            let scores = (q.matmul(k.transpose()) * SCALE).mask_fill(later, f64::NEG_INFINITY);
            Some(activation::softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape(x[0].dims()))
        },
    },
    Case {
        name: "rotate",
        fast: |x| {
            let [rows, columns] = x[0].dims();
            let [cos, sin] = tables(x);
            let y = rotate(&x[0].clone().reshape([1, rows, columns / 4, 4]), &cos, &sin, 2)?;
            Some(y.reshape([rows, columns]))
        },
        plain: |x| {
            let [rows, columns] = x[0].dims();
            let [cos, sin] = tables(x);
            let heads = x[0].clone().reshape([1, rows, columns / 4, 4]);
            let turned = Tensor::cat(vec![-heads.clone().narrow(3, 2, 2), heads.clone().narrow(3, 0, 2)], 3);
            Some((heads * cos + turned * sin).reshape([rows, columns]))
        },
    },
    Case {
        name: "linear_cross_entropies",
        fast: |x| {
            let targets: Vec<_> = (0..x[0].dims()[0]).map(|row| (row % 3 != 1).then_some(row)).collect();
            let weight = x[1].clone().transpose().without_autodiff();
            linear_cross_entropies(&x[0], &weight, &targets, None).map(Tensor::unsqueeze)
        },
        plain: |x| {
            let rows: Vec<i64> = (0..x[0].dims()[0] as i64).filter(|row| row % 3 != 1).collect();
            let count = rows.len();
            let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &Device::flex());
            let logits = x[0].clone().matmul(x[1].clone().transpose().without_autodiff()).select(0, rows.clone());
            let own = activation::log_softmax(logits, 1).gather(1, rows.reshape([count, 1]));
            Some(-own.reshape([1, count]))
        },
    },
];

pub(crate) fn row(x: &Tensor<2>) -> Tensor<1> {
    x.clone().narrow(0, 0, 1).squeeze_dim(0)
}

/// Heads of four dimensions.
fn heads(x: &Tensor<2>) -> Tensor<4> {
    let [rows, columns] = x.dims();
    x.clone().reshape([1, rows, columns / 4, 4]).swap_dims(1, 2)
}

/// An adapter's, which stays in single precision beside a model that is not.
fn factors(x: &[Tensor<2>; 3]) -> [Tensor<2>; 2] {
    let own = |x: &Tensor<2>| if x.dtype() == DType::F64 { x.clone() } else { x.clone().cast(FloatDType::F32) };
    [own(&x[2]), own(&x[2]).matmul(own(&x[1]).transpose()) * 0.01]
}

/// A feed-forward block without an adapter on its second layer.
fn mlp(x: &[Tensor<2>; 3]) -> [Adapted; 3] {
    let [rows, columns] = x[0].dims();
    let device = &x[0].device().inner();
    let frozen = |dims: [usize; 2], step: f64| {
        let values = Tensor::<1, Int>::arange(0..(rows * columns) as i64, device).float();
        Weight::Dense((values * step).sin().mul_scalar(0.1).cast(FloatDType::from(x[0].dtype())).reshape(dims))
    };
    let [a, b] = factors(x);
    let low_rank = |a, b| Some(LowRank { a, b, scale: 0.1, drop: 0.0 });
    let gate = Adapted { weight: frozen([columns, rows], 0.7), bias: None, low_rank: low_rank(a.clone(), b.clone()) };
    let up = Adapted { weight: frozen([columns, rows], 1.1), bias: None, low_rank: None };
    [
        gate,
        up,
        Adapted { weight: frozen([rows, columns], 1.3), bias: None, low_rank: low_rank(b.transpose(), a.transpose()) },
    ]
}

/// Cosines and sines of angles that both halves of a head have.
fn tables(x: &[Tensor<2>; 3]) -> [Tensor<4>; 2] {
    let rows = x[0].dims()[0];
    let angles = x[1].clone().without_autodiff().slice([0..rows, 0..2]);
    let angles = Tensor::cat(vec![angles.clone(), angles], 1).reshape([1, rows, 1, 4]);
    [angles.clone().cos(), angles.sin()]
}

pub(crate) fn random(rows: usize, columns: usize) -> [Tensor<2>; 3] {
    [(); 3].map(|()| Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &Device::flex()))
}
