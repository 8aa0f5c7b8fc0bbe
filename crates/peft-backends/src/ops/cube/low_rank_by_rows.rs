//! Low-rank adapters of which each acts on its own rows: a launch for each product, whatever their number.
//!
//! A table in the GPU's memory says which rows are whose and where the factors lie in their pool. Rows stand in it adapter by
//! adapter, so that a tile of a product has one adapter's alone, and those of no adapter come last.

mod kernels;

use burn::{
    backend::{TensorMetadata, ops::FloatTensorOps, tensor::IntTensor},
    tensor::{DType, Int, Tensor, TensorData},
};

pub(super) use kernels::{add_out_of_ranks, into_ranks, out_of_ranks, sum_by_rank};

use super::{Gpu, Kernels, OnGpu, all, launch, primitive};
use crate::ops::{
    dropout::Keep,
    low_rank_by_rows::{Factor, Order},
    node::{Input, Node, apply},
};

/// Words of the table on each adapter.
const WORDS: usize = 9;
/// Words of the table on each tile: its adapter, and where in the order it begins.
const TILE_WORDS: usize = 2;
/// Rows of a tile, and of one where no adapter has more.
const TILES: [usize; 2] = [64, 16];

/// One of an adapter's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// Sizes of a batch, and of its table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Batch {
    pub(super) rows: usize,
    /// Rows of any adapter.
    adapted: usize,
    /// Rows of the adapter that has most.
    most_rows: usize,
    adapters: usize,
    /// The largest.
    rank: usize,
    /// All ranks together.
    pool: usize,
    /// Rows of a tile.
    tile: usize,
    /// Tiles of the adapters' rows.
    tiles: usize,
    /// Tiles of all rows.
    all_tiles: usize,
    drops: bool,
}

impl Batch {
    /// The shape of the product with the first factors.
    pub(super) fn inner(&self) -> [usize; 2] {
        [self.adapted, self.rank]
    }

    /// The shape of the gradient of all factors of that side, each of which is so wide.
    pub(super) fn gradient(&self, side: Side, width: usize) -> [usize; 2] {
        match side {
            Side::A => [self.pool, width],
            Side::B => [width, self.pool],
        }
    }

    /// The sizes, and the table: the adapters and what stands for none, the tiles, the rows in their order.
    fn new(factors: &[Factor], order: &Order) -> (Self, Vec<u32>) {
        let rows = order.rows.len();
        let most_rows = order.counts.iter().copied().max().unwrap_or_default();
        let [large, small] = TILES;
        let tile = if most_rows <= small { small } else { large };
        let mut batch = Self {
            rows,
            adapted: order.counts.iter().sum(),
            most_rows,
            adapters: factors.len(),
            rank: factors.iter().map(|factor| factor.rank).max().unwrap_or_default(),
            pool: factors.iter().map(|factor| factor.rank).sum(),
            tile,
            tiles: 0,
            all_tiles: 0,
            drops: factors.iter().any(|factor| factor.keep.is_some()),
        };
        let nobody = Factor { from: 0, rank: 0, scale: 0.0, keep: None };
        let (mut table, mut tiles) = (Vec::new(), Vec::new());
        let mut first = 0;
        let counts = order.counts.iter().copied().chain([rows - batch.adapted]);
        for (owner, (factor, count)) in factors.iter().chain([&nobody]).zip(counts).enumerate() {
            let (low, high, bound, kept) = factor.keep.map_or((0, 0, 0, 1.0), Keep::parts);
            let end = first + count;
            let sizes: [usize; 4] = [factor.from, factor.rank, first, end];
            table.extend(sizes.map(launch::small));
            table.extend([factor.scale.to_bits(), low, high, bound, kept.to_bits()]);
            tiles.extend((first..end).step_by(tile).flat_map(|from| [owner, from]).map(launch::small));
            first = end;
            if owner < batch.adapters {
                batch.tiles = tiles.len() / TILE_WORDS;
            }
        }
        batch.all_tiles = tiles.len() / TILE_WORDS;
        table.extend(tiles);
        table.extend(order.rows.iter().copied().map(launch::small));
        (batch, table)
    }
}

/// The operation.
#[derive(Debug, Clone)]
pub(in crate::ops) struct LowRankByRows {
    table: IntTensor<Gpu>,
    batch: Batch,
}

impl LowRankByRows {
    /// Adds to the rows of `y` what each one's adapter makes of the same row of `x`.
    pub(in crate::ops) fn run(
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
pub(in crate::ops) struct Saved {
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
