//! The output layer over a vocabulary and the loss on it as one operation, a few rows at a time.
//!
//! Logits of all rows are never in memory together. What a row's loss does to the hidden state is worked out while its logits
//! are there, so that the pass back only multiplies.

#[cfg(feature = "gpu")]
use burn::tensor::IntDType;
use burn::tensor::{Int, Tensor};

#[cfg(feature = "gpu")]
use crate::{
    kernels::{cube, host::half_precision::of_type},
    nodes::{gpu, node::apply},
};
use crate::{
    kernels::{host, quantized::reader::HostPacked, quantized_matrix::PackedMatrix},
    nodes::{
        host::linear_cross_entropies::LinearCrossEntropies,
        node::{Input, run},
    },
};

/// `-log softmax(hidden W)[target]` of each row that has a target.
///
/// None if these tensors are not the processor's in single or half precision, or if the weight needs a gradient.
///
/// # Shapes
/// - `hidden`: `[rows, width]`
/// - `weight`: `[width, classes]`
/// - `targets`: one a row; rows without one cost nothing
/// - returned: `[rows with a target]`
pub fn linear_cross_entropies(
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &[Option<usize>],
    soft_cap: Option<f64>,
) -> Option<Tensor<1>> {
    let ([rows, width], [inner, classes]) = (hidden.dims(), weight.dims());
    let targets: Vec<(usize, usize)> = if targets.len() == rows {
        (0..).zip(targets).filter_map(|(row, target)| Some((row, (*target)?))).collect()
    } else {
        return None;
    };
    let fits = width == inner && !targets.is_empty() && targets.iter().all(|(_, target)| *target < classes);
    if weight.is_tracked() || !fits {
        return None;
    }
    #[cfg(feature = "gpu")]
    if cube::takes(hidden) && cube::takes(weight) {
        return Some(on_gpu(hidden, weight, gpu::Targets::OfSome(targets), soft_cap));
    }
    if !host::takes(hidden) || !host::takes(weight) {
        return None;
    }
    let op = LinearCrossEntropies { targets, soft_cap: soft_cap.map(|cap| cap as f32), packed: None };
    Some(run(op, [Input::new(hidden.clone()), Input::new(weight.clone())]))
}

#[cfg(feature = "gpu")]
fn on_gpu(hidden: &Tensor<2>, weight: &Tensor<2>, targets: gpu::Targets, soft_cap: Option<f64>) -> Tensor<1> {
    let op = gpu::CrossEntropies { targets, soft_cap: soft_cap.map(|cap| cap as f32) };
    let weight = of_type(weight.clone(), hidden.dtype());
    apply(op, [Input::new(hidden.clone()), Input::new(weight)])
}

/// [`linear_cross_entropies`] of all rows, for targets that lie on the device and are not looked at by the host: what is
/// launched follows from the shapes.
///
/// None if the tensors are not a GPU's in single or half precision, or if the weight needs a gradient.
///
/// # Shapes
/// - `hidden`: `[rows, width]`
/// - `weight`: `[width, classes]`
/// - `targets`: `[rows]`, each a class, or below zero where there is none
/// - returned: `[rows]`; zero, and without a slope, where there is no target
#[cfg_attr(not(feature = "gpu"), expect(unused_variables, reason = "the processor has no form of it"))]
pub fn linear_cross_entropies_of_each(
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &Tensor<1, Int>,
    soft_cap: Option<f64>,
) -> Option<Tensor<1>> {
    #[cfg(feature = "gpu")]
    if cube::takes(hidden) && cube::takes(weight) && !weight.is_tracked() && targets.dims()[0] == hidden.dims()[0] {
        let targets = gpu::Targets::OfEach(cube::memory(targets.clone().cast(IntDType::I32))?);
        return Some(on_gpu(hidden, weight, targets, soft_cap));
    }
    None
}

/// The same of a weight that is packed.
#[cfg_attr(not(feature = "gpu"), expect(unused_variables, reason = "the processor has no form of it"))]
pub(crate) fn packed_cross_entropies_of_each(
    hidden: &Tensor<2>,
    weight: &PackedMatrix,
    targets: &Tensor<1, Int>,
    soft_cap: Option<f64>,
) -> Option<Tensor<1>> {
    #[cfg(feature = "gpu")]
    if weight.is_on_gpu() && cube::takes(hidden) {
        return linear_cross_entropies_of_each(hidden, &weight.dense_as(hidden.dtype()), targets, soft_cap);
    }
    None
}

/// [`linear_cross_entropies`] of a weight that is packed.
pub(crate) fn packed_cross_entropies(
    hidden: &Tensor<2>,
    weight: &PackedMatrix,
    targets: &[Option<usize>],
    soft_cap: Option<f64>,
) -> Option<Tensor<1>> {
    #[cfg(feature = "gpu")]
    if weight.is_on_gpu() && cube::takes(hidden) {
        return linear_cross_entropies(hidden, &weight.dense_as(hidden.dtype()), targets, soft_cap);
    }
    let ([rows, width], [inner, classes]) = (hidden.dims(), weight.dims());
    let fits = targets.len() == rows && width == inner && host::takes(hidden);
    let packed = HostPacked::new(weight).filter(|_| fits)?;
    let targets: Vec<_> = (0..).zip(targets).filter_map(|(row, target)| Some((row, (*target)?))).collect();
    if targets.is_empty() || targets.iter().any(|(_, target)| *target >= classes) {
        return None;
    }
    let op = LinearCrossEntropies { targets, soft_cap: soft_cap.map(|cap| cap as f32), packed: Some(packed) };
    Some(run(op, [Input::new(hidden.clone()), Input::Absent]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::{Device, Distribution, TensorData, Tolerance, activation::log_softmax};
    use proptest::prelude::*;

    use super::*;

    fn reference(hidden: Tensor<2>, weight: Tensor<2>, targets: &[Option<usize>], soft_cap: Option<f64>) -> Tensor<1> {
        let mut logits = hidden.matmul(weight);
        if let Some(cap) = soft_cap {
            logits = (logits / cap).tanh() * cap;
        }
        let index = |values: Vec<i64>| {
            let count = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &Device::flex())
        };
        let rows: Vec<i64> = (0..).zip(targets).filter(|(_, target)| target.is_some()).map(|(row, _)| row).collect();
        let own: Vec<i64> = targets.iter().flatten().map(|target| *target as i64).collect();
        let count = own.len();
        let all = log_softmax(logits, 1).select(0, index(rows));
        -all.gather(1, index(own).reshape([count, 1])).reshape([count])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(
            [rows, width, classes] in [1..200_usize, 1..40_usize, 1..300_usize],
            capped: bool,
            tied: bool,
            every in 1..4_usize,
        ) {
            let device = Device::flex();
            let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
            let weight = if tied { random([classes, width]).transpose() } else { random([width, classes]) };
            let hidden = random([rows, width]);
            let targets: Vec<_> = (0..rows).map(|row| (row % every == 0).then_some(row * 7 % classes)).collect();
            let cap = capped.then_some(2.0);
            let run = |fast: bool| {
                let leaf = hidden.clone().autodiff().require_grad();
                let loss = match fast {
                    true => linear_cross_entropies(&leaf, &weight, &targets, cap).unwrap(),
                    false => reference(leaf.clone(), weight.clone(), &targets, cap),
                };
                let upstream = Tensor::<1, Int>::arange(0..loss.dims()[0] as i64, &device).float().sin();
                let gradients = (loss.clone() * upstream).sum().backward();
                (loss.without_autodiff().into_data(), leaf.grad(&gradients).unwrap().into_data())
            };
            let ((fast, fast_grad), (slow, slow_grad)) = (run(true), run(false));
            fast.assert_approx_eq::<f32>(&slow, Tolerance::rel_abs(1e-4, 1e-4));
            fast_grad.assert_approx_eq::<f32>(&slow_grad, Tolerance::rel_abs(1e-3, 1e-5));
        }
    }

    #[test]
    fn many_chunks_are_one_sum_and_large_logits_stay_numbers() {
        let device = Device::flex();
        let hidden = Tensor::<2>::random([300, 4], Distribution::Normal(0.0, 3000.0), &device);
        let weight = Tensor::<2>::random([4, 300_000], Distribution::Default, &device);
        let targets: Vec<_> = (0..300).map(|row| Some(row * 999)).collect();
        let whole = linear_cross_entropies(&hidden, &weight, &targets, None).unwrap().sum().into_scalar::<f32>();
        let parts: f32 = (0..300)
            .step_by(50)
            .map(|from| {
                let part = hidden.clone().slice([from..from + 50, 0..4]);
                linear_cross_entropies(&part, &weight, &targets[from..from + 50], None)
                    .unwrap()
                    .sum()
                    .into_scalar::<f32>()
            })
            .sum();
        assert!(whole.is_finite() && (whole - parts).abs() <= whole.abs() * 1e-5, "{whole} {parts}");
    }
}
