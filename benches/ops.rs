//! The fused operations against the same made of Burn's own, forward and backward, at the shapes of two models.
//!
//! `cargo bench --package peft-benches [NAME]`. The two forms take turns, so that other work on the machine hits both, and a
//! figure is a median of ratios with the least and the greatest. Results are compared before they are timed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program that stops at the first thing that is wrong")]

use std::time::{Duration, Instant};

use burn::tensor::{
    Device, Distribution, Int, Tensor, Tolerance,
    activation::{self, log_softmax},
    module,
};
use peft::backends::ops::{self, LowRank, Sight, Weights};

const ROUNDS: usize = 9;
/// What a round of one form takes at least.
const ROUND: Duration = Duration::from_millis(50);

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let bench = Bench { device: Device::flex().autodiff(), wanted };
    println!("{:<44} {:>10} {:>10}  ratio", "operation", "plain ms", "fused ms");
    bench.minilm();
    bench.smollm2();
}

struct Bench {
    device: Device,
    wanted: String,
}

impl Bench {
    /// 16 rows of 128 tokens.
    fn minilm(&self) {
        let (x, w) = (self.tracked([2048, 384]), self.frozen([384, 384]));
        let (a, b, bias) = (self.tracked([8, 384]), self.tracked([384, 8]), self.frozen([384]));
        self.compare("lora_linear minilm 2048x384x384 r8", lora_linear(&x, &w, Some(&bias), &a, &b));

        let [q, k, v] = [(); 3].map(|()| self.tracked([16, 12, 128, 32]));
        self.compare("attention minilm 16x12x128x32", attention(&q, &k, &v, false));

        let [x, residual] = [(); 2].map(|()| self.tracked([16, 128, 384]));
        let (gamma, beta) = (self.frozen([384]), self.frozen([384]));
        self.compare(
            "layer_norm minilm 16x128x384",
            (
                || ops::layer_norm(x.clone(), Some(residual.clone()), 0.0, gamma.clone(), Some(beta.clone()), 1e-12),
                || {
                    let z = x.clone() + residual.clone();
                    let centred = z.clone() - z.mean_dim(2);
                    let variance = centred.clone().square().mean_dim(2);
                    centred / (variance + 1e-12).sqrt() * gamma.clone().unsqueeze() + beta.clone().unsqueeze()
                },
            ),
        );

        let x = self.tracked([16, 128, 1536]);
        self.compare("gelu minilm 16x128x1536", (|| ops::gelu(x.clone()), || activation::gelu(x.clone())));

        let x = self.tracked([16, 12, 128, 128]);
        self.compare(
            "softmax minilm 16x12x128x128",
            (|| ops::softmax(x.clone()), || activation::softmax(x.clone(), 3)),
        );

        let x = self.tracked([16, 128, 384]);
        // The two draw other numbers, so only what they sum to can be compared: about the same.
        self.time(
            "dropout minilm 16x128x384",
            (
                || ops::dropout(x.clone(), 0.1),
                || x.clone() * x.clone().without_autodiff().random_like(Distribution::Bernoulli(0.9)).div_scalar(0.9),
            ),
        );
    }

    /// 2 rows of 256 tokens.
    fn smollm2(&self) {
        let (x, w) = (self.tracked([512, 576]), self.frozen([576, 1536]));
        let (a, b) = (self.tracked([8, 576]), self.tracked([1536, 8]));
        self.compare("lora_linear smollm2 512x576x1536 r8", lora_linear(&x, &w, None, &a, &b));

        let q = self.tracked([2, 9, 256, 64]);
        let [k, v] = [(); 2].map(|()| self.tracked([2, 3, 256, 64]));
        self.compare("attention smollm2 2x9x256x64, causal", attention(&q, &k, &v, true));

        let (x, weight) = (self.tracked([2, 256, 576]), self.frozen([576]));
        self.compare(
            "rms_norm smollm2 2x256x576",
            (
                || ops::rms_norm(x.clone(), weight.clone(), 0.0, 1e-5),
                || x.clone() / (x.clone().square().mean_dim(2) + 1e-5).sqrt() * weight.clone().unsqueeze(),
            ),
        );

        let [gate, up] = [(); 2].map(|()| self.tracked([2, 256, 1536]));
        self.compare(
            "silu_gated smollm2 2x256x1536",
            (|| ops::silu_gated(gate.clone(), up.clone()), || activation::silu(gate.clone()) * up.clone()),
        );

        let x = self.tracked([2, 256, 9, 64]);
        let [cos, sin] = [(); 2].map(|()| self.frozen([1, 256, 1, 64]));
        self.compare(
            "rotate smollm2 2x256x9x64",
            (
                || ops::rotate(&x, &cos, &sin, 32).unwrap(),
                || {
                    let [first, second] = [0, 32].map(|from| x.clone().narrow(3, from, 32));
                    x.clone() * cos.clone() + Tensor::cat(vec![second.neg(), first], 3) * sin.clone()
                },
            ),
        );

        let (hidden, weight) = (self.tracked([512, 576]), self.frozen([576, 49152]).mul_scalar(0.05));
        let targets: Vec<Option<usize>> = (0..512).map(|row| Some(row * 89 % 49152)).collect();
        let indices: Vec<i64> = targets.iter().flatten().map(|target| i64::try_from(*target).unwrap()).collect();
        let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &self.device.clone().inner()).reshape([512, 1]);
        self.compare(
            "linear_cross_entropies smollm2 512x576x49152",
            (
                || ops::linear_cross_entropies(&hidden, &weight, &targets, None).unwrap().sum(),
                || {
                    let logits = hidden.clone().matmul(weight.clone());
                    log_softmax(logits, 1).gather(1, indices.clone()).neg().sum()
                },
            ),
        );
    }

    fn tracked<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device).require_grad()
    }

    fn frozen<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device.clone().inner())
    }

    fn compare<const D: usize>(&self, name: &str, forms: (impl Fn() -> Tensor<D>, impl Fn() -> Tensor<D>)) {
        if name.contains(&self.wanted) {
            let tolerance = Tolerance::relative(1e-3).set_absolute(1e-3);
            forms.0().into_data().assert_approx_eq::<f32>(&forms.1().into_data(), tolerance);
            self.time(name, forms);
        }
    }

    /// Prints how long both forms take.
    fn time<const D: usize>(&self, name: &str, (fused, plain): (impl Fn() -> Tensor<D>, impl Fn() -> Tensor<D>)) {
        if !name.contains(&self.wanted) {
            return;
        }
        let once = seconds(&plain, 1).max(1e-6);
        let times = (ROUND.as_secs_f64() / once).ceil().max(1.0) as u32;
        let rounds: Vec<[f64; 2]> = (0..ROUNDS).map(|_| [seconds(&plain, times), seconds(&fused, times)]).collect();
        let sorted = |value: fn(&[f64; 2]) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (plain, fused, ratio) = (sorted(|r| r[0] * 1e3), sorted(|r| r[1] * 1e3), sorted(|r| r[0] / r[1]));
        let middle = ROUNDS / 2;
        println!(
            "{name:<44} {:>10.3} {:>10.3}  {:.2} ({:.2} to {:.2})",
            plain[middle],
            fused[middle],
            ratio[middle],
            ratio[0],
            ratio[ROUNDS - 1]
        );
    }
}

/// Seconds that one run forward and backward takes, of so many.
fn seconds<const D: usize>(form: &impl Fn() -> Tensor<D>, times: u32) -> f64 {
    let started = Instant::now();
    for _ in 0..times {
        let _gradients = form().sum().backward();
    }
    started.elapsed().as_secs_f64() / f64::from(times)
}

/// A frozen layer with an adapter: fused, and of Burn's operations.
fn lora_linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
) -> (impl Fn() -> Tensor<2>, impl Fn() -> Tensor<2>) {
    let fused = move || {
        let lora = LowRank { a: a.clone(), b: b.clone(), scale: 2.0, drop: 0.0 };
        ops::lora_linear(x, weight, bias, lora).unwrap()
    };
    let plain = move || {
        let inner = x.clone().matmul(a.clone().transpose());
        module::linear(x.clone(), weight.clone(), bias.cloned()) + inner.matmul(b.clone().transpose()).mul_scalar(2.0)
    };
    (fused, plain)
}

/// Attention: fused, and of Burn's operations.
fn attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    causal: bool,
) -> (impl Fn() -> Tensor<4>, impl Fn() -> Tensor<4>) {
    let [batch, heads, length, dim] = q.dims();
    let scale = (dim as f64).powf(-0.5);
    let sight = Sight { causal, ..Sight::default() };
    let fused = move || ops::attention(q, k, v, &sight, Weights { scale, soft_cap: None, drop: 0.0 }).unwrap();
    let hidden = Tensor::<2, Int>::ones([length, length], &q.device().inner()).triu(1).equal_scalar(1);
    let plain = move || {
        let groups = heads / k.dims()[1];
        let repeated =
            |x: &Tensor<4>| x.clone().unsqueeze_dim::<5>(2).repeat_dim(2, groups).reshape([batch, heads, length, dim]);
        let (k, v) = if groups > 1 { (repeated(k), repeated(v)) } else { (k.clone(), v.clone()) };
        let scores = q.clone().matmul(k.transpose()).mul_scalar(scale);
        let scores = if causal { scores.mask_fill(hidden.clone().unsqueeze(), f32::NEG_INFINITY) } else { scores };
        activation::softmax(scores, 3).matmul(v)
    };
    (fused, plain)
}
