//! `README.md` of an adapter folder.

use crate::{PeftConfig, plugins::config::PEFT_VERSION};

/// What every card of ours says of who wrote it.
const MADE_BY: &str = "- Made by `peft` (Rust) in the file format of PEFT";

/// Whether this program wrote the card.
pub fn is_own_model_card(text: &str) -> bool {
    text.contains(MADE_BY)
}

/// A model card with the front matter that model hubs read.
pub fn model_card(config: &PeftConfig) -> String {
    let base = config.base_model_name_or_path.as_deref().unwrap_or("");
    let kind = config.peft_type.as_str().to_lowercase();
    let mut front = format!("---\nlibrary_name: peft\ntags:\n- {kind}\n");
    if !base.is_empty() {
        // A folder of this machine is no name on a hub, but it is where the base came from.
        front = format!(
            "---\nbase_model: {}\nlibrary_name: peft\ntags:\n- {}\n- {kind}\n",
            quoted(base),
            scalar(&format!("base_model:adapter:{base}"))
        );
    }
    let task = config.task_type.as_ref().map_or("none: the default wrapper", |task| task.as_str());
    format!(
        "{front}---\n\n# {} adapter\n\n- Base model: {}\n- Task type: {task}\n{MADE_BY} {PEFT_VERSION}\n",
        config.peft_type,
        if base.is_empty() { "not named".to_owned() } else { scalar(base) },
    )
}

/// A text as YAML has it: plain where every character is one of a name or a path, else in quotes.
fn scalar(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:@+~".contains(c);
    let starts_plain = text.starts_with(|c: char| c.is_alphanumeric() || "/._".contains(c));
    if starts_plain && text.chars().all(is_plain) && !text.ends_with(':') { text.to_owned() } else { quoted(text) }
}

/// A text in double quotes. What ends a line of YAML, or is no character of it, is escaped beyond what JSON asks for.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in serde_json::Value::from(text).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_base_model_whose_name_breaks_lines_leaves_the_front_matter_whole() {
        for base in ["a\nb", "a: b", "#a", "- a", "\"a\"", "a\u{85}b", "a\u{2028}b", "*a", "a b", "a:"] {
            let config = PeftConfig {
                peft_type: crate::PeftType::LORA,
                task_type: None,
                base_model_name_or_path: Some(base.to_owned()),
                revision: None,
                inference_mode: true,
                auto_mapping: None,
                peft_version: None,
                options: serde_json::Map::new(),
                unknown: serde_json::Map::new(),
            };
            let card = model_card(&config);
            let front: Vec<&str> =
                card.split(['\n', '\u{85}', '\u{2028}']).take_while(|line| !line.is_empty()).collect();
            assert_eq!(front.len(), 7, "{card}");
            assert_eq!((front[0], front[6]), ("---", "---"), "{card}");
            let name = front[1].strip_prefix("base_model: ").unwrap();
            assert!(name.starts_with('"') && name.ends_with('"'), "{card}");
            assert!(front[4].starts_with("- \"base_model:adapter:"), "{card}");
        }
        assert_eq!(scalar("base_model:adapter:org/name-7B"), "base_model:adapter:org/name-7B");
        assert_eq!(scalar("/home/ä/m"), "/home/ä/m");
    }
}
