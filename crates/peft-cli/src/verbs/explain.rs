//! `peft explain`: what PEFT decides for a model and a configuration, and why.

use std::path::{Path, PathBuf};

use clap::Args;
use peft::{
    BaseModel, Explanation, ModuleKind, PeftConfig,
    files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, ADAPTER_WEIGHTS, AdapterFolder},
    models::hub::Needed,
};

use crate::{CliError, Globals, session, terminal};

/// Say what a configuration decides for a model, and why
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  peft explain --model bert --adapter out\n  peft explain --model bert --config adapter_config.json --json"
)]
pub(crate) struct Explain {
    /// Folder of the base model or an id on the Hub: org/name or org/name@revision; only its configuration is read.
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Folder of a saved adapter, or an id on the Hub.
    #[arg(long, value_name = "ADAPTER", conflicts_with = "config", required_unless_present = "config")]
    adapter: Option<PathBuf>,
    /// An adapter configuration, as JSON or TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Explain {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        if let Some(adapter) = &mut self.adapter {
            *adapter = session::locate(adapter, Needed::Adapter, globals)?;
        }
        self.model = session::locate(&self.model, Needed::Config, globals)?;
        let file = match (&self.adapter, &self.config) {
            (Some(folder), _) => folder.join(ADAPTER_CONFIG),
            (None, Some(file)) => file.clone(),
            (None, None) => return Err(CliError::Usage("give --adapter ADAPTER or --config FILE".to_owned())),
        };
        let has_weights =
            |folder: &Path| [ADAPTER_WEIGHTS, ADAPTER_PYTORCH_WEIGHTS].iter().any(|f| folder.join(f).exists());
        let (config, labels) = match &self.adapter {
            Some(folder) if has_weights(folder) => {
                let folder = AdapterFolder::read(folder)?;
                let labels = session::labels(&self.model, &folder)?;
                (folder.config, labels)
            }
            _ => (PeftConfig::from_file(&file)?, None),
        };
        let base = session::skeleton(&self.model, &config, labels)?;
        let explanation = Explanation::new(&base, &config).map_err(|error| error.in_file(&file))?;
        if globals.json { terminal::json(&explanation) } else { terminal::result(prose(&explanation, &base, &config)?) }
    }
}

/// The explanation for a person.
pub(crate) fn prose(e: &Explanation, base: &BaseModel, config: &PeftConfig) -> Result<String, CliError> {
    let mut out = Vec::new();
    out.push(match config.task()? {
        Some(task) => {
            let heads = if e.saved.is_empty() {
                "no head is trained in full".to_owned()
            } else {
                format!("{} is kept out of the adapter and trained in full", e.saved.join(", "))
            };
            let count = e.num_transformer_submodules.unwrap_or(task.num_transformer_submodules);
            format!(
                "task_type {} makes this {} a {}: {heads}; {}{count} transformer sub-module{} {} virtual tokens.",
                task.name,
                e.base_model_class,
                e.wrapper,
                if e.prompt.is_empty() { "under prompt learning " } else { "" },
                if count == 1 { "" } else { "s" },
                match (e.prompt.is_empty(), count) {
                    (true, _) => "would get",
                    (false, 1) => "gets",
                    (false, _) => "get",
                },
            )
        }
        None => format!(
            "No task_type: this {} gets the default wrapper {}, which only forwards; no head is trained and there is no loss.",
            e.base_model_class, e.wrapper
        ),
    });
    out.push(String::new());
    if e.prompt.is_empty() {
        out.push(format!(
            "{} adapts {} of {} candidates:",
            e.tuner,
            e.targeted.len(),
            e.targeted.len() + e.skipped.len()
        ));
    } else {
        let frozen =
            if e.saved.is_empty() { "the model stays as it is" } else { "the model stays as it is but for its head" };
        out.push(format!("{} adapts no module, and {frozen}:", e.tuner));
        out.extend(e.prompt.iter().map(|sentence| format!("  {sentence}")));
        out.extend(e.saved.iter().map(|module| format!("  saved: {module}, trained in full")));
    }
    let modules = if e.prompt.is_empty() { base.tree().modules } else { Vec::new() };
    for module in modules {
        let depth = module.name.matches('.').count();
        let last = module.name.rsplit('.').next().unwrap_or_default();
        let mark = if let Some(a) = e.adapted.iter().find(|a| a.name == module.name) {
            format!("adapted  {} ({})", a.summary, a.reason)
        } else if e.saved.contains(&module.name) {
            "saved    trained in full".to_owned()
        } else if let Some(s) = e.skipped.iter().find(|s| s.name == module.name) {
            format!("skipped  {}", s.reason)
        } else if matches!(module.kind, ModuleKind::Other(_)) {
            String::new()
        } else {
            "frozen".to_owned()
        };
        let indent = "  ".repeat(depth + 1);
        out.push(format!("{:<40} {mark}", format!("{indent}{last}")).trim_end().to_owned());
    }
    if !e.biases.is_empty() {
        out.push(format!("\n{} biases of the base model are trained.", e.biases.len()));
    }
    for note in &e.notes {
        out.push(format!("\nnote: {note}"));
    }
    out.push(String::new());
    out.push(e.trainable_sentence());
    Ok(out.join("\n"))
}
