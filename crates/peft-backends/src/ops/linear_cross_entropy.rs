//! The output layer over a vocabulary and the loss on it as one operation, a few rows at a time.
//!
//! Logits of all rows are never in memory together. What a row's loss does to the hidden state is worked out while its logits
//! are there, so that the pass back only multiplies.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{
    host::{self, lanes},
    node::{Fused, Host, Input, run},
    product::{Before, Matrix, Target, Threads, product},
    vector_math::{exp, tanh},
};

/// Logits in memory at a time: 64 MiB.
const LOGITS: usize = 1 << 24;

/// The sum over rows of `-log softmax(hidden W)[target]`, and how many rows there are with a target.
///
/// None if these tensors are not the processor's in single precision, or if the weight needs a gradient.
///
/// # Shapes
/// - `hidden`: `[rows, width]`
/// - `weight`: `[width, classes]`
/// - `targets`: one a row; rows without one cost nothing
/// - returned: `[1]`
pub fn linear_cross_entropy(
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &[Option<usize>],
    soft_cap: Option<f64>,
) -> Option<Tensor<1>> {
    let ([rows, width], [inner, classes]) = (hidden.dims(), weight.dims());
    let fits = targets.len() == rows && width == inner && targets.iter().flatten().all(|target| *target < classes);
    if !host::takes(hidden) || !host::takes(weight) || weight.is_autodiff() || !fits || rows == 0 {
        return None;
    }
    let op = LinearCrossEntropy {
        targets: (0..).zip(targets).filter_map(|(row, target)| target.map(|target| (row, target))).collect(),
        soft_cap: soft_cap.map(|cap| cap as f32),
    };
    Some(run(op, [Input::new(hidden.clone()), Input::new(weight.clone())]))
}

#[derive(Debug, Clone)]
struct LinearCrossEntropy {
    /// Rows that have a target, and which.
    targets: Vec<(usize, usize)>,
    soft_cap: Option<f32>,
}

impl LinearCrossEntropy {
    /// Turns a row of products into the gradient of its loss, which it returns.
    #[inline(always)]
    fn loss(&self, logits: &mut [f32], target: usize) -> f32 {
        if let Some(cap) = self.soft_cap {
            logits.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
        }
        let most = lanes(logits, f32::NEG_INFINITY, |a, x| if x > a { x } else { a });
        let own = logits.get(target).copied().unwrap_or(f32::NAN);
        let Some(cap) = self.soft_cap else {
            logits.iter_mut().for_each(|x| *x = exp(*x - most));
            let sum = lanes(logits, 0.0, |a, x| a + x);
            let scale = 1.0 / sum;
            logits.iter_mut().for_each(|x| *x *= scale);
            if let Some(own) = logits.get_mut(target) {
                *own -= 1.0;
            }
            return most + sum.ln() - own;
        };
        let sum = logits.chunks(16).map(|chunk| chunk.iter().map(|x| exp(*x - most)).sum::<f32>()).sum::<f32>();
        let scale = 1.0 / sum;
        for (class, x) in logits.iter_mut().enumerate() {
            let slope = *x / cap;
            let own = if class == target { 1.0 } else { 0.0 };
            *x = (exp(*x - most) * scale - own) * (1.0 - slope * slope);
        }
        most + sum.ln() - own
    }
}

impl Fused<2> for LinearCrossEntropy {
    /// The gradient of the hidden states.
    type Saved = Option<Host>;

    fn forward(&self, inputs: [Option<Host>; 2], [needs_hidden, _]: [bool; 2]) -> (Host, Option<Host>) {
        let [hidden, weight] = inputs.map(|x| x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0])));
        let (hidden, weight) = (host::whole(hidden), Matrix::of(&weight));
        let [width, classes] = weight.dims();
        let source = host::values(&hidden);
        let chunk = (LOGITS / classes.max(1)).clamp(64, 1024).min(self.targets.len().max(1));
        let mut logits = vec![0.0; chunk * classes];
        let mut gradient = vec![0.0; if needs_hidden { source.len() } else { 0 }];
        let (mut rows, mut back) = (Vec::new(), Vec::new());
        let mut total = 0.0_f64;
        for targets in self.targets.chunks(chunk) {
            let count = targets.len();
            rows.clear();
            for (row, _) in targets {
                rows.extend_from_slice(host::part(source, row * width, width));
            }
            let states = Matrix::new(&rows, [count, width]);
            product(Target::new(&mut logits, [count, classes]), Before::Lost, 1.0, states, weight, Threads::All);
            let losses: Vec<f32> = logits
                .par_chunks_mut(classes)
                .zip(targets)
                .map(|(logits, (_, target))| {
                    pulp::Arch::new().dispatch(
                        #[inline(always)]
                        || self.loss(logits, *target),
                    )
                })
                .collect();
            total += losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            if needs_hidden {
                back.resize(count * width, 0.0);
                let slopes = Matrix::new(&logits, [count, classes]);
                product(Target::new(&mut back, [count, width]), Before::Lost, 1.0, slopes, weight.t(), Threads::All);
                for ((row, _), back) in targets.iter().zip(back.chunks_exact(width)) {
                    if let Some(to) = gradient.get_mut(row * width..(row + 1) * width) {
                        to.copy_from_slice(back);
                    }
                }
            }
        }
        let saved = needs_hidden.then(|| host::tensor(gradient, hidden.layout().shape().as_slice()));
        (host::tensor(vec![total as f32], &[1]), saved)
    }

    fn backward(self, saved: Option<Host>, grad: Host, _: [bool; 2]) -> [Option<Host>; 2] {
        let upstream = host::values(&host::whole(grad)).first().copied().unwrap_or_default();
        let scaled = saved.map(|gradient| {
            host::update(
                gradient,
                1,
                #[inline(always)]
                |_, piece| piece.iter_mut().for_each(|x| *x *= upstream),
            )
        });
        [scaled, None]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use burn::tensor::{Device, Distribution, Int, TensorData, Tolerance, activation::log_softmax};
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
        -all.gather(1, index(own).reshape([count, 1])).sum()
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
                    true => linear_cross_entropy(&leaf, &weight, &targets, cap).unwrap(),
                    false => reference(leaf.clone(), weight.clone(), &targets, cap),
                };
                let gradients = (loss.clone() * 0.25).backward();
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
        let whole = linear_cross_entropy(&hidden, &weight, &targets, None).unwrap().into_scalar::<f32>();
        let parts: f32 = (0..300)
            .step_by(50)
            .map(|from| {
                let part = hidden.clone().slice([from..from + 50, 0..4]);
                linear_cross_entropy(&part, &weight, &targets[from..from + 50], None).unwrap().into_scalar::<f32>()
            })
            .sum();
        assert!(whole.is_finite() && (whole - parts).abs() <= whole.abs() * 1e-5, "{whole} {parts}");
    }
}
