//! Rotary position embedding in the form of Transformers, which rotates the two halves of a head against each other.

mod frequencies;

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use peft_backends::ops;
use peft_core::Result;

use self::frequencies::Frequencies;
use super::Fields;

/// How the queries and keys of a model turn with their positions.
#[derive(Debug)]
pub struct Rotary {
    frequencies: Frequencies,
    head_dim: usize,
    /// Those of the last pass: the next has the same as a rule, and nothing is brought to a device again.
    constants: Mutex<Option<(Case, Constants)>>,
}

impl Clone for Rotary {
    /// A copy brings its own constants: a pass that is recorded has them for as long as its model lives, whatever passes of other
    /// lengths the original does.
    fn clone(&self) -> Self {
        Self { frequencies: self.frequencies.clone(), head_dim: self.head_dim, constants: Mutex::default() }
    }
}

impl PartialEq for Rotary {
    fn eq(&self, other: &Self) -> bool {
        (&self.frequencies, self.head_dim) == (&other.frequencies, other.head_dim)
    }
}

/// What [`Constants`] are of.
#[derive(Debug, PartialEq)]
struct Case {
    device: Device,
    dtype: DType,
    inv_freq: Vec<f32>,
}

/// What does not follow from the positions, on a device.
#[derive(Debug, Clone)]
struct Constants {
    /// The frequency of each dimension of a head, `[1, 1, 1, dim]`.
    inv_freq: Tensor<4>,
    /// What its cosine and sine are multiplied by, the same; none where that is 1.
    factor: Option<Tensor<4>>,
    /// [`RotaryTables::turn`].
    turn: Tensor<2>,
}

impl Rotary {
    /// From `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] for a scaling of an unknown type, one that lacks what it needs, or a `head_dim` that
    /// does not divide into pairs.
    pub fn from_config(config: Fields<'_>, head_dim: usize) -> Result<Self> {
        let (key, parameters) = match config.table("rope_scaling")? {
            Some(scaling) => ("rope_scaling", Some(scaling)),
            None => ("rope_parameters", config.table("rope_parameters")?),
        };
        let theta = config.float_or("rope_theta", 10_000.0)?;
        Self::with_parameters(config, key, parameters, theta, head_dim)
    }

    /// From the parameters of one type of layer; `theta` is the base that they have by default.
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config).
    pub fn with_parameters(
        config: Fields<'_>,
        key: &str,
        parameters: Option<Fields<'_>>,
        theta: f64,
        head_dim: usize,
    ) -> Result<Self> {
        let frequencies = Frequencies::read(config, key, parameters, theta, head_dim)?;
        Ok(Self { frequencies, head_dim, constants: Mutex::default() })
    }

    /// How many positions the scaling is meant for, of a model that says it has `positions`.
    pub fn reach(&self, positions: usize) -> usize {
        positions.max(self.frequencies.reach)
    }

    /// How many positions may be read before the frequencies change for all of them: LongRoPE's second set.
    pub fn switch(&self) -> Option<usize> {
        self.frequencies.switch()
    }

    /// The rotations of these positions, for all layers of a forward pass; `end` says where they end, to frequencies that
    /// depend on it.
    ///
    /// # Shapes
    /// - `positions`: `[batch or 1, sequence]`
    pub fn tables(
        &self,
        positions: Tensor<2, Int>,
        end: impl Fn() -> i64,
        dtype: DType,
        device: &Device,
    ) -> RotaryTables {
        let [rows, length] = positions.dims();
        let case = Case { device: device.clone(), dtype, inv_freq: self.frequencies.of(end).into_owned() };
        let half = case.inv_freq.len();
        let mut last = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
        let constants = match last.take().filter(|(of, _)| *of == case) {
            Some((_, constants)) => constants,
            None => self.constants(&case),
        };
        *last = Some((case, constants.clone()));
        drop(last);
        let angles = positions.float().cast(DType::F32).reshape([rows, length, 1, 1]) * constants.inv_freq;
        let (mut cos, mut sin) = (angles.clone().cos(), angles.sin());
        if let Some(factor) = constants.factor {
            (cos, sin) = (cos * factor.clone(), sin * factor);
        }
        RotaryTables { cos: cos.cast(dtype), sin: sin.cast(dtype), half, turn: constants.turn }
    }

    fn constants(&self, Case { device, dtype, inv_freq }: &Case) -> Constants {
        let (dim, half) = (self.head_dim, inv_freq.len());
        // The dimensions beyond the rotated ones have angle 0, so they pass as they are.
        let spread = |values: &[f32], beyond: f32| {
            let all = values.iter().chain(values).copied().chain(std::iter::repeat_n(beyond, dim - 2 * half));
            Tensor::<4>::from_data(TensorData::new(all.collect(), [1, 1, 1, dim]), (device, DType::F32))
        };
        let mut turn = vec![0.0_f32; dim * dim];
        for pair in 0..half {
            // Row `from`, column `to`: the first half takes the second negated, the second takes the first.
            turn[(pair + half) * dim + pair] = -1.0;
            turn[pair * dim + pair + half] = 1.0;
        }
        let factor = self.frequencies.attention_factor;
        Constants {
            inv_freq: spread(inv_freq, 0.0),
            factor: (factor != 1.0).then(|| spread(&vec![factor as f32; half], 1.0)),
            turn: Tensor::from_data(TensorData::new(turn, [dim, dim]), (device, *dtype)),
        }
    }
}

/// The rotations of the positions of one batch.
#[derive(Debug, Clone)]
pub struct RotaryTables {
    /// `[batch or 1, sequence, 1, dim]`.
    cos: Tensor<4>,
    /// `[batch or 1, sequence, 1, dim]`.
    sin: Tensor<4>,
    /// How many dimensions turn against as many others.
    half: usize,
    /// Swaps the halves of what is rotated of a head and negates the first, `[dim, dim]`.
    turn: Tensor<2>,
}

impl RotaryTables {
    /// `x cos + turn(x) sin`, where `turn` swaps the halves of what is rotated and negates the first.
    ///
    /// Where there is no fused operation they are swapped by a product with a signed permutation: exact, and its gradient is
    /// one more product, where slices and concatenations would have theirs written into zeros several times.
    ///
    /// # Shapes
    /// - `x`, returned: `[batch, sequence, heads, dim]`
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        if let Some(rotated) = ops::rotate(&x, &self.cos, &self.sin, self.half) {
            return rotated;
        }
        let dims @ [batch, length, heads, dim] = x.dims();
        let turned = x.clone().reshape([batch * length * heads, dim]).matmul(self.turn.clone()).reshape(dims);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn rotary(config: &serde_json::Value) -> Rotary {
        Rotary::from_config(Fields(config.as_object().unwrap()), 4).unwrap()
    }

    #[test]
    fn old_and_new_keys_mean_the_same() {
        let new = json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}});
        let old = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(rotary(&new), rotary(&old));
        assert_ne!(rotary(&new), rotary(&json!({"rope_theta": 500.0})));
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves_and_leaves_the_rest() {
        let device = Device::flex();
        // The first frequency is 1 whatever the base, so this one is a quarter turn.
        let parameters =
            json!({"rope_type": "linear", "factor": std::f64::consts::FRAC_2_PI, "partial_rotary_factor": 0.5});
        let config = json!({ "rope_parameters": parameters });
        let rotary = rotary(&config);
        let tables = rotary.tables(Tensor::from_data([[1]], &device), || 2, DType::F32, &device);
        let turned = tables.rotate(Tensor::from_data([[[[3.0_f32, 5.0, 7.0, 9.0]]]], &device)).into_data();
        turned
            .assert_approx_eq::<f32>(&[[[[-5.0_f32, 3.0, 7.0, 9.0]]]].into(), burn::tensor::Tolerance::absolute(1e-6));
    }
}
