//! LoRA's keys in `adapter_config.json`, with PEFT's defaults.

use indexmap::IndexMap;
use peft_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::select::Targets;

/// Starts that change nothing but the adapter's own tensors, or that PEFT reads as if they did.
const LOADED: [&str; 5] = ["eva", "orthogonal", "mica", "lora_ga", "gaussian"];
/// How the words of those begin that change the base model's weights.
const CHANGE_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];
/// The highest rank: far beyond any layer's width, and still a number whose multiples can be counted.
pub const MOST_RANK: usize = i32::MAX as usize;

/// Which biases of the base model are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every one.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

/// How a fresh adapter starts: `true`, `false`, or a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitLoraWeights {
    /// `true`: `A` uniform in `±1/√d_in`, `B` zero. `false`: both random, so that the adapter changes the output.
    Default(bool),
    /// `gaussian`: `A` normal with standard deviation `1/r`, `B` zero. Other words say how a saved adapter began.
    Named(String),
}

impl InitLoraWeights {
    /// Whether `B` stays as it began: MiCA trains `A` alone.
    pub fn freezes_b(&self) -> bool {
        matches!(self, Self::Named(word) if word.eq_ignore_ascii_case("mica"))
    }
}

/// Options of the LoRA tuner, in PEFT's names and with PEFT's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "PEFT's keys")]
pub struct Lora {
    /// Which modules are adapted.
    #[serde(flatten)]
    pub targets: Targets,
    /// Rank: the inner dimension of the low-rank product.
    pub r: usize,
    /// The product is scaled by `lora_alpha / r`.
    #[serde(serialize_with = "whole_as_integer")]
    pub lora_alpha: f64,
    /// Probability of zeroing an input value of the adapter while training.
    pub lora_dropout: f64,
    /// Which biases are trained.
    pub bias: Bias,
    /// Whether adapted weights lie as `[d_in, d_out]` in files; corrected to what the layers are.
    pub fan_in_fan_out: bool,
    /// Scale by `lora_alpha / √r` instead (Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with
    /// LoRA").
    pub use_rslora: bool,
    /// How a fresh adapter starts.
    pub init_lora_weights: InitLoraWeights,
    /// Ranks by module, see [`PatternMap`](crate::pattern::PatternMap).
    #[serde(deserialize_with = "null_as_empty")]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas by module.
    #[serde(deserialize_with = "null_as_empty")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Not used here; kept for PEFT.
    pub megatron_config: Option<Value>,
    /// Not used here; kept for PEFT.
    pub megatron_core: Option<String>,
    /// Tokens whose vectors were trained, see [`TrainableTokens`](crate::trainable_tokens::TrainableTokens); only of saved adapters.
    pub trainable_token_indices: Option<Value>,
    /// Not used here; kept for PEFT.
    #[serde(deserialize_with = "null_as_empty")]
    pub loftq_config: Map<String, Value>,
    /// Not used here; kept for PEFT.
    pub eva_config: Option<Value>,
    /// Not used here; kept for PEFT.
    pub corda_config: Option<Value>,
    /// Not used here; kept for PEFT.
    pub lora_ga_config: Option<Value>,
    /// Train the length of each column of a weight apart from its direction, see [`DoraLinear`](super::DoraLinear).
    pub use_dora: bool,
    /// Not used here; kept for PEFT.
    pub velora_config: Option<Value>,
    /// Not supported: must be null.
    pub alora_invocation_tokens: Option<Value>,
    /// Not supported: must be false.
    pub use_qalora: bool,
    /// Not used here; kept for PEFT.
    pub qalora_group_size: usize,
    /// Not supported: must be null.
    pub monteclora_config: Option<Value>,
    /// Not supported: must be null.
    pub layer_replication: Option<Value>,
    /// Not supported: must be false.
    pub lora_bias: bool,
    /// Not supported: must be null.
    pub target_parameters: Option<Value>,
    /// Not supported: must be null.
    pub use_bdlora: Option<Value>,
    /// Not supported: must be null.
    pub arrow_config: Option<Value>,
    /// Not supported: must be null.
    pub kasa_config: Option<Value>,
    /// Not supported: must be false.
    pub ensure_weight_tying: bool,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            targets: Targets::default(),
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            bias: Bias::None,
            fan_in_fan_out: false,
            use_rslora: false,
            init_lora_weights: InitLoraWeights::Default(true),
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            megatron_config: None,
            megatron_core: Some("megatron.core".to_owned()),
            trainable_token_indices: None,
            loftq_config: Map::new(),
            eva_config: None,
            corda_config: None,
            lora_ga_config: None,
            use_dora: false,
            velora_config: None,
            alora_invocation_tokens: None,
            use_qalora: false,
            qalora_group_size: 16,
            monteclora_config: None,
            layer_replication: None,
            lora_bias: false,
            target_parameters: None,
            use_bdlora: None,
            arrow_config: None,
            kasa_config: None,
            ensure_weight_tying: false,
        }
    }
}

impl Lora {
    /// Judges values that a type cannot.
    ///
    /// # Errors
    /// [`Error::Config`] with the key and what would be right.
    pub fn check(&self) -> Result<()> {
        if self.r == 0 {
            return Err(Error::config("r", "rank 0: must be at least 1"));
        }
        if self.r > MOST_RANK {
            return Err(Error::config("r", format!("rank {}: must be at most {MOST_RANK}", self.r)));
        }
        if !self.lora_alpha.is_finite() {
            return Err(Error::config("lora_alpha", format!("{}: must be a finite number", self.lora_alpha)));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config(
                "lora_dropout",
                format!("{}: must be at least 0 and below 1", self.lora_dropout),
            ));
        }
        let given = |value: &Option<Value>| value.as_ref().is_some_and(|v| !v.is_null());
        let unsupported = [
            ("lora_bias", self.lora_bias),
            ("use_qalora", self.use_qalora),
            ("ensure_weight_tying", self.ensure_weight_tying),
            ("alora_invocation_tokens", given(&self.alora_invocation_tokens)),
            ("monteclora_config", given(&self.monteclora_config)),
            ("layer_replication", given(&self.layer_replication)),
            ("target_parameters", given(&self.target_parameters)),
            ("use_bdlora", given(&self.use_bdlora)),
            ("arrow_config", given(&self.arrow_config)),
            ("kasa_config", given(&self.kasa_config)),
            ("velora_config", given(&self.velora_config)),
        ];
        match unsupported.iter().find(|(_, used)| *used) {
            Some((key, _)) => Err(Error::config(*key, "this variant of LoRA is not supported yet")),
            None => Ok(()),
        }
    }

    /// Judges how the adapter starts, or how it did where it is only loaded: then a word that leaves the base model's weights as
    /// they are means nothing any more.
    ///
    /// # Errors
    /// [`Error::Config`] with what would be right.
    pub fn check_init(&self, is_loaded: bool) -> Result<()> {
        let InitLoraWeights::Named(word) = &self.init_lora_weights else { return Ok(()) };
        let word = word.to_lowercase();
        if word == "gaussian" || is_loaded && LOADED.contains(&word.as_str()) {
            return Ok(());
        }
        let changes_base = CHANGE_BASE.iter().any(|prefix| word.starts_with(prefix));
        let problem = if changes_base && is_loaded {
            format!(
                "`{word}` took a part of the base model's weights into the adapter, which is not supported: save it as plain LoRA \
                 with PEFT's `path_initial_model_for_weight_conversion`"
            )
        } else if changes_base || LOADED.contains(&word.as_str()) {
            format!("a new adapter cannot start with `{word}` yet (supported: true, false, \"gaussian\")")
        } else {
            format!("`{word}` is not supported (supported: true, false, \"gaussian\")")
        };
        Err(Error::config("init_lora_weights", problem))
    }

    /// What the low-rank product is multiplied with.
    pub fn scale(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }
    }
}

/// PEFT writes 8, not 8.0.
fn whole_as_integer<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

fn null_as_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
