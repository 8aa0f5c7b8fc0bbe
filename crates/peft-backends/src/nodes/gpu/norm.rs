//! The autodiff node of RMSNorm and layer normalization on a GPU: the kernels of the forward and the backward pass.

use burn::backend::ops::FloatTensorOps;

use crate::{
    kernels::{
        cube::{Gpu, OnGpu, backend::Kernels, norm::Kind},
        dropout_mask::Keep,
    },
    nodes::{gpu::all, node::Node},
};

/// The normalisation of `dropout(x) + residual`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) kind: Kind,
    pub(crate) epsilon: f32,
    pub(crate) keep: Option<Keep>,
}

/// What the pass back needs: the sum that was normalised, the weight, and each row's mean and `ρ`, `[2, rows]`.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    z: OnGpu,
    weight: OnGpu,
    rows: OnGpu,
    biased: bool,
}

impl Node<Gpu, 4> for Norm {
    type Saved = Saved;

    fn forward(&self, inputs: [Option<OnGpu>; 4], _: [bool; 4]) -> (OnGpu, Saved) {
        let [x, residual, weight, bias] = inputs;
        let [x, weight] = all([x, weight]);
        let z = match (residual, self.keep) {
            (None, None) => x,
            (None, Some(keep)) => Gpu::dropout(x, keep),
            (Some(residual), None) => Gpu::float_add(x, residual),
            (Some(residual), Some(keep)) => Gpu::dropout_add(x, residual, keep),
        };
        let biased = bias.is_some();
        let shift = bias.unwrap_or_else(|| weight.clone());
        let (y, rows) = Gpu::norm(z.clone(), weight.clone(), shift, biased, self.kind, self.epsilon);
        (y, Saved { z, weight, rows, biased })
    }

    fn backward(self, saved: Saved, grad: OnGpu, needs: [bool; 4]) -> [Option<OnGpu>; 4] {
        let Saved { z, weight, rows, biased } = saved;
        let [needs_x, needs_residual, needs_weight, needs_bias] = needs;
        let (dweight, dbias) = if needs_weight || needs_bias {
            let (dweight, dbias) =
                Gpu::norm_backward_weights(z.clone(), weight.clone(), rows.clone(), grad.clone(), self.kind);
            (needs_weight.then_some(dweight), (needs_bias && biased).then_some(dbias))
        } else {
            (None, None)
        };
        let dz = (needs_x || needs_residual).then(|| Gpu::norm_backward(z, weight, rows, grad, self.kind));
        let dx = dz.clone().filter(|_| needs_x).map(|dz| match self.keep {
            Some(keep) => Gpu::dropout(dz, keep),
            None => dz,
        });
        [dx, dz.filter(|_| needs_residual), dweight, dbias]
    }
}
