//! The frozen matrix of a linear layer as the processor multiplies with it: dense, or packed and unpacked a band at a time.

use std::{cell::Cell, mem::MaybeUninit};

use rayon::prelude::*;

use crate::kernels::{
    host::{
        lanes2,
        matrix::Matrix,
        new_pieces,
        product::{Before, Output, Target, Threads, product},
        vectorised,
    },
    quantized::reader::HostPacked,
};

/// Elements that are unpacked at a time: 4 MiB, small beside any model and large enough for the product's own blocks.
const BAND: usize = 1 << 20;

/// Rows of an input up to which each output is a sum by itself: a product would first lay out the whole matrix anew.
const FEW: usize = 8;

thread_local! {
    /// Where bands are unpacked to.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `W`, `[d_in, d_out]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Frozen<'a> {
    Dense(Matrix<'a>),
    Packed(&'a HostPacked),
}

impl Frozen<'_> {
    /// `[d_in, d_out]`.
    pub(crate) fn dims(self) -> [usize; 2] {
        match self {
            Self::Dense(matrix) => matrix.dims(),
            Self::Packed(packed) => [packed.dims[1], packed.dims[0]],
        }
    }

    /// `y = x W`, or that added to it. Gives back the memory of `y`, all of it written.
    pub(crate) fn multiply<'m>(self, mut y: Output<'m>, x: Matrix<'_>) -> &'m mut [f32] {
        let [tokens, _] = x.dims();
        let [_, d_out] = self.dims();
        match self {
            Self::Dense(matrix) => return y.of_product(1.0, x, matrix, Threads::All),
            Self::Packed(packed) if tokens <= FEW => {
                let (y, before) = y.zeroed();
                few(packed, y, before, x);
                return y;
            }
            Self::Packed(packed) => bands(packed, |first, band| {
                let dims = [tokens, band.dims()[0]];
                let (y, before) = y.shared();
                // SAFETY: `y` is borrowed mutably, and this is the only part of it that is there.
                #[expect(unsafe_code, reason = "the argument stands above")]
                let y = unsafe { y.part(first, dims, d_out) };
                product(y, before, 1.0, x, band.t(), Threads::All);
            }),
        }
        // SAFETY: the bands together have all outputs, and a product writes its whole target, here every row's stretch of them.
        #[expect(unsafe_code, reason = "the argument stands above")]
        unsafe {
            y.written(tokens * d_out)
        }
    }

    /// `dx = dy Wᵀ`, or that added to it. Gives back the memory of `dx`, all of it written.
    pub(crate) fn multiply_back<'m>(self, dx: Output<'m>, dy: Matrix<'_>) -> &'m mut [f32] {
        let [tokens, _] = dy.dims();
        let [d_in, _] = self.dims();
        match self {
            Self::Dense(matrix) => dx.of_product(1.0, dy, matrix.t(), Threads::All),
            Self::Packed(packed) => {
                let mut dx = Some(dx);
                let mut filled: &'m mut [f32] = &mut [];
                bands(packed, |first, band| {
                    let dy = dy.columns(first, first + band.dims()[0]);
                    match dx.take() {
                        Some(dx) => filled = dx.of_product(1.0, dy, band, Threads::All),
                        None => {
                            let target = Target::new(filled, [tokens, d_in]);
                            product(target, Before::Kept, 1.0, dy, band, Threads::All);
                        }
                    }
                });
                // Without outputs there is no band.
                dx.map_or(filled, |dx| dx.zeroed().0)
            }
        }
    }
}

/// Calls `f` on one band after the other: the place of its first output, and its part of `Wᵀ`, `[outputs, d_in]`.
fn bands(packed: &HostPacked, mut f: impl FnMut(usize, Matrix<'_>)) {
    let [d_out, d_in] = packed.dims;
    let rows = (BAND / d_in.max(1)).clamp(1, d_out.max(1));
    // Taken out, not borrowed: a thread that waits may meanwhile do a part of another product.
    let mut scratch = SCRATCH.take();
    if scratch.len() < rows * d_in {
        scratch.resize(rows * d_in, 0.0);
    }
    for first in (0..d_out).step_by(rows) {
        let count = rows.min(d_out - first);
        let Some(band) = scratch.get_mut(..count * d_in) else { continue };
        unpack(packed, first * d_in, band);
        f(first, Matrix::new(band, [count, d_in]));
    }
    SCRATCH.set(scratch);
}

/// All elements, on all threads, in memory to which nothing was written.
pub(crate) fn unpack_new<'m>(packed: &HostPacked, out: &'m mut [MaybeUninit<f32>]) -> &'m mut [f32] {
    let reader = packed.reader();
    new_pieces(
        out,
        1,
        #[inline(always)]
        |start, out| reader.read(start, out),
    )
}

/// Elements from `start` on, on all threads.
fn unpack(packed: &HostPacked, start: usize, out: &mut [f32]) {
    /// Elements that one thread takes at a time.
    const PIECE: usize = 1 << 14;
    let reader = packed.reader();
    out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
        vectorised(
            #[inline(always)]
            || reader.read(start + piece * PIECE, out),
        );
    });
}

/// `multiply` for a few rows: every row of `Wᵀ` is unpacked once, into a cache, and multiplied with each row of the input.
fn few(packed: &HostPacked, y: &mut [f32], before: Before, x: Matrix<'_>) {
    /// Outputs that one thread takes at a time.
    const OUTPUTS: usize = 32;
    let ([d_out, d_in], [tokens, _]) = (packed.dims, x.dims());
    let reader = packed.reader();
    let mut sums = vec![0.0; d_out * tokens];
    let parts = sums.par_chunks_mut(OUTPUTS * tokens.max(1)).enumerate();
    parts.for_each_init(
        || vec![0.0; d_in],
        |row, (part, sums)| {
            vectorised(
                #[inline(always)]
                || {
                    for (output, sums) in (part * OUTPUTS..).zip(sums.chunks_mut(tokens)) {
                        reader.read(output * d_in, row);
                        for (token, sum) in sums.iter_mut().enumerate() {
                            *sum = lanes2(x.row(token), row, |a, b| a * b);
                        }
                    }
                },
            );
        },
    );
    for (token, y) in y.chunks_mut(d_out.max(1)).enumerate() {
        for (y, sums) in y.iter_mut().zip(sums.chunks(tokens.max(1))) {
            let sum = sums.get(token).copied().unwrap_or_default();
            *y = if before == Before::Kept { *y + sum } else { sum };
        }
    }
}
