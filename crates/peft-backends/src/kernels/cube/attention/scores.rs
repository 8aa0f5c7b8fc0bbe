//! What all kernels of attention have in common: which keys a query sees, and how scores become weights.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::{
    cube::{
        dropout::{Seed, factor},
        launch,
        soft_cap::{capped, slope_of_capped},
    },
    dropout_mask::Keep,
};

/// Stands for a key that is hidden from all.
pub(crate) const HIDDEN: i32 = i32::MIN;

/// How scores become weights, as kernels take it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scores {
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) keep: Option<Keep>,
    pub(crate) causal: bool,
    pub(crate) window: Option<[usize; 2]>,
    pub(crate) hides: bool,
    /// Whether a query sees nothing, and so looks at all keys.
    pub(crate) blind: bool,
    pub(crate) examples: bool,
}

/// What the pass back is given.
#[derive(Debug, Clone)]
pub(crate) struct Backward {
    pub(crate) q: CubeTensor,
    pub(crate) k: CubeTensor,
    pub(crate) v: CubeTensor,
    pub(crate) grad: CubeTensor,
    pub(crate) log_sums: CubeTensor,
    pub(crate) along: CubeTensor,
    pub(crate) marks: CubeTensor,
    pub(crate) scores: Scores,
}

/// Shared memory in floats that every device has.
const SHARED: usize = 7 * 1024;

/// The edge of a square tile of scores: the rows of four such tiles share the memory of a cube.
pub(crate) fn tile([dim, width]: [usize; 2]) -> Option<usize> {
    [16, 8].into_iter().find(|tile| 3 * tile * dim.max(width) + 2 * tile * tile <= SHARED)
}

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub(crate) tile: usize,
    pub(crate) dim: usize,
    pub(crate) width: usize,
    pub(crate) causal: bool,
    pub(crate) window: bool,
    pub(crate) hides: bool,
    pub(crate) blind: bool,
    pub(crate) examples: bool,
    pub(crate) caps: bool,
    pub(crate) drops: bool,
}

/// Numbers that kernels are given.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Numbers {
    pub(crate) queries: u32,
    pub(crate) keys: u32,
    pub(crate) heads: u32,
    pub(crate) key_heads: u32,
    pub(crate) before: u32,
    pub(crate) after: u32,
    pub(crate) scale: f32,
    pub(crate) cap: f32,
    pub(crate) seed: Seed,
}

/// How large all is.
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) plan: Plan,
}

impl Sizes {
    pub(crate) fn of(q: &CubeTensor, k: &CubeTensor, v: &CubeTensor, scores: &Scores) -> Self {
        let ([batch, heads, queries, dim], [_, key_heads, keys, _], [_, _, _, width]) =
            (launch::dims(q), launch::dims(k), launch::dims(v));
        let Some(tile) = tile([dim, width]) else { unreachable!("heads of {dim} and {width} were found to fit") };
        let plan = Plan {
            tile,
            dim,
            width,
            causal: scores.causal,
            window: scores.window.is_some(),
            hides: scores.hides,
            blind: scores.blind,
            examples: scores.examples,
            caps: scores.soft_cap.is_some(),
            drops: scores.keep.is_some(),
        };
        Self { batch, heads, key_heads, queries, keys, plan }
    }

    pub(crate) fn numbers(&self, scores: &Scores) -> NumbersLaunch {
        let [before, after] = scores.window.unwrap_or_default().map(launch::small);
        NumbersLaunch::new(
            launch::small(self.queries),
            launch::small(self.keys),
            launch::small(self.heads),
            launch::small(self.key_heads),
            before,
            after,
            scores.scale,
            scores.soft_cap.unwrap_or(1.0),
            Seed::launch(scores.keep),
        )
    }
}

/// Whether a query sees a key, from what is not the same for all.
#[cube]
pub(crate) fn sees(
    marks: &[i32],
    batch: usize,
    query: usize,
    key: usize,
    numbers: &Numbers,
    #[comptime] plan: Plan,
) -> bool {
    let keys = numbers.keys as usize;
    let place = query + keys - numbers.queries as usize;
    let mut seen = key < keys;
    if comptime!(plan.causal) {
        seen = seen && key <= place;
    }
    if comptime!(plan.window) {
        seen = seen && key + numbers.before as usize >= place && key <= place + numbers.after as usize;
    }
    if comptime!(plan.hides || plan.examples) {
        // Behind the last key there is nothing to look at.
        let own = marks[batch * keys + min(key, keys - 1)];
        if comptime!(plan.hides) {
            seen = seen && own != HIDDEN;
        }
        if comptime!(plan.examples) {
            seen = seen && own == marks[batch * keys + min(place, keys - 1)];
        }
    }
    seen
}

/// Whether a query sees no key, and so looks at all alike.
#[cube]
pub(crate) fn is_blind(marks: &[i32], batch: usize, query: usize, numbers: &Numbers, #[comptime] plan: Plan) -> bool {
    let mut blind = false;
    if comptime!(plan.blind) {
        let (queries, keys) = (numbers.queries as usize, numbers.keys as usize);
        let batches = marks.len() / (queries + keys);
        blind = marks[batches * keys + batch * queries + min(query, queries - 1)] != 0;
    }
    blind
}

/// A product as a score.
#[cube]
pub(crate) fn score(product: f32, numbers: &Numbers, #[comptime] plan: Plan) -> f32 {
    capped(product * numbers.scale, numbers.cap, comptime!(plan.caps))
}

/// What dropout leaves of a weight.
#[cube]
pub(crate) fn kept(
    batch: usize,
    head: usize,
    query: usize,
    key: usize,
    numbers: &Numbers,
    #[comptime] plan: Plan,
) -> f32 {
    let mut kept = 1.0f32;
    if comptime!(plan.drops) {
        let place = (batch as u32 * numbers.heads + head as u32) * numbers.queries + query as u32;
        kept = factor(place * numbers.keys + key as u32, &numbers.seed);
    }
    kept
}

/// The gradient of a score, from the weight and the weight's gradient.
#[cube]
pub(crate) fn slope(own: f32, weight: f32, grad: f32, along: f32, numbers: &Numbers, #[comptime] plan: Plan) -> f32 {
    weight * (grad - along) * slope_of_capped(own, numbers.cap, comptime!(plan.caps))
}
