//! What a tuner decided about a model: which modules are adapted, which are not and by which rule, which are saved.

use std::{collections::HashSet, fmt, sync::Arc};

use crate::{
    ModuleTree, PeftConfig,
    plugins::{prompt::PromptPlan, tuner::LayerTuner},
    tensor::module_tree::with_outer,
};

/// What the task asks of the target rules.
#[derive(Debug, Clone, Default)]
pub struct TaskRules {
    /// The task type's word, if there is one.
    pub task_type: Option<String>,
    /// Names that the task adds to `modules_to_save`.
    pub heads: Vec<String>,
    /// Sub-modules of the model that get virtual tokens.
    pub num_transformer_submodules: usize,
    /// Whether the wrapper hands segments on when virtual tokens stand before them.
    pub keeps_token_types: bool,
}

/// A module that gets an adapter.
#[derive(Debug, Clone)]
pub struct Adapted {
    /// Its dotted name.
    pub module: String,
    /// The rule that selected it.
    pub reason: String,
    /// The tuner with the options of this layer.
    pub layer: Arc<dyn LayerTuner>,
}

/// A module that was a candidate and is not adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its dotted name.
    pub module: String,
    /// The rule that left it out.
    pub reason: SkipReason,
}

/// Why a candidate is not adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The task's head, trained in full instead; with the entry of `modules_to_save` that matched.
    HeadOfTask {
        /// The task type.
        task_type: String,
        /// The entry.
        entry: String,
    },
    /// Trained in full because the user listed it in `modules_to_save`.
    ModuleToSave {
        /// The entry.
        entry: String,
    },
    /// The output embedding: `lm_head`.
    OutputEmbedding,
    /// Matched by `exclude_modules`.
    Excluded {
        /// The entry or pattern.
        entry: String,
    },
    /// Its layer index is not in `layers_to_transform`, or it has none.
    LayerNotSelected {
        /// The index found in the name.
        index: Option<usize>,
    },
    /// No entry of `target_modules` matches it.
    NotTargeted,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeadOfTask { task_type, entry } => {
                write!(f, "head of the task: {task_type} puts `{entry}` into modules_to_save, trained in full")
            }
            Self::ModuleToSave { entry } => write!(f, "`{entry}` is in modules_to_save: trained in full"),
            Self::OutputEmbedding => f.write_str("output embedding: all-linear leaves it out"),
            Self::Excluded { entry } => write!(f, "excluded by exclude_modules (`{entry}`)"),
            Self::LayerNotSelected { index: Some(index) } => {
                write!(f, "layer {index} is not in layers_to_transform")
            }
            Self::LayerNotSelected { index: None } => {
                f.write_str("no layer index in its name, and layers_to_transform is set")
            }
            Self::NotTargeted => f.write_str("not matched by target_modules"),
        }
    }
}

/// Everything a tuner decided about a model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The configuration as it will be saved: defaults filled in, targets resolved, heads added.
    pub config: PeftConfig,
    /// Modules that get an adapter, in the order of the model.
    pub adapted: Vec<Adapted>,
    /// Token embeddings of which some rows are trained; they do not count as targets.
    pub tokens: Vec<Adapted>,
    /// Candidates that get none.
    pub skipped: Vec<Skipped>,
    /// Modules that are copied, trained and saved in full.
    pub saved: Vec<String>,
    /// Biases of the base model that are trained, by full name.
    pub biases: Vec<String>,
    /// Whether the saved modules are trained in place: tied parameters stay tied, nothing of the base's own remains, and the
    /// result is a model, not an adapter.
    pub in_place: bool,
    /// The prompt, for prompt learning: virtual tokens instead of adapted modules.
    pub prompt: Option<Arc<PromptPlan>>,
    /// Remarks: what was corrected or resolved on the way.
    pub notes: Vec<String>,
}

impl Plan {
    /// All modules with tensors of a tuner; trained rows of embeddings first, so that other adapters add to these.
    pub fn tuned(&self) -> impl Iterator<Item = &Adapted> {
        self.tokens.iter().chain(&self.adapted)
    }

    /// The parameters inside the saved modules, by full name.
    pub fn saved_params(&self, tree: &ModuleTree) -> Vec<String> {
        let modules: HashSet<&str> = self.saved.iter().map(String::as_str).collect();
        let saved = |name: &String| with_outer(name).skip(1).any(|outer| modules.contains(outer));
        tree.params().map(|(name, _)| name).filter(saved).collect()
    }
}
