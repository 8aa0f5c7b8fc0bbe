//! Low-rank adapters of which each acts on its own rows: a launch for each product, whatever their number.
//!
//! A table in the GPU's memory says which rows are whose and where the factors lie in their pool. Rows stand in it adapter by
//! adapter, so that a tile of a product has one adapter's alone, and those of no adapter come last.

use crate::kernels::{
    cube::launch,
    dropout_mask::Keep,
    low_rank_rows::{Factor, Order},
};

/// Words of the table on each adapter.
pub(crate) const WORDS: usize = 9;

/// Words of the table on each tile: its adapter, and where in the order it begins.
pub(crate) const TILE_WORDS: usize = 2;

/// Rows of a tile, and of one where no adapter has more.
const TILES: [usize; 2] = [64, 16];

/// One of an adapter's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

/// Sizes of a batch, and of its table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Batch {
    pub(crate) rows: usize,
    /// Rows of any adapter.
    pub(crate) adapted: usize,
    /// Rows of the adapter that has most.
    pub(crate) most_rows: usize,
    pub(crate) adapters: usize,
    /// The largest.
    pub(crate) rank: usize,
    /// All ranks together.
    pub(crate) pool: usize,
    /// Rows of a tile.
    pub(crate) tile: usize,
    /// Tiles of the adapters' rows.
    pub(crate) tiles: usize,
    /// Tiles of all rows.
    pub(crate) all_tiles: usize,
    pub(crate) drops: bool,
}

impl Batch {
    /// The shape of the product with the first factors.
    pub(crate) fn inner(&self) -> [usize; 2] {
        [self.adapted, self.rank]
    }

    /// The shape of the gradient of all factors of that side, each of which is so wide.
    pub(crate) fn gradient(&self, side: Side, width: usize) -> [usize; 2] {
        match side {
            Side::A => [self.pool, width],
            Side::B => [width, self.pool],
        }
    }

    /// The sizes, and the table: the adapters and what stands for none, the tiles, the rows in their order.
    pub(crate) fn new(factors: &[Factor], order: &Order) -> (Self, Vec<u32>) {
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
