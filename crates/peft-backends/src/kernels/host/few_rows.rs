//! Products with few rows, as in writing a text token by token: they cost what reading the weight once costs.

use half::bf16;
use rayon::prelude::*;

use crate::kernels::host::{matrix::Matrix, vectorised};

/// Most rows that are few.
const FEW: usize = 4;

/// Elements of the other factor from which on handing out columns is worth it.
const MANY: usize = 1 << 15;

/// An element of the other factor.
pub(crate) trait Wide: Copy + Sync {
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
pub(crate) fn are_few(rows: usize, [inner, columns]: [usize; 2]) -> bool {
    rows <= FEW && inner * columns >= MANY
}

/// `a b`, row by row. Each thread reads one stretch of memory after the other; the order of each sum follows from the sizes
/// alone.
pub(crate) fn product<W: Wide>(a: Matrix<'_>, b: Matrix<'_, W>) -> Vec<f32> {
    if b.strides()[0] == 1 && a.strides()[1] == 1 { by_columns(a, b) } else { by_parts(a, b) }
}

/// Of a weight whose columns lie in one piece each.
fn by_columns<W: Wide>(a: Matrix<'_>, b: Matrix<'_, W>) -> Vec<f32> {
    const COLUMNS: usize = 64;
    let ([rows, _], [_, columns]) = (a.dims(), b.dims());
    let mut by_column = vec![0.0; columns * rows];
    by_column.par_chunks_mut(COLUMNS * rows).enumerate().for_each(|(piece, sums)| {
        vectorised(
            #[inline(always)]
            || {
                for (at, sums) in sums.chunks_exact_mut(rows).enumerate() {
                    let column = b.t().row(piece * COLUMNS + at);
                    for (row, sum) in sums.iter_mut().enumerate() {
                        *sum = dot(a.row(row), column);
                    }
                }
            },
        );
    });
    if rows == 1 {
        return by_column;
    }
    let mut out = vec![0.0; rows * columns];
    for (column, sums) in by_column.chunks_exact(rows).enumerate() {
        for (out, sum) in out.iter_mut().skip(column).step_by(columns).zip(sums) {
            *out = *sum;
        }
    }
    out
}

/// Of a weight whose rows lie in one piece each: sums over an eighth of its rows at a time.
fn by_parts<W: Wide>(a: Matrix<'_>, b: Matrix<'_, W>) -> Vec<f32> {
    const PARTS: usize = 8;
    let ([rows, inner], [_, columns]) = (a.dims(), b.dims());
    let part = inner.div_ceil(PARTS);
    let parts: Vec<Vec<f32>> = (0..inner.div_ceil(part))
        .into_par_iter()
        .map(|index| {
            let mut sums = vec![0.0; rows * columns];
            vectorised(
                #[inline(always)]
                || {
                    for at in index * part..inner.min((index + 1) * part) {
                        let weights = b.row(at);
                        for (row, sums) in sums.chunks_exact_mut(columns).enumerate() {
                            let x = a.at(row, at);
                            for (sum, weight) in sums.iter_mut().zip(weights) {
                                *sum = weight.wide().mul_add(x, *sum);
                            }
                        }
                    }
                },
            );
            sums
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (total, sum) in total.iter_mut().zip(part) {
            *total += sum;
        }
    }
    total
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
