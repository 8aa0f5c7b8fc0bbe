//! The autodiff node of low-rank adapters by rows on a GPU: the kernels of the forward and the backward pass.

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::IntTensor},
    tensor::{DType, Int, Tensor, TensorData},
};

use crate::{
    kernels::{
        cube::{
            Gpu, OnGpu,
            backend::Kernels,
            low_rank_by_rows::batch::{Batch, Side},
            primitive,
        },
        low_rank_rows::{Factor, Order},
    },
    nodes::{
        gpu::all,
        node::{Input, Node, apply},
    },
};

/// The operation.
#[derive(Debug, Clone)]
pub(crate) struct LowRankByRows {
    table: IntTensor<Gpu>,
    batch: Batch,
}

impl LowRankByRows {
    /// Adds to the rows of `y` what each one's adapter makes of the same row of `x`.
    pub(crate) fn run(
        y: Tensor<2>,
        x: &Tensor<2>,
        [a, b]: [Tensor<2>; 2],
        factors: &[Factor],
        order: &Order,
    ) -> Tensor<2> {
        let (batch, table) = Batch::new(factors, order);
        let (count, device) = (table.len(), x.device().inner());
        let words: Vec<i32> = table.into_iter().map(u32::cast_signed).collect();
        let table = Tensor::<1, Int>::from_data(TensorData::new(words, [count]), (&device, DType::I32));
        let op = Self { table: primitive(table), batch };
        apply(op, [Input::new(y), Input::new(x.clone()), Input::new(a), Input::new(b)])
    }
}

/// What the pass back needs.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// Only where a gradient needs it.
    x: Option<OnGpu>,
    x_type: DType,
    a: OnGpu,
    b: OnGpu,
    /// `scale · drop(x) Aᵀ`, adapter by adapter.
    inner: OnGpu,
}

fn turned(x: OnGpu) -> OnGpu {
    Gpu::float_swap_dims(x, 0, 1)
}

impl Node<Gpu, 4> for LowRankByRows {
    type Saved = Saved;

    fn forward(&self, inputs: [Option<OnGpu>; 4], needs: [bool; 4]) -> (OnGpu, Saved) {
        let [y, x, a, b] = all(inputs);
        let Self { table, batch } = self.clone();
        let inner = Gpu::into_ranks(x.clone(), turned(a.clone()), table.clone(), batch, Side::A);
        let y = Gpu::add_out_of_ranks(y, inner.clone(), turned(b.clone()), table, batch);
        let x_type = x.dtype();
        let [_, _, needs_a, _] = needs;
        (y, Saved { x: needs_a.then_some(x), x_type, a, b, inner })
    }

    fn backward(self, saved: Saved, grad: OnGpu, needs: [bool; 4]) -> [Option<OnGpu>; 4] {
        let Self { table, batch } = self;
        let Saved { x, x_type, a, b, inner } = saved;
        let [needs_y, needs_x, needs_a, needs_b] = needs;
        let (a_type, b_type) = (a.dtype(), b.dtype());
        let db = needs_b.then(|| Gpu::sum_by_rank(inner, grad.clone(), table.clone(), batch, Side::B, b_type));
        let (mut dx, mut da) = (None, None);
        if needs_x || needs_a {
            let outer = Gpu::into_ranks(grad.clone(), b, table.clone(), batch, Side::B);
            da = x.map(|x| Gpu::sum_by_rank(outer.clone(), x, table.clone(), batch, Side::A, a_type));
            dx = needs_x.then(|| Gpu::out_of_ranks(outer, a, table, batch, x_type));
        }
        [needs_y.then_some(grad), dx, da, db]
    }
}
