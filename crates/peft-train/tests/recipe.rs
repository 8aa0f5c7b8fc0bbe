//! Recipes: what is accepted, what is refused, and where the message points.

use std::path::Path;

use peft::data::example::Overflow;
use peft_train::{
    Recipe,
    recipe::{SchedulerType, Strategy as When, WeightType},
};
use proptest::prelude::*;

const GOOD: &str = r#"[model]
model_name_or_path = "models/bert"

[adapter]
peft_type = "LORA"
task_type = "SEQ_CLS"
r = 4
target_modules = ["query", "value"]

[data]
train = "train.tsv"
eval = "dev.tsv"
text = "sentence"
max_length = 64

[training]
output_dir = "out"
learning_rate = 2e-4
"#;

fn parse(text: &str, overrides: &[&str]) -> peft_train::Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|argument| (*argument).to_owned()).collect();
    Recipe::parse(text, Path::new("recipes/r.toml"), &overrides)
}

#[track_caller]
fn refused(text: &str, overrides: &[&str], parts: &[&str]) {
    let error = parse(text, overrides).expect_err("the recipe should be refused");
    let message = error.to_string();
    assert!(message.starts_with(parts[0]), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert_eq!(error.exit_code(), 2, "{message}");
}

#[test]
fn a_recipe_is_read_with_the_defaults_of_transformers() {
    let recipe = parse(GOOD, &[]).unwrap();
    assert_eq!(recipe.model.model_name_or_path, "models/bert");
    assert_eq!(recipe.adapter.base_model_name_or_path.as_deref(), Some("models/bert"));
    assert_eq!(recipe.adapter.options["r"], 4);
    assert_eq!(recipe.adapter.options["lora_alpha"], 8);
    assert_eq!(recipe.data.columns["text"], "sentence");
    assert_eq!((recipe.data.max_length, recipe.data.overflow), (Some(64), Overflow::Raise));
    let training = &recipe.training;
    assert_eq!(training.learning_rate, 2e-4);
    assert_eq!((training.num_train_epochs, training.max_steps, training.seed), (3.0, -1, 42));
    assert_eq!((training.per_device_train_batch_size, training.per_device_eval_batch_size), (8, 8));
    assert_eq!((training.adam_beta1, training.adam_beta2, training.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((training.lr_scheduler_type, training.max_grad_norm), (SchedulerType::Linear, 1.0));
    assert_eq!(training.evaluation(), (When::No, 500));
}

#[test]
fn unknown_keys_are_refused_where_they_stand_with_the_nearest_known_one() {
    let rows: &[(&str, &str, &[&str])] = &[
        (
            "learning_rate",
            "learning_rat",
            &["recipes/r.toml:18:1: unknown key `learning_rat` in [training]", "`learning_rate`?"],
        ),
        ("max_length", "  max_lenght", &["recipes/r.toml:14:3: unknown key `max_lenght` in [data]", "`max_length`?"]),
        (
            "target_modules",
            "target_module",
            &["recipes/r.toml:8:1: unknown key `target_module` in [adapter]", "`target_modules`?"],
        ),
        (
            "model_name_or_path",
            "zzz",
            &[
                "recipes/r.toml:2:1: unknown key `zzz` in [model]",
                "known: model_name_or_path, config, tokenizer, init, dtype",
            ],
        ),
        ("[training]", "[trainig]", &["recipes/r.toml:16:2: unknown section [trainig]", "`training`?"]),
    ];
    for (from, to, parts) in rows {
        refused(&GOOD.replacen(from, to, 1), &[], parts);
    }
}

#[test]
fn values_of_a_wrong_type_or_out_of_range_are_refused_where_they_stand() {
    let rows: &[(&str, &str, &[&str])] = &[
        ("2e-4", "\"fast\"", &["recipes/r.toml:18:17: `learning_rate` in [training]", "\"fast\"", "a number"]),
        ("2e-4", "-1", &["recipes/r.toml:18:17: `learning_rate` in [training]", "above 0", "-1"]),
        ("2e-4", "inf", &["recipes/r.toml:18:17: `learning_rate` in [training]", "not finite"]),
        ("64", "-1", &["recipes/r.toml:14:14: `max_length` in [data]", "-1"]),
        ("64", "0", &["recipes/r.toml:14:14: `max_length` in [data]", "at least 1"]),
        ("r = 4", "r = \"many\"", &["recipes/r.toml:7:5: `r` in [adapter]", "many"]),
        ("\"LORA\"", "\"LORAX\"", &["recipes/r.toml:5:13: `peft_type` in [adapter]", "LORAX", "LORA"]),
        ("\"SEQ_CLS\"", "\"SEQ\"", &["recipes/r.toml:6:13: `task_type` in [adapter]", "SEQ_CLS"]),
        ("\"sentence\"", "3", &["recipes/r.toml:13:8: `text` in [data]", "name of a column"]),
        ("text =", "question =", &["recipes/r.toml:13:12: `question` in [data]", "SEQ_CLS has no such column"]),
        ("output_dir = \"out\"", "", &["recipes/r.toml:16:2: `output_dir` in [training]: missing"]),
        ("train = \"train.tsv\"", "", &["recipes/r.toml:10:2: `train` in [data]: missing"]),
        ("model_name_or_path = \"models/bert\"", "", &["recipes/r.toml:1:2: `model_name_or_path` in [model]: missing"]),
        ("eval =", "eval_split = 0.5\neval =", &["recipes/r.toml:12:14: `eval_split` in [data]", "`eval`"]),
        ("[model]\n", "model = 3\n[modle]\n", &["recipes/r.toml:", "model"]),
        ("r = 4", "r = = 4", &["recipes/r.toml:7:5: not valid TOML"]),
        ("r = 4", "peft_type = \"LORA\"", &["recipes/r.toml:7:1: not valid TOML", "duplicate"]),
    ];
    for (from, to, parts) in rows {
        refused(&GOOD.replacen(from, to, 1), &[], parts);
    }
}

#[test]
fn weights_that_are_packed_cannot_all_be_trained() {
    for key in ["load_in_4bit", "load_in_8bit", "load_embeddings_in_8bit"] {
        let whole = GOOD.replacen("peft_type = \"LORA\"", "peft_type = \"FULL\"", 1);
        let whole = whole.replacen("r = 4\ntarget_modules = [\"query\", \"value\"]\n", "", 1);
        parse(&whole, &[]).unwrap();
        let packed = whole.replacen("[model]\n", &format!("[model]\n{key} = true\n"), 1);
        refused(
            &packed,
            &[],
            &[&format!("recipes/r.toml:2:{}: `{key}` in [model]", key.len() + 4), "needs unquantized weights"],
        );
    }
}

#[test]
fn every_training_number_has_its_range() {
    let rows: &[(&str, &str)] = &[
        ("num_train_epochs=0", "above 0"),
        ("max_steps=0", "at least 1"),
        ("max_steps=-2", "at least 1"),
        ("per_device_train_batch_size=0", "at least 1"),
        ("per_device_eval_batch_size=0", "at least 1"),
        ("gradient_accumulation_steps=0", "at least 1"),
        ("logging_steps=0", "at least 1"),
        ("eval_steps=0", "at least 1"),
        ("save_steps=0", "at least 1"),
        ("save_total_limit=0", "at least 1"),
        ("adam_epsilon=0", "above 0"),
        ("adam_beta1=1.0", "below 1"),
        ("adam_beta2=-0.1", "below 1"),
        ("warmup_ratio=1", "below 1"),
        ("warmup_steps=1.5", "whole number"),
        ("warmup_steps=-1", "negative"),
        ("weight_decay=-0.1", "negative"),
        ("max_grad_norm=-1", "negative"),
        ("seed=-1", "-1"),
        ("lr_scheduler_type=lineer", "linear"),
        ("eval_strategy=sometimes", "epoch"),
    ];
    for (argument, says) in rows {
        let argument = format!("training.{argument}");
        let start = format!("command line: {argument}: `");
        refused(GOOD, &[&argument], &[&start, says]);
    }
}

#[test]
fn overrides_are_toml_values_or_text() {
    let arguments = [
        "training.learning_rate=1e-3",
        "training.output_dir=runs/7",
        "training.load_best_model_at_end=true",
        "training.eval_strategy=epoch",
        "adapter.target_modules=[\"key\"]",
        "adapter.task_type=SEQ_CLS",
        "data.train=a=b.tsv",
        "data.text=7",
        "model.dtype=bfloat16",
    ];
    let recipe = parse(GOOD, &arguments).unwrap();
    assert_eq!(recipe.training.learning_rate, 1e-3);
    assert_eq!(recipe.training.output_dir, "runs/7");
    assert!(recipe.training.load_best_model_at_end);
    assert_eq!(recipe.training.evaluation(), (When::Epoch, 500));
    assert_eq!(recipe.adapter.options["target_modules"], serde_json::json!(["key"]));
    assert_eq!(recipe.data.train, "a=b.tsv");
    assert_eq!(recipe.data.columns["text"], "7");
    assert_eq!(recipe.model.dtype, Some(WeightType::Bf16));
    assert_eq!(parse(GOOD, &["training.output_dir=7"]).unwrap().training.output_dir, "7");
}

#[test]
fn overrides_that_are_none_are_refused() {
    let rows: &[(&str, &[&str])] = &[
        ("lr=1", &["`lr=1`: not an override; write training.learning_rate=1"]),
        ("max_seq_len=1", &["`max_seq_len=1`: not an override; write data.max_length=1"]),
        ("learning_rat=1", &["`learning_rat=1`: not an override; did you mean training.learning_rate=1?"]),
        ("config=1", &["`config=1`: not an override; several sections", "model.config=1 or adapter.config=1"]),
        ("zzzzzzzz=1", &["`zzzzzzzz=1`: not an override; write section.key=value"]),
        ("training.learning_rate", &["`training.learning_rate`: not an override"]),
        ("training.=1", &["`training.=1`: not an override"]),
        (".seed=1", &["`.seed=1`: not an override"]),
        ("trainig.seed=1", &["command line: trainig.seed=1: unknown section [trainig]", "`training`?"]),
        ("training.sed=1", &["command line: training.sed=1: unknown key `sed` in [training]", "`seed`?"]),
        ("adapter.lora_alpa=1", &["command line: adapter.lora_alpa=1: unknown key `lora_alpa`", "`lora_alpha`?"]),
        ("training.seed=1\nmax_steps=2", &["command line: training.seed=1\nmax_steps=2: `seed`"]),
    ];
    for (argument, parts) in rows {
        refused(GOOD, &[argument], parts);
    }
}

#[test]
fn a_key_that_one_section_has_needs_no_section_on_the_command_line() {
    let recipe =
        parse(GOOD, &["learning_rate=1e-3", "lora_alpha=32", "max_length=16", "dtype=bf16", "text=body"]).unwrap();
    assert_eq!((recipe.training.learning_rate, recipe.data.max_length), (1e-3, Some(16)));
    assert_eq!((&recipe.adapter.options["lora_alpha"], recipe.model.dtype), (&32.into(), Some(WeightType::Bf16)));
    assert_eq!(recipe.data.columns["text"], "body");
}

#[test]
fn truth_values_of_python_are_taken_on_the_command_line() {
    let recipe = parse(GOOD, &["training.load_best_model_at_end=True", "adapter.use_dora=False"]).unwrap();
    assert!(recipe.training.load_best_model_at_end);
    assert_eq!(parse(GOOD, &["data.text=True"]).unwrap().data.columns["text"], "True");
    let text = GOOD.replacen("r = 4", "use_dora = True", 1);
    refused(&text, &[], &["recipes/r.toml:7:", "true and false"]);
}

#[test]
fn keys_of_other_trainers_are_refused_with_what_they_are_here() {
    let rows: &[(&str, &str)] = &[
        ("training.lr=1", "it is `learning_rate` here"),
        ("adapter.target=1", "did you mean `target_modules`?"),
        ("training.epochs=1", "it is `num_train_epochs` here"),
        ("training.batch_size=1", "it is `per_device_train_batch_size` here"),
        ("training.bf16=true", "dtype = \"bf16\""),
        ("adapter.rank=1", "it is `r` here"),
        ("adapter.lora_r=1", "it is `r` here"),
        ("adapter.alpha=1", "it is `lora_alpha` here"),
        ("adapter.dropout=0.1", "it is `lora_dropout` here"),
        ("data.max_seq_length=1", "it is `max_length` here"),
        ("training.max_seq_length=1", "it is `max_length` in [data]"),
        ("training.packing=true", "it stands in [data]"),
        ("data.lora_alpha=1", "it stands in [adapter]"),
        ("model.bnb_4bit_compute_dtype=bfloat16", "multiplied in f32"),
        ("training.optim=adamw_torch", "the optimiser is AdamW"),
    ];
    for (argument, says) in rows {
        let message = parse(GOOD, &[argument]).unwrap_err().to_string();
        assert!(message.contains(says) && !message.contains("adam_epsilon"), "{message}");
    }
    refused(&GOOD.replacen("[training]", "[trainer]", 1), &[], &["recipes/r.toml:16:2: unknown section", "[training]"]);
    refused(&format!("learning_rate = 1\n{GOOD}"), &[], &["recipes/r.toml:1:1: ", "a key of [training]"]);
}

#[test]
fn methods_that_are_options_of_lora_are_named_with_their_keys() {
    let check = |word: &str, says: &str| {
        let argument = format!("adapter.peft_type={word}");
        refused(GOOD, &[&argument], &[&format!("command line: {argument}: `peft_type`"), says]);
    };
    check("QLORA", "load_in_4bit = true");
    check("qlora", "load_in_4bit = true");
    check("DoRA", "use_dora = true");
    check("rsLoRA", "use_rslora = true");
}

#[test]
fn a_task_in_small_letters_is_taken() {
    for word in ["seq_cls", "Seq-Cls", "TaskType.SEQ_CLS"] {
        let recipe = parse(GOOD, &[&format!("adapter.task_type={word}")]).unwrap();
        assert_eq!(recipe.adapter.task_type.unwrap().as_str(), "SEQ_CLS");
    }
    refused(GOOD, &["adapter.task_type=text-classification"], &["command line: ", "did you mean `SEQ_CLS`?"]);
}

#[test]
fn numbers_in_quotes_are_refused_with_the_quotes_taken_away() {
    let rows: &[(&str, &str, &str)] = &[
        ("2e-4", "\"1e-3\"", "write learning_rate = 1e-3 without quotes"),
        ("64", "\"64\"", "write max_length = 64 without quotes"),
        ("r = 4", "r = \"8\"", "write r = 8 without quotes"),
        ("r = 4", "use_dora = \"True\"", "write use_dora = true without quotes"),
    ];
    for (from, to, says) in rows {
        refused(&GOOD.replacen(from, to, 1), &[], &["recipes/r.toml:", says]);
    }
}

#[test]
fn data_or_a_folder_in_place_of_a_recipe_is_refused_as_such() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["t.csv", "t.jsonl", "t.parquet", "t.json", "config.yaml"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "text,label\na,b\n").unwrap();
        let error = Recipe::read(&path, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(name) && error.to_string().contains("no recipe"), "{error}");
    }
    let error = Recipe::read(folder.path(), &[]).unwrap_err();
    assert!(error.to_string().contains("a folder, no recipe"), "{error}");
}

#[test]
fn eval_steps_alone_is_enough_to_evaluate_by_steps() {
    assert_eq!(parse(GOOD, &["training.eval_steps=100"]).unwrap().training.evaluation(), (When::Steps, 100));
    let both = ["training.eval_steps=100", "training.eval_strategy=no"];
    assert_eq!(parse(GOOD, &both).unwrap().training.evaluation().0, When::No);
}

#[test]
fn the_best_needs_something_to_be_measured_on() {
    let without = GOOD.replace("eval = \"dev.tsv\"\n", "");
    refused(
        &without,
        &["training.load_best_model_at_end=true"],
        &["command line: ", "`load_best_model_at_end`", "eval_split"],
    );
    assert!(parse(&without, &["training.load_best_model_at_end=true", "data.eval_split=0.1"]).is_ok());
}

#[test]
fn the_resolved_recipe_reads_back_as_itself() {
    let recipe = parse(GOOD, &["training.warmup_steps=0.1", "adapter.rank_pattern={ \"a.b\" = 2 }"]).unwrap();
    let again = parse(&recipe.to_toml(), &[]).unwrap();
    assert_eq!(again.to_map(), recipe.to_map());
    assert_eq!(again.training, recipe.training);
}

#[test]
fn a_configuration_file_of_peft_can_be_named_and_changed() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        r#"{"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 16, "target_modules": ["query"], "of_tomorrow": 1}"#;
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let start = GOOD.find("peft_type").unwrap();
    let end = GOOD.find("[data]").unwrap();
    let text = format!("{}config = \"adapter_config.json\"\nlora_alpha = 3\n{}", &GOOD[..start], &GOOD[end..]);
    let file = folder.path().join("r.toml");
    std::fs::write(&file, &text).unwrap();
    let recipe = Recipe::read(&file, &["adapter.r=2".to_owned()]).unwrap();
    assert_eq!((&recipe.adapter.options["r"], &recipe.adapter.options["lora_alpha"]), (&2.into(), &3.into()));
    assert_eq!(recipe.adapter.options["target_modules"], serde_json::json!(["query"]));
    assert_eq!(recipe.adapter.unknown["of_tomorrow"], 1);
    let message = Recipe::read(&file, &["adapter.rr=2".to_owned()]).unwrap_err().to_string();
    assert!(message.contains("unknown key `rr` in [adapter]"), "{message}");
}

#[test]
fn paths_are_looked_for_beside_the_recipe_first() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.tsv"), "").unwrap();
    let recipe = Recipe::parse(GOOD, &folder.path().join("r.toml"), &[]).unwrap();
    assert_eq!(recipe.locate("train.tsv"), folder.path().join("train.tsv"));
    assert_eq!(recipe.locate("dev.tsv"), Path::new("dev.tsv"));
}

#[test]
fn a_recipe_that_is_not_there_is_not_found() {
    let error = Recipe::read(Path::new("nowhere/r.toml"), &[]).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().starts_with("nowhere/r.toml: not found"), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        let _read = parse(&text, &[]);
    }

    #[test]
    fn no_change_to_a_recipe_makes_the_reader_panic(at in 0..GOOD.len(), cut in 0..20_usize, put in "[\\[\\]=.\"'#\\n{}, a-z0-9é-]{0,8}") {
        let end = (at + cut).min(GOOD.len());
        let _read = parse(&format!("{}{put}{}", &GOOD[..at], &GOOD[end..]), &[]);
    }

    #[test]
    fn no_override_makes_the_reader_panic(argument in "(training|data|adapter|model)\\.[a-z_]{0,12}=\\PC{0,12}", any in any::<String>()) {
        let _read = (parse(GOOD, &[&argument]), parse(GOOD, &[&any]));
    }
}
