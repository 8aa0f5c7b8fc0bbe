//! What all operations have in common: results and gradients in single precision are those in double precision, those gradients
//! are the slopes of the results, half precision is rounded once, and the bits are the same on any number of threads.

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor, TensorData, activation};
use proptest::prelude::*;

use super::{
    Adapted, Gate, LowRank, Sight, Weight, Weights, attention, gated_mlp, gelu, gelu_tanh, gelu_tanh_gated, layer_norm,
    linear, linear_cross_entropies, lora_linear, rms_norm, rotate, silu_gated, softmax,
};

/// Three matrices of one shape, with a multiple of four columns, to one.
type Operation = fn(&[Tensor<2>; 3]) -> Tensor<2>;

struct Case {
    name: &'static str,
    fast: Operation,
    /// The same of Burn's own operations.
    plain: Operation,
}

impl Case {
    /// An operation that does the plain one itself where it has no fast one, as in double precision.
    const fn new(name: &'static str, both: Operation) -> Self {
        Self { name, fast: both, plain: both }
    }
}

const SCALE: f64 = 0.5;

const CASES: [Case; 13] = [
    Case::new("gelu", |x| gelu(x[0].clone())),
    Case::new("gelu_tanh", |x| gelu_tanh(x[0].clone())),
    Case::new("silu_gated", |x| silu_gated(x[0].clone(), x[1].clone())),
    Case::new("gelu_tanh_gated", |x| gelu_tanh_gated(x[0].clone(), x[1].clone())),
    Case::new("softmax", |x| softmax(x[0].clone())),
    Case::new("rms_norm", |x| rms_norm(x[0].clone(), row(&x[1]), 1.0, 1e-6)),
    Case::new("layer_norm", |x| layer_norm(x[0].clone(), Some(x[1].clone()), 0.0, row(&x[2]), Some(row(&x[1])), 1e-3)),
    Case::new("linear", |x| linear(x[0].clone(), x[1].clone().transpose(), None)),
    Case {
        name: "lora_linear",
        fast: |x| {
            let [a, b] = factors(x);
            lora_linear(&x[0], &x[1].clone().transpose(), None, LowRank { a, b, scale: SCALE, drop: 0.0 }).unwrap()
        },
        plain: |x| {
            let [a, b] = factors(x);
            x[0].clone().matmul(x[1].clone().transpose())
                + x[0].clone().matmul(a.transpose()).matmul(b.transpose()) * SCALE
        },
    },
    Case {
        name: "gated_mlp",
        fast: |x| gated_mlp(x[0].clone(), Gate::Silu, mlp(x)),
        plain: |x| {
            let dense = |layer: Adapted| {
                let Weight::Dense(weight) = layer.weight else { unreachable!("it is made dense below") };
                layer.low_rank.map_or(weight.clone(), |low_rank| {
                    weight + low_rank.a.transpose().matmul(low_rank.b.transpose()) * low_rank.scale
                })
            };
            let [gate, up, down] = mlp(x).map(dense);
            (activation::silu(x[0].clone().matmul(gate)) * x[0].clone().matmul(up)).matmul(down)
        },
    },
    Case {
        name: "attention",
        fast: |x| {
            let [q, k, v] = x.each_ref().map(heads);
            let weights = Weights { scale: SCALE, soft_cap: None, drop: 0.0 };
            let sight = Sight { causal: true, ..Sight::default() };
            attention(&q, &k, &v, &sight, weights).unwrap().swap_dims(1, 2).reshape(x[0].dims())
        },
        plain: |x| {
            let [q, k, v] = x.each_ref().map(heads);
            let [_, _, length, _] = q.dims();
            let later = Tensor::<2>::ones([length, length], &Device::flex()).triu(1).bool().unsqueeze::<4>();
            let scores = (q.matmul(k.transpose()) * SCALE).mask_fill(later, f64::NEG_INFINITY);
            activation::softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape(x[0].dims())
        },
    },
    Case {
        name: "rotate",
        fast: |x| {
            let [rows, columns] = x[0].dims();
            let [cos, sin] = tables(x);
            rotate(&x[0].clone().reshape([1, rows, columns / 4, 4]), &cos, &sin, 2).unwrap().reshape([rows, columns])
        },
        plain: |x| {
            let [rows, columns] = x[0].dims();
            let [cos, sin] = tables(x);
            let heads = x[0].clone().reshape([1, rows, columns / 4, 4]);
            let turned = Tensor::cat(vec![-heads.clone().narrow(3, 2, 2), heads.clone().narrow(3, 0, 2)], 3);
            (heads * cos + turned * sin).reshape([rows, columns])
        },
    },
    Case {
        name: "linear_cross_entropies",
        fast: |x| {
            let targets: Vec<_> = (0..x[0].dims()[0]).map(|row| (row % 3 != 1).then_some(row)).collect();
            let weight = x[1].clone().transpose().without_autodiff();
            linear_cross_entropies(&x[0], &weight, &targets, None).unwrap().unsqueeze()
        },
        plain: |x| {
            let rows: Vec<i64> = (0..x[0].dims()[0] as i64).filter(|row| row % 3 != 1).collect();
            let count = rows.len();
            let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &Device::flex());
            let logits = x[0].clone().matmul(x[1].clone().transpose().without_autodiff()).select(0, rows.clone());
            -activation::log_softmax(logits, 1).gather(1, rows.reshape([count, 1])).reshape([1, count])
        },
    },
];

fn row(x: &Tensor<2>) -> Tensor<1> {
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
    let frozen = |dims: [usize; 2], step: f64| {
        let values = Tensor::<1, Int>::arange(0..(rows * columns) as i64, &Device::flex()).float();
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

fn random(rows: usize, columns: usize) -> [Tensor<2>; 3] {
    [(); 3].map(|()| Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &Device::flex()))
}

/// The result in double precision, its type, and the gradients of the sum of its sines.
fn run(operation: Operation, inputs: [Tensor<2>; 3]) -> (Tensor<2>, DType, [Option<Tensor<2>>; 3]) {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let y = operation(&leaves);
    let dtype = y.dtype();
    let gradients = y.clone().sin().sum().backward();
    (y.without_autodiff().cast(FloatDType::F64), dtype, leaves.map(|x| x.grad(&gradients)))
}

fn length(x: Tensor<2>) -> f64 {
    x.cast(FloatDType::F64).square().sum().sqrt().into_scalar::<f64>()
}

fn close(name: &str, found: Tensor<2>, expected: Tensor<2>, within: f64) {
    let (found, expected) = (found.cast(FloatDType::F64), expected.cast(FloatDType::F64));
    let (off, whole) = (length(found - expected.clone()), length(expected));
    assert!(off <= within * whole + within, "{name}: off by {off} of {whole}");
}

fn gradients_close(name: &str, found: [Option<Tensor<2>>; 3], expected: [Option<Tensor<2>>; 3], within: f64) {
    for (found, expected) in found.into_iter().zip(expected) {
        assert_eq!(found.is_some(), expected.is_some(), "{name}");
        if let (Some(found), Some(expected)) = (found, expected) {
            close(name, found, expected, within);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn single_precision_is_near_double_precision(rows in 1..90_usize, quarters in 1..30_usize) {
        let inputs = random(rows, 4 * quarters);
        for Case { name, fast, plain } in CASES {
            let (y, _, gradients) = run(fast, inputs.clone());
            let (exact, _, slopes) = run(plain, inputs.clone().map(|x| x.cast(FloatDType::F64)));
            close(name, y, exact, 1e-5);
            gradients_close(name, gradients, slopes, 1e-4);
        }
    }

    #[test]
    fn half_precision_is_rounded_once(rows in 1..70_usize, quarters in 1..20_usize, brain: bool) {
        let (dtype, within) = if brain { (FloatDType::BF16, 8e-3) } else { (FloatDType::F16, 1e-3) };
        let inputs = random(rows, 4 * quarters).map(|x| x.cast(dtype));
        for Case { name, fast, .. } in CASES {
            let (half, found, gradients) = run(fast, inputs.clone());
            let (single, _, slopes) = run(fast, inputs.clone().map(|x| x.cast(FloatDType::F32)));
            // As in Transformers, losses are in single precision.
            let result = if name == "linear_cross_entropies" { DType::F32 } else { DType::from(dtype) };
            assert_eq!(found, result, "{name}");
            close(name, half, single, within);
            assert!(gradients.iter().flatten().all(|x| x.dtype() == DType::from(dtype)), "{name}");
            // The upstream gradient is of rounded results, and rounded itself.
            gradients_close(name, gradients, slopes, 6.0 * within);
        }
    }
}

#[test]
fn gradients_are_slopes() {
    const STEP: f64 = 1e-5;
    let inputs = random(5, 8).map(|x| x.cast(FloatDType::F64));
    for Case { name, plain, .. } in CASES {
        let (_, _, gradients) = run(plain, inputs.clone());
        for (which, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            for (index, found) in gradient.into_data().iter::<f64>().enumerate().step_by(3) {
                let value = |step: f64| {
                    let mut moved = inputs.clone();
                    let place = [index / 8..index / 8 + 1, index % 8..index % 8 + 1];
                    moved[which] =
                        moved[which].clone().slice_assign(place.clone(), moved[which].clone().slice(place) + step);
                    plain(&moved).sin().sum().into_scalar::<f64>()
                };
                let slope = (value(STEP) - value(-STEP)) / (2.0 * STEP);
                assert!((slope - found).abs() <= 1e-7 * slope.abs().max(1.0), "{name}: {found} for {slope}");
            }
        }
    }
}

#[test]
fn the_bits_are_the_same_on_any_number_of_threads() {
    let inputs = random(300, 132);
    for Case { name, fast, .. } in CASES {
        let bits = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (y, _, gradients) = run(fast, inputs.clone());
                let gradients = gradients.map(|x| x.map(|x| x.into_data().into_bytes().to_vec()));
                (y.into_data().into_bytes().to_vec(), gradients)
            })
        };
        let one = bits(1);
        for threads in 2..=5 {
            assert!(bits(threads) == one, "{name} on {threads} threads");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn few_rows_are_rows(rows in 1..6_usize, [inner, columns] in [1..500_usize, 1..500_usize], turned: bool, half: bool) {
        let device = Device::flex();
        let dtype = if half { FloatDType::BF16 } else { FloatDType::F32 };
        let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device).cast(dtype);
        let weight = if turned { random([columns, inner]).transpose() } else { random([inner, columns]) };
        let (x, bias) = (random([rows, inner]), row(&random([1, columns])));
        let y = linear(x.clone(), weight.clone(), Some(bias.clone()));
        assert_eq!(y.dtype(), DType::from(dtype));
        let exact = x.cast(FloatDType::F64).matmul(weight.cast(FloatDType::F64)) + bias.cast(FloatDType::F64).unsqueeze();
        close("linear", y, exact, if half { 8e-3 } else { 1e-5 });
    }
}
