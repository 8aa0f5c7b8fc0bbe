//! What the documentation says in tables is what the code does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use peft::train::recipe::{DataArguments, ModelArguments, TrainingArguments};
use peft::{
    ArchitecturePlugin, ModelInfo, PeftConfig, PeftType, TaskPlugin, TunerPlugin,
    data::example::{EncodeContext, EncodeOptions, Example, Label, Row},
    models::HfTokenizer,
    plugins::{
        registry::plugins,
        task::{DEFAULT_WRAPPER, Scored},
    },
    tuners::defaults,
};
use serde_json::{Map, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs/src").join(name)).unwrap()
}

/// The cells of the first table whose header begins like this, below a heading; without the header.
fn table(text: &str, below: &str, header: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| !line.starts_with(below)).skip_while(|line| !line.starts_with(header));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<_> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "no table `{header}` below `{below}`");
    rows
}

/// The words in backticks.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_table_of_task_types_is_the_registry() {
    let shown: BTreeMap<String, [String; 4]> = table(&page("task-type.md"), "# ", "| `task_type` | wrapper")
        .into_iter()
        .map(|row| (row[0].replace('`', ""), [1, 2, 3, 4].map(|column| row[column].replace('`', ""))))
        .collect();
    let heads = |heads: &[&str]| if heads.is_empty() { "–".to_owned() } else { heads.join(", ") };
    let decided = |task: &&TaskPlugin| {
        let submodules = task.num_transformer_submodules.to_string();
        (task.name.to_owned(), [task.wrapper.to_owned(), task.auto_class.to_string(), heads(task.heads), submodules])
    };
    let default = [DEFAULT_WRAPPER, "AutoModel", "–", "–"].map(str::to_owned);
    let linked: BTreeMap<_, _> =
        plugins::<TaskPlugin>().iter().map(decided).chain([("none".to_owned(), default)]).collect();
    assert_eq!(shown, linked);
}

#[test]
fn the_table_of_models_is_the_registry() {
    let shown = table(&page("models.md"), "# ", "| `model_type` | models");
    let line = |architecture: &&ArchitecturePlugin| {
        let tasks = plugins::<TaskPlugin>();
        let tasks = tasks.iter().filter(|task| architecture.classes.contains(&task.auto_class));
        let tasks: Vec<_> = tasks.map(|task| format!("`{}`", task.name)).collect();
        let targets: Vec<_> =
            defaults::lora(architecture.name).unwrap_or_default().iter().map(|name| format!("`{name}`")).collect();
        let targets = if targets.is_empty() { "–".to_owned() } else { targets.join(", ") };
        vec![format!("`{}`", architecture.name), architecture.summary.to_owned(), tasks.join(", "), targets]
    };
    let linked: Vec<_> = plugins::<ArchitecturePlugin>().iter().map(line).collect();
    for row in &linked {
        assert!(shown.contains(row), "docs/src/models.md lacks | {} |", row.join(" | "));
    }
    assert_eq!(shown, linked);
}

#[test]
fn the_walk_through_an_architecture_quotes_its_file() {
    let text = page("adding-an-architecture.md");
    let file = fs::read_to_string(root().join("crates/peft-models/src/distilbert.rs")).unwrap();
    let quotes = text.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
    let quotes: Vec<_> = quotes.filter(|quote| !quote.starts_with("{{#include ")).collect();
    assert!(quotes.len() > 3);
    for quote in quotes {
        assert!(file.contains(quote), "not in distilbert.rs:\n{quote}");
    }
}

#[test]
fn the_table_of_columns_is_that_of_the_tasks() {
    let text = page("data.md");
    let rows = table(&text, "## Columns", "| `task_type`");
    let shown: BTreeMap<_, _> =
        rows.iter().map(|row| (words(&row[0])[0], (words(&row[1]), row.get(2).map_or(vec![], |c| words(c))))).collect();
    let columns = |task: &&TaskPlugin| {
        let role = |required: bool| {
            task.task
                .columns()
                .iter()
                .filter(move |column| column.required == required)
                .map(|column| column.role)
                .collect()
        };
        (task.name, (role(true), role(false)))
    };
    assert_eq!(shown, plugins::<TaskPlugin>().iter().map(columns).collect());
}

#[test]
fn the_table_of_default_targets_is_the_code() {
    let text = page("target-selection.md");
    let rows = table(&text, "## Defaults", "| `model_type`");
    let mut shown = BTreeSet::new();
    for row in &rows {
        for model_type in words(&row[0]) {
            assert_eq!(defaults::lora(model_type), Some(words(&row[1]).as_slice()), "{model_type}");
            shown.insert(model_type);
        }
    }
    // The code is a `match`; its words are found in its text.
    let code = fs::read_to_string(root().join("crates/peft-tuners/src/defaults.rs")).unwrap();
    let known = code.split('"').skip(1).step_by(2).filter(|word| defaults::lora(word).is_some());
    assert_eq!(shown, known.collect());
}

/// Keys and defaults of a table of recipe keys.
fn shown_defaults(text: &str, below: &str) -> BTreeMap<String, Value> {
    let default = |cell: &str| match cell {
        "required" => Value::from(""),
        "none" => Value::Null,
        json => number(serde_json::from_str(json.trim_matches('`')).unwrap_or_else(|_| panic!("{cell} is no JSON"))),
    };
    table(text, below, "| key | type").iter().map(|row| (words(&row[0])[0].to_owned(), default(&row[2]))).collect()
}

/// 8 and 8.0 are one number.
fn number(value: Value) -> Value {
    value.as_f64().map_or(value, Value::from)
}

fn defaults_of(values: Map<String, Value>) -> BTreeMap<String, Value> {
    values.into_iter().map(|(key, value)| (key, number(value))).collect()
}

fn as_map(value: impl serde::Serialize) -> Map<String, Value> {
    serde_json::to_value(value).unwrap().as_object().unwrap().clone()
}

#[test]
fn the_tables_of_recipe_keys_are_the_code() {
    let text = page("recipe.md");
    assert_eq!(shown_defaults(&text, "## `[model]`"), defaults_of(as_map(ModelArguments::default())));
    assert_eq!(shown_defaults(&text, "## `[data]`"), defaults_of(as_map(DataArguments::default())));
    assert_eq!(shown_defaults(&text, "## `[training]`"), defaults_of(as_map(TrainingArguments::default())));

    let config = PeftConfig::new(PeftType::LORA, None).unwrap();
    assert_eq!(shown_defaults(&text, "Keys of `LORA`"), defaults_of(config.options.clone()));
    let mut common: Vec<String> = shown_defaults(&text, "Keys of every tuner").into_keys().collect();
    common.extend(["base_model_name_or_path", "peft_version"].map(str::to_owned));
    common.sort();
    let own: BTreeSet<&String> = config.options.keys().collect();
    let all = config.to_map();
    assert_eq!(common, all.keys().filter(|key| !own.contains(key)).cloned().collect::<Vec<_>>());
}

#[test]
fn the_tables_of_prompt_keys_are_the_code() {
    let text = page("prompt-learning.md");
    let common = shown_defaults(&text, "## Keys");
    for (method, others) in [
        ("PROMPT_TUNING", None),
        ("P_TUNING", None),
        ("PREFIX_TUNING", None),
        ("MULTITASK_PROMPT_TUNING", Some("PROMPT_TUNING")),
        ("CPT", None),
    ] {
        let mut shown = shown_defaults(&text, &format!("Keys of `{method}`"));
        shown.extend(common.clone());
        shown.extend(others.iter().flat_map(|other| shown_defaults(&text, &format!("Keys of `{other}`"))));
        let config = PeftConfig::new(PeftType::new(method), None).unwrap();
        assert_eq!(shown, defaults_of(config.options), "{method}");
    }
    let rows = table(&text, "# ", "| `peft_type`");
    let shown: BTreeSet<_> = rows.iter().flat_map(|row| words(&row[0])).map(str::to_owned).collect();
    let is_prompt = |tuner: &&TunerPlugin| (tuner.defaults)().contains_key("num_virtual_tokens");
    assert_eq!(
        shown,
        plugins::<TunerPlugin>().iter().copied().filter(is_prompt).map(|tuner| tuner.name.to_owned()).collect()
    );
}

#[test]
fn the_table_of_formats_has_every_extension() {
    let text = page("data.md");
    let shown: BTreeSet<_> =
        table(&text, "## Formats", "| extension").iter().map(|row| row[0].replace('`', "")).collect();
    // The error about an unknown extension lists those that there are.
    let error = peft::train::data::read_rows(Path::new("rows.xls")).unwrap_err().to_string();
    let known =
        error.lines().filter_map(|line| line.trim().strip_prefix('.')?.split_once(':')).map(|(e, _)| format!(".{e}"));
    assert_eq!(shown, known.collect());
}

#[test]
fn every_crate_and_every_feature_is_named() {
    let names: BTreeSet<_> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (text, below) in [(&readme, "## The library"), (&page("architecture.md"), "## Crates")] {
        let rows = table(text, below, "| crate");
        let shown: BTreeSet<_> = rows.iter().flat_map(|row| words(&row[0])).map(str::to_owned).collect();
        assert_eq!(shown, names, "{below}");
    }
    let rows = table(&readme, "## The library", "| feature");
    let shown: BTreeSet<_> = rows.iter().flat_map(|row| words(&row[0])).collect();
    let manifest = fs::read_to_string(root().join("crates/peft/Cargo.toml")).unwrap();
    let features =
        manifest.lines().skip_while(|line| *line != "[features]").skip(1).take_while(|line| !line.is_empty());
    let features = features.filter(|line| !line.starts_with('#')).filter_map(|line| line.split(" = ").next());
    let features = features.filter(|name| *name != "default");
    assert_eq!(shown, features.collect());
}

/// `README.md` and the pages of the book.
fn all_pages() -> Vec<PathBuf> {
    let in_folder = |folder: &str| fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let folders = ["docs/src", "docs/src/guides", "docs/src/tasks"];
    let mut pages: Vec<_> = folders.into_iter().flat_map(in_folder).filter(|path| path.is_file()).collect();
    pages.push(root().join("README.md"));
    pages
}

/// The rows of the table at the top of a task's page, by what they are about.
fn facts(text: &str) -> BTreeMap<String, String> {
    table(text, "# ", "| `task_type` |").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

/// The names of a task's metrics over all kinds of rows that it can have.
fn metrics_of(task: &TaskPlugin) -> BTreeSet<String> {
    let tokenizer = HfTokenizer::from_folder(&root().join("examples/models/tiny-encoder")).unwrap();
    let options = EncodeOptions::default();
    let row = Row { file: Arc::from(Path::new("")), line: 1, fields: Map::new() };
    let example = Example { labels: [("labels", Label::Float(0.5))].into(), ..Example::default() };
    let scores = vec![vec![0.5]];
    let kinds = [("single_label_classification", "B-X"), ("multi_label_classification", "X"), ("regression", "X")];
    let names = kinds.iter().flat_map(|(problem, label)| {
        let mut info = ModelInfo::custom();
        ModelInfo::set_labels(&mut info.config, &["O".to_owned(), (*label).to_owned()], problem);
        let context = EncodeContext { tokenizer: &tokenizer, info: &info, options: &options, labelled: true };
        // Only the metrics of pairs ask for rows.
        let rows = match task.task.group_size() {
            1 => Vec::new(),
            size => vec![Scored { row: &row, examples: vec![(&example, &scores); size] }],
        };
        task.task.metrics(&rows, &context).unwrap().into_keys().collect::<Vec<_>>()
    });
    names.collect()
}

#[test]
fn every_task_has_a_page_that_says_what_the_registry_says() {
    let mut pages: BTreeSet<PathBuf> =
        all_pages().into_iter().filter(|path| path.to_string_lossy().contains("tasks")).collect();
    for task in plugins::<TaskPlugin>() {
        // The page is called as the crate.
        let name = match task.name {
            "SEQ_2_SEQ_LM" => "seq2seq-lm".to_owned(),
            name => name.to_lowercase().replace('_', "-"),
        };
        let path = root().join(format!("docs/src/tasks/{name}.md"));
        assert!(pages.remove(&path), "{} is missing", path.display());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("# {}\n", task.name)), "{name}");
        assert!(text.contains(&format!("| `task_type` | `{}` |", task.name)), "{name}");
        let facts = facts(&text);
        let said = |what: &str| words(facts.get(what).unwrap_or_else(|| panic!("{name}: no row `{what}`")));
        let columns = |required: bool| {
            let columns = task.task.columns().iter().filter(move |column| column.required == required);
            columns.map(|column| column.role).collect::<Vec<_>>()
        };
        assert_eq!(said("wrapper"), [task.wrapper], "{name}");
        assert_eq!(said("class of the base model"), [task.auto_class.as_str()], "{name}");
        assert_eq!(said("trained in full"), task.heads, "{name}");
        assert_eq!(said("columns"), columns(true), "{name}");
        assert_eq!(said("optional columns"), columns(false), "{name}");
        let submodules = facts.get("sub-modules with virtual tokens").unwrap();
        assert_eq!(*submodules, task.num_transformer_submodules.to_string(), "{name}");
        let metrics = facts.iter().filter(|(what, _)| what.starts_with("metrics")).flat_map(|(_, cell)| words(cell));
        assert_eq!(metrics.map(str::to_owned).collect::<BTreeSet<_>>(), metrics_of(task), "{name}");
        // Its recipe is of this task, and is run.
        let recipe = format!("examples/tasks/{name}.toml");
        let content = fs::read_to_string(root().join(&recipe)).unwrap();
        assert!(content.contains(&format!("task_type = \"{}\"", task.name)), "{recipe}");
        assert!(text.contains(&format!("{{{{#include ../../../{recipe}}}}}")), "{name} does not show its recipe");
        assert!(text.contains(&format!("$ peft train {recipe}\n")), "{name} does not run its recipe");
    }
    let default = root().join("docs/src/tasks/default.md");
    assert_eq!(pages.into_iter().collect::<Vec<_>>(), std::slice::from_ref(&default));
    let facts = facts(&fs::read_to_string(default).unwrap());
    assert_eq!(words(&facts["wrapper"]), [DEFAULT_WRAPPER]);
    assert_eq!(words(&facts["class of the base model"]), ["AutoModel"]);
    assert_eq!(facts["trained in full"], "–");
}

#[test]
fn links_includes_and_paths_lead_somewhere() {
    for page in all_pages() {
        let text = fs::read_to_string(&page).unwrap();
        let folder = page.parent().unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = folder.join(file);
            assert!(target.exists(), "{}: {link}", page.display());
            let headings = fs::read_to_string(&target).unwrap_or_default();
            let headings: Vec<String> = headings.lines().filter(|line| line.starts_with('#')).map(slug).collect();
            assert!(
                anchor.is_empty() || headings.iter().any(|heading| heading == anchor),
                "{}: {link}",
                page.display()
            );
        }
        let includes = text.split("{{#include ").skip(1).filter_map(|rest| rest.split("}}").next());
        for include in includes {
            assert!(folder.join(include).exists(), "{}: {include}", page.display());
        }
        let in_tree =
            |word: &&str| ["crates/", "examples/", "tests/", "benches/"].iter().any(|top| word.starts_with(top));
        for path in text.split('`').filter(in_tree).filter(|word| !word.contains(char::is_whitespace)) {
            assert!(root().join(path).exists(), "{}: {path}", page.display());
        }
    }
}

/// The anchor that mdBook and GitHub give a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = page("SUMMARY.md");
    for path in all_pages() {
        let book = root().join("docs/src");
        let name = path.strip_prefix(book).unwrap_or(Path::new("README.md")).to_string_lossy();
        if name != "SUMMARY.md" && name != "README.md" {
            assert!(summary.contains(&format!("]({name})")), "{name}");
        }
    }
}
