//! The autodiff node of low-rank adapters by rows on the processor: the forward pass, what it keeps, and the backward pass.

use rayon::prelude::*;

use crate::{
    kernels::{
        dropout_mask::Keep,
        host::{
            self, Host,
            matrix::Matrix,
            product::{Before, Output, Target, Threads, product},
        },
        low_rank_rows::{Factor, Run},
    },
    nodes::node::{Fused, Kept},
};

/// Rows that one thread computes at a time.
const ROWS: usize = 128;

/// Most parts of which the sum of one adapter's gradient is made.
const PARTS: usize = 16;

#[derive(Debug, Clone)]
pub(crate) struct ByRows {
    pub(crate) factors: Vec<Factor>,
    pub(crate) runs: Vec<Run>,
}

#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// Only where a gradient needs it.
    x: Option<Host>,
    a: Host,
    b: Host,
    /// `scale · drop(x) Aᵀ` of each piece.
    inner: Vec<Vec<f32>>,
}

impl Kept for Saved {
    fn tensors(&mut self) -> Vec<&mut Host> {
        self.x.iter_mut().chain([&mut self.a, &mut self.b]).collect()
    }
}

/// A few rows of one adapter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    from: usize,
    rows: usize,
    adapter: usize,
}

impl ByRows {
    /// The runs in pieces that one thread computes at a time; their sizes follow from the runs alone, and so do all bits.
    pub(crate) fn pieces(&self) -> Vec<Piece> {
        let of = |run: &Run| {
            let Run { rows, adapter } = run.clone();
            let starts = rows.clone().step_by(ROWS);
            starts.map(move |from| Piece { from, rows: ROWS.min(rows.end - from), adapter })
        };
        self.runs.iter().flat_map(of).collect()
    }

    /// Rows of the adapter's input; dropped elements need a copy.
    pub(crate) fn input<'a>(keep: Option<Keep>, x: Matrix<'a>, piece: Piece, scratch: &'a mut Vec<f32>) -> Matrix<'a> {
        let input = x.rows(piece.from, piece.from + piece.rows);
        let Some(keep) = keep else { return input };
        let width = x.dims()[1];
        scratch.clear();
        (0..piece.rows).for_each(|row| scratch.extend_from_slice(input.row(row)));
        keep.apply_vectorised(piece.from * width, scratch);
        Matrix::new(scratch, [piece.rows, width])
    }

    pub(crate) fn add(&self, x: Matrix<'_>, a: Matrix<'_>, b: Matrix<'_>, y: &mut [f32]) -> Vec<Vec<f32>> {
        let d_out = b.dims()[0];
        let pieces = self.pieces();
        let parts = parts(y, d_out, &pieces);
        let of = |scratch: &mut Vec<f32>, (piece, y): (&Piece, &mut [f32])| {
            let Factor { from, rank, scale, keep } = self.factors[piece.adapter];
            let (a, b) = (a.rows(from, from + rank), b.columns(from, from + rank));
            let input = Self::input(keep, x, *piece, scratch);
            let inner = host::written(piece.rows * rank, |inner| {
                Output::New(inner).of_product(scale, input, a.t(), Threads::One)
            });
            let left = Matrix::new(&inner, [piece.rows, rank]);
            product(Target::new(y, [piece.rows, d_out]), Before::Kept, 1.0, left, b.t(), Threads::One);
            inner
        };
        pieces.par_iter().zip(parts).map_init(Vec::new, of).collect()
    }
}

/// Each piece's rows of memory whose rows are that wide.
pub(crate) fn parts<'a>(mut memory: &'a mut [f32], width: usize, pieces: &[Piece]) -> Vec<&'a mut [f32]> {
    let mut at = 0;
    let take = |piece: &Piece| {
        let (_, rest) = std::mem::take(&mut memory).split_at_mut((piece.from - at) * width);
        let (part, rest) = rest.split_at_mut(piece.rows * width);
        (memory, at) = (rest, piece.from + piece.rows);
        part
    };
    pieces.iter().map(take).collect()
}

/// Pieces of one adapter, whose gradients are summed up together.
type Part<'a> = Vec<(Piece, &'a [f32], Option<&'a mut [f32]>)>;

impl Fused<4> for ByRows {
    type Saved = Option<Saved>;

    fn forward(&self, inputs: [Option<Host>; 4], needs: [bool; 4]) -> (Host, Option<Saved>) {
        let [Some(y), Some(x), Some(a), Some(b)] = inputs else { unreachable!("all four are there") };
        let x = host::whole(x);
        let (left, pool) = (Matrix::of(&x), (Matrix::of(&a), Matrix::of(&b)));
        let mut y = host::whole(y);
        let dims = y.layout().shape().as_slice().to_vec();
        let (y, inner) = match y.try_storage_mut::<f32>() {
            Some(values) => {
                let inner = self.add(left, pool.0, pool.1, values);
                (y, inner)
            }
            None => {
                let mut copy = host::values(&y).to_vec();
                let inner = self.add(left, pool.0, pool.1, &mut copy);
                (host::tensor(copy, &dims), inner)
            }
        };
        let saved = needs.contains(&true).then(|| Saved { x: needs[2].then_some(x), a, b, inner });
        (y, saved)
    }

    fn backward(self, saved: Option<Saved>, grad: Host, needs: [bool; 4]) -> [Option<Host>; 4] {
        let Some(Saved { x, a, b, inner }) = saved else { return [const { None }; 4] };
        let grad = host::whole(grad);
        let [needs_y, needs_x, needs_a, needs_b] = needs;
        let (a, b) = (Matrix::of(&a), Matrix::of(&b));
        let ([pool, d_in], [d_out, _]) = (a.dims(), b.dims());
        let rows = host::values(&grad).len() / d_out;
        let dy = Matrix::new(host::values(&grad), [rows, d_out]);
        let x = x.as_ref().map(host::values);
        let pieces = self.pieces();
        // Rows of no adapter give nothing to the input's gradient here.
        let mut dx = needs_x.then(|| vec![0.0; rows * d_in]);
        let dx_parts: Vec<Option<&mut [f32]>> = match &mut dx {
            Some(dx) => parts(dx, d_in, &pieces).into_iter().map(Some).collect(),
            None => pieces.iter().map(|_| None).collect(),
        };
        let mut by_adapter: Vec<Part<'_>> = self.factors.iter().map(|_| Vec::new()).collect();
        for ((piece, inner), dx) in pieces.iter().zip(&inner).zip(dx_parts) {
            by_adapter[piece.adapter].push((*piece, inner, dx));
        }
        let mut jobs: Vec<(usize, Part<'_>)> = Vec::new();
        for (adapter, mut pieces) in by_adapter.into_iter().enumerate() {
            let size = pieces.len().div_ceil(PARTS).max(1);
            while !pieces.is_empty() {
                let rest = pieces.split_off(size.min(pieces.len()));
                jobs.push((adapter, std::mem::replace(&mut pieces, rest)));
            }
        }
        let sums: Vec<(usize, Vec<f32>, Vec<f32>)> = jobs
            .into_par_iter()
            .map(|(adapter, part)| {
                let Factor { from, rank, scale, keep } = self.factors[adapter];
                let (a, b) = (a.rows(from, from + rank), b.columns(from, from + rank));
                let size = |needed: bool, width: usize| if needed { rank * width } else { 0 };
                let (mut da, mut db) = (vec![0.0; size(needs_a, d_in)], vec![0.0; size(needs_b, d_out)]);
                let (mut scratch, mut outer) = (Vec::new(), Vec::new());
                for (piece, inner, dx) in part {
                    let dy = dy.rows(piece.from, piece.from + piece.rows);
                    if needs_b {
                        let inner = Matrix::new(inner, [piece.rows, rank]);
                        product(Target::new(&mut db, [d_out, rank]), Before::Kept, 1.0, dy.t(), inner, Threads::One);
                    }
                    if !needs_a && dx.is_none() {
                        continue;
                    }
                    outer.resize(piece.rows * rank, 0.0);
                    product(Target::new(&mut outer, [piece.rows, rank]), Before::Lost, scale, dy, b, Threads::One);
                    let outer = Matrix::new(&outer, [piece.rows, rank]);
                    if let (true, Some(x)) = (needs_a, x) {
                        let input = Self::input(keep, Matrix::new(x, [rows, d_in]), piece, &mut scratch);
                        product(Target::new(&mut da, [rank, d_in]), Before::Kept, 1.0, outer.t(), input, Threads::One);
                    }
                    if let Some(dx) = dx {
                        product(Target::new(dx, [piece.rows, d_in]), Before::Lost, 1.0, outer, a, Threads::One);
                        keep.inspect(|keep| keep.apply_vectorised(piece.from * d_in, dx));
                    }
                }
                (adapter, da, db)
            })
            .collect();
        let mut da = if needs_a { vec![0.0; pool * d_in] } else { Vec::new() };
        let mut db = if needs_b { vec![0.0; d_out * pool] } else { Vec::new() };
        for (adapter, more_a, more_b) in sums {
            let Factor { from, rank, .. } = self.factors[adapter];
            da.iter_mut().skip(from * d_in).zip(more_a).for_each(|(sum, more)| *sum += more);
            for (sums, more) in db.chunks_exact_mut(pool).zip(more_b.chunks_exact(rank)) {
                sums.iter_mut().skip(from).zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
        [
            needs_y.then(|| grad.clone()),
            dx.map(|dx| host::tensor(dx, &[rows, d_in])),
            needs_a.then(|| host::tensor(da, &[pool, d_in])),
            needs_b.then(|| host::tensor(db, &[d_out, pool])),
        ]
    }
}
