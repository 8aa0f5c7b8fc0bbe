//! The values that codes stand for: NF4 and FP4, and the map that bitsandbytes quantises the blocks' scales with.
//!
//! NF4: quantiles of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314). FP4: a sign, two bits of exponent and one
//! of mantissa. Map: Dettmers et al. 2022, arXiv:2110.02861, "dynamic" data type.

use std::cmp::Ordering;

/// Codes of four bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FourBit {
    /// `nf4`.
    Nf4,
    /// `fp4`.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

/// The values of both codes of a byte, the first in its high half.
pub(crate) type Pairs = [[f32; 2]; 256];

static NF4_PAIRS: Pairs = pairs(&NF4);

static FP4_PAIRS: Pairs = pairs(&FP4);

const fn pairs(values: &[f32; 16]) -> Pairs {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [values[byte >> 4], values[byte & 15]];
        byte += 1;
    }
    pairs
}

impl FourBit {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// What the codes stand for.
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    pub(crate) fn pairs(self) -> &'static Pairs {
        match self {
            Self::Nf4 => &NF4_PAIRS,
            Self::Fp4 => &FP4_PAIRS,
        }
    }

    /// The code of each value in ascending order, and between neighbours the largest number that still belongs to the lower.
    pub(crate) fn sorted(self) -> ([u8; 16], [f32; 15]) {
        let values = self.values();
        let of = |code: u8| values.get(usize::from(code)).copied().unwrap_or_default();
        let mut order: [u8; 16] = std::array::from_fn(|code| code as u8);
        // Both zeros are equal, and stay in their order.
        order.sort_by(|a, b| of(*a).partial_cmp(&of(*b)).unwrap_or(Ordering::Equal));
        let mut bounds = [0.0; 15];
        for (bound, pair) in bounds.iter_mut().zip(order.windows(2)) {
            if let [low, high] = pair {
                *bound = f32::midpoint(of(*low), of(*high));
            }
        }
        (order, bounds)
    }
}

/// 256 values in ascending order, dense around zero: what scales of blocks are quantised with.
pub(crate) fn dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for exponent in 0..7 {
        let items = 1_usize << exponent;
        let step = (1.0_f32 - 0.1) / items as f32;
        // Counted from the nearer end, as the library that made the files that exist does.
        let edge = |at: usize| match at < items.div_ceil(2) {
            true => step.mul_add(at as f32, 0.1),
            false => (-step).mul_add((items - at) as f32, 1.0),
        };
        for at in 0..items {
            let value = 10.0_f64.powi(exponent - 6) as f32 * ((edge(at) + edge(at + 1)) / 2.0);
            map.extend([value, -value]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}
