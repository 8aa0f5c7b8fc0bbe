//! The tensors of an adapter: made anew, or taken from a file and judged against the model.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use burn::{
    module::ParamId,
    tensor::{DType, Distribution, TensorData},
};

use super::PeftModel;
use crate::{
    Adapter, DynParam, DynTensor, Error, ModuleKind, ModuleTree, PeftConfig, Plan, Result,
    adapter::{AdapterFolder, AdapterTensor, KEY_PREFIX, PROMPT_KEY_PREFIX, Role, Tie},
    data::tokenizer::Tokenizer,
    files::{ADAPTER_CONFIG, PROMPT_ENCODER_WEIGHTS},
    model::explain,
    plugins::{
        plan::Adapted,
        prompt::{
            PROMPT_EMBEDDINGS, PROMPT_ENCODER, PromptPlan, PromptShape, PromptTuner, StoredPrompt, TokenEmbeddings,
        },
        tuner::{Init, TensorSpec, Tensors},
    },
    tensor::random::{hash_of, seeded_for},
    weight::quantized::base_value,
};

impl PeftModel {
    /// Adds a saved adapter. It is not active until [`set_active`](Self::set_active) says so.
    ///
    /// # Errors
    /// [`Error::Tensors`] that lists the unexpected and the missing keys.
    pub fn load_adapter(&mut self, name: &str, folder: AdapterFolder) -> Result<()> {
        self.check_new(name, &folder.config)?;
        let in_file = |error: Error| error.in_file(&folder.path.join(ADAPTER_CONFIG));
        let mut plan = explain::plan(&self.base, &folder.config)
            .map_err(|error| in_file(self.for_another(error, &folder.config)))?;
        self.check_biases(&plan)?;
        let prefix = if plan.prompt.is_some() { PROMPT_KEY_PREFIX } else { KEY_PREFIX };
        let mut problems = Vec::new();
        let brought = self.brought_embeddings(prefix, &plan, &folder, &mut problems);
        if let Some(prompt) = &mut plan.prompt
            && !folder.tensors.keys().any(|key| key.starts_with(PROMPT_ENCODER))
            && needs_encoder(&*prompt.tuner, &prompt.shape)
        {
            let tuner = Arc::new(StoredPrompt(Arc::clone(&prompt.tuner)));
            *prompt = Arc::new(PromptPlan { tuner, ..PromptPlan::clone(prompt) });
        }
        let mut left: HashSet<&str> = folder.tensors.keys().map(String::as_str).collect();
        let mut adapter = self.fill(name, plan, |key, slot| {
            let file_key = match slot {
                Slot::Prompt(_) => key.to_owned(),
                _ => format!("{prefix}{key}"),
            };
            left.remove(file_key.as_str());
            let (shape, transposed, dtype) = match slot {
                Slot::Tuned(spec, _) | Slot::Prompt(spec) => (spec.shape.clone(), false, DType::F32),
                Slot::Copy(value) => (value.shape(), is_stored_transposed(&self.tree, key), value.to_data().dtype()),
            };
            let stored: Vec<usize> = if transposed { shape.iter().rev().copied().collect() } else { shape.clone() };
            match folder.tensors.get(&file_key) {
                Some(data) if data.shape().as_slice() == stored.as_slice() && data.dtype().is_float() => {
                    let data = data.clone().convert_dtype(dtype);
                    let tensor = DynTensor::from_data(data, &self.device.clone().inner());
                    return Ok(match tensor {
                        Some(tensor) if transposed => tensor.transposed().to_data(),
                        Some(tensor) => tensor.to_data(),
                        None => TensorData::new(vec![0.0_f32], [1]),
                    });
                }
                Some(data) => {
                    let found = format!("{:?} {:?}", data.dtype(), data.shape().as_slice());
                    problems.push(format!("`{file_key}`: is {found}, should be a float tensor of shape {stored:?}"));
                }
                None => problems.push(format!("`{file_key}`: missing (shape {stored:?})")),
            }
            // Something for a place that stays empty; nothing of it is kept, and its size is only what the configuration says.
            Ok(TensorData::new(vec![0.0_f32], [1]))
        })?;
        // Where the encoder is there the table follows from it.
        if let Some(prompt) = &adapter.plan.prompt
            && problems.is_empty()
            && left.remove(PROMPT_EMBEDDINGS)
        {
            problems.extend(other_prompt(&adapter, prompt, &folder));
        }
        // With `bias` PEFT also writes the biases inside a saved module's wrapper: the copy again, and the base's own.
        let is_double = |key: &str| {
            adapter.plan.saved.iter().any(|module| {
                let inside = key.strip_prefix(prefix).and_then(|key| key.strip_prefix(module.as_str()));
                inside
                    .is_some_and(|rest| rest.starts_with(".modules_to_save.") || rest.starts_with(".original_module."))
            })
        };
        let is_embedding = |key: &str| brought.keys.iter().any(|(brought, _)| brought == key);
        let mut left: Vec<_> = left.into_iter().filter(|key| !is_double(key) && !is_embedding(key)).collect();
        left.sort_unstable();
        problems.extend(left.into_iter().map(|key| format!("`{key}`: nothing in the model takes this tensor")));
        if !problems.is_empty() {
            problems.extend(self.meant_for(&folder.config));
            return Err(Error::Tensors { origin: folder.path.display().to_string(), problems });
        }
        adapter.embeddings = brought.keys.clone();
        self.take_embeddings(name, brought)?;
        self.adapters.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// Which model an adapter that does not fit is for, as far as its configuration says.
    fn meant_for(&self, config: &PeftConfig) -> Option<String> {
        let class = config.base_model_class().map(|class| format!("a {class}"));
        let named = config.base_model_name_or_path.as_deref().filter(|name| !name.is_empty());
        let meant: Vec<String> = named.map(|name| format!("`{name}`")).into_iter().chain(class).collect();
        let own = &self.base.info.class_name;
        (!meant.is_empty())
            .then(|| format!("the adapter was trained on {}, and this base model is a {own}", meant.join(", ")))
    }

    /// Adds to an error that no module of the model is adapted, where that is so.
    fn for_another(&self, error: Error, config: &PeftConfig) -> Error {
        match (error, self.meant_for(config)) {
            (Error::NothingTargeted(problem), Some(meant)) => Error::NothingTargeted(format!("{problem}; {meant}")),
            (error, _) => error,
        }
    }

    /// Builds an adapter's tensors, asking `value` for each in the orientation of memory.
    pub(super) fn fill(
        &self,
        adapter: &str,
        plan: Plan,
        mut value: impl FnMut(&str, Slot<'_>) -> Result<TensorData>,
    ) -> Result<Adapter> {
        let mut tensors = Vec::new();
        if let Some(prompt) = &plan.prompt {
            for spec in prompt.tuner.tensors(&prompt.shape) {
                let key = prompt_key(&*prompt.tuner, &spec.name);
                let data = value(&key, Slot::Prompt(&spec))?;
                // The identity follows from the encoder's own name: an optimiser's state fits whatever the file calls it.
                let id = param_id(adapter, &key);
                let make = if spec.trainable { DynParam::trainable } else { DynParam::frozen };
                let Some(param) = make(id, data, &self.device) else { continue };
                tensors.push(AdapterTensor {
                    parameter: String::new(),
                    key,
                    name: Arc::from(&*spec.name),
                    role: Role::Prompt,
                    param,
                    stored_transposed: false,
                });
            }
        }
        let derives = |target: &&Adapted| target.layer.tensors().iter().any(|spec| spec.init == Init::Derived);
        let weights: HashSet<String> =
            plan.tuned().filter(derives).map(|target| format!("{}.weight", target.module)).collect();
        // Quantized ones are dequantized one by one, where they are asked for.
        let is_dense = |name: &&String| self.base.quantized.get(name).is_none();
        let weights = self.base_values(&weights.iter().filter(is_dense).map(String::as_str).collect());
        let weight_of = |name: &str| {
            weights
                .get(name)
                .cloned()
                .or_else(|| self.base.quantized.get(name).map(|quantized| DynTensor::R2(quantized.dense())))
        };
        for target in plan.tuned() {
            let mut before: Vec<(Arc<str>, DynParam)> = Vec::new();
            for spec in target.layer.tensors() {
                let key = format!("{}.{}", target.module, spec.name);
                let derived = || {
                    let weight =
                        (spec.init == Init::Derived).then(|| weight_of(&format!("{}.weight", target.module)))??;
                    target.layer.derived(&Tensors::new(&before), weight)
                };
                let data = value(&key, Slot::Tuned(&spec, &derived))?;
                let id = param_id(adapter, &key);
                let make = if spec.trainable { DynParam::trainable } else { DynParam::frozen };
                let Some(param) = make(id, data, &self.device) else { continue };
                before.push((Arc::from(&*spec.name), param.valid()));
                tensors.push(AdapterTensor {
                    parameter: format!("{}.weight", target.module),
                    key,
                    name: Arc::from(&*spec.name),
                    role: Role::Tuned(Arc::clone(&target.layer)),
                    param,
                    stored_transposed: false,
                });
            }
        }
        let saved = plan.saved_params(&self.tree);
        let copies = saved.into_iter().map(|name| (name, Role::Saved));
        let biases = plan.biases.iter().map(|name| (name.clone(), Role::Bias));
        let copied: Vec<_> = copies.chain(biases).collect();
        let values = self.base_values(&copied.iter().map(|(name, _)| name.as_str()).collect());
        for (parameter, role) in copied {
            let Some(base) = values.get(&parameter) else { continue };
            // PEFT's key of a bias inside an adapted layer has the wrapped layer in it.
            let (module, last) = parameter.rsplit_once('.').unwrap_or(("", &parameter));
            let wrapped = matches!(role, Role::Bias) && plan.adapted.iter().any(|a| a.module == module);
            let key = if wrapped { format!("{module}.base_layer.{last}") } else { parameter.clone() };
            let data = value(&key, Slot::Copy(base))?;
            let Some(param) = DynParam::trainable(param_id(adapter, &key), data, &self.device) else { continue };
            tensors.push(AdapterTensor {
                stored_transposed: is_stored_transposed(&self.tree, &parameter),
                name: Arc::from(last),
                parameter,
                key,
                role,
                param,
            });
        }
        let is_linear = |name: &str| is_stored_transposed(&self.tree, name);
        let tie = |(copy, original): &(String, String)| Tie {
            copy: copy.clone(),
            original: original.clone(),
            transposed: is_linear(copy) != is_linear(original),
        };
        let follows = |original: &str| {
            plan.in_place || plan.tokens.iter().any(|table| original.strip_suffix(".weight") == Some(&table.module))
        };
        let ties = self.base.info.tied.iter().filter(|(_, original)| follows(original)).map(tie).collect();
        Ok(Adapter { config: plan.config.clone(), plan, tensors, ties, embeddings: Vec::new() })
    }

    /// The base model's token embeddings, if a tensor of the prompt is initialized from them.
    pub(super) fn token_embeddings<'a>(
        &self,
        plan: &Plan,
        tokenizer: Option<&'a dyn Tokenizer>,
        seed: u64,
    ) -> Option<TokenEmbeddings<'a>> {
        let prompt = plan.prompt.as_ref()?;
        prompt.tuner.tensors(&prompt.shape).iter().find(|spec| spec.init == Init::Derived)?;
        let name = format!("{}.weight", self.base.info.input_embedding.as_ref()?);
        let table = self.base_values(&HashSet::from([name.as_str()])).remove(&name)?.get::<2>()?;
        Some(TokenEmbeddings { table: table * self.base.info.embedding_scale, tokenizer, seed })
    }

    pub(super) fn base_values(&self, wanted: &HashSet<&str>) -> BTreeMap<String, DynTensor> {
        let mut values = BTreeMap::new();
        let info = &self.base.info;
        self.base.module.boxed_clone().map_params(&|path| info.rename(path), &mut |name, param| {
            if wanted.contains(name) {
                values.insert(name.to_owned(), base_value(&param, self.base.quantized.get(name)));
            }
            param
        });
        values
    }
}

pub(super) enum Slot<'a> {
    /// With its derived value, if it has one.
    Tuned(&'a TensorSpec, &'a dyn Fn() -> Option<DynTensor>),
    Prompt(&'a TensorSpec),
    Copy(&'a DynTensor),
}

/// The key of one of a prompt's tensors: PEFT's own where its file has it, else with the mark of the second file.
fn prompt_key(tuner: &dyn PromptTuner, name: &str) -> String {
    if tuner.table_tensor() == Some(name) {
        PROMPT_EMBEDDINGS.to_owned()
    } else if tuner.stored().contains(&name) {
        name.to_owned()
    } else {
        format!("{PROMPT_ENCODER}{name}")
    }
}

/// Whether the table in PEFT's file is less than what training changes.
fn needs_encoder(tuner: &dyn PromptTuner, shape: &PromptShape) -> bool {
    tuner.tensors(shape).iter().any(|spec| prompt_key(tuner, &spec.name).starts_with(PROMPT_ENCODER))
}

/// What is wrong if the table in a folder is not the one that its encoder makes.
fn other_prompt(adapter: &Adapter, prompt: &PromptPlan, folder: &AdapterFolder) -> Option<String> {
    let floats = |data: TensorData| data.convert::<f32>().try_to_vec::<f32>().unwrap_or_default();
    let stored = folder.tensors.get(PROMPT_EMBEDDINGS)?;
    let made = adapter.prompt_table(prompt).to_data();
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-2 * a.abs() + 1e-4;
    let (shape, made) = (made.shape().clone(), floats(made));
    let stored = floats(stored.clone());
    if made.len() == stored.len() && made.iter().zip(&stored).all(is_near) {
        return None;
    }
    Some(format!(
        "`{PROMPT_EMBEDDINGS}`: is not the table {:?} that {} makes; take that file away to use the table alone",
        shape.as_slice(),
        PROMPT_ENCODER_WEIGHTS
    ))
}

/// Copies of `Linear` weights lie in files as PyTorch has them, `[d_out, d_in]`.
pub(super) fn is_stored_transposed(tree: &ModuleTree, parameter: &str) -> bool {
    let Some((module, "weight")) = parameter.rsplit_once('.') else { return false };
    tree.get(module).is_some_and(|info| info.kind == ModuleKind::Linear)
}

/// A parameter's identity follows from its name, so that optimiser state fits after a restart.
fn param_id(adapter: &str, key: &str) -> ParamId {
    ParamId::from(hash_of(adapter, key))
}

/// The first value of a tensor: it depends on the seed and the key, not on the order of creation or the device.
pub(super) fn initial(key: &str, spec: &TensorSpec, seed: u64) -> TensorData {
    let distribution = match spec.init {
        Init::Derived => return TensorData::zeros::<f32, _>(spec.shape.clone()),
        Init::Constant(value) => return TensorData::full::<f32, _>(spec.shape.clone(), value as f32),
        Init::Normal { std } => Distribution::Normal(0.0, std),
        Init::Uniform { bound } => Distribution::Uniform(-bound, bound),
    };
    let mut rng = seeded_for(seed, key);
    TensorData::random::<f32, _, _>(spec.shape.clone(), distribution, &mut rng)
}
