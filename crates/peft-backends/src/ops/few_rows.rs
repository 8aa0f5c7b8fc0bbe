//! Products with few rows, as in writing a text token by token: they cost what reading the weight once costs.

use half::bf16;
use rayon::prelude::*;

use super::{host::vectorised, product::Matrix};

/// Most rows that are few.
const FEW: usize = 4;
/// Elements of the other factor from which on handing out columns is worth it.
const MANY: usize = 1 << 15;

/// An element of the other factor.
pub(super) trait Wide: Copy + Sync {
    fn wide(self) -> f32;
}

impl Wide for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Wide for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Whether a product of these sizes is computed here.
pub(super) fn are_few(rows: usize, [inner, columns]: [usize; 2]) -> bool {
    rows <= FEW && inner * columns >= MANY
}

/// `a b`, row by row. The order of each sum follows from the sizes alone.
pub(super) fn product<W: Wide>(a: Matrix<'_>, b: Matrix<'_, W>) -> Vec<f32> {
    let ([rows, _], [_, columns]) = (a.dims(), b.dims());
    // As many pieces as keep all threads busy to the end, each wide enough to be read in one go.
    let width = columns.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(16).max(64);
    let pieces: Vec<Vec<f32>> = (0..columns.div_ceil(width))
        .into_par_iter()
        .map(|piece| {
            let from = piece * width;
            let count = width.min(columns - from);
            let mut sums = vec![0.0; rows * count];
            for (row, sums) in sums.chunks_exact_mut(count).enumerate() {
                vectorised(
                    #[inline(always)]
                    || row_of(a, row, b, from, sums),
                );
            }
            sums
        })
        .collect();
    let mut out = vec![0.0; rows * columns];
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        for (out, sums) in out.chunks_mut(width).zip(&pieces) {
            let from = row * out.len();
            out.copy_from_slice(sums.get(from..from + out.len()).unwrap_or_default());
        }
    }
    out
}

/// Some columns of one row.
#[inline(always)]
fn row_of<W: Wide>(a: Matrix<'_>, row: usize, b: Matrix<'_, W>, from: usize, sums: &mut [f32]) {
    let [inner, _] = b.dims();
    if b.strides()[0] == 1 && a.strides()[1] == 1 {
        let x = a.row(row);
        for (column, sum) in (from..).zip(sums) {
            *sum = dot(x, b.t().row(column));
        }
        return;
    }
    for at in 0..inner {
        let x = a.at(row, at);
        let weights = b.part_of_row(at, from, sums.len());
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = weight.wide().mul_add(x, *sum);
        }
    }
}

/// In 32 lanes: enough sums at a time that none waits for the one before.
#[inline(always)]
fn dot<W: Wide>(a: &[f32], b: &[W]) -> f32 {
    let mut lanes = [0.0_f32; 32];
    let (a, b) = (a.chunks_exact(32), b.chunks_exact(32));
    let mut rest = 0.0;
    for (a, b) in a.remainder().iter().zip(b.remainder()) {
        rest = b.wide().mul_add(*a, rest);
    }
    for (a, b) in a.zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = b.wide().mul_add(*a, *lane);
        }
    }
    for lane in lanes {
        rest += lane;
    }
    rest
}
