//! `README.md` of an adapter folder.

use crate::{PeftConfig, config::PEFT_VERSION};

/// A model card with the front matter that model hubs read.
pub fn model_card(config: &PeftConfig) -> String {
    let base = config.base_model_name_or_path.as_deref().unwrap_or("");
    let kind = config.peft_type.as_str().to_lowercase();
    let mut front = format!("---\nlibrary_name: peft\ntags:\n- {kind}\n");
    if !base.is_empty() {
        // A folder of this machine is no name on a hub, but it is where the base came from.
        front = format!(
            "---\nbase_model: {}\nlibrary_name: peft\ntags:\n- base_model:adapter:{base}\n- {kind}\n",
            quoted(base)
        );
    }
    let task = config.task_type.as_ref().map_or("none: the default wrapper", |task| task.as_str());
    format!(
        "{front}---\n\n# {} adapter\n\n- Base model: {}\n- Task type: {task}\n- Made by `peft` (Rust) in the file format of PEFT {PEFT_VERSION}\n",
        config.peft_type,
        if base.is_empty() { "not named" } else { base },
    )
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
