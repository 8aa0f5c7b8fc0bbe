//! Dropout that drops what the processor's drops: it follows from a seed and a place alone.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernels::{cube::launch, dropout_mask::Keep};

/// A [`Keep`] as kernels take it.
#[derive(CubeLaunch, CubeType)]
pub(crate) struct Seed {
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) bound: u32,
    pub(crate) scale: f32,
}

impl Seed {
    /// What keeps everything, where there is no dropout.
    pub(crate) fn launch(keep: Option<Keep>) -> SeedLaunch {
        let (low, high, bound, scale) = keep.map_or((0, 0, 0, 1.0), Keep::parts);
        SeedLaunch::new(low, high, bound, scale)
    }
}

pub(crate) fn dropout(x: CubeTensor, keep: Keep) -> CubeTensor {
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
pub(crate) fn seed_of(table: &[u32], at: usize) -> Seed {
    Seed { low: table[at], high: table[at + 1], bound: table[at + 2], scale: f32::from_bits(table[at + 3]) }
}

/// What the element at this place is multiplied with.
#[cube]
pub(crate) fn factor(place: u32, seed: &Seed) -> f32 {
    select(mix(mix(place ^ seed.low) + seed.high) >= seed.bound, seed.scale, 0.0f32)
}

/// As the processor's.
#[cube]
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15)) * 0x846c_a68bu32;
    x ^ (x >> 16)
}
