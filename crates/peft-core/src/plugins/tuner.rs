//! What a tuner is: plain data plus functions. It never implements `Module`; the tensors it describes are held by
//! [`AdapterSet`](crate::AdapterSet).

use std::{borrow::Cow, fmt::Debug, sync::Arc};

use burn::tensor::{Int, Tensor};
use serde_json::{Map, Value};

use crate::{
    DynParam, DynTensor, Error, FrozenWeight, PeftConfig, Result,
    error::quoted,
    model_info::ModelInfo,
    plugins::{
        plan::{Plan, TaskRules},
        registry::Plugin,
        rows_part::{RowsPart, one_by_one},
    },
    tensor::module_tree::ModuleTree,
};

/// A way of adapting models, with its options.
pub trait Tuner: Debug + Send + Sync {
    /// Decides for every module of the model what happens to it. Pure: nothing is created or loaded.
    ///
    /// # Errors
    /// If nothing is selected, or something that the tuner cannot adapt.
    fn plan(&self, config: &PeftConfig, model: &ModuleTree, info: &ModelInfo, task: &TaskRules) -> Result<Plan>;

    /// Whether every parameter is trained in place, so that the result is a full model.
    fn trains_in_place(&self) -> bool {
        false
    }

    /// Whether it is a prompt method: virtual tokens before the input.
    fn is_prompt(&self) -> bool {
        false
    }

    /// The option that sets the adapter's size, if there is one: `r`. The number of trained values is affine in it.
    fn rank_option(&self) -> Option<&'static str> {
        None
    }
}

/// A tuner on one layer, its options resolved for that layer.
pub trait LayerTuner: Debug + Send + Sync {
    /// The tensors that it adds to the layer.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// The layer's effective weight: the weight path, correct for every layer and every caller.
    ///
    /// # Shapes
    /// - `weight`, returned: Burn's orientation, `[d_in, d_out]` for a linear layer
    fn merged(&self, tensors: &Tensors<'_>, weight: DynTensor) -> DynTensor;

    /// [`merged`](Self::merged) onto what adapters before this one have made of the weight, as the running model has it: for a tuner
    /// that needs the frozen weight as well as the running one.
    ///
    /// # Shapes
    /// - `running`, `frozen`, returned: Burn's orientation, `[d_in, d_out]` for a linear layer
    fn merged_onto(&self, tensors: &Tensors<'_>, running: DynTensor, _frozen: &DynTensor) -> DynTensor {
        self.merged(tensors, running)
    }

    /// The value in a fresh adapter of its [`Init::Derived`] tensor, given those before it.
    ///
    /// # Shapes
    /// - `weight`: Burn's orientation, `[d_in, d_out]` for a linear layer
    fn derived(&self, _tensors: &Tensors<'_>, _weight: DynTensor) -> Option<DynTensor> {
        None
    }

    /// Adds the adapter's contribution to a frozen linear layer's output: the activation path, which forms no dense
    /// weight. The default is the weight path.
    ///
    /// # Shapes
    /// - `output`, returned: `[tokens, d_out]`
    fn forward(&self, tensors: &Tensors<'_>, call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        let frozen = call.weight.dense();
        let weight = self.merged(tensors, DynTensor::R2(frozen.clone()));
        match weight.get::<2>() {
            Some(weight) => output + call.input.clone().matmul(weight - frozen),
            None => output,
        }
    }

    /// The frozen linear layer's output with the adapter's contribution, for a tuner that has both as one operation; none
    /// where it has not, which is the default.
    ///
    /// # Shapes
    /// - returned: `[tokens, d_out]`
    fn linear(&self, _tensors: &Tensors<'_>, _call: &LinearCall) -> Option<Tensor<2>> {
        None
    }

    /// The adapter's contribution to a linear layer as a product of two thin matrices, for a tuner that is nothing else; none for
    /// others, which is the default. An operation that has several layers inside takes it.
    fn low_rank(&self, _tensors: &Tensors<'_>, _training: bool) -> Option<LowRank> {
        None
    }

    /// Adds the adapter's contribution to a frozen embedding's output. The default is the weight path.
    ///
    /// # Shapes
    /// - `ids`: `[batch, sequence]`
    /// - `output`, returned: `[batch, sequence, dimensions]`
    fn embed(&self, tensors: &Tensors<'_>, weight: &FrozenWeight, ids: Tensor<2, Int>, output: Tensor<3>) -> Tensor<3> {
        let merged = self.merged(tensors, DynTensor::R2(weight.dense()));
        match merged.get::<2>() {
            Some(merged) => burn::tensor::module::embedding(merged, ids),
            None => output,
        }
    }

    /// The tuner on a parameter that is tied to the layer's weight, with its dimensions swapped or not, for a tuner that tied parameters
    /// follow; none for others, which is the default.
    fn tied(&self, _transposed: bool) -> Option<Arc<dyn LayerTuner>> {
        None
    }

    /// Whether a GPU may record what it computes: that follows from its tensors and the layer's input alone, no value is looked at
    /// on the host, and nothing is drawn at random but by the backend's dropout, which is noticed.
    fn records(&self) -> bool {
        false
    }

    /// Why rows of one batch cannot have different adapters where this is one of them, after "it"; none if they can.
    fn refuses_rows(&self) -> Option<&'static str> {
        Some("has a tuner that acts on whole batches")
    }

    /// Adds the contributions of adapters that each act on some rows: one by one, for a tuner that has no operation for all. The
    /// first of them is this one.
    ///
    /// # Shapes
    /// - `output`, returned: `[tokens, d_out]`
    fn forward_by_rows(&self, parts: &[RowsPart<'_>], call: &LinearCall, output: Tensor<2>) -> Tensor<2> {
        one_by_one(parts, call, &output)
    }

    /// Numbers worth showing to a person, such as rank and scale.
    fn summary(&self) -> String {
        String::new()
    }
}

/// `scale · drop(x) Aᵀ Bᵀ`: what a low-rank adapter adds to a linear layer.
#[derive(Debug)]
pub struct LowRank {
    /// `[rank, d_in]`.
    pub a: Tensor<2>,
    /// `[d_out, rank]`.
    pub b: Tensor<2>,
    /// What their product is multiplied with.
    pub scale: f64,
    /// Probability of dropping an element of the input.
    pub drop: f64,
}

/// A frozen linear layer being evaluated.
#[derive(Debug)]
pub struct LinearCall {
    /// The layer's input, `[tokens, d_in]`.
    pub input: Tensor<2>,
    /// The frozen weight, `[d_in, d_out]`.
    pub weight: FrozenWeight,
    /// The layer's bias, `[d_out]`.
    pub bias: Option<Tensor<1>>,
    /// Whether dropout acts.
    pub training: bool,
}

impl LinearCall {
    /// Another input times the frozen weight, without the bias.
    ///
    /// # Shapes
    /// - `input`: `[tokens, d_in]`
    /// - returned: `[tokens, d_out]`
    pub fn frozen(&self, input: Tensor<2>) -> Tensor<2> {
        self.weight.linear(|x, weight, _| x.matmul(weight), input, None)
    }
}

/// The tensors of one adapter on one layer, by their names in the file.
#[derive(Debug)]
pub struct Tensors<'a>(pub(crate) &'a [(Arc<str>, DynParam)]);

impl<'a> Tensors<'a> {
    /// Named tensors, for running a layer's tuner by itself.
    pub fn new(named: &'a [(Arc<str>, DynParam)]) -> Self {
        Self(named)
    }

    /// The tensor of that name.
    ///
    /// # Panics
    /// If [`LayerTuner::tensors`] describes no tensor of this name and rank: a mistake in the tuner.
    #[expect(
        clippy::panic,
        reason = "unreachable from input: files are checked against the tuner's own list on loading"
    )]
    pub fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        match self.0.iter().find(|(n, _)| &**n == name).and_then(|(_, param)| param.val()) {
            Some(tensor) => tensor,
            None => panic!("the tuner describes no tensor `{name}` of rank {D}"),
        }
    }
}

/// A tensor that a tuner adds to a layer.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    /// What follows the module's name in the file: `lora_A.weight`.
    pub name: Cow<'static, str>,
    /// Its shape as in the file, which is its shape in memory.
    pub shape: Vec<usize>,
    /// Its value in a fresh adapter.
    pub init: Init,
    /// Whether training changes it.
    pub trainable: bool,
}

/// The value of a tensor in a fresh adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// What [`LayerTuner::derived`] says: it follows from the base weight and the tensors before it.
    Derived,
    /// One value everywhere.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `±bound`.
    Uniform {
        /// Largest absolute value.
        bound: f64,
    },
}

/// A tuner as a plugin: the word in `peft_type`, its options' defaults, and how to build it.
pub struct TunerPlugin {
    /// The word in `peft_type`.
    pub name: &'static str,
    /// Options and their defaults, in the names of `adapter_config.json`: the keys it knows.
    pub defaults: fn() -> Map<String, Value>,
    /// Builds the tuner from a configuration whose `peft_type` is [`name`](Self::name).
    pub build: fn(&PeftConfig) -> Result<Arc<dyn Tuner>>,
    /// One line for `peft plugins`.
    pub summary: &'static str,
}

inventory::collect!(TunerPlugin);

impl TunerPlugin {
    /// A tuner whose options are a serde type: its `Default` gives the defaults, its fields the known keys.
    pub const fn new<T>(name: &'static str, summary: &'static str) -> Self
    where
        T: Tuner + Default + serde::Serialize + serde::de::DeserializeOwned + 'static,
    {
        Self { name, defaults: defaults::<T>, build: build::<T>, summary }
    }
}

impl Plugin for TunerPlugin {
    const KIND: &'static str = "tuner";

    fn name(&self) -> &'static str {
        self.name
    }
}

fn defaults<T: Default + serde::Serialize>() -> Map<String, Value> {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn build<T: Tuner + serde::de::DeserializeOwned + 'static>(config: &PeftConfig) -> Result<Arc<dyn Tuner>> {
    // Key by key where the whole fails, so that the message names the key.
    let whole = serde_json::from_value::<T>(Value::Object(config.options.clone()));
    whole.map(|tuner| Arc::new(tuner) as Arc<dyn Tuner>).map_err(|error| {
        let culprit = config.options.iter().find(|(key, value)| {
            let mut one = defaults_of(config);
            one.insert((*key).clone(), (*value).clone());
            serde_json::from_value::<T>(Value::Object(one)).is_err()
        });
        match culprit {
            Some((key, value)) => Error::config(key, format!("{error} (found {})", quoted(value))),
            None => Error::config("peft_type", error.to_string()),
        }
    })
}

fn defaults_of(config: &PeftConfig) -> Map<String, Value> {
    crate::plugins::registry::find::<TunerPlugin>(config.peft_type.as_str()).map(|p| (p.defaults)()).unwrap_or_default()
}
