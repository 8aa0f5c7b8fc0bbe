//! A GPU's versions against double precision on the processor, and against the processor's versions with the same dropout.
//!
//! Mesa's software Vulkan is GPU enough.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Distribution, Float, FloatDType, Int, Tensor, TensorData, activation::log_softmax},
};
use proptest::prelude::*;

use crate::{
    Captured, device,
    kernels::{
        attention_mask::Sight,
        attention_weights::Weights,
        low_rank_rows::Run,
        quantized::{
            codebook::FourBit,
            ggml::GgmlType,
            parts::{PackedParts, Packing, ScaleParts},
            quantize::quantize,
        },
        quantized_matrix::PackedMatrix,
    },
    ops::{
        adamw::{AdamW, Trained, adamw},
        attention::attention,
        dropout::dropout,
        layer_norm::layer_norm,
        linear_cross_entropies::{linear_cross_entropies, linear_cross_entropies_of_each},
        lora_linear::{LowRank, linear, lora_linear},
        low_rank_by_rows::low_rank_by_rows,
        rms_norm::rms_norm,
        self_test::{CASES, Case, random},
        slot::Slot,
        tests::{close, gradients_close, run},
    },
    recomputed,
};

/// The GPU, for one test at a time: they share its queue and the random numbers.
fn gpu() -> (MutexGuard<'static, ()>, Device) {
    static ONE: Mutex<()> = Mutex::new(());
    static GPU: LazyLock<Device> = LazyLock::new(|| device::parse(Some("wgpu")).unwrap());
    (ONE.lock().unwrap_or_else(PoisonError::into_inner), GPU.clone())
}

fn home(x: Tensor<2>) -> Tensor<2> {
    x.without_autodiff().to_device(&Device::flex())
}

/// The result and the gradients of an operation on a GPU, brought to the processor.
fn on_gpu<const N: usize>(
    gpu: &Device,
    inputs: &[Tensor<2>; N],
    operation: &dyn Fn(&[Tensor<2>; N]) -> Tensor<2>,
) -> (Tensor<2>, [Option<Tensor<2>>; N]) {
    let leaves = inputs.each_ref().map(|x| x.clone().to_device(gpu).autodiff().require_grad());
    let y = operation(&leaves);
    let gradients = y.clone().cast(FloatDType::F32).sin().sum().backward();
    (home(y), leaves.map(|x| x.grad(&gradients).map(home)))
}

/// That an operation is the same on both, dropout included.
fn same<const N: usize>(
    name: &str,
    gpu: &Device,
    inputs: &[Tensor<2>; N],
    operation: &dyn Fn(&[Tensor<2>; N]) -> Tensor<2>,
) {
    Device::flex().seed(11);
    let (found, gradients) = on_gpu(gpu, inputs, operation);
    Device::flex().seed(11);
    let (expected, slopes) = on_gpu(&Device::flex(), inputs, operation);
    close(name, found, expected, 2e-5);
    for (found, expected) in gradients.into_iter().zip(slopes) {
        assert_eq!(found.is_some(), expected.is_some(), "{name}");
        if let (Some(found), Some(expected)) = (found, expected) {
            close(name, found, expected, 1e-4);
        }
    }
}

fn normal([rows, columns]: [usize; 2]) -> Tensor<2> {
    Tensor::random([rows, columns], Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn row(x: &Tensor<2>) -> Tensor<1> {
    x.clone().narrow(0, 0, 1).squeeze_dim(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn operations_are_near_double_precision(rows in 1..70_usize, quarters in 1..30_usize) {
        let (_one, gpu) = gpu();
        let inputs = random(rows, 4 * quarters);
        for Case { name, fast, plain } in CASES {
            let (y, gradients) = on_gpu(&gpu, &inputs, &|x| fast(x).unwrap());
            let (exact, _, slopes) = run(plain, inputs.clone().map(|x| x.cast(FloatDType::F64)));
            close(name, y, exact, 2e-5);
            gradients_close(name, gradients, slopes, 1e-4);
        }
    }

    #[test]
    fn factors_of_any_shape_with_dropout(
        [tokens, d_in, d_out] in [1..300_usize, 1..90_usize, 1..90_usize],
        rank in 1..65_usize,
        drops: bool,
        turned: bool,
        biased: bool,
    ) {
        let (_one, gpu) = gpu();
        let drop = if drops { 0.25 } else { 0.0 };
        let weight = normal(if turned { [d_out, d_in] } else { [d_in, d_out] });
        let inputs = [normal([tokens, d_in]), weight, normal([1, d_out]), normal([rank, d_in]), normal([d_out, rank])];
        same("lora_linear", &gpu, &inputs, &|[x, weight, bias, a, b]| {
            let weight = if turned { weight.clone().transpose() } else { weight.clone() };
            let lora = LowRank { a: a.clone(), b: b.clone(), scale: 0.1, drop };
            lora_linear(x, &weight, biased.then(|| row(bias)).as_ref(), lora).unwrap()
        });
    }

    #[test]
    fn adapters_of_their_own_rows(
        lengths in proptest::collection::vec((1..90_usize, 0..6_usize), 1..7),
        ranks in proptest::collection::vec(1..65_usize, 1..6),
        [d_in, d_out] in [1..90_usize, 1..90_usize],
        drops: bool,
    ) {
        let (_one, gpu) = gpu();
        let (mut runs, mut rows) = (Vec::new(), 0);
        for (length, adapter) in lengths {
            // Numbers of no adapter stand for rows of none.
            runs.extend((adapter < ranks.len()).then(|| Run { rows: rows..rows + length, adapter }));
            rows += length;
        }
        let pool = ranks.iter().sum();
        let inputs = [normal([rows, d_out]), normal([rows, d_in]), normal([pool, d_in]), normal([d_out, pool])];
        let operation = |[y, x, a, b]: &[Tensor<2>; 4]| {
            let mut from = 0;
            let adapters = ranks.iter().enumerate().map(|(at, rank)| {
                from += rank;
                let (a, b) = (a.clone().narrow(0, from - rank, *rank), b.clone().narrow(1, from - rank, *rank));
                LowRank { a, b, scale: 0.05 * (at + 1) as f64, drop: if drops { 0.25 } else { 0.0 } }
            });
            low_rank_by_rows(y.clone() * 1.0, x, adapters.collect(), &runs)
        };
        same("low_rank_by_rows", &gpu, &inputs, &operation);
        if !drops {
            let double = inputs.each_ref().map(|x| x.clone().cast(FloatDType::F64));
            let (found, gradients) = on_gpu(&gpu, &inputs, &operation);
            let (expected, slopes) = on_gpu(&Device::flex(), &double, &operation);
            close("low_rank_by_rows", found, expected, 2e-5);
            for (found, expected) in gradients.into_iter().flatten().zip(slopes.into_iter().flatten()) {
                close("low_rank_by_rows", found, expected, 1e-4);
            }
        }
    }

    #[test]
    fn norms_with_what_stands_before_them(rows in 1..200_usize, columns in 1..300_usize, drops: bool, biased: bool) {
        let (_one, gpu) = gpu();
        let drop = if drops { 0.25 } else { 0.0 };
        let wide = [rows, columns];
        let inputs = [normal(wide), normal(wide), normal([1, columns]), normal([1, columns])];
        same("layer_norm", &gpu, &inputs, &|[x, residual, gamma, beta]| {
            layer_norm(x.clone(), Some(residual.clone()), drop, row(gamma), biased.then(|| row(beta)), 1e-5)
        });
        same("dropout", &gpu, &inputs, &|[x, ..]| dropout(x.clone(), 0.3));
    }

    #[test]
    fn attention_of_any_sight(
        (batch, key_heads, group) in (1..3_usize, 1..3_usize, 1..4_usize),
        (queries, more) in (1..70_usize, 0..20_usize),
        [dim, width] in [1..40_usize, 1..40_usize],
        causal: bool,
        window in proptest::option::of([0..9_usize, 0..9_usize]),
        hides in proptest::option::of(1..4_usize),
        caps: bool,
        drops: bool,
    ) {
        let (_one, gpu) = gpu();
        let (keys, heads) = (queries + more, key_heads * group);
        let hidden = hides.map(|from| (0..batch * keys).map(|at| at % keys % 4 >= from || at % keys < from).collect());
        let sight = Sight { causal, window, hidden, ..Sight::default() };
        let soft_cap = (caps && hides.is_none()).then_some(1.5);
        let weights = Weights { scale: 0.4, soft_cap, drop: if drops { 0.25 } else { 0.0 } };
        let inputs = [
            normal([batch * queries, heads * dim]),
            normal([batch * keys, key_heads * dim]),
            normal([batch * keys, key_heads * width]),
        ];
        same("attention", &gpu, &inputs, &|[q, k, v]| {
            let heads = |x: &Tensor<2>, positions, heads, dim| {
                x.clone().reshape([batch, positions, heads, dim]).swap_dims(1, 2)
            };
            let q = heads(q, queries, key_heads * group, dim);
            let (k, v) = (heads(k, keys, key_heads, dim), heads(v, keys, key_heads, width));
            let y = attention(&q, &k, &v, &sight, weights).unwrap();
            y.swap_dims(1, 2).reshape([batch * queries, key_heads * group * width])
        });
    }

    #[test]
    fn losses_with_a_cap(rows in 1..90_usize, width in 1..40_usize, classes in 2..400_usize, capped: bool) {
        let (_one, gpu) = gpu();
        let weight = normal([classes, width]);
        let targets: Vec<_> = (0..rows).map(|row| (row % 3 != 1).then_some(row * 7 % classes)).collect();
        same("linear_cross_entropies", &gpu, &[normal([rows, width])], &|[x]| {
            let weight = weight.clone().to_device(&x.device().inner()).transpose();
            linear_cross_entropies(x, &weight, &targets, capped.then_some(2.0)).unwrap().unsqueeze()
        });
    }
}

#[test]
fn losses_of_targets_on_the_gpu() {
    let (_one, gpu) = gpu();
    // The first are more rows than are computed at a time.
    for (rows, width, classes, cap) in [(4099, 5, 12, None), (37, 24, 90, Some(2.0))] {
        let weight = normal([width, classes]);
        let targets: Vec<i64> =
            (0..rows).map(|row| if row % 3 == 1 { -100 } else { (row * 7 % classes) as i64 }).collect();
        let targets = |device: &Device| Tensor::<1, Int>::from_data(TensorData::new(targets.clone(), [rows]), device);
        let hidden = [normal([rows, width])];
        let double = hidden.each_ref().map(|x| x.clone().cast(FloatDType::F64));
        let (found, [slope]) = on_gpu(&gpu, &hidden, &|[x]| {
            linear_cross_entropies_of_each(x, &weight.clone().to_device(&gpu), &targets(&gpu), cap).unwrap().unsqueeze()
        });
        let (expected, [exact]) = on_gpu(&Device::flex(), &double, &|[x]| {
            let logits = x.clone().matmul(weight.clone().cast(FloatDType::F64));
            let logits = cap.map_or(logits.clone(), |cap| (logits / cap).tanh() * cap);
            let targets = targets(&Device::flex());
            let own = log_softmax(logits, 1).gather(1, targets.clone().clamp_min(0).unsqueeze_dim(1));
            own.neg().squeeze_dim::<1>(1).mask_fill(targets.lower_elem(0), 0.0).unsqueeze()
        });
        let of_one_without = |x: Tensor<2>| x.narrow(0, 1, 1).square().sum().into_scalar::<f32>();
        assert_eq!([found.clone().transpose(), slope.clone().unwrap()].map(of_one_without), [0.0; 2]);
        close("losses", found, expected, 2e-5);
        close("slopes", slope.unwrap(), exact.unwrap(), 1e-4);
    }
}

#[test]
fn what_is_recorded_sees_what_its_slots_hold() {
    let (_one, gpu) = gpu();
    for dtype in [DType::F32, DType::F16].into_iter().filter(|dtype| gpu.supports_dtype(*dtype)) {
        let zeros = TensorData::zeros::<f32, _>([7, 33]).convert_dtype(dtype);
        let (mut values, x) = Slot::<Float>::new::<2>(zeros, &gpu).unwrap();
        let (mut rows, at) = Slot::<Int>::new::<1>(TensorData::zeros::<i64, _>([5]), &gpu).unwrap();
        let computation = |x: Tensor<2>, at: Tensor<1, Int>| (x.clone() * 3.0 + x).sin().select(0, at);
        let held = x.clone();
        let mut captured = Captured::new(&gpu, move || computation(x.clone(), at.clone()));
        assert!(captured.is_recorded());
        for time in 0..4 {
            let new = normal([7, 33]).cast(FloatDType::from(dtype)).to_device(&gpu);
            let new_rows = (Tensor::<1, Int>::arange(0..5, &gpu) * (time + 1)).remainder_scalar(7);
            // What lies in another order has to arrive in this one.
            values.write(new.clone().transpose().add_scalar(0.0).transpose());
            rows.write(new_rows.clone());
            let found = captured.replay().clone().into_data();
            assert_eq!(held.clone().into_data(), new.clone().into_data(), "{dtype:?} {time}");
            assert_eq!(found, computation(new, new_rows).into_data(), "{dtype:?} {time}");
        }
    }
    assert!(Slot::<Float>::new::<1>(TensorData::from([1.0]), &Device::flex()).is_none());
}

#[test]
fn what_cannot_be_recorded_runs_again() {
    let (_one, gpu) = gpu();
    let (mut slot, x) = Slot::<Float>::new::<1>(TensorData::from([0.0_f32; 3]), &gpu).unwrap();
    let device = gpu.clone();
    // A recording has no copies from the host.
    let mut captured = Captured::new(&gpu, move || x.clone() + Tensor::from_data([1.0, 2.0, 3.0], &device));
    assert!(!captured.is_recorded());
    for value in [4.0_f32, -2.0] {
        slot.write(Tensor::<1>::full([3], value, &gpu));
        let found = captured.replay().clone().into_data();
        assert_eq!(found, TensorData::from([value + 1.0, value + 2.0, value + 3.0]));
    }
}

#[test]
fn every_rank_up_to_64_is_right() {
    let (_one, gpu) = gpu();
    for rank in 1..=64 {
        let inputs = [normal([37, 33]), normal([33, 29]), normal([rank, 33]), normal([29, rank])];
        same("lora_linear", &gpu, &inputs, &|[x, weight, a, b]| {
            let lora = LowRank { a: a.clone(), b: b.clone(), scale: 0.1, drop: 0.0 };
            lora_linear(x, weight, None, lora).unwrap()
        });
    }
}

#[test]
fn long_sums_of_single_rows_are_added_up() {
    let (_one, gpu) = gpu();
    let rows = 700;
    let inputs = [normal([rows, 24]), normal([rows, 600]), normal([5, 600]), normal([24, 5])];
    for alternating in [true, false] {
        let adapter = |row: usize| if alternating { row % 2 } else { usize::from(row % 100 == 7) };
        let runs: Vec<_> = (0..rows).map(|row| Run { rows: row..row + 1, adapter: adapter(row) }).collect();
        same("low_rank_by_rows", &gpu, &inputs, &|[y, x, a, b]| {
            let lora = |from, rank| {
                let (a, b) = (a.clone().narrow(0, from, rank), b.clone().narrow(1, from, rank));
                LowRank { a, b, scale: 0.05, drop: 0.1 }
            };
            low_rank_by_rows(y.clone() * 1.0, x, vec![lora(0, 3), lora(3, 2)], &runs)
        });
    }
}

#[test]
fn rows_that_somebody_else_holds_are_copied() {
    let (_one, gpu) = gpu();
    let [y, x, a, b] = [normal([9, 8]), normal([9, 7]), normal([2, 7]), normal([8, 2])].map(|x| x.to_device(&gpu));
    let held = y.clone();
    let lora = LowRank { a, b, scale: 1.0, drop: 0.0 };
    let sum = low_rank_by_rows(y, &x, vec![lora], &[Run { rows: 2..5, adapter: 0 }]);
    let (before, after) = (home(held), home(sum));
    let same = |from, count| {
        let part = |x: &Tensor<2>| x.clone().narrow(0, from, count).into_data();
        part(&before) == part(&after)
    };
    assert!(same(0, 2) && same(5, 4) && !same(2, 1) && !same(3, 1) && !same(4, 1));
}

/// Enough queries for products, in several stretches. The sizes are few: a software GPU takes seconds for each kernel of a product.
#[test]
fn attention_of_long_rows() {
    let (_one, gpu) = gpu();
    let ([batch, group, dim, width], [queries, keys]) = ([2, 2, 8, 12], [140, 143]);
    let inputs = [normal([batch * queries, group * dim]), normal([batch * keys, dim]), normal([batch * keys, width])];
    let left: Arc<[bool]> = (0..batch * keys).map(|at| at < 90).collect();
    let right: Arc<[bool]> = (0..batch * keys).map(|at| at > 250).collect();
    // Copies of one sight would share what is hidden.
    let sight = |causal, window, hidden| Sight { causal, window, hidden, ..Sight::default() };
    let sights = [
        (sight(false, None, None), Some(1.5)),
        (sight(true, None, None), None),
        (sight(true, Some([40, 0]), None), Some(1.5)),
        (sight(false, Some([30, 20]), None), None),
        (sight(true, None, Some(left)), None),
        (sight(true, None, Some(right)), None),
    ];
    for (drop, (sight, soft_cap)) in [0.0, 0.2].into_iter().cycle().zip(sights) {
        let weights = Weights { scale: 0.4, soft_cap, drop };
        same("attention", &gpu, &inputs, &|[q, k, v]| {
            let heads = |x: &Tensor<2>, positions, heads, dim| {
                x.clone().reshape([batch, positions, heads, dim]).swap_dims(1, 2)
            };
            let q = heads(q, queries, group, dim);
            let (k, v) = (heads(k, keys, 1, dim), heads(v, keys, 1, width));
            let y = attention(&q, &k, &v, &sight, weights).unwrap();
            y.swap_dims(1, 2).reshape([batch * queries, group * width])
        });
    }
}

#[test]
fn packed_examples_do_not_see_each_other() {
    let (_one, gpu) = gpu();
    for length in [61, 140] {
        let (batch, dim) = (2, 8);
        let examples: Vec<i64> = (0..batch * length).map(|at| [1, 1, 2, 3, 3, 0][at % length * 6 / length]).collect();
        let hidden: Arc<[bool]> = examples.iter().map(|example| *example == 0).collect();
        let sight = Sight { causal: true, hidden: Some(hidden), examples: Some(examples.into()), ..Sight::default() };
        let weights = Weights { scale: 0.4, soft_cap: None, drop: 0.0 };
        let inputs = [(); 3].map(|()| normal([batch * length, 2 * dim]));
        same("attention", &gpu, &inputs, &|all| {
            let [q, k, v] = all.each_ref().map(|x| x.clone().reshape([batch, length, 2, dim]).swap_dims(1, 2));
            attention(&q, &k, &v, &sight, weights).unwrap().swap_dims(1, 2).reshape([batch * length, 2 * dim])
        });
    }
}

#[test]
fn layers_share_what_hides_keys() {
    let (_one, gpu) = gpu();
    let hidden: Arc<[bool]> = [true, false, false, false, true, false].into();
    let sight = Sight { causal: true, hidden: Some(hidden), ..Sight::default() };
    let marks = |sight: &Sight| sight.marks_on(&gpu, [2, 2, 3], -1).0.into_data().try_to_vec::<i32>().unwrap();
    // The keys of both rows, then the queries that see none.
    assert_eq!(marks(&sight), [-1, 0, 0, 0, -1, 0, 0, 0, 0, 0]);
    let again = sight.clone();
    assert!(again.marks.is_there());
    assert_eq!(marks(&again), marks(&sight));
    // A copy that sees less has marks of its own.
    let near = Sight { window: Some([0, 0]), ..sight.clone() };
    assert_eq!(marks(&near), [-1, 0, 0, 0, -1, 0, 0, 0, 1, 0]);
    assert_eq!(marks(&sight), [-1, 0, 0, 0, -1, 0, 0, 0, 0, 0]);
}

#[test]
fn packed_weights_are_the_processors() {
    let (_one, gpu) = gpu();
    let ([d_out, d_in], tokens) = ([70, 192], 33);
    let values = normal([d_out, d_in]).into_data().try_into_vec::<f32>().unwrap();
    let four = |codes, nested| Packing::FourBit { codes, nested };
    for packing in [four(FourBit::Nf4, false), four(FourBit::Nf4, true), four(FourBit::Fp4, true), Packing::Int8] {
        let parts = quantize(&values, [d_out, d_in], packing).unwrap();
        let there = PackedMatrix::new(parts.clone(), &gpu).unwrap();
        assert_eq!((there.parts(), there.to_device(&Device::flex()).parts()), (parts.clone(), parts.clone()));
        let inputs = [normal([tokens, d_in]), normal([5, d_in]), normal([d_out, 5])];
        same("packed", &gpu, &inputs, &|[x, a, b]| {
            let weight = PackedMatrix::new(parts.clone(), &x.device().inner()).unwrap();
            let lora = LowRank { a: a.clone(), b: b.clone(), scale: 0.1, drop: 0.0 };
            weight.lora_linear(x, None, lora).unwrap() + weight.linear(x.clone(), None)
        });
    }
}

#[test]
fn blocks_of_gguf_are_the_processors_bits() {
    use GgmlType::{Bf16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let (_one, gpu) = gpu();
    let [d_out, d_in] = [6, 512];
    // A hash, so that every bit of a block is one now and zero then.
    let noise =
        |at: usize| (at as u32 ^ 0x9e37).wrapping_mul(0x7feb_352d).rotate_left(15).wrapping_mul(0x846c_a68b) >> 24;
    for kind in [F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        let count = kind.bytes(d_out * d_in).unwrap();
        let mut codes: Vec<u8> = (0..count).map(|at| noise(at) as u8).collect();
        let packing = Packing::Ggml(kind);
        // What is no number is equal to nothing: its exponent loses a bit.
        while let Some(at) = kind.dequantize(&codes).iter().position(|value| !value.is_finite()) {
            let bytes = kind.bytes(kind.block()).unwrap();
            let block = at / kind.block() * bytes;
            codes[block..block + bytes].iter_mut().for_each(|byte| *byte &= 0b1011_1111);
        }
        let values = kind.dequantize(&codes);
        let parts =
            PackedParts { dims: [d_out, d_in], packing, block: kind.block(), codes, scales: ScaleParts::Plain(vec![]) };
        let there = PackedMatrix::new(parts.clone(), &gpu).unwrap();
        assert!(there.is_on_gpu() && there.parts() == parts, "{kind:?}");
        let found = there.dense().transpose().into_data().try_into_vec::<f32>().unwrap();
        let wrong = found.iter().zip(&values).position(|(a, b)| a != b);
        assert!(wrong.is_none(), "{kind:?}: {wrong:?} {:?}", wrong.map(|at| (found[at], values[at])));
    }
    let codes = (0..Q4K.bytes(d_out * d_in).unwrap())
        .map(|at| if at % 144 < 4 { [0x66, 0x1c][at % 2] } else { noise(at) as u8 });
    let parts = PackedParts::of_blocks(Q4K, [d_out, d_in], codes.collect());
    same("packed", &gpu, &[normal([9, d_in]), normal([5, d_in]), normal([d_out, 5])], &|[x, a, b]| {
        let weight = PackedMatrix::new(parts.clone(), &x.device().inner()).unwrap();
        let lora = LowRank { a: a.clone(), b: b.clone(), scale: 0.1, drop: 0.0 };
        weight.lora_linear(x, None, lora).unwrap() * 0.1
    });
    let targets: Vec<_> = (0..9).map(|row| (row % 4 != 1).then_some(row % d_out)).collect();
    same("packed_cross_entropies", &gpu, &[normal([9, d_in])], &|[x]| {
        let weight = PackedMatrix::new(parts.clone(), &x.device().inner()).unwrap();
        weight.cross_entropies(x, &targets, Some(2.0)).unwrap().unsqueeze()
    });
}

#[test]
fn steps_of_the_optimiser_are_the_processors() {
    let (_one, gpu) = gpu();
    let rule =
        AdamW { learning_rate: 0.1, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.01, max_grad_norm: Some(1.0) };
    // More than two launches take, and some that were not in the first step.
    let size = |at: usize| [5, 1024, 3001, 10_001].get(at % 4).copied().unwrap_or(1);
    let inputs: Vec<_> = (0..27).map(|at| [(); 2].map(|()| row(&normal([1, size(at)])))).collect();
    let steps = |device: &Device| {
        let mut state: Vec<_> = inputs
            .iter()
            .map(|[value, _]| {
                let zeros = || Tensor::zeros(value.dims(), device);
                (value.clone().to_device(device), [zeros(), zeros()])
            })
            .collect();
        let mut norms = Vec::new();
        for step in 1..=3 {
            let trained = state.into_iter().zip(&inputs).enumerate().map(|(at, ((value, moments), [_, gradient]))| {
                let gradient = gradient.clone().to_device(device) * f64::from(step);
                Trained { value, gradient, moments, step: step + u32::from(at < 17) }
            });
            let (updated, norm) = adamw(&rule, trained.collect());
            norms.push(norm.unwrap().into_scalar::<f32>());
            state = updated.into_iter().map(|updated| (updated.value, updated.moments)).collect();
        }
        let home = |x: Tensor<1>| x.to_device(&Device::flex()).unsqueeze::<2>();
        let all = state.into_iter().flat_map(|(value, [first, second])| [value, first, second].map(home));
        (all.collect::<Vec<_>>(), norms)
    };
    let ((found, norms), (expected, exact)) = (steps(&gpu), steps(&Device::flex()));
    for (found, expected) in found.into_iter().zip(expected) {
        close("adamw", found, expected, 1e-6);
    }
    assert!(norms.iter().zip(&exact).all(|(a, b)| (a - b).abs() <= 1e-5 * b), "{norms:?} {exact:?}");
}

/// A layer with a frozen weight, and dropout before its adapter, in its attention and behind it.
#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    a: Param<Tensor<2>>,
    b: Param<Tensor<2>>,
}

impl Layer {
    fn forward(&self, hidden: Tensor<3>, [gain]: [Tensor<3>; 1]) -> Tensor<3> {
        let [batch, length, width] = hidden.dims();
        let gain = gain.reshape([width]);
        let x = rms_norm(hidden.clone(), gain, 0.0, 1e-5).reshape([batch * length, width]);
        let low_rank = LowRank { a: self.a.val(), b: self.b.val(), scale: 0.5, drop: 0.3 };
        let y = lora_linear(&x, &self.weight.val(), None, low_rank).unwrap();
        let heads = y.reshape([batch, length, 2, width / 2]).swap_dims(1, 2);
        let weights = Weights { scale: 0.4, soft_cap: None, drop: 0.2 };
        let y = attention(&heads, &heads, &heads, &Sight { causal: true, ..Sight::default() }, weights).unwrap();
        hidden + dropout(y.swap_dims(1, 2).reshape([batch, length, width]), 0.1)
    }
}

#[test]
fn layers_that_run_again_give_the_same_gradients() {
    let (_one, gpu) = gpu();
    let (batch, length, width, rank) = (2, 19, 24, 5);
    let there = |dims| normal(dims).to_device(&gpu);
    let trained = |dims| Param::from_tensor(there(dims).autodiff());
    let layers = [(); 3].map(|()| Layer {
        weight: Param::from_tensor(there([width, width])).set_require_grad(false),
        a: trained([rank, width]),
        b: trained([width, rank]),
    });
    let input = there([batch * length, width]).reshape([batch, length, width]).autodiff().require_grad();
    let gain = there([1, width]).reshape([1, 1, width]).autodiff().require_grad();
    let gradients = |forgetful: usize| {
        Device::flex().seed(11);
        let y = layers.iter().enumerate().fold(input.clone(), |hidden, (at, layer)| match at < forgetful {
            true => recomputed(layer, hidden, [gain.clone()], Layer::forward),
            false => layer.forward(hidden, [gain.clone()]),
        });
        let gradients = y.clone().sin().sum().backward();
        let of = |x: Tensor<2>| x.grad(&gradients).unwrap().into_data();
        let trained: Vec<_> = layers.iter().flat_map(|layer| [of(layer.a.val()), of(layer.b.val())]).collect();
        let shared = gain.grad(&gradients).unwrap().into_data();
        (y.without_autodiff().into_data(), input.grad(&gradients).unwrap().into_data(), trained, shared)
    };
    let kept = gradients(0);
    for forgetful in [1, 3] {
        let again = gradients(forgetful);
        assert_eq!((&kept.0, &kept.1, &kept.2), (&again.0, &again.1, &again.2));
        // To this one all layers add, in another order.
        again.3.assert_approx_eq::<f32>(&kept.3, burn::tensor::Tolerance::relative(1e-4));
    }
    assert_ne!(kept.0, {
        Device::flex().seed(12);
        layers.iter().fold(input.clone(), |hidden, layer| layer.forward(hidden, [gain.clone()])).into_data()
    });
}

#[test]
fn half_precision_is_computed_in_single() {
    let (_one, gpu) = gpu();
    if !gpu.supports_dtype(DType::F16) {
        return;
    }
    // Attention takes products from so many rows on.
    let many = CASES.iter().filter(|case| case.name == "attention").map(|case| (70, case));
    for (rows, Case { name, fast, .. }) in CASES.iter().map(|case| (37, case)).chain(many) {
        let inputs = random(rows, 24).map(|x| x.cast(FloatDType::F16));
        let (half, gradients) = on_gpu(&gpu, &inputs, &|x| fast(x).unwrap());
        let (single, slopes) = on_gpu(&gpu, &inputs.clone().map(|x| x.cast(FloatDType::F32)), &|x| fast(x).unwrap());
        close(name, half, single, 2e-3);
        gradients_close(name, gradients, slopes, 1e-2);
    }
}

#[test]
fn what_is_trained_beside_half_precision_is_in_single() {
    let (_one, gpu) = gpu();
    if !gpu.supports_dtype(DType::F16) {
        return;
    }
    let inputs = [normal([33, 24]), normal([24, 20]), normal([1, 20]), normal([4, 24]), normal([20, 4])];
    let half = |x: Tensor<2>| x.cast(FloatDType::F16);
    let run = |device: &Device| {
        let leaves = inputs.each_ref().map(|x| x.clone().to_device(device).autodiff().require_grad());
        let [x, weight, bias, a, b] = leaves.clone();
        let low_rank = LowRank { a, b: b.clone(), scale: 0.1, drop: 0.0 };
        let y = lora_linear(&half(x), &half(weight), Some(&row(&bias)), low_rank).unwrap();
        let y = layer_norm(y, None, 0.0, row(&half(bias.clone())), Some(row(&bias)), 1e-5);
        let y = linear(y, b, Some(row(&bias).narrow(0, 0, 4)));
        assert_eq!(y.dtype(), DType::F16);
        let gradients = y.clone().cast(FloatDType::F32).sin().sum().backward();
        (home(y), leaves.map(|x| home(x.grad(&gradients).unwrap())))
    };
    let ((found, gradients), (expected, slopes)) = (run(&gpu), run(&Device::flex()));
    close("result", found, expected, 5e-3);
    for (found, expected) in gradients.into_iter().zip(slopes) {
        assert_eq!(found.dtype(), DType::F32);
        close("gradient", found, expected, 1e-2);
    }
}
