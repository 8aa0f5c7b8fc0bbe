//! Kills between any two writes, by letting every write after the N-th fail: what is on the disk then, and how a run goes on.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::Device;
use peft::files::{TensorFile, stop_after};
use peft_train::{Error, Recipe, Silent, TrainOptions, checkpoint, train};

use super::Bench;

/// Dropout, and a checkpoint with the best adapter after each step, of which one is kept.
const SHORT: &[&str] = &[
    "adapter.lora_dropout=0.1",
    "training.max_steps=3",
    "training.per_device_train_batch_size=1",
    "training.save_steps=1",
    "training.eval_steps=1",
    "training.logging_steps=1",
    "training.save_total_limit=1",
    "training.load_best_model_at_end=true",
    "training.metric_for_best_model=eval_loss",
];

/// Each file of a folder with what it holds, but for what the clock decides.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            let has_times = name.ends_with("trainer_log.jsonl") || name.ends_with("trainer_state.json");
            // A recipe names its own folder.
            let is_named = name.ends_with("recipe.toml") || name.ends_with("peft_manifest.json");
            let bytes = if has_times || is_named { Vec::new() } else { fs::read(&path).unwrap() };
            found.insert(name, bytes);
        }
    }
    found
}

/// That each configuration which can be seen has whole weights beside it.
fn assert_whole(folder: &Path) {
    for name in contents(folder).keys().filter(|name| !name.split('/').any(|part| part.starts_with('.'))) {
        let path = folder.join(name);
        let weights = match path.file_name().unwrap().to_str().unwrap() {
            "adapter_config.json" => "adapter_model.safetensors",
            "config.json" => "model.safetensors",
            _ => continue,
        };
        TensorFile::read(&path.with_file_name(weights), "weights").unwrap();
    }
}

/// Ends a run after every `stride`-th write, each time in a new folder, and goes on with it.
fn kill_everywhere(bench: &Bench, recipe: impl Fn(&str) -> Recipe, stride: usize) {
    let options = |resume| TrainOptions { resume, ..TrainOptions::new(Device::flex()) };
    train(&recipe("whole"), &options(false), &mut Silent).unwrap();
    let whole = contents(&bench.out("whole"));
    for writes in (0..).step_by(stride) {
        let name = format!("killed{writes}");
        stop_after(Some(writes));
        let ended = train(&recipe(&name), &options(false), &mut Silent);
        stop_after(None);
        if bench.out(&name).exists() {
            assert_whole(&bench.out(&name));
        }
        if ended.is_err() {
            train(&recipe(&name), &options(true), &mut Silent)
                .unwrap_or_else(|error| panic!("does not go on after {writes} writes: {error}"));
        }
        let now = contents(&bench.out(&name));
        assert!(now.keys().eq(whole.keys()), "after {writes} writes: {:?} for {:?}", now.keys(), whole.keys());
        for (file, bytes) in &now {
            assert!(*bytes == whole[file], "{file} is another after {writes} writes");
        }
        fs::remove_dir_all(bench.out(&name)).unwrap();
        if ended.is_ok() {
            assert!(writes > 50, "only {writes} writes");
            return;
        }
    }
}

#[test]
fn a_run_that_is_killed_between_any_two_writes_goes_on_to_the_bits_of_one_that_was_not() {
    let bench = Bench::new();
    kill_everywhere(&bench, |name| bench.recipe(name, SHORT), 1);
}

#[test]
fn so_does_a_run_of_several_adapters() {
    let bench = Bench::new();
    let text = format!(
        "{}\n[[adapters]]\nname = \"a\"\ntrain = \"train.jsonl\"\n\n[[adapters]]\nname = \"b\"\ntrain = \"train.jsonl\"\nr = 3\n",
        super::RECIPE
    );
    fs::write(bench.out("recipe.toml"), text).unwrap();
    kill_everywhere(&bench, |name| bench.recipe(name, SHORT), 3);
}

#[test]
fn so_does_a_run_that_trains_every_weight() {
    let bench = Bench::new();
    let text =
        super::RECIPE.replace("\"LORA\"", "\"FULL\"").replace("r = 2\ntarget_modules = [\"query\", \"value\"]\n", "");
    fs::write(bench.out("recipe.toml"), text).unwrap();
    kill_everywhere(&bench, |name| bench.recipe(name, &SHORT[1..]), 5);
}

#[test]
fn an_earlier_result_stays_until_the_new_run_has_a_checkpoint() {
    let bench = Bench::new();
    bench.run("old", SHORT);
    let other = [SHORT, &["training.seed=6"]].concat();
    bench.run("new", &other);
    let (old, new) = (bench.weights("old"), bench.weights("new"));
    for writes in (0..).step_by(2) {
        let out = bench.out("out");
        copy(&bench.out("old"), &out);
        stop_after(Some(writes));
        let ended = train(&bench.recipe("out", &other), &TrainOptions::new(Device::flex()), &mut Silent);
        stop_after(None);
        assert_whole(&out);
        // Whoever comes next finds the old result, or a run to go on with.
        match train(&bench.recipe("out", &other), &TrainOptions::new(Device::flex()), &mut Silent) {
            Ok(_) => {}
            Err(Error::Resume { problem, .. }) if problem.contains("--resume") => {
                assert!(!checkpoint::list(&out).unwrap().is_empty(), "nothing is left after {writes} writes");
                bench.resume("out", &other).unwrap();
            }
            Err(error) => panic!("after {writes} writes: {error}"),
        }
        assert!(bench.weights("out") == new && new != old, "other bits after {writes} writes");
        fs::remove_dir_all(&out).unwrap();
        if ended.is_ok() {
            return;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for (name, _) in contents(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}
