//! A gated feed-forward block as one operation: three frozen linear layers, the adapters on them, and the activation between.
//!
//! `y = down(act(gate(x)) · up(x))` (Shazeer 2020, arXiv:2002.05202). What goes into the last layer is not kept: the pass back makes it
//! anew in the pass over gate and up that turns both into their gradients. Both layers that read the input write its gradient to
//! the same memory.

use burn::tensor::Tensor;

use crate::{
    kernels::host::{self, gate::Gate},
    nodes::{
        draws::runs_twice,
        host::gated_mlp::GatedMlp,
        node::{Input, run},
    },
    ops::{adapted::Adapted, normed::Normed},
};

/// `down(act(gate(x)) · up(x))`.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`
/// - `layers`: gate, up and down
/// - returned: `[tokens, d_out of down]`
pub fn gated_mlp(x: impl Into<Normed<2>>, act: Gate, layers: [Adapted; 3]) -> Tensor<2> {
    let (x, origin) = x.into().into_parts();
    // Without a graph nothing is kept anyway, and a layer by itself may know a faster way for a few rows.
    let keeps = runs_twice() || x.is_autodiff() || layers.iter().any(Adapted::is_autodiff);
    let fits = host::takes(&x) && !x.dims().contains(&0) && layers.iter().all(Adapted::is_frozen_on_host);
    if !keeps || !fits {
        return plain(x, act, layers);
    }
    let [(gate, [gw, gb, ga, gc]), (up, [uw, ub, ua, uc]), (down, [dw, db, da, dc])] = layers.map(Adapted::into_parts);
    let inputs = [Input::new(x), gw, gb, ga, gc, uw, ub, ua, uc, dw, db, da, dc];
    run(GatedMlp { act, gate, up, down, origin }, inputs)
}

/// The same layer by layer.
fn plain(x: Tensor<2>, act: Gate, [gate, up, down]: [Adapted; 3]) -> Tensor<2> {
    let (gate, up) = (gate.forward(x.clone()), up.forward(x));
    down.forward(act.gated(gate, up))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use burn::tensor::{DType, Device, Distribution, FloatDType, TensorData, Tolerance};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        nodes::draws::{recorded, replayed},
        ops::{adapted::Weight, lora_linear::LowRank},
    };

    /// What a case is about, of each layer where it is one number a layer.
    #[derive(Debug, Clone, Copy)]
    struct Case {
        /// Tokens, width outside and inside.
        sizes: [usize; 3],
        /// 0 for no adapter.
        ranks: [usize; 3],
        biased: [bool; 3],
        /// Whether the inner factor is trained, the outer one, the bias.
        trained: [bool; 3],
        drop: f64,
        act: Gate,
        /// Whether the input needs a gradient.
        input: bool,
    }

    /// Weight, bias and factors.
    type LayerValues = (Tensor<2>, Option<Tensor<1>>, Option<[Tensor<2>; 2]>);

    struct Values {
        x: Tensor<2>,
        upstream: Tensor<2>,
        layers: [LayerValues; 3],
    }

    impl Case {
        fn values(&self) -> Values {
            let [tokens, outside, inside] = self.sizes;
            let device = Device::flex();
            let random = |rows: usize, columns: usize| {
                let deviation = (rows as f64).powf(-0.5);
                Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, deviation), &device)
            };
            let layer = |which: usize| {
                let [d_in, d_out] = if which == 2 { [inside, outside] } else { [outside, inside] };
                // As files have them, or not.
                let weight = if which == 0 { random(d_out, d_in).transpose() } else { random(d_in, d_out) };
                let bias = self.biased[which].then(|| random(1, d_out).reshape([d_out]));
                let rank = self.ranks[which];
                (weight, bias, (rank > 0).then(|| [random(rank, d_in), random(d_out, rank)]))
            };
            let wide = |rows| Tensor::random([rows, outside], Distribution::Normal(0.0, 1.0), &device);
            Values { x: wide(tokens), upstream: wide(tokens), layers: [0, 1, 2].map(layer) }
        }

        /// The result and all gradients.
        fn run(&self, values: &Values, f: fn(Tensor<2>, Gate, [Adapted; 3]) -> Tensor<2>) -> Vec<Option<TensorData>> {
            let leaf =
                |tracked: bool, x: &Tensor<2>| if tracked { x.clone().autodiff().require_grad() } else { x.clone() };
            let x = leaf(self.input, &values.x);
            let [a, b, bias] = self.trained;
            let leaves: Vec<_> = values
                .layers
                .iter()
                .map(|(weight, own, factors)| {
                    let own =
                        own.as_ref().map(|own| if bias { own.clone().autodiff().require_grad() } else { own.clone() });
                    let factors = factors.as_ref().map(|[fa, fb]| [leaf(a, fa), leaf(b, fb)]);
                    (weight.clone(), own, factors)
                })
                .collect();
            let layer = |which: usize| {
                let (weight, bias, factors) = leaves[which].clone();
                let low_rank = factors.map(|[a, b]| LowRank { a, b, scale: 0.5, drop: self.drop });
                Adapted { weight: Weight::Dense(weight), bias, low_rank }
            };
            let y = f(x.clone(), self.act, [0, 1, 2].map(layer));
            let mut found = vec![Some(y.clone().without_autodiff().into_data())];
            if !y.is_autodiff() {
                return found;
            }
            let upstream = values.upstream.clone().cast(FloatDType::from(y.dtype()));
            let gradients = (y * upstream).sum().backward();
            let of = |x: &Tensor<2>| x.is_autodiff().then(|| x.grad(&gradients).map(|grad| grad.into_data())).flatten();
            found.push(of(&x));
            for (_, bias, factors) in &leaves {
                let tracked = bias.as_ref().filter(|bias| bias.is_autodiff());
                found.push(tracked.and_then(|bias| bias.grad(&gradients)).map(|grad| grad.into_data()));
                found.extend(factors.iter().flatten().map(of));
            }
            found
        }

        fn check(&self) {
            let values = self.values();
            let (fused, draws) = recorded(|| self.run(&values, gated_mlp));
            let layers = replayed(draws, || self.run(&values, plain));
            assert_eq!(fused.len(), layers.len());
            for (fused, layers) in fused.iter().zip(&layers) {
                assert_eq!(fused.is_some(), layers.is_some(), "{self:?}");
                if let (Some(fused), Some(layers)) = (fused, layers) {
                    fused.assert_approx_eq::<f32>(layers, Tolerance::rel_abs(1e-3, 1e-3));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn is_its_layers_one_by_one(
            sizes in [1..400_usize, 1..60_usize, 1..90_usize],
            ranks in [0..9_usize, 0..9_usize, 0..9_usize],
            biased: [bool; 3],
            trained: [bool; 3],
            drops: bool,
            silu: bool,
            input: bool,
        ) {
            let (drop, act) = (if drops { 0.25 } else { 0.0 }, if silu { Gate::Silu } else { Gate::GeluTanh });
            Case { sizes, ranks, biased, trained, drop, act, input }.check();
        }
    }

    const CASE: Case = Case {
        sizes: [150, 24, 40],
        ranks: [4, 4, 4],
        biased: [false; 3],
        trained: [true, true, false],
        drop: 0.1,
        act: Gate::Silu,
        input: true,
    };

    #[test]
    fn half_precision_is_near_single_precision() {
        // Sums of 150 rounded products are near each other, but for one draw in a hundred.
        Device::flex().seed(1);
        let values = CASE.values();
        let cast = |values: &Values, dtype: FloatDType| Values {
            x: values.x.clone().cast(dtype),
            upstream: values.upstream.clone().cast(dtype),
            layers: values.layers.clone().map(|(weight, bias, factors)| (weight.cast(dtype), bias, factors)),
        };
        // The same numbers in both types: only what is rounded in between is compared.
        let rounded = cast(&values, FloatDType::BF16);
        let (single, draws) = recorded(|| CASE.run(&cast(&rounded, FloatDType::F32), gated_mlp));
        let half = replayed(draws, || CASE.run(&rounded, gated_mlp));
        let [Some(y), Some(dx), ..] = half.as_slice() else { panic!("no result or no gradient") };
        assert_eq!([y.dtype(), dx.dtype()], [DType::BF16; 2]);
        for (half, single) in half.into_iter().zip(single) {
            let (Some(half), Some(single)) = (half, single) else { continue };
            half.convert::<f32>().assert_approx_eq::<f32>(&single, Tolerance::rel_abs(5e-2, 1e-1));
        }
    }

    #[test]
    fn a_trained_weight_gets_its_gradient() {
        let values = CASE.values();
        let weight = values.layers[1].0.clone().autodiff().require_grad();
        let layer = |weight| Adapted { weight: Weight::Dense(weight), bias: None, low_rank: None };
        let [(gate, ..), _, (down, ..)] = values.layers;
        let y = gated_mlp(values.x, Gate::Silu, [layer(gate), layer(weight.clone()), layer(down)]);
        assert!(weight.grad(&y.sum().backward()).is_some());
    }
}
