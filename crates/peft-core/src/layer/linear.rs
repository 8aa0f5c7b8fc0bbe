//! Linear layers that find an adapter on their own weight and add it to the activation instead of building a dense weight.

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Tensor, module},
};

use crate::{
    AdapterSet, FrozenWeight,
    layer::rows as by_rows,
    plugins::tuner::{LinearCall, LowRank},
    weight::Product,
};

/// GPT-2's projection: a linear layer whose files hold the weight as `[d_in, d_out]`.
#[derive(Module, Debug)]
pub struct Conv1D {
    /// `[d_in, d_out]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv1D {
    /// `x W + b` and the active adapters.
    ///
    /// # Shapes
    /// - `input`: `[..., d_in]`
    /// - returned: `[..., d_out]`
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.forward_by(module::linear, input)
    }

    /// [`forward`](Self::forward) with the frozen layer computed by `product`: a backend's own, where the model knows one.
    pub fn forward_by<const D: usize>(&self, product: Product, input: Tensor<D>) -> Tensor<D> {
        adapted(&self.weight, self.bias.as_ref(), input, product)
    }
}

/// A linear layer and the active adapters on its weight: `y = x W + b + Σ adapter(x)`.
///
/// No dense delta is formed, and the frozen weight gets no gradient.
///
/// # Shapes
/// - `input`: `[..., d_in]`
/// - returned: `[..., d_out]`
pub fn adapted_linear<const D: usize>(linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    adapted_linear_by(module::linear, linear, input)
}

/// [`adapted_linear`] with the frozen layer computed by `product`: a backend's own, where the model knows one.
pub fn adapted_linear_by<const D: usize>(product: Product, linear: &Linear, input: Tensor<D>) -> Tensor<D> {
    adapted(&linear.weight, linear.bias.as_ref(), input, product)
}

fn adapted<const D: usize>(
    weight: &Param<Tensor<2>>,
    bias: Option<&Param<Tensor<1>>>,
    input: Tensor<D>,
    product: Product,
) -> Tensor<D> {
    let mut dims = input.dims();
    let [d_in, d_out] = weight.dims();
    let tokens = dims.iter().take(D - 1).product::<usize>();
    // Always a product of two matrices: in a batched one the processor's kernels would first copy a transposed weight.
    let input = input.reshape([tokens, d_in]);
    let of_bias = bias.and_then(|bias| bias.reparameterization());
    let by_rows = by_rows::rows_of(weight.reparameterization(), of_bias);
    let rows = dims.first().copied().unwrap_or_default();
    let output = match by_rows {
        Some(by_rows) => by_rows::linear(&by_rows, rows, weight, bias, input, product),
        None => by_all(weight, bias.map(Param::val), input, product),
    };
    if let Some(last) = dims.last_mut() {
        *last = d_out;
    }
    output.reshape(dims)
}

/// The layer with all its adapters on all rows.
fn by_all(weight: &Param<Tensor<2>>, bias: Option<Tensor<1>>, input: Tensor<2>, product: Product) -> Tensor<2> {
    match weight.reparameterization::<AdapterSet>() {
        // `val` also where no adapter is: the weight may have another reparameterization, Burn's own `Lora` for one.
        None => product(input, weight.val(), bias),
        Some(set) if set.replaces() => product(input, weight.val(), bias),
        Some(set) => {
            let weight = set.quantized().map_or_else(|| FrozenWeight::Dense(weight.base()), FrozenWeight::Quantized);
            let call = LinearCall { input, weight, bias: bias.clone(), training: set.is_training() };
            let frozen = || call.weight.linear(product, call.input.clone(), bias.clone());
            let mut tuned = set.tuned();
            let first = match tuned.next() {
                None => frozen(),
                Some((layer, tensors)) => {
                    layer.linear(&tensors, &call).unwrap_or_else(|| layer.forward(&tensors, &call, frozen()))
                }
            };
            tuned.fold(first, |output, (layer, tensors)| layer.forward(&tensors, &call, output))
        }
    }
}

/// A linear layer whose adapters are one low-rank product or none, in its parts.
#[derive(Debug)]
pub struct LinearParts {
    /// `[d_in, d_out]`, frozen or not.
    pub weight: FrozenWeight,
    /// `[d_out]`.
    pub bias: Option<Tensor<1>>,
    /// What is added to it.
    pub low_rank: Option<LowRank>,
}

/// The parts of a linear layer, for an operation that has several inside; none where its adapters are something else, which
/// [`adapted_linear`] computes.
pub fn linear_parts(linear: &Linear) -> Option<LinearParts> {
    let of_bias = linear.bias.as_ref().and_then(|bias| bias.reparameterization());
    if by_rows::rows_of(linear.weight.reparameterization(), of_bias).is_some() {
        return None;
    }
    let bias = linear.bias.as_ref().map(Param::val);
    let set = linear.weight.reparameterization::<AdapterSet>().filter(|set| !set.replaces());
    let Some(set) = set else {
        return Some(LinearParts { weight: FrozenWeight::Dense(linear.weight.val()), bias, low_rank: None });
    };
    let mut tuned = set.tuned();
    let low_rank = match (tuned.next(), tuned.next()) {
        (None, _) => None,
        (Some((layer, tensors)), None) => Some(layer.low_rank(&tensors, set.is_training())?),
        _ => return None,
    };
    let weight = set.quantized().map_or_else(|| FrozenWeight::Dense(linear.weight.base()), FrozenWeight::Quantized);
    Some(LinearParts { weight, bias, low_rank })
}

#[cfg(test)]
mod tests {
    use burn::{
        module::{Lora, ModuleMapper},
        nn::{EmbeddingConfig, LinearConfig},
        tensor::{Device, Distribution, Int, Tolerance},
    };

    use super::*;
    use crate::adapted_embedding;

    /// Burn's own `Lora` on a module, with factors that change something.
    fn with_lora<M: Module>(module: M) -> M {
        struct Shift;
        impl ModuleMapper for Shift {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|values| values + 0.5)
            }
        }
        module.apply_lora(Lora::new(2, 4.0)).map(&mut Shift)
    }

    fn assert_same<const D: usize>(found: Tensor<D>, expected: Tensor<D>, base: Tensor<D>) {
        let expected = expected.into_data();
        found.into_data().assert_approx_eq::<f32>(&expected, Tolerance::default());
        assert_ne!(expected, base.into_data(), "the factors change nothing, so nothing was tested");
    }

    #[test]
    fn other_reparameterizations_act_too() {
        let device = Device::flex();
        let input = Tensor::<3>::random([2, 5, 6], Distribution::Default, &device);
        let linear = with_lora(LinearConfig::new(6, 4).init(&device));
        let bare = module::linear(input.clone(), linear.weight.base(), linear.bias.as_ref().map(Param::val));
        assert_same(adapted_linear(&linear, input.clone()), linear.forward(input.clone()), bare);

        let conv = Conv1D { weight: linear.weight.clone(), bias: None };
        let expected = module::linear(input.clone(), linear.weight.val(), None);
        let bare = module::linear(input.clone(), linear.weight.base(), None);
        assert_same(conv.forward(input), expected, bare);

        let ids = Tensor::<2, Int>::from_data([[0, 3, 1], [2, 2, 0]], &device);
        let embedding = with_lora(EmbeddingConfig::new(4, 6).init(&device));
        let bare = module::embedding(embedding.weight.base(), ids.clone());
        assert_same(adapted_embedding(&embedding, ids.clone()), embedding.forward(ids), bare);
    }
}
