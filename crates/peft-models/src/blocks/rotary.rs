//! Rotary position embedding in the form of Transformers, which rotates the two halves of a head against each other.

use std::f64::consts::PI;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use peft_core::Result;

use super::Fields;

/// The frequencies of a rotary embedding, one for each pair of dimensions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    inv_freq: Vec<f32>,
}

impl Rotary {
    /// From `rope_parameters`, or the older `rope_theta` and `rope_scaling`: `default`, `linear` or `llama3`.
    ///
    /// # Errors
    /// [`peft_core::Error::Config`] for a scaling of another type, an odd `head_dim`, or a missing factor.
    pub fn from_config(config: Fields<'_>, head_dim: usize) -> Result<Self> {
        if !head_dim.is_multiple_of(2) {
            return Err(Fields::error("head_dim", format!("rotary embedding needs an even one, found {head_dim}")));
        }
        let (key, scaling) = match config.table("rope_parameters")? {
            Some(parameters) => ("rope_parameters", Some(parameters)),
            None => ("rope_scaling", config.table("rope_scaling")?),
        };
        let theta = match scaling.filter(|parameters| parameters.get("rope_theta").is_some()) {
            Some(parameters) => parameters.float("rope_theta")?,
            None => config.float_or("rope_theta", 10_000.0)?,
        };
        let kind = match scaling {
            Some(parameters) => parameters.text_or("rope_type", parameters.text_or("type", "default")?)?,
            None => "default",
        };
        let plain = (0..head_dim / 2).map(|pair| theta.powf(-((2 * pair) as f64) / head_dim as f64));
        let inv_freq: Vec<f64> = match (kind, scaling) {
            ("default", _) | (_, None) => plain.collect(),
            ("linear", Some(parameters)) => {
                let factor = parameters.float("factor")?;
                plain.map(|frequency| frequency / factor).collect()
            }
            ("llama3", Some(parameters)) => {
                let factor = parameters.float("factor")?;
                let low = parameters.float("low_freq_factor")?;
                let high = parameters.float("high_freq_factor")?;
                let trained = parameters.float("original_max_position_embeddings")?;
                // Waves that the original context saw often keep their frequency, those it never saw whole are stretched.
                let scaled = |frequency: f64| {
                    let waves = trained * frequency / (2.0 * PI);
                    let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                };
                plain.map(scaled).collect()
            }
            (other, Some(_)) => {
                let problem = format!("rope_type `{other}` is not supported (supported: default, linear, llama3)");
                return Err(Fields::error(key, problem));
            }
        };
        Ok(Self { inv_freq: inv_freq.into_iter().map(|frequency| frequency as f32).collect() })
    }

    /// The rotations of these positions, for all layers of a forward pass.
    ///
    /// # Shapes
    /// - `positions`: `[batch or 1, sequence]`
    pub fn tables(&self, positions: Tensor<2, Int>, dtype: DType, device: &Device) -> RotaryTables {
        let half = self.inv_freq.len();
        let [rows, length] = positions.dims();
        let single = (device, DType::F32);
        let frequencies = Tensor::<1>::from_data(TensorData::new(self.inv_freq.clone(), [half]), single);
        let positions = positions.float().cast(DType::F32).reshape([rows, length, 1, 1]);
        let angles = positions * frequencies.reshape([1, 1, 1, half]);
        let angles = Tensor::cat(vec![angles.clone(), angles], 3);
        let mut turn = vec![0.0_f32; 4 * half * half];
        for pair in 0..half {
            // Row `from`, column `to`: the first half takes the second negated, the second takes the first.
            turn[(pair + half) * 2 * half + pair] = -1.0;
            turn[pair * 2 * half + pair + half] = 1.0;
        }
        RotaryTables {
            cos: angles.clone().cos().cast(dtype),
            sin: angles.sin().cast(dtype),
            turn: Tensor::from_data(TensorData::new(turn, [2 * half, 2 * half]), (device, dtype)),
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
    /// Swaps the halves of a head and negates the first, `[dim, dim]`.
    turn: Tensor<2>,
}

impl RotaryTables {
    /// `x cos + turn(x) sin`.
    ///
    /// The halves are swapped by a product with a signed permutation: exact, and its gradient is one more product, where
    /// slices and concatenations would have theirs written into zeros several times.
    ///
    /// # Shapes
    /// - `x`, returned: `[batch, sequence, heads, dim]`
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
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

    fn rotary(config: &serde_json::Value) -> Result<Rotary> {
        Rotary::from_config(Fields(config.as_object().unwrap()), 4)
    }

    #[test]
    fn old_and_new_keys_mean_the_same() {
        let new = json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}});
        let old = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(rotary(&new).unwrap(), rotary(&old).unwrap());
        assert_eq!(rotary(&new).unwrap().inv_freq[0], 0.5);
    }

    #[test]
    fn llama3_stretches_long_waves_only() {
        let config = json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let scaled = rotary(&config).unwrap().inv_freq;
        let long = 500_000.0_f32.powf(-0.5);
        assert_eq!(scaled[0], 1.0);
        // 1.8438 waves in 8192 positions, so 0.28128 of the way from stretched to kept.
        assert!((scaled[1] / long - (0.281_28 + 0.718_72 / 8.0)).abs() < 1e-4, "{}", scaled[1] / long);
    }

    #[test]
    fn other_scalings_are_refused_by_name() {
        let config = json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}});
        let text = rotary(&config).unwrap_err().to_string();
        assert!(text.contains("`yarn`") && text.contains("`rope_parameters`"), "{text}");
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let device = Device::flex();
        let rotary = Rotary { inv_freq: vec![std::f32::consts::FRAC_PI_2] };
        let tables = rotary.tables(Tensor::from_data([[1]], &device), DType::F32, &device);
        let turned = tables.rotate(Tensor::from_data([[[[3.0_f32, 5.0]]]], &device)).into_data();
        turned.assert_approx_eq::<f32>(&[[[[-5.0_f32, 3.0]]]].into(), burn::tensor::Tolerance::absolute(1e-6));
    }
}
