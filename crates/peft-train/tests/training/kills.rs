//! Kills while a run writes, by letting every later operation on the disk fail: what is there then, and how the run is resumed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use burn::tensor::Device;
use peft::files::{TensorFile, stop_after};
use peft_train::{Error, Event, Observer, Recipe, Silent, TrainOptions, checkpoint, train};

use super::Bench;

/// Dropout, and a checkpoint with the best adapter after each step, of which one is kept.
const SHORT: &[&str] = &[
    "adapter.lora_dropout=0.1",
    "data.eval=eval.jsonl",
    "training.max_steps=2",
    "training.per_device_train_batch_size=1",
    "training.save_steps=1",
    "training.eval_steps=1",
    "training.logging_steps=1",
    "training.save_total_limit=1",
    "training.load_best_model_at_end=true",
    "training.metric_for_best_model=eval_loss",
];

/// A kill: so many operations on the disk after so many checkpoints.
type Kill = (usize, usize);

/// Ends a run by letting every operation after [`Kill`] fail.
struct KillAt {
    checkpoints: usize,
    operations: usize,
}

impl KillAt {
    fn new((checkpoints, operations): Kill) -> Self {
        stop_after((checkpoints == 0).then_some(operations));
        Self { checkpoints, operations }
    }
}

impl Observer for KillAt {
    fn observe(&mut self, event: &Event<'_>) {
        if let Event::Saved(_) = event {
            self.checkpoints = self.checkpoints.wrapping_sub(1);
            if self.checkpoints == 0 {
                stop_after(Some(self.operations));
            }
        }
    }
}

/// A bench with two rows to evaluate.
fn bench() -> Bench {
    let bench = Bench::new();
    let rows = fs::read_to_string(bench.out("train.jsonl")).unwrap();
    let rows: String = rows.lines().take(2).flat_map(|row| [row, "\n"]).collect();
    fs::write(bench.out("eval.jsonl"), rows).unwrap();
    bench
}

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

/// Runs a recipe until it is killed; says whether it was.
fn is_killed(recipe: &Recipe, kill: Kill) -> bool {
    let mut observer = KillAt::new(kill);
    let ended = train(recipe, &TrainOptions::new(Device::flex()), &mut observer);
    stop_after(None);
    ended.is_err()
}

/// Kills a run after 0, `stride`, `2 * stride` … of its operations on the disk, each time in a new folder, and resumes it. With
/// `PEFT_EVERY_KILL` in the environment the stride is 1.
fn go_on(bench: &Bench, overrides: &[&str], stride: usize) {
    let stride = if std::env::var_os("PEFT_EVERY_KILL").is_some() { 1 } else { stride };
    bench.run("whole", overrides);
    let whole = contents(&bench.out("whole"));
    let mut kills = 0;
    for operations in (0..).step_by(stride) {
        let kill = (0, operations);
        if !is_killed(&bench.recipe("out", overrides), kill) {
            break;
        }
        kills += 1;
        let out = bench.out("out");
        if out.exists() {
            assert_whole(&out);
            // What a checkpoint is used with.
            let is_kept = !checkpoint::list(&out).unwrap().is_empty();
            assert!(!is_kept || out.join("labels.json").exists() && out.join("tokenizer.json").exists(), "{kill:?}");
        }
        bench.resume("out", overrides).unwrap_or_else(|error| panic!("does not go on after {kill:?}: {error}"));
        let now = contents(&out);
        assert!(now.keys().eq(whole.keys()), "after {kill:?}: {:?} for {:?}", now.keys(), whole.keys());
        for (file, bytes) in &now {
            assert!(*bytes == whole[file], "{file} is another after {kill:?}");
        }
        fs::remove_dir_all(out).unwrap();
    }
    assert!(kills > 100 / stride, "{kills} kills");
}

#[test]
fn a_run_that_is_killed_while_it_writes_goes_on_to_the_bits_of_one_that_was_not() {
    go_on(&bench(), SHORT, 3);
}

/// Writes a recipe of two adapters, of which `a` has other training rows.
fn with_two_adapters(bench: &Bench, train: &str) {
    let adapter = |name, train| format!("\n[[adapters]]\nname = {name:?}\ntrain = {train:?}\neval = \"eval.jsonl\"\n");
    let text = super::RECIPE.replace("eval = \"train.jsonl\"\n", "");
    let text = format!("{text}{}{}r = 3\n", adapter("a", train), adapter("b", "train.jsonl"));
    fs::write(bench.out("recipe.toml"), text).unwrap();
}

#[test]
fn so_does_a_run_of_several_adapters() {
    let bench = bench();
    with_two_adapters(&bench, "train.jsonl");
    let overrides: Vec<_> = SHORT.iter().copied().filter(|key| !key.starts_with("data.eval")).collect();
    go_on(&bench, &overrides, 13);
}

#[test]
fn an_adapter_that_is_done_before_another_keeps_a_checkpoint_of_a_step_that_both_have() {
    let bench = bench();
    let rows = fs::read_to_string(bench.out("train.jsonl")).unwrap();
    let rows: String = rows.lines().take(9).flat_map(|row| [row, "\n"]).collect();
    fs::write(bench.out("fewer.jsonl"), rows).unwrap();
    with_two_adapters(&bench, "fewer.jsonl");
    // Three steps and four, and the third is no multiple of two.
    let overrides = [
        "training.max_steps=-1",
        "training.num_train_epochs=1",
        "training.per_device_train_batch_size=3",
        "training.save_total_limit=1",
    ];
    go_on(&bench, &overrides, 17);
}

#[test]
fn so_does_a_run_that_trains_every_weight() {
    let bench = bench();
    let text =
        super::RECIPE.replace("\"LORA\"", "\"FULL\"").replace("r = 2\ntarget_modules = [\"query\", \"value\"]\n", "");
    fs::write(bench.out("recipe.toml"), text).unwrap();
    go_on(&bench, &SHORT[1..], 7);
}

#[test]
fn an_earlier_result_stays_until_the_new_run_has_a_checkpoint() {
    let bench = bench();
    bench.run("old", SHORT);
    let other = [SHORT, &["training.seed=6"]].concat();
    bench.run("new", &other);
    let (old, new) = (bench.weights("old"), bench.weights("new"));
    assert!(new != old);
    let out = bench.out("out");
    let mut seen = BTreeSet::new();
    let stride = if std::env::var_os("PEFT_EVERY_KILL").is_some() { 1 } else { 5 };
    for operations in (0..).step_by(stride) {
        copy(&bench.out("old"), &out);
        if !is_killed(&bench.recipe("out", &other), (0, operations)) {
            break;
        }
        assert_whole(&out);
        // Whoever comes next finds the old result, or a run to go on with.
        let is = |weights: &[u8]| out.join("adapter_config.json").exists() && bench.weights("out") == weights;
        let is_old = is(&old);
        if !is_old && !is(&new) {
            match train(&bench.recipe("out", &other), &TrainOptions::new(Device::flex()), &mut Silent) {
                Err(Error::Resume { problem, .. }) if problem.contains("--resume") => {
                    let left = checkpoint::list(&out).unwrap();
                    assert!(!left.is_empty(), "nothing is left after {operations} operations");
                    bench.resume("out", &other).unwrap();
                }
                // The result was whole, and is in place now and replaced.
                Ok(_) => {}
                Err(error) => panic!("after {operations} operations: {error}"),
            }
            assert!(bench.weights("out") == new, "other bits after {operations} operations");
        }
        seen.insert(is_old);
        fs::remove_dir_all(&out).unwrap();
    }
    assert_eq!(seen.len(), 2, "kills before and after the old result is replaced");
}

fn copy(from: &Path, to: &Path) {
    for (name, _) in contents(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}
