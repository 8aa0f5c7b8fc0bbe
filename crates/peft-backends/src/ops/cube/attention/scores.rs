//! What all kernels of attention have in common: which keys a query sees, and how scores become weights.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{HIDDEN, Scores, tiles::tile};
use crate::ops::cube::{
    dropout::{Seed, factor},
    launch,
    soft_cap::{capped, slope_of_capped},
};

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) tile: usize,
    pub(super) dim: usize,
    pub(super) width: usize,
    pub(super) causal: bool,
    pub(super) window: bool,
    pub(super) hides: bool,
    pub(super) blind: bool,
    pub(super) examples: bool,
    pub(super) caps: bool,
    pub(super) drops: bool,
}

/// Numbers that kernels are given.
#[derive(CubeLaunch, CubeType)]
pub(super) struct Numbers {
    pub(super) queries: u32,
    pub(super) keys: u32,
    pub(super) heads: u32,
    pub(super) key_heads: u32,
    pub(super) before: u32,
    pub(super) after: u32,
    pub(super) scale: f32,
    pub(super) cap: f32,
    pub(super) seed: Seed,
}

/// How large all is.
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) plan: Plan,
}

impl Sizes {
    pub(super) fn of(q: &CubeTensor, k: &CubeTensor, v: &CubeTensor, scores: &Scores) -> Self {
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

    pub(super) fn numbers(&self, scores: &Scores) -> NumbersLaunch {
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
pub(super) fn sees(
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
pub(super) fn is_blind(marks: &[i32], batch: usize, query: usize, numbers: &Numbers, #[comptime] plan: Plan) -> bool {
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
pub(super) fn score(product: f32, numbers: &Numbers, #[comptime] plan: Plan) -> f32 {
    capped(product * numbers.scale, numbers.cap, comptime!(plan.caps))
}

/// What dropout leaves of a weight.
#[cube]
pub(super) fn kept(
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
pub(super) fn slope(own: f32, weight: f32, grad: f32, along: f32, numbers: &Numbers, #[comptime] plan: Plan) -> f32 {
    weight * (grad - along) * slope_of_capped(own, numbers.cap, comptime!(plan.caps))
}
