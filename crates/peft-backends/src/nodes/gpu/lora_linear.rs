//! A linear layer and the low-rank adapter beside it.
//!
//! The frozen product and its transpose are Burn's, which chooses among its kernels by measuring. The adapter's part is ours: it
//! is added to the result in place, in one pass over it.

use burn::{
    backend::{
        TensorMetadata,
        ops::{FloatTensorOps, ModuleOps},
    },
    tensor::DType,
};

use crate::{
    kernels::{
        cube::{Gpu, OnGpu, backend::Kernels, primitive, product::Drops},
        dropout_mask::Keep,
        quantized_matrix::PackedMatrix,
    },
    nodes::{gpu::all, node::Node},
};

/// `x W + b + scale · drop(x) Aᵀ Bᵀ`, without the last where there are no factors.
#[derive(Debug, Clone)]
pub(crate) struct LoraLinear {
    pub(crate) scale: f32,
    pub(crate) keep: Option<Keep>,
    /// The weight, where it is no tensor: it is made dense for each product and kept by none.
    pub(crate) packed: Option<PackedMatrix>,
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    x: Option<OnGpu>,
    weight: Option<OnGpu>,
    /// Both factors, and `scale · drop(x) Aᵀ`, `[tokens, rank]`.
    factors: Option<[OnGpu; 3]>,
}

impl LoraLinear {
    fn weight(&self, weight: Option<&OnGpu>, dtype: DType) -> OnGpu {
        match (weight, &self.packed) {
            (Some(weight), _) => weight.clone(),
            (None, Some(packed)) => primitive(packed.dense_as(dtype)),
            (None, None) => unreachable!("an operation is given its inputs"),
        }
    }

    fn drops(&self, drops: Drops) -> Option<(Drops, Keep)> {
        self.keep.map(|keep| (drops, keep))
    }
}

fn turned(x: OnGpu) -> OnGpu {
    Gpu::float_swap_dims(x, 0, 1)
}

impl Node<Gpu, 5> for LoraLinear {
    type Saved = Saved;

    fn forward(&self, inputs: [Option<OnGpu>; 5], needs: [bool; 5]) -> (OnGpu, Saved) {
        let [x, weight, bias, a, b] = inputs;
        let [x] = all([x]);
        let mut y = Gpu::linear(x.clone(), self.weight(weight.as_ref(), x.dtype()), bias);
        let factors = a.zip(b).map(|(a, b)| {
            let drops = self.drops(Drops::Left);
            let inner = Gpu::thin_product(x.clone(), turned(a.clone()), self.scale, drops, DType::F32);
            [a, b, inner]
        });
        if let Some([_, b, inner]) = &factors {
            y = Gpu::add_thin_product(y, inner.clone(), turned(b.clone()), 1.0, None);
        }
        let [_, needs_weight, _, needs_a, _] = needs;
        let x = (needs_weight || needs_a).then_some(x);
        (y, Saved { x, weight, factors })
    }

    fn backward(self, saved: Saved, grad: OnGpu, needs: [bool; 5]) -> [Option<OnGpu>; 5] {
        let Saved { x, weight, factors } = saved;
        let [needs_x, needs_weight, needs_bias, needs_a, needs_b] = needs;
        let (mut da, mut db) = (None, None);
        let mut dx =
            needs_x.then(|| Gpu::float_matmul(grad.clone(), turned(self.weight(weight.as_ref(), grad.dtype()))));
        if let Some([a, b, inner]) = factors {
            let (a_type, b_type) = (a.dtype(), b.dtype());
            db = needs_b.then(|| Gpu::thin_product(turned(grad.clone()), inner, 1.0, None, b_type));
            let outer = Gpu::thin_product(grad.clone(), b, self.scale, None, DType::F32);
            da = x
                .clone()
                .filter(|_| needs_a)
                .map(|x| Gpu::thin_product(turned(outer.clone()), x, 1.0, self.drops(Drops::Right), a_type));
            dx = dx.map(|dx| Gpu::add_thin_product(dx, outer, a, 1.0, self.drops(Drops::Product)));
        }
        let dw = x.filter(|_| needs_weight).map(|x| Gpu::float_matmul(turned(x), grad.clone()));
        let dbias = needs_bias.then(|| {
            let columns = grad.shape().last().copied().unwrap_or_default();
            let sum = Gpu::float_sum_dim(grad, 0);
            Gpu::float_reshape(sum, [columns].into())
        });
        [dx, dw, dbias, da, db]
    }
}
