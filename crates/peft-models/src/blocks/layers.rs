//! Burn's layers as a base model needs them: lazy, untracked, and initialised as Transformers does.

use burn::{
    module::Param,
    nn::{Dropout, Embedding, Initializer, Linear},
    tensor::Device,
};
use peft_core::{Conv1D, Result};

use super::{Fields, LayerNorm, RmsNorm};

/// Makes layers whose parameters take no memory until they are loaded or used, and never require a gradient: the gradient
/// of a frozen weight is as large as the weight.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// Where parameters will live.
    pub device: &'a Device,
    /// Standard deviation of fresh weights: `initializer_range`.
    pub std: f64,
}

impl<'a> Layers<'a> {
    /// For a device, with the configuration's `initializer_range`.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] if that is no number.
    pub fn new(fields: Fields<'_>, device: &'a Device) -> Result<Self> {
        Ok(Self { device, std: fields.deviation_or("initializer_range", 0.02)? })
    }

    /// `x W + b`.
    pub fn linear(&self, d_in: usize, d_out: usize, bias: bool) -> Linear {
        let bias = bias.then(|| Initializer::Zeros.init([d_out], self.device).set_require_grad(false));
        Linear { weight: self.normal().init([d_in, d_out], self.device).set_require_grad(false), bias }
    }

    /// `x W + b`, whose file holds `W` as it lies in memory.
    pub fn conv1d(&self, d_in: usize, d_out: usize) -> Conv1D {
        let Linear { weight, bias } = self.linear(d_in, d_out, true);
        Conv1D { weight, bias }
    }

    /// An output layer whose weight is the embedding's table, of the same identity and in the same memory.
    pub fn tied_linear(&self, embedding: &Embedding) -> Linear {
        let table = embedding.weight.clone();
        let [entries, dimensions] = table.lazy_shape().dims();
        let id = table.id;
        let shape = [dimensions, entries].into();
        let weight = Param::uninitialized(id, move |_, _| table.base().transpose(), self.device.clone(), false, shape);
        Linear { weight, bias: None }
    }

    /// A table of `entries` vectors.
    pub fn embedding(&self, entries: usize, dimensions: usize) -> Embedding {
        Embedding { weight: self.normal().init([entries, dimensions], self.device).set_require_grad(false) }
    }

    /// Layer normalisation with weight and bias.
    pub fn layer_norm(&self, dimensions: usize, epsilon: f64) -> LayerNorm {
        let vector = |value: Initializer| value.init([dimensions], self.device).set_require_grad(false);
        LayerNorm { gamma: vector(Initializer::Ones), beta: Some(vector(Initializer::Zeros)), epsilon }
    }

    /// Root-mean-square normalisation.
    pub fn rms_norm(&self, dimensions: usize, epsilon: f64) -> RmsNorm {
        let weight = Initializer::Ones.init([dimensions], self.device).set_require_grad(false);
        RmsNorm { weight, epsilon, offset: 0.0 }
    }

    /// Root-mean-square normalisation whose weight is stored as its distance from 1, as in Gemma.
    pub fn rms_norm_around_one(&self, dimensions: usize, epsilon: f64) -> RmsNorm {
        let weight = Initializer::Zeros.init([dimensions], self.device).set_require_grad(false);
        RmsNorm { weight, epsilon, offset: 1.0 }
    }

    /// Dropout, off until training switches it on.
    pub fn dropout(&self, prob: f64) -> Dropout {
        Dropout { prob, training: Param::from_bool(false) }
    }

    fn normal(&self) -> Initializer {
        Initializer::Normal { mean: 0.0, std: self.std }
    }
}
