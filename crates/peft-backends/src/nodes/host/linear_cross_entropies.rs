//! The autodiff node of the LM head with the cross-entropy on it on the processor: the forward pass, what it keeps, and the backward pass.

use burn::tensor::DType;
use rayon::prelude::*;

use crate::{
    kernels::{
        host::{
            self, Host, lanes,
            matrix::Matrix,
            product::{Before, Output},
            vector_math::{exp, tanh},
        },
        quantized::{frozen::Frozen, reader::HostPacked},
    },
    nodes::node::{Fused, Kept},
};

/// Logits in memory at a time: 32 MiB.
const LOGITS: usize = 1 << 23;

#[derive(Debug, Clone)]
pub(crate) struct LinearCrossEntropies {
    /// Rows that have a target, and which.
    pub(crate) targets: Vec<(usize, usize)>,
    pub(crate) soft_cap: Option<f32>,
    /// The weight, where it is no tensor.
    pub(crate) packed: Option<HostPacked>,
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// The gradient of each row's loss by its hidden state, `[rows with a target, width]`.
    slopes: Vec<f32>,
    /// Of all hidden states.
    shape: Vec<usize>,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        Vec::new()
    }
}

impl LinearCrossEntropies {
    /// Turns a row of products into the gradient of its loss, which it returns.
    #[inline(always)]
    pub(crate) fn loss(&self, logits: &mut [f32], target: usize) -> f32 {
        if let Some(cap) = self.soft_cap {
            for x in logits.iter_mut() {
                *x = cap * tanh(*x / cap);
            }
        }
        let most = lanes(logits, f32::NEG_INFINITY, |a, x| if x > a { x } else { a });
        let own = logits.get(target).copied().unwrap_or(f32::NAN);
        let Some(cap) = self.soft_cap else {
            for x in logits.iter_mut() {
                *x = exp(*x - most);
            }
            let sum = lanes(logits, 0.0, |a, x| a + x);
            let scale = 1.0 / sum;
            for x in logits.iter_mut() {
                *x *= scale;
            }
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

impl Fused<2> for LinearCrossEntropies {
    type Saved = Option<Saved>;

    /// As in Transformers, which widens logits.
    fn result(&self, _: DType) -> DType {
        DType::F32
    }

    fn forward(&self, inputs: [Option<Host>; 2], [needs_hidden, _]: [bool; 2]) -> (Host, Option<Saved>) {
        let [hidden, weight] = inputs.map(|x| x.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0])));
        let hidden = host::whole(hidden);
        let weight = self.packed.as_ref().map_or_else(|| Frozen::Dense(Matrix::of(&weight)), Frozen::Packed);
        let [width, classes] = weight.dims();
        let source = host::values(&hidden);
        let count = self.targets.len();
        let most = (LOGITS / classes.max(1)).clamp(64, 1024).min(count.max(1));
        // Chunks of one size: a last one of a few rows would read the whole weight for them.
        let chunk = count.div_ceil(count.div_ceil(most).max(1)).max(1);
        let mut slopes = vec![0.0; if needs_hidden { count * width } else { 0 }];
        let mut losses = Vec::with_capacity(count);
        let mut rows = Vec::new();
        let mut left = slopes.as_mut_slice();
        // The memory is used again for each chunk, and what it held is not asked for.
        let mut memory = vec![0.0; chunk * classes];
        {
            let logits = memory.as_mut_slice();
            for targets in self.targets.chunks(chunk) {
                let count = targets.len();
                rows.clear();
                for (row, _) in targets {
                    rows.extend_from_slice(host::part(source, row * width, width));
                }
                let states = Matrix::new(&rows, [count, width]);
                let logits = logits.get_mut(..count * classes).unwrap_or_default();
                let logits = weight.multiply(Output::Old(logits, Before::Lost), states);
                let own = logits.par_chunks_mut(classes).zip(targets).map(|(logits, (_, target))| {
                    host::vectorised(
                        #[inline(always)]
                        || self.loss(logits, *target),
                    )
                });
                losses.par_extend(own);
                if needs_hidden {
                    let (back, rest) = std::mem::take(&mut left).split_at_mut(count * width);
                    let to = Output::Old(back, Before::Lost);
                    weight.multiply_back(to, Matrix::new(logits, [count, classes]));
                    left = rest;
                }
            }
        }
        let count = losses.len();
        let saved = needs_hidden.then(|| Saved { slopes, shape: hidden.layout().shape().as_slice().to_vec() });
        (host::tensor(losses, &[count]), saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, _: [bool; 2]) -> [Option<Host>; 2] {
        let Some(Saved { slopes, shape }) = saved else { return [None, None] };
        let width = shape.last().copied().unwrap_or(1).max(1);
        let mut dhidden = vec![0.0; shape.iter().product()];
        let grad = host::whole(grad);
        let rows = self.targets.iter().zip(host::values(&grad)).zip(slopes.chunks_exact(width));
        for (((row, _), grad), slopes) in rows {
            let to = dhidden.get_mut(row * width..(row + 1) * width).unwrap_or_default();
            to.iter_mut().zip(slopes).for_each(|(to, slope)| *to = grad * slope);
        }
        [Some(host::tensor(dhidden, &shape)), None]
    }
}
