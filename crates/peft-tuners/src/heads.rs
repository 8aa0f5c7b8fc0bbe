//! What is trained in full: the task's heads and the user's `modules_to_save`.

use peft_core::{
    Error, ModuleTree, Result,
    error::nearest,
    plugins::{
        plan::{SkipReason, TaskRules},
        registry::plugins,
        task::TaskPlugin,
    },
    tensor::module_tree::is_inside,
};

use crate::pattern::Pattern;

/// The modules that are trained in full, and the rule that keeps tuners away from them.
#[derive(Debug)]
pub struct SavedModules {
    /// The entries of `modules_to_save`: the user's, then the task's, each once.
    pub entries: Vec<String>,
    /// The modules that they name, outermost only.
    pub modules: Vec<String>,
    /// Entries that name nothing, for `explain`.
    pub notes: Vec<String>,
    rules: Vec<(Pattern, SkipReason)>,
}

impl SavedModules {
    /// Adds the task's heads to the user's entries and finds the modules they name.
    ///
    /// An entry names every module whose name ends with it, without a dot boundary, as in PEFT: `classifier` names
    /// DistilBERT's `pre_classifier` too. PEFT adds the heads of TOKEN_CLS and QUESTION_ANS only after targets are chosen
    /// and then fails if they were chosen; here they are added first for every task.
    ///
    /// # Errors
    /// [`Error::Config`] for an entry of the user's that names nothing.
    pub fn new(user: &[String], task: &TaskRules, tree: &ModuleTree, strict: bool) -> Result<Self> {
        let mut entries: Vec<String> = Vec::new();
        for entry in user.iter().chain(&task.heads) {
            if !entries.contains(entry) {
                entries.push(entry.clone());
            }
        }
        let mut modules: Vec<String> = Vec::new();
        let mut notes = Vec::new();
        for info in &tree.modules {
            let inside = |outer: &String| is_inside(&info.name, outer);
            if entries.iter().any(|entry| info.name.ends_with(entry.as_str())) && !modules.iter().any(inside) {
                modules.push(info.name.clone());
            }
        }
        for entry in &entries {
            if modules.iter().any(|module| module.ends_with(entry.as_str())) {
                continue;
            }
            // PEFT lists both `classifier` and `score`, whichever the model has.
            let is_head = task.heads.contains(entry)
                || plugins::<TaskPlugin>().iter().any(|task| task.heads.contains(&entry.as_str()));
            if strict && !is_head {
                let last = tree.modules.iter().filter_map(|m| m.name.rsplit('.').next());
                let hint = nearest(entry, last).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                return Err(Error::config("modules_to_save", format!("`{entry}` names no module of the model{hint}")));
            }
            notes.push(format!("modules_to_save: `{entry}` names no module of this model"));
        }
        let rule = |entry: &String| {
            let reason = match &task.task_type {
                Some(task_type) if task.heads.contains(entry) => {
                    SkipReason::HeadOfTask { task_type: task_type.clone(), entry: entry.clone() }
                }
                _ => SkipReason::ModuleToSave { entry: entry.clone() },
            };
            Ok((Pattern::inside("modules_to_save", entry, r"^(?:^|.*\.){}(?:$|\..*)")?, reason))
        };
        let rules = entries.iter().map(rule).collect::<Result<_>>()?;
        Ok(Self { entries, modules, notes, rules })
    }

    /// Why a tuner must leave this module alone, if it must.
    ///
    /// # Errors
    /// [`Error::Config`] if whether an entry matches cannot be found out.
    pub fn protects(&self, module: &str) -> Result<Option<SkipReason>> {
        for (pattern, reason) in &self.rules {
            if pattern.is_match(module)? {
                return Ok(Some(reason.clone()));
            }
        }
        Ok(self.inside(module))
    }

    fn inside(&self, module: &str) -> Option<SkipReason> {
        // Saved by its ending alone (`pre_classifier`): PEFT would adapt it and then fail to copy it.
        let outer = self.modules.iter().find(|outer| module == outer.as_str() || is_inside(module, outer))?;
        let entry = self.entries.iter().find(|entry| outer.ends_with(entry.as_str()))?;
        Some(SkipReason::ModuleToSave { entry: entry.clone() })
    }
}
