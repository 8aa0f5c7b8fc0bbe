//! `adapter_config.json` both ways.

use std::collections::BTreeMap;

use peft::{PeftConfig, PeftType, TaskType, plugins::config::UnknownKeys};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture::golden;

fn lora() -> PeftConfig {
    PeftConfig::new(PeftType::LORA, Some(TaskType::SEQ_CLS)).unwrap()
}

#[test]
fn the_files_of_peft_come_out_as_they_went_in() {
    let mut seen = 0;
    for entry in std::fs::read_dir(golden()).unwrap() {
        let file = entry.unwrap().path().join("adapter/adapter_config.json");
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let config = PeftConfig::from_file(&file).unwrap();
        let before: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
        let after: BTreeMap<String, Value> = serde_json::from_str(&config.to_json()).unwrap();
        assert_eq!(after, before, "{}", file.display());
        seen += 1;
    }
    assert!(seen >= 18);
}

#[test]
fn a_fresh_configuration_has_the_defaults_of_peft() {
    let text = std::fs::read_to_string(golden().join("bert.TOKEN_CLS.default/adapter/adapter_config.json")).unwrap();
    let theirs: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    let ours: BTreeMap<String, Value> = serde_json::from_str(&lora().to_json()).unwrap();
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    // What the case sets, and what the model decides.
    let set = ["r", "lora_alpha", "task_type", "target_modules", "modules_to_save"];
    for key in theirs.keys().filter(|key| !set.contains(&key.as_str())) {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    assert_eq!((&ours["r"], &ours["lora_alpha"]), (&json!(8), &json!(8)));
}

#[test]
fn keys_of_newer_releases_are_kept_and_reported() {
    let text = r#"{"peft_type": "LORA", "r": 4, "from_the_future": {"a": [1]}}"#;
    let config = PeftConfig::from_json(text, UnknownKeys::Keep).unwrap();
    assert_eq!(config.unknown.keys().collect::<Vec<_>>(), ["from_the_future"]);
    assert_eq!(config.to_map()["from_the_future"], json!({"a": [1]}));
}

#[test]
fn what_is_wrong_is_named_with_what_would_be_right() {
    for (toml, words) in [
        ("r = 4", &["peft_type", "missing", "LORA"][..]),
        ("peft_type = \"LOAR\"", &["LOAR", "did you mean `LORA`?"]),
        ("peft_type = \"LORA\"\ntask_type = \"SEQ_CLASS\"", &["SEQ_CLASS", "SEQ_CLS"]),
        ("peft_type = \"LORA\"\nlora_alhpa = 4", &["lora_alhpa", "did you mean `lora_alpha`?"]),
        ("peft_type = \"LORA\"\nr = \"eight\"", &["`r`", "eight"]),
        ("peft_type = \"LORA\"\nbias = \"some\"", &["`bias`", "some", "lora_only"]),
        ("peft_type = \"LORA\"\nr = -1", &["`r`", "-1"]),
    ] {
        let message = PeftConfig::from_toml(toml).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "`{message}` should say `{word}`");
        }
    }
}

#[test]
fn toml_and_json_say_the_same() {
    let config = lora().with("r", 16).unwrap().with("target_modules", json!(["query"])).unwrap();
    let mut again = PeftConfig::from_toml(&config.to_toml().replace("inference_mode = true", "")).unwrap();
    again.peft_version = None;
    assert_eq!(again, config);
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = PeftConfig::from_json(&text, UnknownKeys::Keep);
        let _ = PeftConfig::from_toml(&text);
    }

    #[test]
    fn no_value_makes_an_option_panic(key in 0..30_usize, value in prop_oneof![Just(json!(null)), Just(json!(-1)), Just(json!("x")), Just(json!([1])), Just(json!({"a": 1})), Just(json!(1e300))]) {
        let mut keys = lora().to_map();
        let name = keys.keys().nth(key % keys.len()).unwrap().clone();
        keys.insert(name, value);
        let _ = PeftConfig::from_map(keys, UnknownKeys::Keep);
    }
}
