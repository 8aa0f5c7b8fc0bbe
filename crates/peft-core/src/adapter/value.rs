//! An adapter as a value: its configuration, what it decided, and its tensors.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::{
    DynParam, DynTensor, PeftConfig, Plan,
    plugins::{
        prompt::PromptPlan,
        tuner::{LayerTuner, Tensors},
    },
    tensor::module_tree::{num_values, sum_values},
};

/// Prefix of every key of an adapter file.
pub const KEY_PREFIX: &str = "base_model.model.";

/// Prefix of the keys of saved modules in the file of a prompt.
pub const PROMPT_KEY_PREFIX: &str = "base_model.";

/// How an adapter's tensor acts on the base model.
#[derive(Debug, Clone)]
pub enum Role {
    /// One of the tuner's tensors on an adapted module.
    Tuned(Arc<dyn LayerTuner>),
    /// One of the tensors of a prompt, which are attached to no parameter; the plan says how it is made.
    Prompt,
    /// A full copy of a parameter of a saved module; replaces it while the adapter is enabled.
    Saved,
    /// The copy of a parameter that this one is tied to, with its two dimensions swapped or not.
    Tied {
        /// Whether they are swapped: an output layer and its embedding.
        transposed: bool,
    },
    /// A trained bias of the base model; replaces it also while adapters are disabled, as in PEFT, which trains the
    /// base's own bias in place.
    Bias,
}

/// A named tensor of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterTensor {
    /// The parameter of the base model that it is attached to: `….query.weight`.
    pub parameter: String,
    /// Its name in the file, without `base_model.model.`: `….query.lora_A.weight`.
    pub key: String,
    /// The last part of the key, by which the tuner finds it: `lora_A.weight`.
    pub name: Arc<str>,
    /// How it acts.
    pub role: Role,
    /// The value. Linear and convolution copies are in Burn's orientation here, see [`stored_transposed`](Self::stored_transposed).
    pub param: DynParam,
    /// Whether files hold it with its two dimensions swapped: copies of `Linear` weights.
    pub stored_transposed: bool,
}

impl AdapterTensor {
    /// The value as the file has it.
    pub fn to_file(&self) -> DynTensor {
        self.oriented(self.param.tensor())
    }

    /// A tensor of this one's shape (its gradient) as the file would have it.
    pub fn oriented(&self, tensor: DynTensor) -> DynTensor {
        let tensor = tensor.without_autodiff();
        if self.stored_transposed { tensor.transposed() } else { tensor }
    }
}

/// An adapter: its configuration, what it decided, and its tensors.
///
/// Cloning is cheap: tensors are reference counted.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The configuration, resolved for the model.
    pub config: PeftConfig,
    /// What happens to each module of the model.
    pub plan: Plan,
    /// The tensors in the order of the model.
    pub tensors: Vec<AdapterTensor>,
    /// Parameters of the base model that follow a copy among the tensors.
    pub ties: Vec<Tie>,
    /// Embeddings of the base model that its file holds as well: keys of the file, and the parameters.
    pub embeddings: Vec<(String, String)>,
}

/// A parameter that is another one, for an adapter that trains them in place.
#[derive(Debug, Clone)]
pub struct Tie {
    /// Its name in the base model: `lm_head.weight`.
    pub copy: String,
    /// The parameter that it is.
    pub original: String,
    /// Whether it is that one with its dimensions swapped.
    pub transposed: bool,
}

impl Adapter {
    /// The key in its file of one of the tensors.
    ///
    /// PEFT's wrappers for prompts hold the base model directly, so the keys of saved modules lack a part.
    pub fn file_key(&self, tensor: &AdapterTensor) -> String {
        match (&tensor.role, self.plan.prompt.is_some()) {
            (Role::Prompt, _) => tensor.key.clone(),
            (_, true) => format!("{PROMPT_KEY_PREFIX}{}", tensor.key),
            (_, false) => format!("{KEY_PREFIX}{}", tensor.key),
        }
    }

    /// The table of virtual tokens as they are now, `[rows, width]`.
    pub(crate) fn prompt_table(&self, prompt: &PromptPlan) -> Tensor<2> {
        let tensors: Vec<_> = self.prompt_tensors().map(|(name, param)| (name, param.valid())).collect();
        prompt.tuner.table(&Tensors(&tensors), false)
    }

    /// The tensors of the prompt, by the names that its method gives them.
    pub(crate) fn prompt_tensors(&self) -> impl Iterator<Item = (Arc<str>, DynParam)> {
        let own = self.tensors.iter().filter(|tensor| matches!(tensor.role, Role::Prompt));
        own.map(|tensor| (Arc::clone(&tensor.name), tensor.param.clone()))
    }

    /// How many values of this adapter training changes.
    pub fn num_trainable(&self) -> usize {
        let trainable = self.tensors.iter().filter(|t| t.param.is_trainable());
        sum_values(trainable.map(|t| num_values(&t.param.shape())))
    }
}
