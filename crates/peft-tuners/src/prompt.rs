//! What all prompt methods share: their keys, and the plan that they make for a model.
//!
//! A method is one file: its options with [`PromptOptions`] among them, a [`PromptTuner`] implementation, and
//! [`PromptMethod`] to join the two. [`Prompting`] makes a tuner of it, to be registered like any other.

mod cpt;
mod multitask_prompt_tuning;
mod p_tuning;
mod prefix_tuning;
mod prompt_tuning;
mod shape;

use std::sync::Arc;

use burn::tensor::Tensor;
use peft_core::{
    Error, ModelInfo, ModuleTree, PeftConfig, Plan, PromptTuner, Result, Tuner,
    plugins::{
        plan::TaskRules,
        prompt::{PromptEntry, PromptPlan},
        tuner::{Init, TensorSpec, Tensors},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use cpt::Cpt;
pub use multitask_prompt_tuning::MultitaskPromptTuning;
pub use p_tuning::{PTuning, Reparameterization};
pub use prefix_tuning::PrefixTuning;
pub use prompt_tuning::{PromptTuning, PromptTuningInit};

use crate::heads::SavedModules;

/// The keys that all prompt methods have. The sizes follow from the model where they are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptOptions {
    /// Virtual tokens before the input.
    pub num_virtual_tokens: Option<usize>,
    /// Width of a virtual token.
    pub token_dim: Option<usize>,
    /// Sub-modules of the model that have rows in the table: 2 for SEQ_2_SEQ_LM, else 1.
    pub num_transformer_submodules: Option<usize>,
    /// Heads of the model's attention.
    pub num_attention_heads: Option<usize>,
    /// Layers of the model.
    pub num_layers: Option<usize>,
    /// Modules that are trained and saved in full.
    pub modules_to_save: Option<Vec<String>>,
}

/// A prompt method: its options, of which some are every method's, and how it makes a prompt.
pub trait PromptMethod: PromptTuner + Clone + 'static {
    /// The keys that all methods have, as they act for this one.
    fn options(&self) -> PromptOptions;

    /// Judges the method's own options for a task.
    ///
    /// # Errors
    /// [`Error::Config`] with the key.
    fn check(&self, _task: &TaskRules) -> Result<()> {
        Ok(())
    }
}

/// A prompt method as a tuner of the registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Prompting<T>(pub T);

impl<T: PromptMethod> Tuner for Prompting<T> {
    fn is_prompt(&self) -> bool {
        true
    }

    /// No module is adapted: the plan has the prompt's sizes, and the heads of the task as modules to save.
    fn plan(&self, config: &PeftConfig, model: &ModuleTree, info: &ModelInfo, task: &TaskRules) -> Result<Plan> {
        if task.task_type.is_none() {
            let problem =
                "missing: virtual tokens enter each task's model in another way, so prompt learning needs one";
            return Err(Error::config("task_type", problem));
        }
        self.0.check(task)?;
        let options = self.0.options();
        let entry = self.0.entry();
        let resolved = shape::resolve(&options, entry, model, info, task)?;
        let user = options.modules_to_save.clone().unwrap_or_default();
        let saved = SavedModules::new(&user, task, model, !config.inference_mode)?;

        let shape = resolved.shape;
        let mut filled = config.clone();
        let mut set = |key: &str, value: Value| {
            if let Some(slot) = filled.options.get_mut(key) {
                *slot = value;
            }
        };
        set("num_virtual_tokens", shape.num_virtual_tokens.into());
        set("num_transformer_submodules", shape.num_transformer_submodules.into());
        set("token_dim", shape.token_dim.into());
        set("num_layers", resolved.num_layers.into());
        set("num_attention_heads", resolved.num_attention_heads.into());
        if !saved.entries.is_empty() {
            set("modules_to_save", serde_json::to_value(&saved.entries).unwrap_or_default());
        }
        if let Some(width) = filled.options.get_mut("encoder_hidden_size").filter(|width| width.is_null()) {
            *width = shape.token_dim.into();
        }
        let prompt = PromptPlan {
            tuner: Arc::new(self.0.clone()),
            shape,
            keeps_token_types: task.keeps_token_types,
            is_encoder_decoder: info.shift_right.is_some(),
        };
        let mut notes = saved.notes;
        notes.extend(resolved.notes);
        if entry == PromptEntry::Embeddings && info.pools_last_token {
            notes.push(
                "the classifier reads each row's last position, padding or not, as in PEFT; training and evaluation pad on \
                 the left"
                    .to_owned(),
            );
        }
        if entry == PromptEntry::Embeddings && task.task_type.as_deref() == Some("QUESTION_ANS") {
            notes.push(
                "positions of answers count from the first virtual token, as in PEFT: answer spans are learnt that many \
                 places off; PREFIX_TUNING has no such shift"
                    .to_owned(),
            );
        }
        Ok(Plan {
            config: filled,
            adapted: Vec::new(),
            tokens: Vec::new(),
            skipped: Vec::new(),
            saved: saved.modules,
            biases: Vec::new(),
            in_place: false,
            prompt: Some(Arc::new(prompt)),
            notes,
        })
    }
}

/// `x Wᵀ + b` with the tensors `{name}.weight` `[d_out, d_in]` and `{name}.bias` `[d_out]`.
///
/// # Shapes
/// - `x`: `[rows, d_in]`
/// - returned: `[rows, d_out]`
fn linear(tensors: &Tensors<'_>, name: &str, x: Tensor<2>) -> Tensor<2> {
    let weight = tensors.get::<2>(&format!("{name}.weight"));
    let bias = tensors.get::<1>(&format!("{name}.bias"));
    x.matmul(weight.transpose()) + bias.unsqueeze()
}

/// The tensors of [`linear`], begun as PyTorch begins them.
fn linear_specs(name: &str, d_in: usize, d_out: usize) -> [TensorSpec; 2] {
    let init = Init::Uniform { bound: 1.0 / (d_in.max(1) as f64).sqrt() };
    [
        TensorSpec { name: format!("{name}.weight").into(), shape: vec![d_out, d_in], init, trainable: true },
        TensorSpec { name: format!("{name}.bias").into(), shape: vec![d_out], init, trainable: true },
    ]
}

/// The table `embedding.weight` that every encoder begins with.
fn embedding_spec(shape: [usize; 2], init: Init) -> TensorSpec {
    TensorSpec { name: EMBEDDING.into(), shape: shape.to_vec(), init, trainable: true }
}

const EMBEDDING: &str = "embedding.weight";
