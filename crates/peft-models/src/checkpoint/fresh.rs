//! Parameters that a checkpoint lacks: drawn on the host, so that they are the same on every device.

use burn::tensor::{Distribution, TensorData};
use peft_core::{Fresh, ModelInfo, ModuleKind, tensor::random::seeded_for};
use serde_json::Value;

/// The value of a fresh parameter, as the architecture says: it depends on the seed and the name, not on the order of creation.
pub(super) fn value(name: &str, kind: &ModuleKind, shape: &[usize], info: &ModelInfo, seed: u64) -> TensorData {
    let constant = |value: f64| TensorData::full(shape.to_vec(), value as f32);
    let rules = &info.fresh;
    let std = match (name.rsplit_once('.').map_or(name, |(_, last)| last), kind, rules.other(name)) {
        ("bias", ..) => return constant(0.0),
        (_, _, Some(Fresh::Table(value))) => return table(shape, value),
        (_, _, Some(Fresh::Normal(std))) => std,
        (_, ModuleKind::Norm, None) => return constant(rules.norm),
        _ => rules.std.or_else(|| range(info)).unwrap_or(0.02),
    };
    let mut rng = seeded_for(seed, name);
    let mut sampler = Distribution::Normal(0.0, std).sampler::<_, f32>(&mut rng);
    let limit = rules.cutoff.map_or(f32::INFINITY, |cutoff| (cutoff * std) as f32);
    let mut draw = || {
        loop {
            let value = sampler.sample();
            if value.abs() <= limit {
                return value;
            }
        }
    };
    let mut values: Vec<f32> = (0..shape.iter().product()).map(|_| draw()).collect();
    if let (Some(row), &[_, width]) = (rules.zero_row(name), shape) {
        values.chunks_mut(width.max(1)).skip(row).take(1).for_each(|row| row.fill(0.0));
    }
    TensorData::new(values, shape.to_vec())
}

fn table(shape: &[usize], value: fn(usize, usize, usize) -> f64) -> TensorData {
    let (rows, width) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
    let values = (0..rows).flat_map(|row| (0..width).map(move |column| value(row, column, width) as f32));
    TensorData::new(values.collect::<Vec<_>>(), shape.to_vec())
}

/// `initializer_range`; as in Transformers zero stands for the default.
fn range(info: &ModelInfo) -> Option<f64> {
    info.config.get("initializer_range").and_then(Value::as_f64).filter(|range| *range != 0.0)
}
