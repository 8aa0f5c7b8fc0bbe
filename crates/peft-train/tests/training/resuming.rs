//! What a run that goes on must have in common with the one that it goes on with.

use std::fs;

use burn::tensor::Device;
use peft_train::{Silent, TrainOptions, train};
use serde_json::{Value, json};

use super::Bench;

/// Each step is evaluated, and the best is known.
const EVALUATED: &[&str] = &["training.eval_steps=1", "training.metric_for_best_model=eval_loss"];

/// Refused, with what it says.
fn refused(bench: &Bench, overrides: &[&str]) -> String {
    let error = bench.resume("out", &[EVALUATED, overrides].concat()).unwrap_err();
    assert!(matches!(error.exit_code(), 2 | 3), "{error}");
    error.to_string()
}

#[test]
fn values_of_another_metric_or_of_other_evaluation_rows_are_not_compared() {
    let bench = Bench::new();
    fs::copy(bench.out("train.jsonl"), bench.out("eval.jsonl")).unwrap();
    let eval = ["data.eval=\"eval.jsonl\""];
    bench.stop_after("out", 3, &[EVALUATED, &eval].concat());
    let message = refused(&bench, &[eval[0], "training.metric_for_best_model=f1"]);
    assert!(message.contains("`training.metric_for_best_model` is f1 now and was eval_loss"), "{message}");
    let message = refused(&bench, &[eval[0], "training.greater_is_better=true"]);
    assert!(message.contains("`training.greater_is_better` is true now and was false"), "{message}");
    let rows = fs::read_to_string(bench.out("eval.jsonl")).unwrap();
    fs::write(bench.out("eval.jsonl"), rows.replacen("good", "night", 1)).unwrap();
    let message = refused(&bench, &eval);
    assert!(message.contains("the evaluation data has changed"), "{message}");
    fs::write(bench.out("eval.jsonl"), rows).unwrap();
    bench.resume("out", &[EVALUATED, &eval, &["training.metric_for_best_model=loss"]].concat()).unwrap();
}

#[test]
fn the_best_adapter_of_before_is_the_result_if_its_checkpoint_is_there_and_missed_if_not() {
    let bench = Bench::new();
    // The loss only grows at this learning rate.
    let wild = [EVALUATED, &["training.learning_rate=0.5", "training.save_steps=1"]].concat();
    let keep = [&wild[..], &["training.load_best_model_at_end=true"]].concat();
    let whole = bench.run("whole", &keep);
    assert!(whole.written_step < 5, "{whole:?}");
    bench.stop_after("out", 5, &wild);
    let resumed = bench.resume("out", &keep).unwrap();
    assert_eq!(resumed.written_step, whole.written_step);
    assert_eq!(bench.weights("out"), bench.weights("whole"));

    fs::remove_dir_all(bench.out("out")).unwrap();
    bench.stop_after("out", 5, &wild);
    for step in 1..5 {
        fs::remove_dir_all(bench.out(&format!("out/checkpoint-{step}"))).unwrap();
    }
    let message = bench.resume("out", &keep).unwrap_err().to_string();
    assert!(message.contains("`training.load_best_model_at_end`"), "{message}");
    bench.resume("out", &wild).unwrap();
}

#[test]
fn half_a_best_adapter_and_impossible_steps_are_refused() {
    let bench = Bench::new();
    let kept = ["training.load_best_model_at_end=true"];
    bench.stop_after("out", 3, &[EVALUATED, &kept].concat());
    let folder = bench.out("out/checkpoint-3");
    fs::rename(folder.join("best"), bench.out("aside")).unwrap();
    let message = refused(&bench, &kept);
    assert!(message.contains("checkpoint-3/best: ") && message.contains("is missing"), "{message}");
    fs::rename(bench.out("aside"), folder.join("best")).unwrap();
    let path = folder.join("trainer_state.json");
    let text = fs::read_to_string(&path).unwrap();
    let whole: Value = serde_json::from_str(&text).unwrap();
    for (key, value, says) in [
        ("global_step", json!(1_000_000), "`global_step` is 1000000 in checkpoint-3"),
        ("max_steps", json!(2), "`global_step` is 3 of 2 steps"),
        ("max_steps", json!(60), "of a run of 60 steps, and the recipe has 6"),
        ("best", Value::Null, "`best`"),
    ] {
        let mut state = whole.clone();
        state[key] = value;
        fs::write(&path, state.to_string()).unwrap();
        let message = refused(&bench, &kept);
        assert!(message.contains(says), "{message}");
    }
    fs::write(&path, text).unwrap();
    bench.resume("out", &[EVALUATED, &kept].concat()).unwrap();
}

/// A checkpoint as versions before the manifest wrote it: no version, rows by a number of 64 bits.
#[test]
fn a_run_of_an_earlier_version_goes_on() {
    let bench = Bench::new();
    let whole = bench.run("whole", &[]);
    bench.stop_after("out", 3, &[]);
    fs::remove_file(bench.out("out/peft_manifest.json")).unwrap();
    let path = bench.out("out/checkpoint-3/trainer_state.json");
    let mut state: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let identity = state["identity"].as_object_mut().unwrap();
    identity.retain(|key, _| ["recipe", "data"].contains(&key.as_str()));
    identity.insert("fingerprint".to_owned(), json!(FINGERPRINT));
    // A key that came later.
    identity["recipe"].as_object_mut().unwrap().shift_remove("training.adam_epsilon").unwrap();
    for key in ["greater_is_better", "is_kept"] {
        if let Some(best) = state["best"].as_object_mut() {
            best.shift_remove(key);
        }
    }
    fs::write(&path, state.to_string()).unwrap();
    let resumed = bench.resume("out", &[]).unwrap();
    assert_eq!((bench.weights("out"), resumed.metrics), (bench.weights("whole"), whole.metrics));
}

/// What an earlier version says of the rows of [`Bench`].
const FINGERPRINT: u64 = 9_514_467_748_623_849_091;

#[test]
fn a_run_that_somebody_else_is_writing_is_left_alone() {
    let bench = Bench::new();
    bench.run("out", &[]);
    let held = fs::File::open(bench.out("out")).unwrap();
    held.lock().unwrap();
    let error = train(&bench.recipe("out", &["training.seed=9"]), &TrainOptions::new(Device::flex()), &mut Silent);
    let error = error.unwrap_err();
    assert!(error.to_string().contains("in use") && error.exit_code() == 2, "{error}");
    drop(held);
    bench.run("out", &["training.seed=9"]);
}
