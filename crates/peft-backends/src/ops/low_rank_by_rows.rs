//! Low-rank adapters of which each acts on its own rows, beside one frozen product for all of them.
//!
//! `y[rows of a] += s_a · drop(x[rows of a]) A_a B_a`. The factors of all adapters lie in one pool, one after the other, so that
//! ranks may differ and the graph has one node whatever their number; sums of a factor's gradient never cross into another
//! adapter's rows (Sheng et al. 2023, arXiv:2311.03285).

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use super::cube;
use super::{
    LowRank, dropout,
    dropout::Keep,
    host,
    node::{Fused, Host, Input, Kept, run},
    product::{Before, Matrix, Output, Target, Threads, product},
};

/// Rows that one thread computes at a time.
const ROWS: usize = 128;

/// Most parts of which the sum of one adapter's gradient is made.
const PARTS: usize = 16;

/// Rows side by side that one adapter acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The rows.
    pub rows: Range<usize>,
    /// The adapter's number.
    pub adapter: usize,
}

/// Adds to each run of rows what its adapter makes of the same rows of `x`; other rows stay as they are.
///
/// Runs stand in the order of the rows and do not overlap.
///
/// # Shapes
/// - `y`, returned: `[rows, d_out]`
/// - `x`: `[rows, d_in]`
/// - of each adapter: `[rank, d_in]` and `[d_out, rank]`
pub fn low_rank_by_rows(y: Tensor<2>, x: &Tensor<2>, adapters: Vec<LowRank>, runs: &[Run]) -> Tensor<2> {
    let runs: Vec<Run> = runs.iter().filter(|run| !run.rows.is_empty()).cloned().collect();
    let takes = |lora: &LowRank| host::takes(&lora.a) && host::takes(&lora.b) && lora.a.dims()[0] > 0;
    let [rows, d_out] = y.dims();
    let is_sound = runs.iter().all(|run| run.adapter < adapters.len() && run.rows.end <= rows)
        && runs.windows(2).all(|pair| matches!(pair, [one, other] if one.rows.end <= other.rows.start));
    assert!(is_sound, "runs in order, of {} adapters, within {rows} rows: {runs:?}", adapters.len());
    if runs.is_empty() {
        return y;
    }
    let of_one_type = |pair: &[LowRank]| matches!(pair, [one, other] if one.a.dtype() == other.a.dtype() && one.b.dtype() == other.b.dtype());
    let is_pool = adapters.windows(2).all(of_one_type);
    let draw = |lora: &LowRank| (lora.drop > 0.0).then(|| Keep::draw(lora.drop));
    #[cfg(feature = "gpu")]
    if is_pool && [&y, x].into_iter().chain(adapters.iter().flat_map(|lora| [&lora.a, &lora.b])).all(cube::takes) {
        let keeps = adapters.iter().map(draw).collect();
        let order = Order::new(&runs, adapters.len(), rows);
        let (factors, pools) = pooled(adapters, keeps);
        return cube::LowRankByRows::run(y, x, pools, &factors, &order);
    }
    if !is_pool || !host::takes(&y) || !host::takes(x) || !adapters.iter().all(takes) || d_out == 0 || x.dims()[1] == 0
    {
        return portable(y, x, &adapters, &runs);
    }
    let keeps = adapters.iter().map(draw).collect();
    fused(y, x, adapters, runs, keeps)
}

fn fused(y: Tensor<2>, x: &Tensor<2>, adapters: Vec<LowRank>, runs: Vec<Run>, keeps: Vec<Option<Keep>>) -> Tensor<2> {
    let (factors, [a, b]) = pooled(adapters, keeps);
    let op = ByRows { factors, runs };
    run(op, [Input::new(y), Input::new(x.clone()), Input::new(a), Input::new(b)])
}

/// The factors of all adapters one after the other, and where each one's lie.
fn pooled(adapters: Vec<LowRank>, keeps: Vec<Option<Keep>>) -> (Vec<Factor>, [Tensor<2>; 2]) {
    let mut from = 0;
    let factors = adapters.iter().zip(keeps).map(|(lora, keep)| {
        let rank = lora.a.dims()[0];
        from += rank;
        Factor { from: from - rank, rank, scale: lora.scale as f32, keep }
    });
    let factors = factors.collect();
    let (a, b): (Vec<_>, Vec<_>) = adapters.into_iter().map(|lora| (lora.a, lora.b)).unzip();
    let pool = |mut parts: Vec<Tensor<2>>, dim| if parts.len() > 1 { Tensor::cat(parts, dim) } else { parts.remove(0) };
    (factors, [pool(a, 0), pool(b, 1)])
}

/// All rows in the order of their adapters, those of none last.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) rows: Vec<usize>,
    /// How many rows each adapter has.
    pub(super) counts: Vec<usize>,
}

impl Order {
    fn new(runs: &[Run], adapters: usize, rows: usize) -> Self {
        let mut order: Vec<usize> = Vec::with_capacity(rows);
        let mut counts = Vec::with_capacity(adapters);
        for adapter in 0..adapters {
            let before = order.len();
            order.extend(runs.iter().filter(|run| run.adapter == adapter).flat_map(|run| run.rows.clone()));
            counts.push(order.len() - before);
        }
        let mut at = 0;
        for run in runs {
            order.extend(at..run.rows.start);
            at = run.rows.end;
        }
        order.extend(at..rows);
        Self { rows: order, counts }
    }
}

/// By plain operations: the rows are put in the order of their adapters, unless they are in it already, and come back in their own.
fn portable(y: Tensor<2>, x: &Tensor<2>, adapters: &[LowRank], runs: &[Run]) -> Tensor<2> {
    let [rows, _] = y.dims();
    let Order { rows: order, counts } = Order::new(runs, adapters.len(), rows);
    let is_sorted = order.is_sorted();
    let select = |x: Tensor<2>, rows: &[usize]| {
        let rows: Vec<i64> = rows.iter().map(|row| i64::try_from(*row).unwrap_or(i64::MAX)).collect();
        let count = rows.len();
        x.clone().select(0, Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &x.device().inner()))
    };
    let sorted = |x: Tensor<2>| if is_sorted { x } else { select(x, &order) };
    let (x, y) = (sorted(x.clone()), sorted(y));
    let mut at = 0;
    let mut parts = Vec::with_capacity(counts.len() + 1);
    for (LowRank { a, b, scale, drop }, count) in adapters.iter().zip(counts).filter(|(_, count)| *count > 0) {
        let x = x.clone().narrow(0, at, count);
        let x = dropout(if x.dtype() == a.dtype() { x } else { x.cast(a.dtype()) }, *drop);
        let product = x.matmul(a.clone().transpose()).mul_scalar(*scale).matmul(b.clone().transpose());
        let y = y.clone().narrow(0, at, count);
        parts.push(y.clone() + product.cast(y.dtype()));
        at += count;
    }
    if at < rows {
        parts.push(y.narrow(0, at, rows - at));
    }
    let y = Tensor::cat(parts, 0);
    if is_sorted {
        return y;
    }
    let mut places = vec![0; rows];
    order.iter().enumerate().for_each(|(place, row)| places[*row] = place);
    select(y, &places)
}

/// Where an adapter's factors lie in the pools, and what their product is multiplied with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor {
    pub(super) from: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) keep: Option<Keep>,
}

#[derive(Debug, Clone)]
struct ByRows {
    factors: Vec<Factor>,
    runs: Vec<Run>,
}

#[derive(Debug, Clone)]
struct Saved {
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
struct Piece {
    from: usize,
    rows: usize,
    adapter: usize,
}

impl ByRows {
    /// The runs in pieces that one thread computes at a time; their sizes follow from the runs alone, and so do all bits.
    fn pieces(&self) -> Vec<Piece> {
        let of = |run: &Run| {
            let Run { rows, adapter } = run.clone();
            let starts = rows.clone().step_by(ROWS);
            starts.map(move |from| Piece { from, rows: ROWS.min(rows.end - from), adapter })
        };
        self.runs.iter().flat_map(of).collect()
    }

    /// Rows of the adapter's input; dropped elements need a copy.
    fn input<'a>(keep: Option<Keep>, x: Matrix<'a>, piece: Piece, scratch: &'a mut Vec<f32>) -> Matrix<'a> {
        let input = x.rows(piece.from, piece.from + piece.rows);
        let Some(keep) = keep else { return input };
        let width = x.dims()[1];
        scratch.clear();
        (0..piece.rows).for_each(|row| scratch.extend_from_slice(input.row(row)));
        keep.apply_vectorised(piece.from * width, scratch);
        Matrix::new(scratch, [piece.rows, width])
    }

    fn add(&self, x: Matrix<'_>, a: Matrix<'_>, b: Matrix<'_>, y: &mut [f32]) -> Vec<Vec<f32>> {
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
fn parts<'a>(mut memory: &'a mut [f32], width: usize, pieces: &[Piece]) -> Vec<&'a mut [f32]> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{DType, Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::ops::dropout::kept;

    /// Each run by itself, with the same elements dropped.
    fn reference(y: Tensor<2>, x: &Tensor<2>, adapters: &[LowRank], runs: &[Run], keeps: &[Option<Keep>]) -> Tensor<2> {
        let mut parts = Vec::new();
        let mut at = 0;
        for run in runs {
            parts.extend((run.rows.start > at).then(|| y.clone().narrow(0, at, run.rows.start - at)));
            let LowRank { a, b, scale, .. } = &adapters[run.adapter];
            let input = keeps[run.adapter].map_or_else(|| x.clone(), |keep| kept(x.clone(), keep));
            let input = input.narrow(0, run.rows.start, run.rows.len());
            let product = input.matmul(a.clone().transpose()).mul_scalar(*scale).matmul(b.clone().transpose());
            parts.push(y.clone().narrow(0, run.rows.start, run.rows.len()) + product);
            at = run.rows.end;
        }
        let rows = y.dims()[0];
        parts.extend((at < rows).then(|| y.narrow(0, at, rows - at)));
        Tensor::cat(parts, 0)
    }

    fn runs_of(lengths: &[(usize, usize)]) -> (Vec<Run>, usize) {
        let mut at = 0;
        let mut runs = Vec::new();
        for (length, adapter) in lengths {
            // The last number stands for no adapter.
            runs.extend((*adapter < 3).then(|| Run { rows: at..at + length, adapter: *adapter }));
            at += length;
        }
        (runs, at)
    }

    struct Case {
        y: Tensor<2>,
        x: Tensor<2>,
        factors: Vec<(Tensor<2>, Tensor<2>)>,
    }

    impl Case {
        fn new(rows: usize, [d_in, d_out]: [usize; 2], ranks: [usize; 3], dtype: DType) -> Self {
            let device = Device::flex();
            let random = |dims: [usize; 2], dtype: DType| {
                let values = Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device).to_data();
                let device = device.clone().autodiff();
                Tensor::<2>::from_data(values.convert_dtype(dtype), (&device, dtype)).require_grad()
            };
            let y = random([rows, d_out], dtype);
            let x = random([rows, d_in], dtype);
            let factors =
                ranks.map(|rank| (random([rank, d_in], DType::F32), random([d_out, rank], DType::F32))).to_vec();
            Self { y, x, factors }
        }

        fn adapters(&self, drop: f64) -> Vec<LowRank> {
            let lora = |(at, (a, b)): (usize, &(Tensor<2>, Tensor<2>))| LowRank {
                a: a.clone(),
                b: b.clone(),
                scale: 0.5 + at as f64,
                drop,
            };
            self.factors.iter().enumerate().map(lora).collect()
        }

        /// The output, and the gradients of everything.
        fn gradients(&self, output: Tensor<2>) -> Vec<TensorData> {
            let grads = output.clone().cast(DType::F32).square().sum().backward();
            let factors = self.factors.iter().flat_map(|(a, b)| [a, b]);
            let all = [&self.y, &self.x].into_iter().chain(factors);
            let zeros = |x: &Tensor<2>| x.zeros_like().without_autodiff();
            let of = |x: &Tensor<2>| x.grad(&grads).unwrap_or_else(|| zeros(x)).into_data().convert::<f32>();
            [output.into_data().convert::<f32>()].into_iter().chain(all.map(of)).collect()
        }
    }

    /// Sums of other orders differ by the rounding of their terms, however small the sum itself comes out.
    fn assert_near(found: Vec<TensorData>, expected: Vec<TensorData>) {
        for (found, expected) in found.into_iter().zip(expected) {
            let largest = expected.iter::<f32>().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(5e-3, 1e-5 + 2e-6 * largest));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn all_forms_agree_with_each_run_by_itself(
            lengths in proptest::collection::vec((1..150_usize, 0..4_usize), 1..6),
            d_in in 1..20_usize, d_out in 1..20_usize,
            ranks in [1..9_usize, 1..9, 1..66],
            drop in prop_oneof![Just(0.0), Just(0.3)],
            seed in any::<u64>(),
        ) {
            Device::flex().seed(seed);
            let (runs, rows) = runs_of(&lengths);
            let case = Case::new(rows, [d_in, d_out], ranks, DType::F32);
            let keeps = vec![(drop > 0.0).then(|| Keep::new(seed, drop)); 3];
            let adapters = case.adapters(drop);
            if runs.is_empty() {
                return Ok(());
            }
            let expected = case.gradients(reference(case.y.clone(), &case.x, &adapters, &runs, &keeps));
            assert_near(case.gradients(fused(case.y.clone(), &case.x, case.adapters(drop), runs.clone(), keeps)), expected.clone());
            if drop == 0.0 {
                assert_near(case.gradients(portable(case.y.clone(), &case.x, &adapters, &runs)), expected);
            }
        }
    }

    #[test]
    fn half_precision_differs_by_its_rounding_alone() {
        let (runs, rows) = runs_of(&[(3, 1), (2, 3), (40, 0), (1, 1)]);
        let case = Case::new(rows, [24, 16], [4, 2, 1], DType::BF16);
        let found = case.gradients(low_rank_by_rows(case.y.clone(), &case.x, case.adapters(0.0), &runs));
        let expected = case.gradients(portable(case.y.clone(), &case.x, &case.adapters(0.0), &runs));
        let norm = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        for (found, expected) in found.into_iter().zip(expected) {
            let [found, expected] = [found, expected].map(|data| data.try_to_vec::<f32>().unwrap());
            let apart: Vec<f32> = found.iter().zip(&expected).map(|(found, expected)| found - expected).collect();
            assert!(norm(&apart) <= 0.02 * norm(&expected), "{} of {}", norm(&apart), norm(&expected));
        }
    }

    #[test]
    fn no_run_changes_nothing() {
        let case = Case::new(3, [4, 5], [1, 1, 1], DType::F32);
        let found = low_rank_by_rows(case.y.clone(), &case.x, case.adapters(0.0), &[]);
        assert_eq!(found.into_data(), case.y.to_data());
    }
}
