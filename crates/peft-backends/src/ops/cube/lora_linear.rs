//! A linear layer and the low-rank adapter beside it.
//!
//! The frozen product and its transpose are Burn's, which chooses among its kernels by measuring. The adapter's part is ours: it
//! is added to the result in place, in one pass over it.

use burn::backend::{
    TensorMetadata,
    ops::{FloatTensorOps, ModuleOps},
};
use burn::tensor::DType;

use super::{Gpu, Kernels, OnGpu, product::Drops};
use crate::ops::{dropout::Keep, node::Node};

/// `x W + b + scale · drop(x) Aᵀ Bᵀ`.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct LoraLinear {
    pub(in crate::ops) scale: f32,
    pub(in crate::ops) keep: Option<Keep>,
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Saved {
    x: Option<OnGpu>,
    weight: OnGpu,
    a: OnGpu,
    b: OnGpu,
    /// `scale · drop(x) Aᵀ`, `[tokens, rank]`.
    inner: OnGpu,
}

impl LoraLinear {
    fn drops(self, drops: Drops) -> Option<(Drops, Keep)> {
        self.keep.map(|keep| (drops, keep))
    }
}

fn turned(x: OnGpu) -> OnGpu {
    Gpu::float_swap_dims(x, 0, 1)
}

impl Node<Gpu, 5> for LoraLinear {
    type Saved = Saved;

    fn forward(&self, inputs: [Option<OnGpu>; 5], needs: [bool; 5]) -> (OnGpu, Saved) {
        let [Some(x), Some(weight), bias, Some(a), Some(b)] = inputs else {
            unreachable!("an operation is given its inputs")
        };
        let y = Gpu::linear(x.clone(), weight.clone(), bias);
        let inner = Gpu::thin_product(x.clone(), turned(a.clone()), self.scale, self.drops(Drops::Left), DType::F32);
        let y = Gpu::add_thin_product(y, inner.clone(), turned(b.clone()), 1.0, None);
        let [_, needs_weight, _, needs_a, _] = needs;
        let x = (needs_weight || needs_a).then_some(x);
        (y, Saved { x, weight, a, b, inner })
    }

    fn backward(self, saved: Saved, grad: OnGpu, needs: [bool; 5]) -> [Option<OnGpu>; 5] {
        let Saved { x, weight, a, b, inner } = saved;
        let [needs_x, needs_weight, needs_bias, needs_a, needs_b] = needs;
        let dtype = grad.dtype();
        let (a_type, b_type) = (a.dtype(), b.dtype());
        let db = needs_b.then(|| Gpu::thin_product(turned(grad.clone()), inner, 1.0, None, b_type));
        let outer = (needs_a || needs_x).then(|| Gpu::thin_product(grad.clone(), b, self.scale, None, DType::F32));
        let da = match (&outer, &x) {
            (Some(outer), Some(x)) if needs_a => {
                let drops = self.drops(Drops::Right);
                Some(Gpu::thin_product(turned(outer.clone()), x.clone(), 1.0, drops, a_type))
            }
            _ => None,
        };
        let dx = outer.filter(|_| needs_x).map(|outer| {
            let dx = Gpu::float_matmul(grad.clone(), turned(weight));
            Gpu::add_thin_product(dx, outer, a, 1.0, self.drops(Drops::Product))
        });
        let dw = x.filter(|_| needs_weight).map(|x| Gpu::float_matmul(turned(x), grad.clone()));
        let dbias = needs_bias.then(|| {
            let columns = grad.shape().last().copied().unwrap_or_default();
            let sum = Gpu::float_sum_dim(grad, 0);
            Gpu::float_reshape(sum, [columns].into())
        });
        let _ = dtype;
        [dx, dw, dbias, da, db]
    }
}
