//! A linear layer with its low-rank adapter, as nodes that have one inside compute it.

use rayon::prelude::*;

use crate::kernels::{
    dropout_mask::Keep,
    host::{
        self, Host,
        matrix::Matrix,
        product::{Before, Output, Target, Threads, product},
    },
    quantized::{frozen::Frozen, reader::HostPacked},
};

/// Tokens whose part of an adapter one thread computes at a time.
const ROWS: usize = 128;

/// How a linear layer is computed.
#[derive(Debug, Clone)]
pub(crate) struct Projection {
    pub(crate) scale: f32,
    /// What is kept of the adapter's input.
    pub(crate) keep: Option<Keep>,
    /// The weight, where it is no tensor.
    pub(crate) packed: Option<HostPacked>,
}

/// What the pass back needs of a linear layer beside its input.
#[derive(Debug, Clone)]
pub(crate) struct SavedProjection {
    pub(crate) weight: Host,
    pub(crate) low_rank: Option<SavedLowRank>,
}

#[derive(Debug, Clone)]
pub(crate) struct SavedLowRank {
    a: Host,
    b: Host,
    /// `scale · drop(x) Aᵀ`, `[tokens, rank]`.
    inner: Vec<f32>,
}

impl SavedProjection {
    pub(crate) fn tensors(&mut self) -> impl Iterator<Item = &mut Host> {
        let factors = self.low_rank.iter_mut().flat_map(|factors| [&mut factors.a, &mut factors.b]);
        std::iter::once(&mut self.weight).chain(factors)
    }
}

/// What follows from the gradient of a linear layer's result without its input.
#[derive(Debug, Default)]
pub(crate) struct Back {
    /// The gradient of the bias.
    pub(crate) bias: Option<Host>,
    /// The gradient of the outer factor.
    pub(crate) b: Option<Host>,
    /// The gradient of `drop(x) Aᵀ`, `[tokens, rank]`.
    pub(crate) outer: Vec<f32>,
}

impl Projection {
    /// Draws what the adapter drops of its input.
    pub(crate) fn new(scale: f64, drop: f64, packed: Option<HostPacked>) -> Self {
        let keep = (drop > 0.0).then(|| Keep::draw(drop));
        Self { scale: scale as f32, keep, packed }
    }

    pub(crate) fn frozen<'a>(&'a self, weight: &'a Host) -> Frozen<'a> {
        self.packed.as_ref().map_or_else(|| Frozen::Dense(Matrix::of(weight)), Frozen::Packed)
    }

    /// `[d_in, d_out]`.
    pub(crate) fn dims(&self, saved: &SavedProjection) -> [usize; 2] {
        self.frozen(&saved.weight).dims()
    }

    /// The layer's result, `[tokens, d_out]`, from the elements of its input and its weight, bias and factors.
    pub(crate) fn forward(&self, x: &[f32], [weight, bias, a, b]: [Option<Host>; 4]) -> (Host, SavedProjection) {
        let weight = weight.unwrap_or_else(|| host::tensor(Vec::new(), &[0, 0]));
        let bias = bias.map(host::whole);
        let frozen = self.frozen(&weight);
        let [d_in, d_out] = frozen.dims();
        let tokens = x.len() / d_in.max(1);
        let mut inner = Vec::new();
        let y = host::written(tokens * d_out, |y| {
            let y = match &bias {
                // Memory that is new has to be touched once anyway: with the bias, to which the product is added.
                Some(bias) => {
                    let bias = host::values(bias);
                    let y = host::new_pieces(
                        y,
                        d_out,
                        #[inline(always)]
                        |_, y| y.chunks_exact_mut(d_out).for_each(|row| row.copy_from_slice(bias)),
                    );
                    Output::Old(y, Before::Kept)
                }
                None => Output::New(y),
            };
            let y = frozen.multiply(y, Matrix::new(x, [tokens, d_in]));
            if let (Some(a), Some(b)) = (&a, &b) {
                inner = self.add_low_rank(x, Matrix::of(a), Matrix::of(b), y);
            }
            y
        });
        let low_rank = a.zip(b).map(|(a, b)| SavedLowRank { a, b, inner });
        (host::tensor(y, &[tokens, d_out]), SavedProjection { weight, low_rank })
    }

    /// Rows `from..` of the adapter's input; dropped elements need a copy.
    pub(crate) fn input<'a>(
        &self,
        x: &'a [f32],
        width: usize,
        from: usize,
        rows: usize,
        scratch: &'a mut Vec<f32>,
    ) -> Matrix<'a> {
        let piece = host::part(x, from * width, rows * width);
        let Some(keep) = self.keep else { return Matrix::new(piece, [rows, width]) };
        scratch.clear();
        scratch.extend_from_slice(piece);
        keep.apply_vectorised(from * width, scratch);
        Matrix::new(scratch, [rows, width])
    }

    /// Adds the adapter's part to `y` and returns its inner product.
    pub(crate) fn add_low_rank(&self, x: &[f32], a: Matrix<'_>, b: Matrix<'_>, y: &mut [f32]) -> Vec<f32> {
        let ([rank, d_in], [d_out, _]) = (a.dims(), b.dims());
        let tokens = x.len() / d_in;
        let mut inner = vec![0.0; tokens * rank];
        let blocks = inner.par_chunks_mut(ROWS * rank).zip(y.par_chunks_mut(ROWS * d_out)).enumerate();
        blocks.for_each_init(Vec::new, |scratch, (index, (inner, y))| {
            let rows = inner.len() / rank;
            let input = self.input(x, d_in, index * ROWS, rows, scratch);
            product(Target::new(inner, [rows, rank]), Before::Lost, self.scale, input, a.t(), Threads::One);
            let inner = Matrix::new(inner, [rows, rank]);
            product(Target::new(y, [rows, d_out]), Before::Kept, 1.0, inner, b.t(), Threads::One);
        });
        inner
    }

    /// The gradients of the bias and the outer factor, as far as they are needed, from that of the result; writes the input's to
    /// `dx`, if that is there, or adds it, and gives that back, all of it written.
    pub(crate) fn back<'m>(
        &self,
        saved: &SavedProjection,
        grad: &[f32],
        dx: Option<Output<'m>>,
        [_, needs_bias, needs_a, needs_b]: [bool; 4],
    ) -> (Back, &'m mut [f32]) {
        let frozen = self.frozen(&saved.weight);
        let [d_in, d_out] = frozen.dims();
        let tokens = grad.len() / d_out.max(1);
        let needs_x = dx.is_some();
        let filled =
            dx.map_or_else(Default::default, |dx| frozen.multiply_back(dx, Matrix::new(grad, [tokens, d_out])));
        let bias = needs_bias.then(|| host::tensor(host::column_sums(grad, d_out), &[d_out]));
        let Some(SavedLowRank { a, b, inner }) = &saved.low_rank else {
            return (Back { bias, ..Back::default() }, filled);
        };
        let (a, b) = (Matrix::of(a), Matrix::of(b));
        let [rank, _] = a.dims();
        let part = part_of(tokens);
        let mut outer = vec![0.0; if needs_a || needs_x { tokens * rank } else { 0 }];
        let count = tokens.div_ceil(part);
        let work = split(&mut outer, part * rank, count).zip(split(filled, part * d_in, count)).enumerate();
        let parts: Vec<Vec<f32>> = work
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(index, (outer, dx))| {
                let mut db = vec![0.0; if needs_b { rank * d_out } else { 0 }];
                let mut back = Vec::new();
                let start = index * part;
                for from in (start..tokens.min(start + part)).step_by(ROWS) {
                    let rows = ROWS.min(tokens.min(start + part) - from);
                    let grad = Matrix::new(host::part(grad, from * d_out, rows * d_out), [rows, d_out]);
                    if needs_b {
                        let inner = Matrix::new(host::part(inner, from * rank, rows * rank), [rows, rank]);
                        product(Target::new(&mut db, [d_out, rank]), Before::Kept, 1.0, grad.t(), inner, Threads::One);
                    }
                    let at = from - start;
                    let Some(outer) = outer.get_mut(at * rank..(at + rows) * rank) else { continue };
                    product(Target::new(outer, [rows, rank]), Before::Lost, self.scale, grad, b, Threads::One);
                    let outer = Matrix::new(outer, [rows, rank]);
                    let Some(dx) = dx.get_mut(at * d_in..(at + rows) * d_in) else { continue };
                    let Some(keep) = self.keep else {
                        product(Target::new(dx, [rows, d_in]), Before::Kept, 1.0, outer, a, Threads::One);
                        continue;
                    };
                    back.resize(rows * d_in, 0.0);
                    product(Target::new(&mut back, [rows, d_in]), Before::Lost, 1.0, outer, a, Threads::One);
                    keep.apply_vectorised(from * d_in, &mut back);
                    dx.iter_mut().zip(&back).for_each(|(dx, back)| *dx += back);
                }
                db
            })
            .collect();
        (Back { bias, b: needs_b.then(|| host::tensor(sum(parts), &[d_out, rank])), outer }, filled)
    }

    /// The gradient of the inner factor, from the elements of the layer's input.
    pub(crate) fn inner_gradient(&self, saved: &SavedProjection, x: &[f32], back: &Back) -> Option<Host> {
        let ([rank, d_in], outer) = (Matrix::of(&saved.low_rank.as_ref()?.a).dims(), &back.outer);
        let tokens = x.len() / d_in.max(1);
        let part = part_of(tokens);
        let parts: Vec<Vec<f32>> = (0..tokens.div_ceil(part))
            .into_par_iter()
            .map(|index| {
                let (mut da, mut scratch) = (vec![0.0; rank * d_in], Vec::new());
                let start = index * part;
                for from in (start..tokens.min(start + part)).step_by(ROWS) {
                    let rows = ROWS.min(tokens.min(start + part) - from);
                    let outer = Matrix::new(host::part(outer, from * rank, rows * rank), [rows, rank]);
                    let input = self.input(x, d_in, from, rows, &mut scratch);
                    product(Target::new(&mut da, [rank, d_in]), Before::Kept, 1.0, outer.t(), input, Threads::One);
                }
                da
            })
            .collect();
        Some(host::tensor(sum(parts), &[rank, d_in]))
    }
}

/// Tokens of which one thread makes a sum. It follows from their number alone, so that the sums' bits do too; they are no more than
/// a few, for each is as large as a factor.
fn part_of(tokens: usize) -> usize {
    ROWS.max(tokens.div_ceil(16))
}

/// Pieces of that size; as many empty ones of nothing.
fn split(memory: &mut [f32], size: usize, count: usize) -> impl Iterator<Item = &mut [f32]> {
    let missing = if memory.is_empty() { count } else { 0 };
    memory.chunks_mut(size.max(1)).chain((0..missing).map(|_| Default::default()))
}

fn sum(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, more)| *total += more);
    }
    total
}
