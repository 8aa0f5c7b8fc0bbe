//! DoRA: LoRA turns the columns of a weight, a trained magnitude gives each its length (Liu et al. 2024, "DoRA: Weight-Decomposed
//! Low-Rank Adaptation").
//!
//! The effective weight is `m · (W + ΔW) / ‖W + ΔW‖`, column by column. As in the paper's section 4.3 the norm is a constant to
//! the gradient.

use burn::tensor::{DType, FloatDType, Int, Tensor};
use peft_core::{
    DynTensor, FrozenWeight,
    plugins::tuner::{Init, LayerTuner, LinearCall, TensorSpec, Tensors},
};

use super::layer::{LoraEmbedding, LoraLinear, as_dtype};

const MAGNITUDE: &str = "lora_magnitude_vector";

/// DoRA on a linear layer or GPT-2's `Conv1D`.
#[derive(Debug)]
pub struct DoraLinear(pub LoraLinear);

/// DoRA on an embedding table, whose columns are its dimensions.
#[derive(Debug)]
pub struct DoraEmbedding(pub LoraEmbedding);

impl LayerTuner for DoraLinear {
    fn tensors(&self) -> Vec<TensorSpec> {
        with_magnitude(self.0.tensors(), self.0.d_out)
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        let merged = self.0.merged(tensors, weight);
        scaled(tensors, &merged.clone(), merged)
    }

    fn merged_onto(&self, tensors: &Tensors<'_>, running: DynTensor, frozen: &DynTensor) -> DynTensor {
        let lengths_of = self.0.merged(tensors, frozen.clone());
        scaled(tensors, &lengths_of, self.0.merged(tensors, running))
    }

    fn derived(&self, tensors: &Tensors<'_>, weight: DynTensor) -> Option<DynTensor> {
        column_norms(&self.0.merged(tensors, weight)).map(flat)
    }

    /// `y + (m/‖·‖ - 1) x W + m/‖·‖ ΔW(x)`: where nothing is dropped `x W` is in `y` already.
    fn forward(&self, tensors: &Tensors<'_>, call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        let Some(factor) = factor(tensors, &self.0.merged(tensors, DynTensor::R2(call.weight.dense()))) else {
            return output;
        };
        let dtype = output.dtype();
        let (dropped, product) = self.0.product(tensors, call);
        let frozen = match dropped {
            Some(input) => call.frozen(as_dtype(input, call.input.dtype())),
            None => match &call.bias {
                Some(bias) => output.clone() - bias.clone().unsqueeze(),
                None => output.clone(),
            },
        };
        let frozen = as_dtype(frozen, product.dtype());
        output + as_dtype(frozen * (factor.clone() - 1.0) + product * factor, dtype)
    }

    fn records(&self) -> bool {
        true
    }

    fn refuses_rows(&self) -> Option<&'static str> {
        Some("uses DoRA")
    }

    fn summary(&self) -> String {
        format!("{}, DoRA", self.0.summary())
    }
}

impl LayerTuner for DoraEmbedding {
    fn tensors(&self) -> Vec<TensorSpec> {
        with_magnitude(self.0.tensors(), self.0.dimensions)
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        let merged = self.0.merged(tensors, weight);
        scaled(tensors, &merged.clone(), merged)
    }

    fn merged_onto(&self, tensors: &Tensors<'_>, running: DynTensor, frozen: &DynTensor) -> DynTensor {
        let lengths_of = self.0.merged(tensors, frozen.clone());
        scaled(tensors, &lengths_of, self.0.merged(tensors, running))
    }

    fn derived(&self, tensors: &Tensors<'_>, weight: DynTensor) -> Option<DynTensor> {
        column_norms(&self.0.merged(tensors, weight)).map(flat)
    }

    fn embed(&self, tensors: &Tensors<'_>, weight: &FrozenWeight, ids: Tensor<2, Int>, output: Tensor<3>) -> Tensor<3> {
        let factor = factor(tensors, &self.0.merged(tensors, DynTensor::R2(weight.dense())));
        let output = self.0.embed(tensors, weight, ids, output);
        let dtype = output.dtype();
        match factor {
            Some(factor) => as_dtype(as_dtype(output, factor.dtype()) * factor.unsqueeze(), dtype),
            None => output,
        }
    }

    fn records(&self) -> bool {
        true
    }

    fn refuses_rows(&self) -> Option<&'static str> {
        Some("uses DoRA")
    }

    fn summary(&self) -> String {
        format!("{}, DoRA", self.0.summary())
    }
}

fn with_magnitude(mut specs: Vec<TensorSpec>, columns: usize) -> Vec<TensorSpec> {
    specs.push(TensorSpec { name: MAGNITUDE.into(), shape: vec![columns], init: Init::Derived, trainable: true });
    specs
}

/// The lengths of the columns as a constant, `[1, columns]`, in single precision or better.
fn column_norms(weight: &DynTensor) -> Option<Tensor<2>> {
    let weight = weight.get::<2>()?.without_autodiff();
    let weight = match weight.dtype() {
        DType::F16 | DType::BF16 => weight.cast(FloatDType::F32),
        _ => weight,
    };
    Some(weight.square().sum_dim(0).sqrt())
}

fn flat(norms: Tensor<2>) -> DynTensor {
    let columns = norms.dims()[1];
    DynTensor::R1(norms.reshape([columns]))
}

/// `m / ‖W + ΔW‖`, `[1, columns]`.
fn factor(tensors: &Tensors<'_>, merged: &DynTensor) -> Option<Tensor<2>> {
    let magnitude = tensors.get::<1>(MAGNITUDE);
    column_norms(merged).map(|norms| magnitude.unsqueeze::<2>() / norms)
}

/// `merged` with the lengths of columns that the magnitude gives: after other adapters these are still those of the frozen weight
/// and this adapter's own product, as in the forward pass.
fn scaled(tensors: &Tensors<'_>, lengths_of: &DynTensor, merged: DynTensor) -> DynTensor {
    let (Some(factor), Some(weight)) = (factor(tensors, lengths_of), merged.get::<2>()) else { return merged };
    let dtype = weight.dtype();
    DynTensor::R2(as_dtype(as_dtype(weight, factor.dtype()) * factor, dtype))
}
