//! Low-rank adapters of which each acts on its own rows, beside one frozen product for all of them.
//!
//! `y[rows of a] += s_a · drop(x[rows of a]) A_a B_a`. The factors of all adapters lie in one pool, one after the other, so that
//! ranks may differ and the graph has one node whatever their number; sums of a factor's gradient never cross into another
//! adapter's rows (Sheng et al. 2023, arXiv:2311.03285).

use burn::tensor::{Int, Tensor, TensorData};

#[cfg(feature = "gpu")]
use crate::{kernels::cube, nodes::gpu};
use crate::{
    kernels::{
        dropout_mask::Keep,
        host,
        low_rank_rows::{Factor, Order, Run},
    },
    nodes::{
        host::low_rank_by_rows::ByRows,
        node::{Input, run},
    },
    ops::{dropout::dropout, lora_linear::LowRank},
};

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
        return gpu::LowRankByRows::run(y, x, pools, &factors, &order);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{DType, Device, Distribution, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::nodes::host::dropout::kept;

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
