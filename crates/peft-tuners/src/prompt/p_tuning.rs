//! P-tuning: vectors before the embedded input, made by a small network (Liu et al. 2021, "GPT Understands, Too").

mod lstm;

use burn::tensor::{Distribution, Tensor, activation::relu};
use peft_core::{
    Error, Result, TunerPlugin, inventory,
    plugins::{
        plan::TaskRules,
        prompt::{PromptEntry, PromptShape, PromptTuner},
        tuner::{Init, TensorSpec, Tensors},
    },
};
use serde::{Deserialize, Serialize};

use super::{EMBEDDING, PromptMethod, PromptOptions, Prompting, embedding_spec, linear, linear_specs, shape::at_most};

inventory::submit! {
    TunerPlugin::new::<Prompting<PTuning>>("P_TUNING", "vectors before the input, made by a network (Liu et al. 2021)")
}

/// The network that makes the virtual tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Reparameterization {
    /// Three linear layers, each token by itself.
    #[default]
    Mlp,
    /// A bidirectional LSTM over the tokens, then two linear layers.
    Lstm,
}

/// Options of p-tuning, in PEFT's names and with PEFT's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PTuning {
    /// The keys of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptOptions,
    /// The network.
    pub encoder_reparameterization_type: Reparameterization,
    /// Width inside the network; `token_dim` where it is absent.
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM; without effect for `MLP`.
    pub encoder_num_layers: usize,
    /// Probability of zeroing a value between layers of the LSTM while training; without effect for `MLP`.
    pub encoder_dropout: f64,
}

impl Default for PTuning {
    fn default() -> Self {
        Self {
            prompt: PromptOptions::default(),
            encoder_reparameterization_type: Reparameterization::default(),
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
        }
    }
}

/// Layers of the LSTM at most.
const MOST_LAYERS: usize = 1000;

impl PTuning {
    fn is_lstm(&self) -> bool {
        self.encoder_reparameterization_type == Reparameterization::Lstm
    }
}

impl PromptMethod for PTuning {
    fn options(&self) -> PromptOptions {
        self.prompt.clone()
    }

    fn check(&self, _task: &TaskRules) -> Result<()> {
        if self.is_lstm() && self.encoder_num_layers == 0 {
            return Err(Error::config("encoder_num_layers", "must be at least 1"));
        }
        if self.encoder_num_layers > MOST_LAYERS {
            let problem = format!("{}: must be at most {MOST_LAYERS}", self.encoder_num_layers);
            return Err(Error::config("encoder_num_layers", problem));
        }
        at_most(&[("encoder_hidden_size", self.encoder_hidden_size.unwrap_or(0))])?;
        if !(0.0..1.0).contains(&self.encoder_dropout) {
            return Err(Error::config("encoder_dropout", format!("{}: from 0 up to but not 1", self.encoder_dropout)));
        }
        Ok(())
    }
}

impl PromptTuner for PTuning {
    fn entry(&self) -> PromptEntry {
        PromptEntry::Embeddings
    }

    fn learns(&self) -> String {
        match self.encoder_reparameterization_type {
            Reparameterization::Mlp => {
                "a table of vectors and the three layers that make virtual tokens of it".to_owned()
            }
            Reparameterization::Lstm => {
                format!(
                    "a table of vectors, the LSTM of {} layers that reads it, and two layers",
                    self.encoder_num_layers
                )
            }
        }
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        let width = shape.token_dim;
        let inner = self.encoder_hidden_size.unwrap_or(width);
        let mut specs = vec![embedding_spec(shape.table(self.entry()), Init::Normal { std: 1.0 })];
        if self.is_lstm() {
            specs.extend((0..self.encoder_num_layers).flat_map(|layer| lstm::specs(layer, width, inner)));
            specs.extend(linear_specs("mlp_head.0", 2 * inner, 2 * inner));
            specs.extend(linear_specs("mlp_head.2", 2 * inner, width));
        } else {
            specs.extend(linear_specs("mlp_head.0", width, inner));
            specs.extend(linear_specs("mlp_head.2", inner, inner));
            specs.extend(linear_specs("mlp_head.4", inner, width));
        }
        specs
    }

    fn table(&self, tensors: &Tensors<'_>, training: bool) -> Tensor<2> {
        let table = tensors.get(EMBEDDING);
        if !self.is_lstm() {
            let inner = relu(linear(tensors, "mlp_head.0", table));
            return linear(tensors, "mlp_head.4", relu(linear(tensors, "mlp_head.2", inner)));
        }
        let hidden = (0..self.encoder_num_layers).fold(table, |hidden, layer| {
            let drops = training && layer > 0 && self.encoder_dropout > 0.0;
            let hidden = if drops { dropped(hidden, self.encoder_dropout) } else { hidden };
            lstm::layer(tensors, layer, hidden)
        });
        linear(tensors, "mlp_head.2", relu(linear(tensors, "mlp_head.0", hidden)))
    }
}

fn dropped(hidden: Tensor<2>, probability: f64) -> Tensor<2> {
    let kept = 1.0 - probability;
    let mask = Tensor::<2>::random(hidden.dims(), Distribution::Bernoulli(kept), &hidden.device().inner());
    hidden * mask / kept
}
