//! What was decided about a model and a configuration, as data: nothing is silent.

use std::collections::HashSet;

use serde::Serialize;

use crate::{
    BaseModel, ModuleTree, PeftConfig, Plan, Result,
    plugins::{
        plan::TaskRules,
        task::{DEFAULT_WRAPPER, TaskPlugin},
    },
    tensor::module_tree::{num_values, sum_values},
};

/// A candidate that is not adapted, and why.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedModule {
    /// Its dotted name.
    pub name: String,
    /// The rule.
    pub reason: String,
}

/// An adapted module, and why.
#[derive(Debug, Clone, Serialize)]
pub struct AdaptedModule {
    /// Its dotted name.
    pub name: String,
    /// The rule.
    pub reason: String,
    /// The tuner's numbers for this layer.
    pub summary: String,
    /// Values that are trained in it.
    pub params: usize,
}

/// Everything that a configuration decides for a model.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// PEFT's class name of the wrapper.
    pub wrapper: String,
    /// The tuner.
    pub tuner: String,
    /// The task, or none.
    pub task_type: Option<String>,
    /// The Transformers class of the base model.
    pub base_model_class: String,
    /// Names of the adapted modules, as PEFT's `targeted_module_names`.
    pub targeted: Vec<String>,
    /// The adapted modules with reasons and sizes.
    pub adapted: Vec<AdaptedModule>,
    /// Linear-like modules that are not adapted.
    pub skipped: Vec<SkippedModule>,
    /// Modules that are trained and saved in full.
    pub saved: Vec<String>,
    /// Biases of the base model that are trained.
    pub biases: Vec<String>,
    /// Values that training changes.
    pub trainable_params: usize,
    /// Values of the model, the adapter and the saved copies together.
    pub all_params: usize,
    /// Sub-modules that get virtual tokens under prompt learning.
    pub num_transformer_submodules: Option<usize>,
    /// Virtual tokens under prompt learning.
    pub num_virtual_tokens: Option<usize>,
    /// What the virtual tokens are, where they enter, what is trained and what is stored: one sentence each.
    pub prompt: Vec<String>,
    /// Remarks: what was corrected or resolved on the way.
    pub notes: Vec<String>,
}

/// The task rules that a configuration's `task_type` brings.
///
/// # Errors
/// If the task is not linked.
pub fn task_rules(config: &PeftConfig) -> Result<TaskRules> {
    let plugin = config.task()?;
    Ok(TaskRules {
        task_type: plugin.map(|p| p.name.to_owned()),
        heads: plugin.map_or_else(Vec::new, |p| p.heads.iter().map(|head| (*head).to_owned()).collect()),
        num_transformer_submodules: plugin.map_or(1, |p| p.num_transformer_submodules),
        keeps_token_types: plugin.is_some_and(|p| p.task.keeps_token_types()),
    })
}

/// Lets the configuration's tuner decide about a model. Nothing is created or loaded.
///
/// # Errors
/// As [`Tuner::plan`](crate::Tuner::plan).
pub fn plan(base: &BaseModel, config: &PeftConfig) -> Result<Plan> {
    let tuner = config.tuner()?;
    tuner.plan(config, &base.tree(), &base.info, &task_rules(config)?)
}

impl Explanation {
    /// What the configuration decides for the model, from shapes alone.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn new(base: &BaseModel, config: &PeftConfig) -> Result<Self> {
        let plan = plan(base, config)?;
        Ok(Self::of(&plan, &base.tree(), config.task()?, &base.info.class_name))
    }

    /// The explanation of a plan that was made already.
    pub fn of(plan: &Plan, tree: &ModuleTree, task: Option<&TaskPlugin>, class_name: &str) -> Self {
        let adapted: Vec<AdaptedModule> = plan
            .tuned()
            .map(|a| AdaptedModule {
                name: a.module.clone(),
                reason: a.reason.clone(),
                summary: a.layer.summary(),
                params: sum_values(a.layer.tensors().iter().filter(|t| t.trainable).map(|t| num_values(&t.shape))),
            })
            .collect();
        let fixed = plan.tuned().flat_map(|a| a.layer.tensors()).filter(|t| !t.trainable);
        let fixed = sum_values(fixed.map(|t| num_values(&t.shape)));
        let saved_names: HashSet<String> = plan.saved_params(tree).into_iter().collect();
        // Each copy of a tied parameter is trained by itself, so they all count.
        let count = |wanted: &dyn Fn(&String) -> bool| {
            sum_values(tree.params().filter(|(name, _)| wanted(name)).map(|(_, param)| num_values(&param.shape)))
        };
        let copies = count(&|name| saved_names.contains(name));
        let bias_names: HashSet<&String> = plan.biases.iter().collect();
        let biases = count(&|name| bias_names.contains(name));
        let prompt = plan.prompt.as_ref().map(|prompt| prompt.tuner.tensors(&prompt.shape)).unwrap_or_default();
        let of_prompt =
            |trainable| sum_values(prompt.iter().filter(|t| t.trainable == trainable).map(|t| num_values(&t.shape)));
        let tuned = sum_values(adapted.iter().map(|a| a.params).chain([of_prompt(true)]));
        let fixed = fixed.saturating_add(of_prompt(false));
        Self {
            wrapper: task.map_or(DEFAULT_WRAPPER, |t| t.wrapper).to_owned(),
            tuner: plan.config.peft_type.to_string(),
            task_type: plan.config.task_type.as_ref().map(ToString::to_string),
            base_model_class: class_name.to_owned(),
            targeted: plan.adapted.iter().map(|a| a.module.clone()).collect(),
            skipped: plan
                .skipped
                .iter()
                .map(|s| SkippedModule { name: s.module.clone(), reason: s.reason.to_string() })
                .collect(),
            saved: plan.saved.clone(),
            biases: plan.biases.clone(),
            trainable_params: sum_values([tuned, copies, biases]),
            // Trained biases are the base's own in PEFT, so they are no addition.
            all_params: sum_values([tree.num_params(), tuned, fixed, if plan.in_place { 0 } else { copies }]),
            adapted,
            num_transformer_submodules: plan.prompt.as_ref().map(|prompt| prompt.shape.num_transformer_submodules),
            num_virtual_tokens: plan.prompt.as_ref().map(|prompt| prompt.shape.num_virtual_tokens),
            prompt: plan.prompt.as_ref().map(|prompt| prompt.sentences()).unwrap_or_default(),
            notes: plan.notes.iter().cloned().chain(plan.config.unknown_notes()).collect(),
        }
    }

    /// PEFT's own sentence.
    pub fn trainable_sentence(&self) -> String {
        let percent = 100.0 * self.trainable_params as f64 / self.all_params.max(1) as f64;
        format!(
            "trainable params: {} || all params: {} || trainable%: {percent:.4}",
            thousands(self.trainable_params),
            thousands(self.all_params)
        )
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
