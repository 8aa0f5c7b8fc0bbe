//! New models begin as Transformers' do: the spread of each parameter's first values against `fresh/values.json`.

use std::collections::BTreeMap;

use burn::tensor::Device;
use peft::{
    ArchitecturePlugin,
    models::checkpoint::{self, LoadOptions},
    plugins::registry::find,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fixture::floats;

/// Models that are drawn; the fixture is made of eight times as many.
const SEEDS: u64 = 6;

#[derive(Deserialize)]
struct Case {
    family: String,
    auto_class: String,
    config: Map<String, Value>,
    /// Mean, deviation and largest absolute value; then rows that are zero.
    params: BTreeMap<String, Vec<Value>>,
}

/// All values of a parameter over all layers and models.
#[derive(Default)]
struct Values {
    all: Vec<f64>,
    /// For each row of a table whether it is zero in all models.
    zero_rows: Vec<bool>,
}

/// Layers of one kind are one group.
fn group(name: &str) -> String {
    let segment = |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(segment).collect::<Vec<_>>().join(".")
}

fn drawn(case: &Case) -> BTreeMap<String, Values> {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, serde_json::to_string(&case.config).unwrap()).unwrap();
    let architecture = find::<ArchitecturePlugin>(&case.family).unwrap();
    let class = architecture.classes.iter().find(|class| class.as_str() == case.auto_class).unwrap().clone();
    let mut found: BTreeMap<String, Values> = BTreeMap::new();
    for seed in 0..SEEDS {
        let options = LoadOptions { seed, ..LoadOptions::default() };
        let base = checkpoint::random(&config, &class, &options, &Device::flex()).unwrap();
        let info = std::sync::Arc::clone(&base.info);
        base.module.map_params(&|path| info.rename(path), &mut |name, param| {
            let data = param.tensor().to_data();
            let (values, shape) = (floats(&data), data.shape().to_vec());
            let entry = found.entry(group(name)).or_default();
            if let &[rows, width] = shape.as_slice() {
                entry.zero_rows.resize(rows, true);
                let is_zero = values.chunks(width).map(|row| row.iter().all(|value| *value == 0.0));
                entry.zero_rows.iter_mut().zip(is_zero).for_each(|(zero, is_zero)| *zero &= is_zero);
            }
            entry.all.extend(values);
            param
        });
    }
    found
}

fn check(case: &Case) {
    let found = drawn(case);
    for (name, expected) in &case.params {
        let place = format!("{} {} {name}", case.family, case.auto_class);
        let values = found.get(name).unwrap_or_else(|| panic!("{place}: not in the model"));
        let number = |at: usize| expected[at].as_f64().unwrap();
        let (mean, std, largest) = (number(0), number(1), number(2));
        let count = values.all.len() as f64;
        let own_mean = values.all.iter().sum::<f64>() / count;
        let own_std = (values.all.iter().map(|value| (value - own_mean).powi(2)).sum::<f64>() / count).sqrt();
        let own_largest = values.all.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        // Both sides are drawn: five deviations of the difference of two means, and of two deviations.
        let samples = 1.0 / count + 1.0 / (8.0 * count);
        let (mean_error, std_error) = (std * samples.sqrt(), std * (samples / 2.0).sqrt());
        assert!(
            (own_mean - mean).abs() <= 5.0 * mean_error + 1e-3 * mean.abs(),
            "{place}: mean {own_mean}, not {mean}"
        );
        assert!((own_std - std).abs() <= 5.0 * std_error + 1e-3 * std, "{place}: deviation {own_std}, not {std}");
        // The largest of so many normal values is never the same; that of cut ones is.
        let limit = if largest < 2.6 * std { 1.001 } else { 1.5 };
        assert!(own_largest <= limit * largest, "{place}: as much as {own_largest}, not {largest}");
        let zero_rows: Vec<usize> =
            expected.get(3).map_or(vec![], |rows| serde_json::from_value(rows.clone()).unwrap());
        let own = values.zero_rows.iter().enumerate().filter(|(_, zero)| **zero).map(|(row, _)| row);
        let own: Vec<usize> = if own_std == 0.0 { Vec::new() } else { own.collect() };
        assert_eq!(own, zero_rows, "{place}: rows of zeros");
    }
}

#[test]
fn new_models_begin_as_those_of_transformers() {
    let text = include_str!("fresh/values.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() > 100);
    cases.iter().for_each(check);
}
