//! LoRA on one layer.

use burn::tensor::{DType, FloatDType, Int, Tensor, module::embedding};
use peft_backends::ops::{self, LowRank, PackedMatrix};
use peft_core::{
    DynTensor, FrozenWeight,
    plugins::{
        rows_part::{RowsPart, one_by_one},
        tuner::{self, Init, LayerTuner, LinearCall, TensorSpec, Tensors},
    },
};

use super::InitLoraWeights;

/// LoRA on a linear layer or GPT-2's `Conv1D`.
#[derive(Debug)]
pub struct LoraLinear {
    /// Inputs of the layer.
    pub d_in: usize,
    /// Outputs of the layer.
    pub d_out: usize,
    /// Inner dimension of the product.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f64,
    /// Probability of zeroing an input value while training.
    pub dropout: f64,
    /// How a fresh adapter starts.
    pub init: InitLoraWeights,
}

const LORA_A: &str = "lora_A.weight";
const LORA_B: &str = "lora_B.weight";
const LORA_EMBEDDING_A: &str = "lora_embedding_A";
const LORA_EMBEDDING_B: &str = "lora_embedding_B";

impl LayerTuner for LoraLinear {
    fn tensors(&self) -> Vec<TensorSpec> {
        let kaiming = Init::Uniform { bound: 1.0 / (self.d_in as f64).sqrt() };
        let (a, b) = match &self.init {
            InitLoraWeights::Default(true) => (kaiming, Init::Constant(0.0)),
            InitLoraWeights::Default(false) => (kaiming, Init::Uniform { bound: 1.0 / (self.rank as f64).sqrt() }),
            InitLoraWeights::Named(_) => (Init::Normal { std: 1.0 / self.rank as f64 }, Init::Constant(0.0)),
        };
        let freezes_b = self.init.freezes_b();
        vec![
            TensorSpec { name: LORA_A.into(), shape: vec![self.rank, self.d_in], init: a, trainable: true },
            TensorSpec { name: LORA_B.into(), shape: vec![self.d_out, self.rank], init: b, trainable: !freezes_b },
        ]
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        low_rank(weight, tensors.get(LORA_A), tensors.get(LORA_B), self.scale)
    }

    fn forward(&self, tensors: &Tensors<'_>, call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        let (_, product) = self.product(tensors, call);
        let dtype = output.dtype();
        output + as_dtype(product, dtype)
    }

    fn linear(&self, tensors: &Tensors<'_>, call: &LinearCall) -> Option<Tensor<2>> {
        let tuner::LowRank { a, b, scale, drop } = self.low_rank(tensors, call.training)?;
        let (lora, bias) = (LowRank { a, b, scale, drop }, call.bias.as_ref());
        match &call.weight {
            FrozenWeight::Dense(weight) => ops::lora_linear(&call.input, weight, bias, lora),
            FrozenWeight::Quantized(weight) => {
                weight.as_any().downcast_ref::<PackedMatrix>()?.lora_linear(&call.input, bias, lora)
            }
        }
    }

    fn low_rank(&self, tensors: &Tensors<'_>, training: bool) -> Option<tuner::LowRank> {
        let (a, b) = (tensors.get(LORA_A), tensors.get(LORA_B));
        let drop = if training { self.dropout } else { 0.0 };
        Some(tuner::LowRank { a, b, scale: self.scale, drop })
    }

    fn records(&self) -> bool {
        true
    }

    fn refuses_rows(&self) -> Option<&'static str> {
        None
    }

    fn forward_by_rows(&self, parts: &[RowsPart<'_>], call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        let mut factors: Vec<LowRank> = Vec::new();
        let mut runs = Vec::with_capacity(parts.len());
        for RowsPart { adapter, rows, layer, tensors } in parts {
            // Adapters are numbered in the order in which they first come.
            if *adapter == factors.len() {
                let Some(tuner::LowRank { a, b, scale, drop }) = layer.low_rank(tensors, call.training) else {
                    return one_by_one(parts, call, &output);
                };
                factors.push(LowRank { a, b, scale, drop });
            }
            runs.push(ops::Run { rows: rows.clone(), adapter: *adapter });
        }
        ops::low_rank_by_rows(output, &call.input, factors, &runs)
    }

    fn summary(&self) -> String {
        format!("r {}, scale {}", self.rank, self.scale)
    }
}

impl LoraLinear {
    /// The input with some of it dropped, if some is, and the scaled low-rank product of it.
    pub(super) fn product(&self, tensors: &Tensors<'_>, call: &LinearCall) -> (Option<Tensor<2>>, Tensor<2>) {
        let (a, b) = (tensors.get::<2>(LORA_A), tensors.get::<2>(LORA_B));
        let input = as_dtype(call.input.clone(), a.dtype());
        let dropped = (call.training && self.dropout > 0.0).then(|| ops::dropout(input.clone(), self.dropout));
        let input = dropped.clone().unwrap_or(input);
        // The scale goes on the `[tokens, rank]` product, the smallest tensor it can go on.
        (dropped, input.matmul(a.transpose()).mul_scalar(self.scale).matmul(b.transpose()))
    }
}

/// LoRA on an embedding table.
#[derive(Debug)]
pub struct LoraEmbedding {
    /// Rows of the table.
    pub entries: usize,
    /// Columns of the table.
    pub dimensions: usize,
    /// Inner dimension of the product.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f64,
    /// How a fresh adapter starts.
    pub init: InitLoraWeights,
}

impl LayerTuner for LoraEmbedding {
    fn tensors(&self) -> Vec<TensorSpec> {
        // The other way round than on linear layers: PEFT zeroes A here.
        let a = match &self.init {
            InitLoraWeights::Default(false) => Init::Normal { std: 1.0 },
            _ => Init::Constant(0.0),
        };
        let b = Init::Normal { std: 1.0 };
        let freezes_b = self.init.freezes_b();
        vec![
            TensorSpec {
                name: LORA_EMBEDDING_A.into(),
                shape: vec![self.rank, self.entries],
                init: a,
                trainable: true,
            },
            TensorSpec {
                name: LORA_EMBEDDING_B.into(),
                shape: vec![self.dimensions, self.rank],
                init: b,
                trainable: !freezes_b,
            },
        ]
    }

    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor {
        low_rank(weight, tensors.get(LORA_EMBEDDING_A), tensors.get(LORA_EMBEDDING_B), self.scale)
    }

    fn embed(
        &self,
        tensors: &Tensors<'_>,
        _weight: &FrozenWeight,
        ids: Tensor<2, Int>,
        output: Tensor<3>,
    ) -> Tensor<3> {
        let (a, b) = (tensors.get::<2>(LORA_EMBEDDING_A), tensors.get::<2>(LORA_EMBEDDING_B));
        let [batch, sequence, dimensions] = output.dims();
        let rows = embedding(a.transpose(), ids).reshape([batch * sequence, self.rank]);
        let product = rows.mul_scalar(self.scale).matmul(b.transpose()).reshape([batch, sequence, dimensions]);
        let dtype = output.dtype();
        output + as_dtype(product, dtype)
    }

    fn records(&self) -> bool {
        true
    }

    fn refuses_rows(&self) -> Option<&'static str> {
        None
    }

    fn summary(&self) -> String {
        format!("r {}, scale {}", self.rank, self.scale)
    }
}

/// `W + scale · Aᵀ Bᵀ`, summed in 32 bits whatever the weight's type.
fn low_rank(weight: DynTensor, a: Tensor<2>, b: Tensor<2>, scale: f64) -> DynTensor {
    let DynTensor::R2(weight) = weight else { return weight };
    let dtype = weight.dtype();
    let delta = a.transpose().matmul(b.transpose()).mul_scalar(scale);
    DynTensor::R2(as_dtype(as_dtype(weight, delta.dtype()) + delta, dtype))
}

pub(crate) fn as_dtype<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(FloatDType::from(dtype)) }
}
