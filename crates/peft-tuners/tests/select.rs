//! Target selection rule by rule, as a table.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use burn::module::ParamId;
use peft_core::{
    ModelInfo, ModuleInfo, ModuleKind, ModuleTree,
    plugins::plan::{SkipReason, TaskRules},
    tensor::module_tree::ParamInfo,
};
use peft_tuners::select::{Rules, Selection, Targets};
use proptest::prelude::*;
use serde_json::{Value, json};

fn module(name: &str, kind: ModuleKind) -> ModuleInfo {
    let params = match kind {
        ModuleKind::Other(_) => Vec::new(),
        _ => vec![ParamInfo { name: "weight".to_owned(), shape: vec![4, 4], id: ParamId::new(), is_buffer: false }],
    };
    ModuleInfo { name: name.to_owned(), kind, params }
}

/// Two encoder layers and a head, or two decoder layers and an output embedding.
fn tree(layers: usize, prefix: &str, linears: &[&str], tail: &[&str]) -> ModuleTree {
    let mut modules = vec![module("embed", ModuleKind::Embedding)];
    for layer in 0..layers {
        modules.push(module(&format!("{prefix}.{layer}"), ModuleKind::Other("module".to_owned())));
        modules.extend(linears.iter().map(|name| module(&format!("{prefix}.{layer}.{name}"), ModuleKind::Linear)));
        modules.push(module(&format!("{prefix}.{layer}.norm"), ModuleKind::Norm));
    }
    modules.extend(tail.iter().map(|name| module(name, ModuleKind::Linear)));
    ModuleTree::from(modules)
}

fn bert() -> ModuleTree {
    tree(2, "bert.encoder.layer", &["query", "key", "value"], &["bert.pooler.dense", "classifier"])
}

fn llama() -> ModuleTree {
    tree(2, "model.layers", &["q_proj", "v_proj"], &["lm_head"])
}

fn seq_cls() -> TaskRules {
    TaskRules {
        task_type: Some("SEQ_CLS".to_owned()),
        heads: vec!["classifier".to_owned(), "score".to_owned()],
        ..TaskRules::default()
    }
}

fn select(tree: &ModuleTree, task: &TaskRules, targets: Value, strict: bool) -> peft_core::Result<Selection> {
    let targets: Targets = serde_json::from_value(targets).unwrap();
    let mut info = ModelInfo::custom();
    info.output_embedding = tree.get("lm_head").map(|m| m.name.clone());
    let rules = Rules {
        tuner: "LoRA",
        supported: &[ModuleKind::Linear, ModuleKind::Conv1D, ModuleKind::Embedding],
        defaults: None,
        shorten: true,
        strict,
    };
    targets.select(tree, &info, task, rules)
}

fn check(tree: &ModuleTree, task: &TaskRules, targets: Value, expected: &[&str]) {
    let selection = select(tree, task, targets, true).unwrap();
    let names: Vec<_> = selection.adapted.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, expected);
}

fn refused(tree: &ModuleTree, task: &TaskRules, targets: Value, words: &[&str]) {
    let message = select(tree, task, targets, true).unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "`{message}` should say `{word}`");
    }
}

#[test]
fn an_entry_of_a_list_matches_whole_name_parts_from_the_end() {
    check(
        &bert(),
        &seq_cls(),
        json!({"target_modules": ["query"]}),
        &["bert.encoder.layer.0.query", "bert.encoder.layer.1.query"],
    );
    check(&bert(), &seq_cls(), json!({"target_modules": ["1.query"]}), &["bert.encoder.layer.1.query"]);
    refused(&bert(), &seq_cls(), json!({"target_modules": ["uery"]}), &["uery", "did you mean query"]);
}

#[test]
fn a_string_is_a_regular_expression_for_the_whole_name() {
    check(
        &llama(),
        &TaskRules::default(),
        json!({"target_modules": r".*\.0\.(q|v)_proj"}),
        &["model.layers.0.q_proj", "model.layers.0.v_proj"],
    );
    refused(&llama(), &TaskRules::default(), json!({"target_modules": "q_proj"}), &["q_proj", "select no module"]);
    refused(
        &llama(),
        &TaskRules::default(),
        json!({"target_modules": "("}),
        &["target_modules", "not a regular expression"],
    );
}

#[test]
fn a_text_that_should_have_been_a_list_is_refused_with_the_list() {
    for (text, list) in [("query", r#"["query"]"#), ("query,value", r#"["query", "value"]"#)] {
        refused(&bert(), &seq_cls(), json!({"target_modules": text}), &["regular expression for the whole name", list]);
    }
    refused(&bert(), &seq_cls(), json!({"target_modules": ".*quary"}), &["regular expression", "a list holds endings"]);
}

#[test]
fn an_alternative_that_selects_nothing_is_told_of() {
    let notes = |targets: Value| select(&bert(), &seq_cls(), targets, true).unwrap().notes.join("\n");
    let note = notes(json!({"target_modules": ".*query|.*valeu"}));
    assert!(
        note.contains("the alternative `.*valeu` of the regular expression matches no module; did you mean `value`?"),
        "{note}"
    );
    assert!(notes(json!({"target_modules": r".*\.(query|valeu)"})).contains("`valeu`"));
    assert!(
        notes(json!({"target_modules": ["query"], "exclude_modules": r".*\.0\..*|.*kye"}))
            .contains("exclude_modules: ")
    );
    assert!(!notes(json!({"target_modules": r".*\.(query|value)"})).contains("alternative"));
    let saved = select(&bert(), &seq_cls(), json!({"target_modules": ".*query|.*valeu"}), false).unwrap();
    assert!(!saved.notes.join("\n").contains("alternative"));
}

#[test]
fn a_module_that_is_to_be_saved_and_adapted_is_refused_by_both_keys() {
    for targets in [json!(["query"]), json!(["query", "value"]), json!(".*query")] {
        let targets = json!({"target_modules": targets, "modules_to_save": ["query"]});
        refused(&bert(), &seq_cls(), targets.clone(), &["modules_to_save", "target_modules", "`query`"]);
    }
    let one_layer = json!({"target_modules": ["query"], "modules_to_save": ["layer.0.query"]});
    check(&bert(), &seq_cls(), one_layer, &["bert.encoder.layer.1.query"]);
}

#[test]
fn a_regular_expression_that_names_a_container_means_the_layers_it_also_names() {
    check(
        &llama(),
        &TaskRules::default(),
        json!({"target_modules": r"model\.layers\.0.*"}),
        &["model.layers.0.q_proj", "model.layers.0.v_proj"],
    );
}

#[test]
fn all_linear_skips_the_output_embedding_and_the_heads() {
    check(
        &llama(),
        &TaskRules::default(),
        json!({"target_modules": "ALL-linear"}),
        &["model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj", "model.layers.1.v_proj"],
    );
    let selection = select(&bert(), &seq_cls(), json!({"target_modules": "all-linear"}), true).unwrap();
    assert!(selection.adapted.iter().any(|(name, _)| name == "bert.pooler.dense"));
    let head = selection.skipped.iter().find(|s| s.module == "classifier").unwrap();
    assert!(matches!(&head.reason, SkipReason::HeadOfTask { task_type, .. } if task_type == "SEQ_CLS"));
    assert_eq!(selection.saved.modules, ["classifier"]);
    assert_eq!(selection.saved.entries, ["classifier", "score"]);
}

#[test]
fn all_linear_leaves_the_heads_of_every_task_alone() {
    // PEFT adapts these heads and then fails to wrap them.
    let task = TaskRules {
        task_type: Some("QUESTION_ANS".to_owned()),
        heads: vec!["qa_outputs".to_owned()],
        ..TaskRules::default()
    };
    check(
        &tree(1, "layer", &["query"], &["qa_outputs"]),
        &task,
        json!({"target_modules": "all-linear"}),
        &["layer.0.query"],
    );
}

#[test]
fn a_head_without_a_task_is_a_layer_like_any_other() {
    let selection = select(&bert(), &TaskRules::default(), json!({"target_modules": "all-linear"}), true).unwrap();
    assert!(selection.adapted.iter().any(|(name, _)| name == "classifier"));
}

#[test]
fn excluded_modules_are_never_adapted() {
    check(
        &bert(),
        &seq_cls(),
        json!({"target_modules": ["query", "value"], "exclude_modules": ["0.query", "value"]}),
        &["bert.encoder.layer.1.query"],
    );
    check(
        &bert(),
        &seq_cls(),
        json!({"target_modules": ["query"], "exclude_modules": r".*\.0\..*"}),
        &["bert.encoder.layer.1.query"],
    );
    refused(
        &bert(),
        &seq_cls(),
        json!({"target_modules": ["query"], "exclude_modules": ["query"]}),
        &["exclude_modules"],
    );
}

#[test]
fn modules_to_save_protect_themselves_and_what_is_below_them() {
    let tree = tree(2, "bert.encoder.layer", &["query"], &["bert.pooler.dense"]);
    let targets = json!({"target_modules": "all-linear", "modules_to_save": ["layer.0.query"]});
    check(&tree, &TaskRules::default(), targets, &["bert.encoder.layer.1.query", "bert.pooler.dense"]);
}

#[test]
fn an_entry_of_modules_to_save_matches_endings_without_a_dot() {
    // DistilBERT: `classifier` names `pre_classifier` as well.
    let tree = tree(1, "layer", &["q_lin"], &["pre_classifier", "classifier"]);
    let selection = select(&tree, &seq_cls(), json!({"target_modules": "all-linear"}), true).unwrap();
    assert_eq!(selection.saved.modules, ["pre_classifier", "classifier"]);
    assert_eq!(selection.adapted.len(), 1);
}

#[test]
fn layers_to_transform_takes_the_first_number_with_two_parts_before_it() {
    let targets = json!({"target_modules": ["q_proj"], "layers_to_transform": 1});
    check(&llama(), &TaskRules::default(), targets, &["model.layers.1.q_proj"]);
    // One part before the number: no index, so nothing is selected.
    let shallow = tree(2, "layers", &["q_proj"], &[]);
    let targets = json!({"target_modules": ["q_proj"], "layers_to_transform": [0]});
    refused(&shallow, &TaskRules::default(), targets, &["layers_to_transform", "[0]"]);
    let targets = json!({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"});
    check(&shallow, &TaskRules::default(), targets, &["layers.0.q_proj"]);
}

#[test]
fn a_full_name_is_adapted_whatever_its_layer() {
    let targets = json!({"target_modules": ["model.layers.0.q_proj"], "layers_to_transform": [1]});
    check(&llama(), &TaskRules::default(), targets, &["model.layers.0.q_proj"]);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (targets, key) in [
        (json!({"target_modules": "q", "layers_to_transform": [0]}), "layers_to_transform"),
        (json!({"target_modules": "q", "layers_pattern": "layers"}), "layers_pattern"),
        (json!({"target_modules": ["q_proj"], "layers_pattern": "layers"}), "layers_pattern"),
    ] {
        refused(&llama(), &TaskRules::default(), targets, &[key]);
    }
}

#[test]
fn a_partly_unmatched_list_is_refused_with_the_names_unless_it_was_saved_by_peft() {
    let targets = json!({"target_modules": ["q_proj", "k_prj"]});
    refused(&llama(), &TaskRules::default(), targets.clone(), &["`k_prj`", "q_proj"]);
    let selection = select(&llama(), &TaskRules::default(), targets, false).unwrap();
    assert_eq!(selection.adapted.len(), 2);
    assert!(selection.notes.iter().any(|note| note.contains("k_prj")));
}

#[test]
fn no_default_is_an_error_that_lists_what_there_is() {
    refused(&llama(), &TaskRules::default(), json!({}), &["no default", "custom", "q_proj, v_proj"]);
}

#[test]
fn a_listed_module_that_cannot_be_adapted_is_an_error_that_says_what_can() {
    refused(&llama(), &TaskRules::default(), json!({"target_modules": ["norm"]}), &["layers.0.norm", "Norm", "Linear"]);
}

#[test]
fn long_lists_are_shortened_to_endings_that_mean_the_same() {
    let tree = tree(12, "model.layers", &["q_proj", "v_proj"], &["lm_head"]);
    let selection = select(&tree, &TaskRules::default(), json!({"target_modules": "all-linear"}), true).unwrap();
    assert_eq!(selection.adapted.len(), 24);
    assert_eq!(selection.target_modules.as_slice(), ["q_proj", "v_proj"]);
}

proptest! {
    #[test]
    fn no_configuration_makes_the_rules_panic(entries in prop::collection::vec(".{0,12}", 0..5), excluded in ".{0,12}", one in any::<bool>()) {
        let target = if one { json!(entries.concat()) } else { json!(entries) };
        let _ = select(&bert(), &seq_cls(), json!({"target_modules": target, "exclude_modules": excluded}), true);
    }

    #[test]
    fn heads_are_never_adapted(pattern in "[a-z.*|()0-9]{1,10}") {
        if let Ok(selection) = select(&bert(), &seq_cls(), json!({"target_modules": pattern}), true) {
            prop_assert!(selection.adapted.iter().all(|(name, _)| name != "classifier"));
        }
    }
}
