//! Which values dropout keeps: it follows from a seed and a position, so that no mask is kept.

use crate::kernels::host;

/// Which elements are kept, and what they are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Keep {
    pub(crate) low: u32,
    pub(crate) high: u32,
    /// The share of all 32-bit numbers that drops an element.
    pub(crate) bound: u32,
    pub(crate) scale: f32,
}

impl Keep {
    /// What is kept follows from the seed alone.
    pub(crate) fn new(seed: u64, drop: f64) -> Self {
        Self {
            low: seed as u32,
            high: (seed >> 32) as u32,
            bound: (drop * 4_294_967_296.0) as u32,
            scale: (1.0 / (1.0 - drop)) as f32,
        }
    }

    /// What the element at this place is multiplied with: 0 or the scale.
    #[inline(always)]
    pub(crate) fn factor(self, place: u32) -> f32 {
        let kept = mix(mix(place ^ self.low).wrapping_add(self.high)) >= self.bound;
        if kept { self.scale } else { 0.0 }
    }

    /// Drops from elements that begin at place `start`.
    #[inline(always)]
    pub(crate) fn apply(self, start: usize, piece: &mut [f32]) {
        // Places repeat after 2³² elements, which no tensor here has.
        let start = start as u32;
        for (offset, x) in piece.iter_mut().enumerate() {
            *x *= self.factor(start.wrapping_add(offset as u32));
        }
    }
}

#[cfg(feature = "gpu")]
impl Keep {
    /// The numbers that a kernel takes: the seed's halves, the bound and the scale.
    pub(crate) fn parts(self) -> (u32, u32, u32, f32) {
        (self.low, self.high, self.bound, self.scale)
    }
}

impl Keep {
    /// [`apply`](Self::apply) for callers that have not chosen vector instructions.
    pub(crate) fn apply_vectorised(self, start: usize, piece: &mut [f32]) {
        host::vectorised(
            #[inline(always)]
            || self.apply(start, piece),
        );
    }
}

/// Spreads each bit of a number over all 32 (Wellons, "Prospecting for hash functions", 2018).
#[inline(always)]
fn mix(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    let x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}
