//! A linear layer, frozen or not, and the low-rank adapter beside it as one operation.
//!
//! `y = x W + b + s (drop(x) A) B`. Kept for the pass back are `x` and `x A`, which is a few numbers a token; the gradients of
//! both factors and of the input come from products with those, and nothing of the weight's size is formed (Hu et al. 2021,
//! arXiv:2106.09685).

use burn::{
    backend::Flex,
    tensor::{DType, Tensor, module},
};
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use super::{cube, node::apply};
use super::{
    dropout::{Keep, runs_twice},
    few_rows,
    half_precision::{narrowed, widened},
    host,
    node::{Fused, Host, Input, Kept, run},
    packed::{Frozen, HostPacked, PackedMatrix},
    product::{Before, Matrix, Target, Threads, product},
};

/// Tokens whose part of an adapter one thread computes at a time.
const ROWS: usize = 128;

/// The two factors of an adapter as PEFT has them in its files.
#[derive(Debug)]
pub struct LowRank {
    /// `[rank, d_in]`.
    pub a: Tensor<2>,
    /// `[d_out, rank]`.
    pub b: Tensor<2>,
    /// What their product is multiplied with.
    pub scale: f64,
    /// Probability of dropping an element of the adapter's input.
    pub drop: f64,
}

/// `x W + b`.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - returned: `[tokens, d_out]`
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    if !fit(&x, &weight, bias.as_ref()) {
        return module::linear(x, weight, bias);
    }
    if let Some(y) = in_half(&x, &weight) {
        return bias.into_iter().fold(y, |y, bias| y + bias.unsqueeze());
    }
    let inputs = [Input::new(x), Input::new(weight), Input::optional(bias), Input::Absent, Input::Absent];
    run(Linear { scale: 0.0, keep: None, packed: None }, inputs)
}

/// A few rows times a weight in half precision, which is then read as it is; none for other tensors.
fn in_half(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    let is_plain = |x: &Tensor<2>| x.dtype() == DType::BF16 && !x.is_autodiff() && !runs_twice();
    let [rows, columns] = [x.dims()[0], weight.dims()[1]];
    if !is_plain(x) || !is_plain(weight) || !few_rows::are_few(rows, weight.dims()) {
        return None;
    }
    let [x, weight] = [x, weight].map(|x| x.clone().try_into_primitive::<Flex>().ok());
    let (x, weight) = (host::whole(widened(&x?)), weight?);
    let weight = Matrix::of_half(&weight);
    if !weight.strides().contains(&1) {
        return None;
    }
    let y = few_rows::product(Matrix::of(&x), weight);
    Some(Tensor::from_primitive::<Flex>(narrowed(host::tensor(y, &[rows, columns]), DType::BF16)))
}

/// `x W + b + scale · drop(x) Aᵀ Bᵀ`; none if these tensors are not the processor's in single or half precision.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`
/// - `weight`: `[d_in, d_out]`
/// - returned: `[tokens, d_out]`
pub fn lora_linear(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, lora: LowRank) -> Option<Tensor<2>> {
    #[cfg(feature = "gpu")]
    if [x, weight, &lora.a, &lora.b].into_iter().all(cube::takes) && bias.is_none_or(cube::takes) {
        let keep = (lora.drop > 0.0).then(|| Keep::draw(lora.drop));
        let op = cube::LoraLinear { scale: lora.scale as f32, keep };
        let bias = Input::optional(bias.cloned());
        return Some(apply(
            op,
            [Input::new(x.clone()), Input::new(weight.clone()), bias, Input::new(lora.a), Input::new(lora.b)],
        ));
    }
    if !fit(x, weight, bias) || !host::takes(&lora.a) || !host::takes(&lora.b) {
        return None;
    }
    let keep = (lora.drop > 0.0).then(|| Keep::draw(lora.drop));
    Some(fused(x, weight, bias, lora, keep))
}

fn fused(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>, lora: LowRank, keep: Option<Keep>) -> Tensor<2> {
    let LowRank { a, b, scale, .. } = lora;
    let inputs = [
        Input::new(x.clone()),
        Input::new(weight.clone()),
        Input::optional(bias.cloned()),
        Input::new(a),
        Input::new(b),
    ];
    run(Linear { scale: scale as f32, keep, packed: None }, inputs)
}

/// A linear layer whose weight is packed, with an adapter or without; none as [`lora_linear`].
pub(super) fn packed_linear(
    x: &Tensor<2>,
    weight: &PackedMatrix,
    bias: Option<&Tensor<1>>,
    lora: Option<LowRank>,
) -> Option<Tensor<2>> {
    let takes_lora = |lora: &LowRank| host::takes(&lora.a) && host::takes(&lora.b);
    let fit = host::takes(x) && bias.is_none_or(host::takes) && lora.as_ref().is_none_or(takes_lora);
    let packed = HostPacked::new(weight).filter(|_| fit && !x.dims().contains(&0))?;
    let keep = lora.as_ref().filter(|lora| lora.drop > 0.0).map(|lora| Keep::draw(lora.drop));
    let scale = lora.as_ref().map_or(0.0, |lora| lora.scale) as f32;
    let [a, b] = lora.map_or([None, None], |LowRank { a, b, .. }| [Some(a), Some(b)]).map(Input::optional);
    let inputs = [Input::new(x.clone()), Input::Absent, Input::optional(bias.cloned()), a, b];
    Some(run(Linear { scale, keep, packed: Some(packed) }, inputs))
}

fn fit(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> bool {
    host::takes(x) && host::takes(weight) && bias.is_none_or(host::takes) && !x.dims().contains(&0)
}

#[derive(Debug, Clone)]
struct Linear {
    scale: f32,
    keep: Option<Keep>,
    /// The weight, where it is no tensor.
    packed: Option<HostPacked>,
}

#[derive(Debug, Clone)]
struct Saved {
    /// Only where a gradient needs it.
    x: Option<Host>,
    weight: Host,
    low_rank: Option<SavedLowRank>,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        let factors = self.low_rank.iter_mut().flat_map(|factors| [&mut factors.a, &mut factors.b]);
        self.x.iter_mut().chain([&mut self.weight]).chain(factors).collect()
    }
}

#[derive(Debug, Clone)]
struct SavedLowRank {
    a: Host,
    b: Host,
    /// `scale · drop(x) Aᵀ`, `[tokens, rank]`.
    inner: Vec<f32>,
}

impl Linear {
    fn frozen<'a>(&'a self, weight: &'a Host) -> Frozen<'a> {
        self.packed.as_ref().map_or_else(|| Frozen::Dense(Matrix::of(weight)), Frozen::Packed)
    }

    /// Rows `from..` of the adapter's input; dropped elements need a copy.
    fn input<'a>(&self, x: &'a [f32], width: usize, from: usize, rows: usize, scratch: &'a mut Vec<f32>) -> Matrix<'a> {
        let piece = host::part(x, from * width, rows * width);
        let Some(keep) = self.keep else { return Matrix::new(piece, [rows, width]) };
        scratch.clear();
        scratch.extend_from_slice(piece);
        keep.apply_vectorised(from * width, scratch);
        Matrix::new(scratch, [rows, width])
    }

    /// Adds the adapter's part to `y` and returns its inner product.
    fn add_low_rank(&self, x: &[f32], a: Matrix<'_>, b: Matrix<'_>, y: &mut [f32]) -> Vec<f32> {
        let ([rank, d_in], [d_out, _]) = (a.dims(), b.dims());
        let tokens = x.len() / d_in;
        host::written(tokens * rank, |inner| {
            let blocks = inner.par_chunks_mut(ROWS * rank).zip(y.par_chunks_mut(ROWS * d_out)).enumerate();
            blocks.for_each_init(Vec::new, |scratch, (index, (inner, y))| {
                let rows = inner.len() / rank;
                let input = self.input(x, d_in, index * ROWS, rows, scratch);
                product(Target::new(inner, [rows, rank]), Before::Lost, self.scale, input, a.t(), Threads::One);
                let inner = Matrix::new(inner, [rows, rank]);
                product(Target::new(y, [rows, d_out]), Before::Kept, 1.0, inner, b.t(), Threads::One);
            });
        })
    }

    /// The gradients of the factors that need them; adds the adapter's part to the input's, if that is there.
    fn low_rank_backward(
        &self,
        saved: &SavedLowRank,
        x: Option<&Host>,
        grad: &[f32],
        dx: Option<&mut [f32]>,
        [needs_a, needs_b]: [bool; 2],
    ) -> [Option<Host>; 2] {
        let (a, b) = (Matrix::of(&saved.a), Matrix::of(&saved.b));
        let ([rank, d_in], [d_out, _]) = (a.dims(), b.dims());
        let tokens = grad.len() / d_out;
        // Sums over tokens are made of parts whose size follows from the number of tokens alone, so that their bits do too;
        // no more than a few parts, for each is as large as both factors.
        let part = ROWS.max(tokens.div_ceil(16));
        let (to_a, to_b) = (if needs_a { rank * d_in } else { 0 }, if needs_b { rank * d_out } else { 0 });
        let x = x.map(host::values);
        let chunks: Vec<Option<&mut [f32]>> = match dx {
            Some(dx) => dx.chunks_mut(part * d_in).map(Some).collect(),
            None => (0..tokens.div_ceil(part)).map(|_| None).collect(),
        };
        let parts: Vec<(Vec<f32>, Vec<f32>)> = chunks
            .into_par_iter()
            .enumerate()
            .map(|(index, mut dx)| {
                let (mut da, mut db) = (vec![0.0; to_a], vec![0.0; to_b]);
                let (mut scratch, mut outer, mut back) = (Vec::new(), Vec::new(), Vec::new());
                let end = tokens.min((index + 1) * part);
                for from in (index * part..end).step_by(ROWS) {
                    let rows = ROWS.min(end - from);
                    let grad = Matrix::new(host::part(grad, from * d_out, rows * d_out), [rows, d_out]);
                    if needs_b {
                        let inner = Matrix::new(host::part(&saved.inner, from * rank, rows * rank), [rows, rank]);
                        product(Target::new(&mut db, [d_out, rank]), Before::Kept, 1.0, grad.t(), inner, Threads::One);
                    }
                    if !needs_a && dx.is_none() {
                        continue;
                    }
                    outer.resize(rows * rank, 0.0);
                    product(Target::new(&mut outer, [rows, rank]), Before::Lost, self.scale, grad, b, Threads::One);
                    let outer = Matrix::new(&outer, [rows, rank]);
                    if let (true, Some(x)) = (needs_a, x) {
                        let input = self.input(x, d_in, from, rows, &mut scratch);
                        product(Target::new(&mut da, [rank, d_in]), Before::Kept, 1.0, outer.t(), input, Threads::One);
                    }
                    let Some(dx) = dx.as_mut() else { continue };
                    let start = (from - index * part) * d_in;
                    let Some(dx) = dx.get_mut(start..start + rows * d_in) else { continue };
                    let Some(keep) = self.keep else {
                        product(Target::new(dx, [rows, d_in]), Before::Kept, 1.0, outer, a, Threads::One);
                        continue;
                    };
                    back.resize(rows * d_in, 0.0);
                    product(Target::new(&mut back, [rows, d_in]), Before::Lost, 1.0, outer, a, Threads::One);
                    keep.apply_vectorised(from * d_in, &mut back);
                    dx.iter_mut().zip(&back).for_each(|(dx, back)| *dx += back);
                }
                (da, db)
            })
            .collect();
        let mut parts = parts.into_iter();
        let (mut da, mut db) = parts.next().unwrap_or_default();
        for (more_a, more_b) in parts {
            da.iter_mut().zip(more_a).for_each(|(sum, more)| *sum += more);
            db.iter_mut().zip(more_b).for_each(|(sum, more)| *sum += more);
        }
        [needs_a.then(|| host::tensor(da, &[rank, d_in])), needs_b.then(|| host::tensor(db, &[d_out, rank]))]
    }
}

impl Fused<5> for Linear {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 5], needs: [bool; 5]) -> (Host, Option<Saved>) {
        let [x, weight, bias, a, b] = inputs;
        let nothing = || host::tensor(Vec::new(), &[0, 0]);
        let (x, weight) = (host::whole(x.unwrap_or_else(nothing)), weight.unwrap_or_else(nothing));
        let bias = bias.map(host::whole);
        let frozen = self.frozen(&weight);
        let [d_in, d_out] = frozen.dims();
        let tokens = host::values(&x).len() / d_in;
        let input = Matrix::new(host::values(&x), [tokens, d_in]);
        let mut inner = Vec::new();
        let y = host::written(tokens * d_out, |y| {
            let before = match &bias {
                // Memory that is new has to be touched once anyway: with the bias, to which the product is added.
                Some(bias) => {
                    let bias = host::values(bias);
                    host::pieces(
                        y,
                        d_out,
                        #[inline(always)]
                        |_, y| y.chunks_exact_mut(d_out).for_each(|row| row.copy_from_slice(bias)),
                    );
                    Before::Kept
                }
                None => Before::Lost,
            };
            frozen.multiply(y, before, input);
            if let (Some(a), Some(b)) = (&a, &b) {
                inner = self.add_low_rank(host::values(&x), Matrix::of(a), Matrix::of(b), y);
            }
        });
        let y = host::tensor(y, &[tokens, d_out]);
        let [_, needs_weight, _, needs_a, _] = needs;
        let saved = needs.contains(&true).then(|| Saved {
            x: (needs_weight || needs_a).then_some(x),
            weight,
            low_rank: a.zip(b).map(|(a, b)| SavedLowRank { a, b, inner }),
        });
        (y, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 5]) -> [Option<Host>; 5] {
        let Some(Saved { x, weight, low_rank }) = saved else { return [const { None }; 5] };
        let grad = host::whole(grad);
        let frozen = self.frozen(&weight);
        let [d_in, d_out] = frozen.dims();
        let values = host::values(&grad);
        let tokens = values.len() / d_out;
        let dy = Matrix::new(values, [tokens, d_out]);
        let [needs_x, needs_weight, needs_bias, needs_a, needs_b] = needs;
        let mut dx = needs_x.then(|| host::written(tokens * d_in, |dx| frozen.multiply_back(dx, dy)));
        let [da, db] = match &low_rank {
            Some(low_rank) => {
                let dx = dx.as_deref_mut();
                self.low_rank_backward(low_rank, x.as_ref(), values, dx, [needs_a, needs_b])
            }
            None => [None, None],
        };
        let dw = x.as_ref().filter(|_| needs_weight).map(|x| {
            let x = Matrix::new(host::values(x), [tokens, d_in]);
            let dw = host::written(d_in * d_out, |dw| {
                product(Target::new(dw, [d_in, d_out]), Before::Lost, 1.0, x.t(), dy, Threads::All);
            });
            host::tensor(dw, &[d_in, d_out])
        });
        let dbias = needs_bias.then(|| host::tensor(host::column_sums(values, d_out), &[d_out]));
        [dx.map(|dx| host::tensor(dx, &[tokens, d_in])), dw, dbias, da, db]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::ops::dropout::kept;

    fn reference(
        x: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        lora: LowRank,
        keep: Option<Keep>,
    ) -> Tensor<2> {
        let y = x.clone().matmul(weight);
        let y = bias.map_or_else(|| y.clone(), |bias| y.clone() + bias.unsqueeze());
        let LowRank { a, b, scale, .. } = lora;
        let x = keep.map_or_else(|| x.clone(), |keep| kept(x.clone(), keep));
        y + x.matmul(a.transpose()).mul_scalar(scale).matmul(b.transpose())
    }

    fn close(fast: &TensorData, slow: &TensorData) {
        fast.assert_approx_eq::<f32>(slow, Tolerance::rel_abs(1e-3, 1e-3));
    }

    fn check([tokens, d_in, d_out, rank]: [usize; 4], drop: f64, turned: bool, biased: bool, all: bool) {
        let device = Device::flex();
        let random = |rows, columns| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &device);
        let weight = if turned { random(d_out, d_in).transpose() } else { random(d_in, d_out) };
        let (x, bias) = (random(tokens, d_in), random(1, d_out).reshape([d_out]));
        let (a, b, upstream) = (random(rank, d_in), random(d_out, rank), random(tokens, d_out));
        let run = |fast: bool| -> (TensorData, Vec<Option<TensorData>>) {
            let keep = (drop > 0.0).then(|| Keep::new(12_345, drop));
            let (x, a, b) = (x.clone().autodiff(), a.clone().autodiff(), b.clone().autodiff());
            let (x, a, b) = (x.require_grad(), a.require_grad(), b.require_grad());
            let (weight, bias) = match all {
                true => (weight.clone().autodiff().require_grad(), bias.clone().autodiff().require_grad()),
                false => (weight.clone(), bias.clone()),
            };
            let bias_in = biased.then(|| bias.clone());
            let lora = LowRank { a: a.clone(), b: b.clone(), scale: 0.5, drop };
            let y = match fast {
                true => fused(&x, &weight, bias_in.as_ref(), lora, keep),
                false => reference(x.clone(), weight.clone(), bias_in, lora, keep),
            };
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let of = |x: &Tensor<2>| x.grad(&gradients).map(|grad| grad.into_data());
            let mut grads = vec![of(&x), of(&a), of(&b)];
            if all {
                grads.push(of(&weight));
                grads.push(bias.grad(&gradients).map(|grad| grad.into_data()));
            }
            (y.without_autodiff().into_data(), grads)
        };
        let ((fast, fast_grads), (slow, slow_grads)) = (run(true), run(false));
        close(&fast, &slow);
        for (fast, slow) in fast_grads.iter().zip(&slow_grads) {
            assert_eq!(fast.is_some(), slow.is_some());
            if let (Some(fast), Some(slow)) = (fast, slow) {
                close(fast, slow);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_plain_operations(
            sizes in [1..700_usize, 1..90_usize, 1..90_usize, 1..10_usize],
            drops: bool,
            turned: bool,
            biased: bool,
            all: bool,
        ) {
            check(sizes, if drops { 0.25 } else { 0.0 }, turned, biased, all);
        }
    }

    #[test]
    fn every_rank_up_to_64_is_right() {
        for rank in 1..=64 {
            check([37, 33, 29, rank], 0.0, false, true, false);
        }
    }

    #[test]
    fn a_plain_input_gets_no_gradient_and_factors_do() {
        let device = Device::flex();
        let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Default, &device);
        let leaf = |dims| random(dims).autodiff().require_grad();
        let (a, b) = (leaf([2, 7]), leaf([5, 2]));
        let lora = LowRank { a: a.clone(), b: b.clone(), scale: 1.0, drop: 0.0 };
        let (x, weight) = (random([9, 7]), random([7, 5]));
        let gradients = lora_linear(&x, &weight, None, lora).unwrap().sum().backward();
        assert!(a.grad(&gradients).is_some() && b.grad(&gradients).is_some());
        let y = linear(x.clone(), weight.clone(), None);
        assert!(!y.is_autodiff());
        close(&y.into_data(), &x.matmul(weight).into_data());
    }
}
