//! AdamW over all trained tensors of a step at once, with the clipping of their common norm inside.

#[cfg(feature = "gpu")]
mod gpu;

use burn::{
    backend::Flex,
    tensor::{DType, Tensor},
};
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use crate::kernels::cube;
use crate::kernels::host::{self, Host, PIECE, half_precision::of_type, lanes2, vectorised};

/// Keeps the factor of a norm of zero finite, as PyTorch's `clip_grad_norm_` does.
const NORM_EPSILON: f64 = 1e-6;

/// What a step of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) does to every tensor alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The step size.
    pub learning_rate: f64,
    /// How much of the first and of the second moment stays.
    pub betas: [f64; 2],
    /// Stands beside the root of the second moment.
    pub epsilon: f64,
    /// What part of a value goes in each step, times the learning rate.
    pub weight_decay: f64,
    /// All gradients together are scaled to at most this norm; none leaves them as they are.
    pub max_grad_norm: Option<f64>,
}

/// A tensor of `n` elements that is trained, before a step.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Its elements, `[n]`.
    pub value: Tensor<1>,
    /// Their gradient, `[n]`.
    pub gradient: Tensor<1>,
    /// The running means of the gradient and of its square, `[n]`, in single precision; zeros before the first step.
    pub moments: [Tensor<1>; 2],
    /// Which of the tensor's own steps this is, from 1.
    pub step: u32,
}

/// The same after the step.
#[derive(Debug, Clone)]
pub struct Updated {
    /// Its elements, `[n]`, of the type that they had.
    pub value: Tensor<1>,
    /// The running means, `[n]`, in single precision.
    pub moments: [Tensor<1>; 2],
}

/// One step over all tensors, as PyTorch's `clip_grad_norm_` and `AdamW`: in this order they are returned, with the norm of all
/// gradients before clipping, `[1]`, or none if there are no tensors.
///
/// ```text
/// g = gradient · min(1, max_grad_norm / (norm + 1e-6))
/// m = β₁ m + (1 - β₁) g,   v = β₂ v + (1 - β₂) g²
/// value = value (1 - lr · decay) - lr · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε)
/// ```
///
/// Nothing is read back from a device, and the result is the same bits on any number of threads. Memory that nobody else
/// holds is used again: the new values lie where the gradients were.
pub fn adamw(rule: &AdamW, tensors: Vec<Trained>) -> (Vec<Updated>, Option<Tensor<1>>) {
    if tensors.is_empty() {
        return (Vec::new(), None);
    }
    let dtypes: Vec<DType> = tensors.iter().map(|trained| trained.value.dtype()).collect();
    let tensors: Vec<Trained> = tensors.into_iter().map(Trained::single).collect();
    let fits = |takes: fn(&Tensor<1>) -> bool| tensors.iter().all(|trained| trained.fits(takes));
    #[cfg(feature = "gpu")]
    let is_on_gpu = fits(cube::takes);
    #[cfg(not(feature = "gpu"))]
    let is_on_gpu = false;
    let (updated, norm) = match (fits(host::takes), is_on_gpu) {
        (true, _) => fused(rule, tensors),
        #[cfg(feature = "gpu")]
        (false, true) => on_gpu(rule, tensors),
        _ => plain(rule, tensors),
    };
    let back = |(updated, dtype): (Updated, _)| Updated { value: of_type(updated.value, dtype), ..updated };
    (updated.into_iter().zip(dtypes).map(back).collect(), Some(norm))
}

impl Trained {
    /// In single precision and without a graph.
    pub(crate) fn single(self) -> Self {
        let single = |x: Tensor<1>| of_type(x.without_autodiff(), DType::F32);
        let Self { value, gradient, moments, step } = self;
        Self { value: single(value), gradient: single(gradient), moments: moments.map(single), step }
    }

    pub(crate) fn fits(&self, takes: fn(&Tensor<1>) -> bool) -> bool {
        let [first, second] = &self.moments;
        let all = [&self.value, &self.gradient, first, second];
        all.into_iter().all(|x| takes(x) && x.dims() == self.value.dims())
    }
}

/// The formula's constants for a tensor.
#[derive(Debug, Clone, Copy)]
struct Constants {
    /// `1 - lr · decay`.
    keep: f64,
    betas: [f64; 2],
    /// `lr / (1 - β₁ᵗ)`.
    size: f64,
    /// `1 / √(1 - β₂ᵗ)`.
    scale: f64,
    epsilon: f64,
}

impl Constants {
    pub(crate) fn new(rule: &AdamW, step: u32) -> Self {
        let [first, second] = rule.betas.map(|beta| 1.0 - beta.powf(f64::from(step)));
        Self {
            keep: 1.0 - rule.learning_rate * rule.weight_decay,
            betas: rule.betas,
            size: rule.learning_rate / first,
            scale: 1.0 / second.sqrt(),
            epsilon: rule.epsilon,
        }
    }
}

/// The same in plain operations.
fn plain(rule: &AdamW, tensors: Vec<Trained>) -> (Vec<Updated>, Tensor<1>) {
    let squares = tensors.iter().map(|trained| trained.gradient.clone().square().sum());
    let norm = match squares.reduce(|sum, square| sum + square) {
        Some(sum) => sum.sqrt(),
        None => unreachable!("somebody looked before"),
    };
    let factor =
        rule.max_grad_norm.map(|max| norm.clone().add_scalar(NORM_EPSILON).recip().mul_scalar(max).clamp_max(1.0));
    let update = |Trained { value, gradient, moments: [first, second], step }: Trained| {
        let Constants { keep, betas, size, scale, epsilon } = Constants::new(rule, step);
        let gradient = match &factor {
            Some(factor) => gradient * factor.clone(),
            None => gradient,
        };
        let first = first.mul_scalar(betas[0]) + gradient.clone().mul_scalar(1.0 - betas[0]);
        let second = second.mul_scalar(betas[1]) + gradient.square().mul_scalar(1.0 - betas[1]);
        let deviation = second.clone().sqrt().mul_scalar(scale).add_scalar(epsilon);
        let value = value.mul_scalar(keep) - first.clone() / deviation * size;
        Updated { value, moments: [first, second] }
    };
    (tensors.into_iter().map(update).collect(), norm)
}

/// A launch for the norm and one for the rest, for each dozen of tensors.
#[cfg(feature = "gpu")]
fn on_gpu(rule: &AdamW, tensors: Vec<Trained>) -> (Vec<Updated>, Tensor<1>) {
    let max_norm = rule.max_grad_norm.unwrap_or_default() as f32;
    let tensors = tensors.into_iter().map(|Trained { value, gradient, moments, step }| {
        let Constants { keep, betas, size, scale, epsilon } = Constants::new(rule, step);
        let [keep, size, scale, epsilon] = [keep, size, scale, epsilon].map(|x| x as f32);
        let formula =
            cube::adamw::Formula { keep, betas: betas.map(|beta| beta as f32), size, scale, epsilon, max_norm };
        gpu::OnDevice { value, gradient, moments, formula }
    });
    let (updated, norm) = gpu::adamw(tensors.collect());
    (updated.into_iter().map(|(value, moments)| Updated { value, moments }).collect(), norm)
}

/// One pass for the norm, one for the rest.
fn fused(rule: &AdamW, tensors: Vec<Trained>) -> (Vec<Updated>, Tensor<1>) {
    let mut tensors: Vec<HostTrained> = tensors.into_iter().map(HostTrained::new).collect();
    let norm = norm(&tensors);
    let factor = rule.max_grad_norm.map_or(1.0, |max| {
        let factor = max as f32 / (norm + NORM_EPSILON as f32);
        // Not `min`, which would make a one of what is no number.
        if factor > 1.0 { 1.0 } else { factor }
    });
    let pieces: Vec<Piece<'_>> = tensors.iter_mut().flat_map(|trained| trained.pieces(rule, factor)).collect();
    pieces.into_par_iter().for_each(|mut piece| {
        vectorised(
            #[inline(always)]
            || piece.update(),
        );
    });
    let updated = tensors.into_iter().map(|HostTrained { gradient, moments, .. }| Updated {
        value: Tensor::from_primitive::<Flex>(gradient),
        moments: moments.map(Tensor::from_primitive::<Flex>),
    });
    let norm = Tensor::from_primitive::<Flex>(host::tensor(vec![norm], &[1]));
    (updated.collect(), norm)
}

/// A [`Trained`] in the processor's memory.
#[derive(Debug)]
struct HostTrained {
    value: Host,
    /// The gradient, in whose place the new value comes.
    gradient: Host,
    moments: [Host; 2],
    step: u32,
}

impl HostTrained {
    pub(crate) fn new(Trained { value, gradient, moments, step }: Trained) -> Self {
        let host = |x: Tensor<1>| match x.try_into_primitive::<Flex>() {
            Ok(x) => host::whole(x),
            Err(error) => unreachable!("asked for before: {error:?}"),
        };
        Self { value: host(value), gradient: host(gradient), moments: moments.map(host), step }
    }

    pub(crate) fn pieces(&mut self, rule: &AdamW, factor: f32) -> impl Iterator<Item = Piece<'_>> {
        let constants = Constants::new(rule, self.step);
        let [first, second] = &mut self.moments;
        let value = host::values(&self.value).chunks(PIECE);
        let [into, first, second] =
            [&mut self.gradient, first, second].map(|x| x.storage_mut::<f32>().chunks_mut(PIECE));
        let all = value.zip(into).zip(first).zip(second);
        all.map(move |(((value, into), first), second)| Piece { value, into, first, second, factor, constants })
    }
}

/// The Euclidean norm of all gradients together, by parts of fixed size in fixed order.
fn norm(tensors: &[HostTrained]) -> f32 {
    let pieces: Vec<&[f32]> =
        tensors.iter().flat_map(|trained| host::values(&trained.gradient).chunks(PIECE)).collect();
    let square = |piece: &&[f32]| {
        vectorised(
            #[inline(always)]
            || {
                lanes2(
                    piece,
                    piece,
                    #[inline(always)]
                    |a, b| a * b,
                )
            },
        )
    };
    let squares: Vec<f32> = pieces.par_iter().map(square).collect();
    squares.into_iter().map(f64::from).sum::<f64>().sqrt() as f32
}

/// What one thread does at a time.
#[derive(Debug)]
struct Piece<'a> {
    value: &'a [f32],
    /// The gradient before, the new value after.
    into: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    factor: f32,
    constants: Constants,
}

impl Piece<'_> {
    #[inline(always)]
    pub(crate) fn update(&mut self) {
        let Constants { keep, betas, size, scale, epsilon } = self.constants;
        let [keep, size, scale, epsilon] = [keep, size, scale, epsilon].map(|x| x as f32);
        let ([stay1, stay2], [new1, new2]) = (betas.map(|beta| beta as f32), betas.map(|beta| (1.0 - beta) as f32));
        let factor = self.factor;
        let (first, second) = (self.first.iter_mut(), self.second.iter_mut());
        for (((value, into), first), second) in self.value.iter().zip(self.into.iter_mut()).zip(first).zip(second) {
            let gradient = *into * factor;
            *first = (*first).mul_add(stay1, gradient * new1);
            *second = (*second).mul_add(stay2, gradient * gradient * new2);
            let deviation = second.sqrt().mul_add(scale, epsilon);
            *into = value.mul_add(keep, -(*first / deviation * size));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;

    const RULE: AdamW =
        AdamW { learning_rate: 0.01, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.1, max_grad_norm: Some(1.0) };

    type Form = fn(&AdamW, Vec<Trained>) -> (Vec<Updated>, Tensor<1>);

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
    }

    fn floats(x: &Tensor<1>) -> Vec<f32> {
        x.clone().try_to_vec_as::<f32>().unwrap_or_default()
    }

    /// Elements that look random, the same for the same seed.
    fn noise(elements: usize, seed: usize) -> Vec<f32> {
        (0..elements).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    /// The gradients of each tensor in each step; a tensor without one is not in that step.
    fn run(form: Form, rule: &AdamW, values: &[Vec<f32>], steps: &[Vec<Option<Vec<f32>>>]) -> (Vec<Updated>, Vec<f32>) {
        let fresh = |values: &Vec<f32>| {
            let zeros = || tensor(&vec![0.0; values.len()]);
            (Updated { value: tensor(values), moments: [zeros(), zeros()] }, 0)
        };
        let mut states: Vec<(Updated, u32)> = values.iter().map(fresh).collect();
        let mut norms = Vec::new();
        for gradients in steps {
            let mut tensors = Vec::new();
            for ((state, step), gradient) in states.iter_mut().zip(gradients) {
                if let Some(gradient) = gradient {
                    *step += 1;
                    let Updated { value, moments } = state.clone();
                    tensors.push(Trained { value, gradient: tensor(gradient), moments, step: *step });
                }
            }
            let (updated, norm) = form(rule, tensors);
            let mut updated = updated.into_iter();
            for ((state, _), _) in states.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.is_some()) {
                *state = updated.next().unwrap_or_else(|| unreachable!("one for each"));
            }
            norms.extend(floats(&norm));
        }
        (states.into_iter().map(|(state, _)| state).collect(), norms)
    }

    /// The formulas letter by letter in double precision: values, moments and norms.
    fn by_hand(rule: &AdamW, values: &[Vec<f32>], steps: &[Vec<Option<Vec<f32>>>]) -> (Vec<[Vec<f64>; 3]>, Vec<f64>) {
        let wide = |values: &Vec<f32>| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let zeros = |values: &Vec<f32>| vec![0.0; values.len()];
        let mut states: Vec<[Vec<f64>; 3]> = values.iter().map(|v| [wide(v), zeros(v), zeros(v)]).collect();
        let mut counts = vec![0; values.len()];
        let mut norms = Vec::new();
        for gradients in steps {
            let norm = gradients.iter().flatten().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            norms.push(norm);
            let factor = rule.max_grad_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
            for (([value, m, v], count), gradient) in states.iter_mut().zip(&mut counts).zip(gradients) {
                let Some(gradient) = gradient else { continue };
                *count += 1;
                let [b1, b2] = rule.betas;
                for (((x, m), v), g) in value.iter_mut().zip(m).zip(v).zip(gradient) {
                    let g = f64::from(*g) * factor;
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    let (m, v) = (*m / (1.0 - b1.powi(*count)), *v / (1.0 - b2.powi(*count)));
                    *x -= rule.learning_rate * rule.weight_decay * *x;
                    *x -= rule.learning_rate * m / (v.sqrt() + rule.epsilon);
                }
            }
        }
        (states, norms)
    }

    /// As close as sums of terms of the largest's size can be, some of which cancel.
    fn near(found: &Tensor<1>, expected: &[f64], within: f64) {
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (found, expected) in floats(found).into_iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() <= within * largest, "{found} for {expected}");
        }
        assert_eq!(found.dims(), [expected.len()]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn both_forms_do_what_double_precision_does(
            sizes in proptest::collection::vec(1..40_000_usize, 1..5),
            size in prop_oneof![Just(0.001_f32), Just(1.0), Just(300.0)],
            clips: bool,
            decays: bool,
            absent in proptest::collection::vec(0..4_usize, 3),
        ) {
            let rule = AdamW {
                max_grad_norm: clips.then_some(1.0),
                weight_decay: if decays { 0.1 } else { 0.0 },
                ..RULE
            };
            let values: Vec<_> = sizes.iter().enumerate().map(|(at, size)| noise(*size, at)).collect();
            let gradient = |step: usize, at: usize, elements: usize| {
                noise(elements, 10 + 5 * step + at).into_iter().map(|g| g * size).collect::<Vec<f32>>()
            };
            let steps: Vec<Vec<_>> = absent.iter().enumerate().map(|(step, absent)| {
                let one = |(at, size): (usize, &usize)| (at == 0 || at != *absent).then(|| gradient(step, at, *size));
                sizes.iter().enumerate().map(one).collect()
            }).collect();
            let (expected, expected_norms) = by_hand(&rule, &values, &steps);
            for form in [fused as Form, plain] {
                let (found, norms) = run(form, &rule, &values, &steps);
                for (found, [value, first, second]) in found.iter().zip(&expected) {
                    near(&found.value, value, 2e-6);
                    near(&found.moments[0], first, 1e-5);
                    near(&found.moments[1], second, 1e-5);
                }
                near(&tensor(&norms), &expected_norms, 1e-5);
            }
        }
    }

    /// Numbers of PyTorch 2.15: `clip_grad_norm_(parameters, 1.0)` and `AdamW(lr=0.01, weight_decay=0.1)`; the second
    /// tensor's `grad` is None in the second step.
    #[test]
    fn gives_pytorchs_numbers() {
        let values = [vec![0.5, -1.0, 2.0], vec![0.25, -0.75]];
        let steps = [
            vec![Some(vec![1.0, -2.0, 0.5]), Some(vec![3.0, 0.125])],
            vec![Some(vec![0.01, 0.02, -0.03]), None],
            vec![Some(vec![-4.0, 1.0, 0.0]), Some(vec![0.5, -0.5])],
        ];
        for form in [fused as Form, plain] {
            let (found, norms) = run(form, &RULE, &values, &steps);
            near(&tensor(&norms), &NORMS, 1e-6);
            for (found, [value, first, second]) in found.iter().zip(PYTORCH) {
                near(&found.value, value, 2e-6);
                near(&found.moments[0], first, 1e-5);
                near(&found.moments[1], second, 1e-5);
            }
        }
    }

    const NORMS: [f64; 3] = [3.776_986_122_131_347_7, 0.037_416_573_613_882_065, 4.183_300_018_310_547];

    /// Value and moments of each tensor.
    const PYTORCH: [[&[f64]; 3]; 2] = [
        [
            &[0.486_269_503_831_863_4, -0.978_724_420_070_648_2, 1.975_362_300_872_802_7],
            &[-0.073_272_608_220_577_24, -0.017_186_762_765_049_934, 0.008_022_832_684_218_884],
            &[0.000_984_343_816_526_234_1, 0.000_337_376_142_852_008_34, 1.838_870_593_928_732e-5],
        ],
        [
            &[0.231_776_505_708_694_46, -0.753_106_176_853_179_9],
            &[0.083_437_837_660_312_65, -0.008_973_719_552_159_31],
            &[0.000_644_541_811_197_996_1, 1.537_990_465_294_569_7e-5],
        ],
    ];

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let values = [noise(100_000, 1), noise(5, 2), noise(33_333, 3)];
        let steps = [values.iter().enumerate().map(|(at, v)| Some(noise(v.len(), 7 + at))).collect::<Vec<_>>()];
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let (found, norms) = match pool {
                Ok(pool) => pool.install(|| run(fused, &RULE, &values, &steps)),
                Err(error) => unreachable!("{error}"),
            };
            let bits = |x: &Tensor<1>| floats(x).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let all: Vec<_> = found.iter().flat_map(|f| [&f.value, &f.moments[0], &f.moments[1]].map(bits)).collect();
            (all, norms)
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(7));
    }

    #[test]
    fn what_others_hold_is_not_changed() {
        let shared = tensor(&noise(40_000, 4));
        let moments = [shared.clone(), shared.clone().abs()];
        let squares = moments[1].clone();
        let trained = Trained { value: shared.clone(), gradient: shared.clone(), moments, step: 3 };
        let (updated, norm) = adamw(&RULE, vec![trained]);
        assert_eq!((updated.len(), norm.is_some()), (1, true));
        assert_eq!(floats(&shared), noise(40_000, 4));
        assert_eq!(floats(&squares), floats(&shared.abs()));
    }

    #[test]
    fn short_types_are_updated_in_single_precision() {
        let value = tensor(&[1.0, -2.0]).cast(DType::BF16);
        let zeros = || tensor(&[0.0, 0.0]);
        let gradient = tensor(&[0.5, 0.5]).cast(DType::BF16);
        let (updated, _) = adamw(&RULE, vec![Trained { value, gradient, moments: [zeros(), zeros()], step: 1 }]);
        for Updated { value, moments } in updated {
            assert_eq!((value.dtype(), moments[0].dtype(), moments[1].dtype()), (DType::BF16, DType::F32, DType::F32));
            near(&moments[0], &[0.05, 0.05], 1e-6);
            assert_eq!(floats(&value.cast(DType::F32)), [0.988_281_25, -2.015_625]);
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        for form in [fused as Form, plain] {
            let (found, norms) =
                run(form, &RULE, &[vec![1.0], vec![1.0]], &[vec![Some(vec![f32::NAN]), Some(vec![1.0])]]);
            assert!(norms.iter().all(|norm| norm.is_nan()));
            assert!(found.iter().all(|found| floats(&found.value).iter().all(|x| x.is_nan())));
        }
    }

    #[test]
    fn without_tensors_there_is_no_norm() {
        assert!(matches!(adamw(&RULE, Vec::new()), (updated, None) if updated.is_empty()));
    }
}
