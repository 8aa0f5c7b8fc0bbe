//! What all operations have in common: results and gradients in single precision are those in double precision, those gradients
//! are the slopes of the results, half precision is rounded once, and the bits are the same on any number of threads.

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor};
use proptest::prelude::*;

use crate::ops::{
    lora_linear::linear,
    self_test::{CASES, Case, Operation, random, row},
};

/// The result in double precision, its type, and the gradients of the sum of its sines.
pub(crate) fn run(operation: Operation, inputs: [Tensor<2>; 3]) -> (Tensor<2>, DType, [Option<Tensor<2>>; 3]) {
    run_through(operation, inputs, |y| y.sin())
}

/// The same with the gradients of the sum of another function of the result.
fn run_through(
    operation: Operation,
    inputs: [Tensor<2>; 3],
    function: fn(Tensor<2>) -> Tensor<2>,
) -> (Tensor<2>, DType, [Option<Tensor<2>>; 3]) {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let y = operation(&leaves).unwrap();
    let dtype = y.dtype();
    let gradients = function(y.clone()).sum().backward();
    (y.without_autodiff().cast(FloatDType::F64), dtype, leaves.map(|x| x.grad(&gradients)))
}

/// Each element times a number of its own: what comes back does not follow from how the result was rounded.
fn weighted(y: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = y.dims();
    let places = Tensor::<1, Int>::arange(0..(rows * columns) as i64, &y.device());
    let weights = places.cast(FloatDType::F32).sin().cast(FloatDType::from(y.dtype()));
    y * weights.reshape([rows, columns])
}

fn length(x: Tensor<2>) -> f64 {
    x.cast(FloatDType::F64).square().sum().sqrt().into_scalar::<f64>()
}

pub(crate) fn close(name: &str, found: Tensor<2>, expected: Tensor<2>, within: f64) {
    let (found, expected) = (found.cast(FloatDType::F64), expected.cast(FloatDType::F64));
    let (off, whole) = (length(found - expected.clone()), length(expected));
    assert!(off <= within * whole + within, "{name}: off by {off} of {whole}");
}

pub(crate) fn gradients_close(
    name: &str,
    found: [Option<Tensor<2>>; 3],
    expected: [Option<Tensor<2>>; 3],
    within: f64,
) {
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
            let (half, found, gradients) = run_through(fast, inputs.clone(), weighted);
            let singles = inputs.clone().map(|x| x.cast(FloatDType::F32));
            let (single, _, slopes) = run_through(fast, singles, weighted);
            // As in Transformers, losses are in single precision.
            let result = if name == "linear_cross_entropies" { DType::F32 } else { DType::from(dtype) };
            assert_eq!(found, result, "{name}");
            close(name, half, single, within);
            assert!(gradients.iter().flatten().all(|x| x.dtype() == DType::from(dtype)), "{name}");
            // The upstream gradient is rounded, and what comes of it again.
            gradients_close(name, gradients, slopes, 2.0 * within);
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
                    plain(&moved).unwrap().sin().sum().into_scalar::<f64>()
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

#[test]
fn the_processor_passes_its_self_test() {
    let found = super::self_test(&Device::flex());
    assert_eq!(found.len(), CASES.len());
    assert!(found.iter().all(super::SelfTest::passes), "{found:?}");
}
