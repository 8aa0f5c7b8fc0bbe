//! Dropout that drops what the processor's drops: it follows from a seed and a place alone.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{Gpu, Kernels, OnGpu, all, launch};
use crate::ops::{dropout::Keep, node::Node};

/// The operation.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Dropout(pub(in crate::ops) Keep);

impl Node<Gpu, 1> for Dropout {
    type Saved = ();

    fn forward(&self, inputs: [Option<OnGpu>; 1], _: [bool; 1]) -> (OnGpu, ()) {
        let [x] = all(inputs);
        (Gpu::dropout(x, self.0), ())
    }

    fn backward(self, (): (), grad: OnGpu, _: [bool; 1]) -> [Option<OnGpu>; 1] {
        [Some(Gpu::dropout(grad, self.0))]
    }
}

/// A [`Keep`] as kernels take it.
#[derive(CubeLaunch, CubeType)]
pub(super) struct Seed {
    low: u32,
    high: u32,
    bound: u32,
    scale: f32,
}

impl Seed {
    /// What keeps everything, where there is no dropout.
    pub(super) fn launch(keep: Option<Keep>) -> SeedLaunch {
        let (low, high, bound, scale) = keep.map_or((0, 0, 0, 1.0), Keep::parts);
        SeedLaunch::new(low, high, bound, scale)
    }
}

pub(super) fn dropout(x: CubeTensor, keep: Keep) -> CubeTensor {
    let x = launch::whole(x);
    let (y, client, element) = (launch::empty_like(&x), x.client.clone(), launch::element(&x));
    let (count, dim) = launch::units(&client, x.meta.num_elements());
    let seed = Seed::launch(Some(keep));
    dropout_kernel::launch(&client, count, dim, x.into_buffer_arg(), y.clone().into_buffer_arg(), seed, element);
    y
}

#[cube(launch)]
fn dropout_kernel<F: Float>(x: &[F], y: &mut [F], seed: Seed, #[define(F)] _dtype: ElemType) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let kept = f32::cast_from(x[ABSOLUTE_POS]) * factor(ABSOLUTE_POS as u32, &seed);
    y[ABSOLUTE_POS] = F::cast_from(kept);
}

/// A [`Keep`] of which a table has the parts.
#[cube]
pub(super) fn seed_of(table: &[u32], at: usize) -> Seed {
    Seed { low: table[at], high: table[at + 1], bound: table[at + 2], scale: f32::from_bits(table[at + 3]) }
}

/// What the element at this place is multiplied with.
#[cube]
pub(super) fn factor(place: u32, seed: &Seed) -> f32 {
    select(mix(mix(place ^ seed.low) + seed.high) >= seed.bound, seed.scale, 0.0f32)
}

/// As the processor's.
#[cube]
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15)) * 0x846c_a68bu32;
    x ^ (x >> 16)
}
