//! Prefix tuning: keys and values before those of the input, in every layer (Li and Liang 2021, "Prefix-Tuning: Optimizing
//! Continuous Prompts for Generation").

use burn::tensor::Tensor;
use peft_core::{
    Result, TunerPlugin, inventory,
    plugins::{
        plan::TaskRules,
        prompt::{PromptEntry, PromptShape, PromptTuner},
        tuner::{Init, TensorSpec, Tensors},
    },
};
use serde::{Deserialize, Serialize};

use super::{
    EMBEDDING, PromptMethod, PromptOptions, Prompting, embedding_spec, linear, linear_specs,
    shape::{at_most, one_of},
};

inventory::submit! {
    TunerPlugin::new::<Prompting<PrefixTuning>>(
        "PREFIX_TUNING",
        "learnt keys and values before the input's (Li and Liang 2021)"
    )
}

/// Options of prefix tuning, in PEFT's names and with PEFT's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixTuning {
    /// The keys of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptOptions,
    /// Width inside the projection; `token_dim` where it is absent.
    pub encoder_hidden_size: Option<usize>,
    /// Whether keys and values are made from a smaller table by two layers, which train more steadily.
    pub prefix_projection: bool,
    /// `zero`: a fresh prefix is zero.
    pub init_weights: Option<String>,
}

impl PromptMethod for PrefixTuning {
    fn options(&self) -> PromptOptions {
        self.prompt.clone()
    }

    fn check(&self, _task: &TaskRules) -> Result<()> {
        at_most(&[("encoder_hidden_size", self.encoder_hidden_size.unwrap_or(0))])?;
        self.init_weights.as_deref().map_or(Ok(()), |word| one_of("init_weights", word, &["zero"]))
    }
}

impl PromptTuner for PrefixTuning {
    fn entry(&self) -> PromptEntry {
        PromptEntry::PastKeyValues
    }

    fn learns(&self) -> String {
        match self.prefix_projection {
            true => "a table of vectors and the two layers that make keys and values of it".to_owned(),
            false => "the keys and values themselves".to_owned(),
        }
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        let is_zero = self.init_weights.is_some();
        let [rows, width] = shape.table(self.entry());
        let normal = Init::Normal { std: 1.0 };
        if !self.prefix_projection {
            return vec![embedding_spec([rows, width], if is_zero { Init::Constant(0.0) } else { normal })];
        }
        let inner = self.encoder_hidden_size.unwrap_or(shape.token_dim);
        let mut last = linear_specs("transform.2", inner, width);
        if is_zero {
            last.iter_mut().for_each(|spec| spec.init = Init::Constant(0.0));
        }
        let table = embedding_spec([rows, shape.token_dim], normal);
        [table].into_iter().chain(linear_specs("transform.0", shape.token_dim, inner)).chain(last).collect()
    }

    fn table(&self, tensors: &Tensors<'_>, _training: bool) -> Tensor<2> {
        let table = tensors.get(EMBEDDING);
        match self.prefix_projection {
            true => linear(tensors, "transform.2", linear(tensors, "transform.0", table).tanh()),
            false => table,
        }
    }

    fn table_tensor(&self) -> Option<&'static str> {
        (!self.prefix_projection).then_some(EMBEDDING)
    }
}
