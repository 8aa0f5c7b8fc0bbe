//! The frequencies of rotary embeddings, and how models stretch them over more positions than they were trained on.

use std::{borrow::Cow, f64::consts::PI};

use peft_core::Result;

use super::super::Fields;

/// The scalings that are known, for messages.
const KNOWN: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// The most dimensions of a head.
const WIDEST_HEAD: usize = 1 << 14;

/// One frequency for each pair of rotated dimensions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frequencies {
    inv_freq: Vec<f32>,
    long: Option<Long>,
    /// What cosines and sines are multiplied by.
    pub(super) attention_factor: f64,
    /// How many positions the scaling is meant for.
    pub(super) reach: usize,
}

/// What becomes of the frequencies of an input longer than the model was trained on.
#[derive(Debug, Clone, PartialEq)]
enum Long {
    /// LongRoPE: a second set of them.
    Second { trained: f64, inv_freq: Vec<f32> },
    /// Dynamic NTK: the base grows with the length.
    Growing { trained: f64, factor: f64, theta: f64 },
}

impl Frequencies {
    /// Those of `parameters`, which lie under `key`.
    pub(super) fn read(
        config: Fields<'_>,
        key: &str,
        parameters: Option<Fields<'_>>,
        theta: f64,
        head_dim: usize,
    ) -> Result<Self> {
        let number = |name: &str| parameters.map_or(Ok(None), |parameters| parameters.optional_float(name));
        let theta = number("rope_theta")?.unwrap_or(theta);
        let rotated = match number("partial_rotary_factor")? {
            Some(part) => part,
            None => config.float_or("partial_rotary_factor", 1.0)?,
        };
        // There is a frequency for every two dimensions, worked out before anything of the file is looked at.
        let head_dim = Fields::at_most("head_dim", head_dim, WIDEST_HEAD)?;
        if !(rotated > 0.0 && rotated <= 1.0) {
            let problem = format!("should be above 0 and at most 1, found {rotated}");
            return Err(Fields::error("partial_rotary_factor", problem));
        }
        let dim = (head_dim as f64 * rotated) as usize;
        if dim == 0 || !dim.is_multiple_of(2) {
            let problem = format!("of {head_dim} dimensions {dim} are to be rotated in pairs");
            return Err(Fields::error("head_dim", problem));
        }
        let kind = match parameters {
            Some(parameters) => parameters.text_or("rope_type", parameters.text_or("type", "default")?)?,
            None => "default",
        };
        let plain = powers(theta, dim);
        let scaled =
            |inv_freq: Vec<f64>| Self { inv_freq: narrow(inv_freq), long: None, attention_factor: 1.0, reach: 0 };
        if !(theta > 0.0 && plain.iter().all(|frequency| (*frequency as f32).is_finite())) {
            return Err(Fields::error("rope_theta", format!("{theta} gives no frequencies; it should be above 0")));
        }
        let (Some(parameters), false) = (parameters, kind == "default") else { return Ok(scaled(plain)) };

        let positions = config.optional_positive("max_position_embeddings")?;
        let original = match config.optional_positive("original_max_position_embeddings")? {
            None => parameters.optional_positive("original_max_position_embeddings")?,
            given => given,
        };
        // What the model was trained on, which a linear scaling does not ask for.
        let missing = || Fields::error("max_position_embeddings", format!("missing; rope_type `{kind}` needs it"));
        let trained = || original.or(positions).ok_or_else(missing);
        let factor = || match parameters.optional_positive("factor")? {
            Some(factor) => Ok(factor),
            None if matches!(kind, "yarn" | "longrope") => Ok(positions.ok_or_else(missing)? / trained()?),
            None => parameters.float("factor"),
        };
        // Early Phi-3 configurations call LongRoPE by other names.
        let kind = match kind {
            "su" => "longrope",
            "yarn" if parameters.get("short_factor").is_some() => "longrope",
            kind => kind,
        };
        let found = match kind {
            "linear" => {
                let factor = factor()?;
                scaled(plain.into_iter().map(|frequency| frequency / factor).collect())
            }
            "dynamic" if dim > 2 => {
                let trained = positions.ok_or_else(missing)?;
                Self { long: Some(Long::Growing { trained, factor: factor()?, theta }), ..scaled(plain) }
            }
            "llama3" => scaled(llama3(plain, parameters, factor()?, trained()?)?),
            "yarn" => {
                let factor = factor()?;
                let attention_factor = yarn_attention(parameters, factor)?;
                Self { attention_factor, ..scaled(yarn(&plain, parameters, factor, trained()?, theta)?) }
            }
            "longrope" => {
                let long = stretched(&plain, parameters, "long_factor")?;
                let short = stretched(&plain, parameters, "short_factor")?;
                let trained = trained()?;
                let attention_factor = match parameters.optional_positive("attention_factor")? {
                    Some(factor) => factor,
                    None => factor()
                        .map(|factor| if factor > 1.0 { (1.0 + factor.ln() / trained.ln()).sqrt() } else { 1.0 })?,
                };
                let long = Some(Long::Second { trained, inv_freq: narrow(long) });
                Self { long, attention_factor, ..scaled(short) }
            }
            other => {
                let problem = format!("rope_type `{other}` is not supported (supported: {KNOWN})");
                return Err(Fields::error(key, problem));
            }
        };
        if !found.inv_freq.iter().all(|frequency| frequency.is_finite()) || !found.attention_factor.is_finite() {
            return Err(Fields::error(key, "gives frequencies that are no finite numbers"));
        }
        // A float of positions becomes a whole number of them; too large or negative ones are bounded.
        let reach = original.or(positions).unwrap_or(0.0) * parameters.float_or("factor", 1.0)?;
        let reach = reach as usize;
        Ok(Self { reach, ..found })
    }

    /// The longest input that has the first of two sets.
    pub(super) fn switch(&self) -> Option<usize> {
        match &self.long {
            // A float of positions becomes a whole number of them; too large or negative ones are bounded.
            Some(Long::Second { trained, .. }) => Some(*trained as usize),
            _ => None,
        }
    }

    /// Those for an input of so many positions; it is asked for only where it matters.
    pub(super) fn of(&self, length: impl Fn() -> i64) -> Cow<'_, [f32]> {
        match &self.long {
            Some(Long::Second { trained, inv_freq }) if length() as f64 > *trained => Cow::Borrowed(inv_freq),
            Some(Long::Growing { trained, factor, theta }) => {
                let dim = 2 * self.inv_freq.len();
                let growth = factor * (length() as f64 / trained).max(1.0) - (factor - 1.0);
                Cow::Owned(narrow(powers(theta * growth.powf(dim as f64 / (dim - 2) as f64), dim)))
            }
            _ => Cow::Borrowed(&self.inv_freq),
        }
    }
}

fn powers(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|pair| theta.powf(-((2 * pair) as f64) / dim as f64)).collect()
}

fn narrow(inv_freq: Vec<f64>) -> Vec<f32> {
    inv_freq.into_iter().map(|frequency| frequency as f32).collect()
}

/// Waves that the original context saw often keep their frequency, those it never saw whole are stretched.
fn llama3(plain: Vec<f64>, parameters: Fields<'_>, factor: f64, trained: f64) -> Result<Vec<f64>> {
    let low = parameters.float("low_freq_factor")?;
    let high = parameters.float("high_freq_factor")?;
    if low > high {
        let problem = format!("should be at most high_freq_factor, which is {high}, found {low}");
        return Err(Fields::error("low_freq_factor", problem));
    }
    let scaled = |frequency: f64| {
        let waves = trained * frequency / (2.0 * PI);
        let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
        frequency * (kept + (1.0 - kept) / factor)
    };
    Ok(plain.into_iter().map(scaled).collect())
}

/// YaRN: as [`llama3`], with the share that is kept linear in the dimension instead of the frequency.
fn yarn(plain: &[f64], parameters: Fields<'_>, factor: f64, trained: f64, theta: f64) -> Result<Vec<f64>> {
    let dim = (2 * plain.len()) as f64;
    if theta == 1.0 {
        return Err(Fields::error("rope_theta", "is 1, of which rope_type `yarn` makes no frequencies"));
    }
    // The dimension whose wave turns so many times in the original context.
    let turning = |times: f64| dim * (trained / (times * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let turns = |key: &str, default: f64| match parameters.optional_float(key)? {
        None | Some(0.0) => Ok(default),
        Some(turns) if turns > 0.0 => Ok(turns),
        Some(turns) => Err(Fields::error(key, format!("should be a number above 0, found {turns}"))),
    };
    let (mut low, mut high) = (turning(turns("beta_fast", 32.0)?), turning(turns("beta_slow", 1.0)?));
    if parameters.flag_or("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let scaled = |(pair, frequency): (usize, &f64)| {
        let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency * (stretched / factor + 1.0 - stretched)
    };
    Ok(plain.iter().enumerate().map(scaled).collect())
}

/// What YaRN multiplies cosines and sines by, so that the entropy of longer attentions stays.
fn yarn_attention(parameters: Fields<'_>, factor: f64) -> Result<f64> {
    if let Some(given) = parameters.optional_positive("attention_factor")? {
        return Ok(given);
    }
    let scale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
    let by = |key: &str| Ok(parameters.optional_float(key)?.filter(|by| *by != 0.0));
    Ok(match by("mscale")?.zip(by("mscale_all_dim")?) {
        Some((scaled, all)) => scale(scaled) / scale(all),
        None => scale(1.0),
    })
}

/// LongRoPE: each frequency has a factor of its own.
fn stretched(plain: &[f64], parameters: Fields<'_>, key: &str) -> Result<Vec<f64>> {
    let factors = parameters.floats(key)?;
    if factors.len() != plain.len() {
        let problem = format!("has {} factors for {} pairs of rotated dimensions", factors.len(), plain.len());
        return Err(Fields::error(key, problem));
    }
    if let Some(factor) = factors.iter().find(|factor| **factor <= 0.0) {
        return Err(Fields::error(key, format!("should be numbers above 0, found {factor}")));
    }
    Ok(plain.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;

    fn read(parameters: &Value, head_dim: usize) -> Result<Frequencies> {
        let config = json!({"max_position_embeddings": 256});
        let parameters = parameters.as_object().map(Fields);
        Frequencies::read(Fields(config.as_object().unwrap()), "rope_parameters", parameters, 500.0, head_dim)
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let check = |parameters: Value, length: i64, inv_freq: &[f32], attention_factor: f64| {
            let found = read(&parameters, 8).unwrap();
            let values = found.of(|| length);
            assert_eq!(values.len(), inv_freq.len(), "{parameters}");
            for (found, wanted) in values.iter().zip(inv_freq) {
                assert!(
                    (found / wanted - 1.0).abs() < 1e-5,
                    "{parameters} at {length}: {values:?} against {inv_freq:?}"
                );
            }
            assert!(
                (found.attention_factor - attention_factor).abs() < 1e-9,
                "{parameters}: {}",
                found.attention_factor
            );
        };
        let with = |more: Value, mut parameters: Value| {
            parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            parameters
        };
        let plain = [1.0, 0.211_474_24, 0.044_721_36, 0.009_457_416];
        check(Value::Null, 700, &plain, 1.0);
        let linear = [0.4, 0.084_589_7, 0.017_888_544, 0.003_782_966];
        check(json!({"rope_type": "linear", "factor": 2.5}), 700, &linear, 1.0);
        let dynamic = json!({"type": "dynamic", "factor": 2.0});
        check(dynamic.clone(), 100, &plain, 1.0);
        check(dynamic, 700, &[1.0, 0.128_389_3, 0.016_483_81, 0.002_116_345], 1.0);
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128});
        check(llama3, 700, &[1.0, 0.211_474_24, 0.005_590_17, 0.001_182_177], 1.0);
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        let yarned = [1.0, 0.132_171_39, 0.011_180_34, 0.002_364_354];
        check(yarn.clone(), 700, &yarned, 1.138_629_436_111_989);
        check(with(json!({"attention_factor": 1.25}), yarn.clone()), 700, &yarned, 1.25);
        let part = with(json!({"partial_rotary_factor": 0.5}), yarn.clone());
        check(part, 700, &[1.0, 0.011_180_34], 1.138_629_436_111_989);
        let scaled =
            json!({"mscale": 1.5, "mscale_all_dim": 0.5, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": false});
        let yarned = [1.0, 0.061_358_55, 0.011_180_34, 0.002_364_354];
        check(with(scaled, yarn), 700, &yarned, 1.129_643_250_739_142_7);
        let longrope = json!({"rope_type": "longrope", "original_max_position_embeddings": 64,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]});
        let short = [1.0, 0.192_249_31, 0.037_267_8, 0.007_274_935];
        check(longrope.clone(), 64, &short, 1.154_700_538_379_251_7);
        let long = [0.5, 0.070_491_41, 0.011_180_34, 0.001_891_483];
        check(longrope.clone(), 65, &long, 1.154_700_538_379_251_7);
        check(with(json!({"factor": 8.0}), longrope), 64, &short, 1.224_744_871_391_589);
    }

    #[test]
    fn the_reach_is_what_the_scaling_is_meant_for() {
        let reach = |parameters: Value| read(&parameters, 8).unwrap().reach;
        assert_eq!(reach(json!({"rope_type": "dynamic", "factor": 2.0})), 512);
        assert_eq!(reach(json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64})), 512);
    }

    #[test]
    fn what_gives_no_frequencies_is_refused_by_name() {
        let error = |parameters: Value, head_dim| read(&parameters, head_dim).unwrap_err().to_string();
        let text = error(json!({"rope_type": "spiral", "factor": 4.0}), 8);
        assert!(text.contains("`spiral`") && text.contains("`rope_parameters`"), "{text}");
        assert!(error(Value::Null, 5).contains("in pairs"));
        for (parameters, key) in [
            (json!({"rope_type": "linear", "factor": 0.0}), "factor"),
            (json!({"rope_type": "dynamic", "factor": 0}), "factor"),
            (json!({"rope_type": "yarn", "factor": -2.0}), "factor"),
            (json!({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}), "rope_theta"),
            (
                json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}),
                "original_max_position_embeddings",
            ),
            (json!({"rope_type": "yarn", "factor": 2.0, "beta_slow": -1.0}), "beta_slow"),
            (json!({"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.0}), "attention_factor"),
            (
                json!({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
                "low_freq_factor",
            ),
            (json!({"rope_type": "default", "partial_rotary_factor": 1.5}), "partial_rotary_factor"),
            (json!({"rope_type": "default", "partial_rotary_factor": -0.5}), "partial_rotary_factor"),
            (
                json!({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 1.0, 0.0, 1.0]}),
                "long_factor",
            ),
        ] {
            let text = error(parameters, 8);
            assert!(text.contains(&format!("`{key}`")), "{text}");
        }
        // A switch without a transition, as Transformers has it.
        let switch = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0,
            "original_max_position_embeddings": 128});
        let kept = read(&switch, 8).unwrap().inv_freq;
        let wanted = [1.0_f32, 0.211_474_24, 0.005_590_17, 0.001_182_177];
        assert!(kept.iter().zip(wanted).all(|(found, wanted)| (found / wanted - 1.0).abs() < 1e-5), "{kept:?}");
        for theta in [0.0, -5.0] {
            let text = error(json!({"rope_type": "default", "rope_theta": theta}), 8);
            assert!(text.contains("`rope_theta`"), "{text}");
        }
        assert!(error(json!({"rope_type": "linear"}), 8).contains("`factor`"));
        let lists = json!({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]});
        assert!(error(lists, 8).contains("1 factors for 4 pairs"));
    }
}
