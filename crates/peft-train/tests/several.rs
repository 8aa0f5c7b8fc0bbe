//! Several adapters of one recipe: trained together they are what each is by itself.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use peft::adapter::AdapterFolder;
use peft_train::{Error, Recipe, Silent, TrainOptions, train};
use serde_json::{Map, Value};

use crate::tagger::{self, StopAfter};

const RECIPE: &str = r#"[model]
model_name_or_path = "model"

[adapter]
peft_type = "LORA"
task_type = "TOKEN_CLS"
r = 2
target_modules = ["query", "value"]

[data]
train = "rows.jsonl"
eval = "rows.jsonl"
adapter_column = "who"

[training]
output_dir = "set by each test"
num_train_epochs = 4
per_device_train_batch_size = 2
gradient_accumulation_steps = 2
logging_steps = 2
eval_steps = 3
save_steps = 2
learning_rate = 1e-2
seed = 5

[[adapters]]
name = "red"

[[adapters]]
name = "green"
r = 3
lora_alpha = 12
target_modules = "all-linear"
learning_rate = 2e-3
max_grad_norm = 0.05

[[adapters]]
name = "blue"
train = "own.jsonl"
eval = "own.jsonl"
"#;

/// A folder with a model without dropout, rows of two adapters in one file, those of a third in another, and a recipe.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tagger::model(&folder.path().join("model"));
        let bench = Self { folder };
        tagger::without_dropout(&bench.path("model"));
        let row = |at: usize, who: Option<&str>| {
            let mut row = tagger::row(at);
            row.insert("who".to_owned(), who.into());
            format!("{}\n", Value::from(row))
        };
        // Red has more rows than green, and so more steps.
        let shared: String = (0..17).map(|at| row(at, Some(if at % 3 == 1 { "green" } else { "red" }))).collect();
        let own: String = (20..27).map(|at| row(at, None)).collect();
        fs::write(bench.path("rows.jsonl"), shared).unwrap();
        fs::write(bench.path("own.jsonl"), own).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn parse(&self, text: &str, out: &str) -> peft_train::Result<Recipe> {
        let out = format!("training.output_dir={:?}", self.path(out).display().to_string());
        Recipe::parse(text, &self.path("recipe.toml"), &[out])
    }

    fn recipe(&self, out: &str) -> Recipe {
        self.parse(RECIPE, out).unwrap()
    }

    /// The log without what the clock decides, nor whose it is.
    fn log(&self, folder: &str) -> Vec<Map<String, Value>> {
        let text = fs::read_to_string(self.path(folder).join("trainer_log.jsonl")).unwrap();
        let line = |line: &str| {
            let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
            line.retain(|key, _| !key.contains("second") && key != "adapter");
            line
        };
        text.lines().map(line).collect()
    }

    fn weights(&self, folder: &str) -> Vec<u8> {
        fs::read(self.path(folder).join("adapter_model.safetensors")).unwrap()
    }
}

fn options() -> TrainOptions {
    TrainOptions::new(Device::flex())
}

#[test]
fn trained_together_they_are_those_trained_apart() {
    let bench = Bench::new();
    let recipe = bench.recipe("together");
    let report = train(&recipe, &options(), &mut Silent).unwrap();
    let names: Vec<_> = report.adapters.iter().filter_map(|one| one.adapter.as_deref()).collect();
    assert_eq!(names, ["red", "green", "blue"]);
    let steps: Vec<_> = report.adapters.iter().map(|one| one.steps).collect();
    assert_eq!((steps, report.steps), (vec![12, 8, 8], 12));
    for (name, own) in recipe.apart() {
        let mut own = own.clone();
        own.training.output_dir = bench.path(name).display().to_string();
        let apart = train(&own, &options(), &mut Silent).unwrap();
        let together = report.adapters.iter().find(|one| one.adapter.as_deref() == Some(name)).unwrap();
        assert!((apart.train_loss - together.train_loss).abs() < 1e-4, "{name}");

        let (found, expected) = (bench.log(&format!("together/{name}")), bench.log(name));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.keys().eq(expected.keys()), "{name}: {found:?} {expected:?}");
            for (key, value) in found {
                let [a, b] = [value, &expected[key]].map(|value| value.as_f64().unwrap());
                assert!((a - b).abs() <= 1e-3 * b.abs().max(0.1), "{name} {key}: {a} for {b}");
            }
        }
        let [found, expected] =
            [format!("together/{name}"), name.to_owned()].map(|at| AdapterFolder::read(&bench.path(&at)).unwrap());
        assert!(found.tensors.keys().eq(expected.tensors.keys()), "{name}");
        for (key, found) in &found.tensors {
            let (found, expected) = (found.iter::<f32>(), expected.tensors[key].iter::<f32>());
            let apart = found.zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 2e-4, "{name} {key}: {apart}");
        }
        // Its folder is one that it could have trained by itself.
        let written = Recipe::read(&bench.path(&format!("together/{name}")).join("recipe.toml"), &[]).unwrap();
        assert!(written.adapters.is_empty());
        assert_eq!((written.adapter.options, written.data.adapter), (own.adapter.options, own.data.adapter));
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    train(&bench.recipe("whole"), &options(), &mut Silent).unwrap();
    // Before any is done, and when two are.
    for step in [3, 9] {
        let out = format!("stopped{step}");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = TrainOptions { stop: Arc::clone(&stop), ..options() };
        let error = train(&bench.recipe(&out), &stopping, &mut StopAfter { step, stop }).unwrap_err();
        assert!(
            matches!(&error, Error::Interrupted { step: at, checkpoint } if *at == step && *checkpoint == bench.path(&out))
        );
        train(&bench.recipe(&out), &TrainOptions { resume: true, ..options() }, &mut Silent).unwrap();
        for name in ["red", "green", "blue"] {
            let (found, expected) = (format!("{out}/{name}"), format!("whole/{name}"));
            assert!(bench.weights(&found) == bench.weights(&expected), "{name} after {step}");
            assert_eq!(bench.log(&found), bench.log(&expected), "{name} after {step}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_table_is_said_with_its_place() {
    let bench = Bench::new();
    let edited = |from: &str, to: &str| bench.parse(&RECIPE.replacen(from, to, 1), "out").unwrap_err().to_string();
    for (from, to, says) in [
        ("name = \"red\"", "", "`name` in [adapters]: missing"),
        ("name = \"red\"", "name = \"a/b\"", "recipe.toml:27:8: `name` in [adapters]: `a/b` cannot name an adapter"),
        ("name = \"red\"", "name = \"green\"", "`green` is the name of another adapter already"),
        ("r = 3", "rank = 3", "recipe.toml:31:1: unknown key `rank` in [adapters]"),
        ("learning_rate = 2e-3", "learning_rate = 0.0", "`learning_rate` in [adapters]: must be above 0"),
        ("learning_rate = 2e-3", "learning_rate = \"fast\"", "expected a number"),
        ("r = 3", "task_type = \"SEQ_CLS\"", "the adapters of a run have one task"),
        ("train = \"own.jsonl\"\n", "", "`eval` requires `train`"),
        ("seed = 5", "predict_with_generate = true", "train them one by one"),
        ("adapter_column = \"who\"", "adapter = \"red\"", "takes its own rows"),
    ] {
        let message = edited(from, to);
        assert!(message.contains(says), "{message}");
    }
    let single = "[adapters]\nname = \"red\"\n";
    let message =
        bench.parse(&RECIPE.split("[[").next().unwrap().replace("[training]", &format!("{single}[training]")), "out");
    assert!(message.unwrap_err().to_string().contains("write [[adapters]]"));
}

#[test]
fn a_table_is_named_on_the_command_line() {
    let bench = Bench::new();
    let parse = |argument: &str| Recipe::parse(RECIPE, &bench.path("recipe.toml"), &[argument.to_owned()]);
    let recipe = parse("adapters.green.r=5").unwrap();
    let ranks: Vec<_> = recipe.adapters.iter().map(|one| one.recipe.adapter.options["r"].clone()).collect();
    assert_eq!(ranks, [2, 5, 2]);
    assert_eq!(parse("adapters.blue.learning_rate=0.5").unwrap().adapters[2].recipe.training.learning_rate, 0.5);
    assert_eq!(parse("adapters.red.name=rot").unwrap().adapters[0].name, "rot");
    for (argument, says) in [
        ("adapters.r=3", "write adapters.NAME.key=value with one of these names: red, green, blue"),
        ("adapters.grean.r=3", "with one of these names: red, green, blue"),
        ("adapters.green.rank=3", "command line: adapters.green.rank=3: unknown key `rank` in [adapters]"),
    ] {
        let message = parse(argument).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    let single = RECIPE.split("[[").next().unwrap();
    let message = Recipe::parse(single, &bench.path("recipe.toml"), &["adapters.red.r=3".to_owned()]).unwrap_err();
    assert!(message.to_string().contains("unknown section [adapters]"), "{message}");
}

#[test]
fn rows_of_nobody_and_methods_that_act_on_all_rows_are_refused() {
    let bench = Bench::new();
    let refused = |from: &str, to: &str| {
        let recipe = bench.parse(&RECIPE.replacen(from, to, 1), "out").unwrap();
        train(&recipe, &options(), &mut Silent).unwrap_err().to_string()
    };
    let message = refused("name = \"red\"", "name = \"rot\"");
    assert!(
        message.contains("rows.jsonl:1: column `who`: no adapter named `red` (there are: rot, green, blue)"),
        "{message}"
    );
    assert!(refused("r = 3", "use_dora = true").contains("`green` cannot be one of several adapters in a batch"));
    let text = fs::read_to_string(bench.path("rows.jsonl")).unwrap().replace("\"green\"", "\"red\"");
    fs::write(bench.path("rows.jsonl"), text).unwrap();
    assert!(refused("seed = 5", "seed = 6").contains("no row has `green` in its column `who`"));
    assert!(!bench.path("out").exists());
}
