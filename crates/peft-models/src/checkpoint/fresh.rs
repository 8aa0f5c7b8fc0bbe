//! Parameters of heads that a checkpoint lacks: drawn on the host, so that they are the same on every device.

use std::hash::{DefaultHasher, Hash, Hasher};

use burn::tensor::{Distribution, TensorData};
use peft_core::ModuleKind;
use rand::{SeedableRng, rngs::StdRng};

/// The value of a fresh parameter: it depends on the seed and the name, not on the order of creation.
pub(super) fn value(name: &str, kind: &ModuleKind, shape: &[usize], std: f64, seed: u64) -> TensorData {
    match (name.rsplit_once('.').map_or(name, |(_, last)| last), kind) {
        ("bias", _) => TensorData::zeros::<f32, _>(shape.to_vec()),
        (_, ModuleKind::Norm) => TensorData::ones::<f32, _>(shape.to_vec()),
        _ => {
            // `DefaultHasher::new` has fixed keys: the same value on every run of the same toolchain.
            let mut hasher = DefaultHasher::new();
            (seed, name).hash(&mut hasher);
            let mut rng = StdRng::seed_from_u64(hasher.finish());
            TensorData::random::<f32, _, _>(shape.to_vec(), Distribution::Normal(0.0, std), &mut rng)
        }
    }
}
