//! A base model and its named adapters: PEFT's `PeftModel`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};

use burn::{
    module::ParamId,
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{DType, Device, Distribution, Tensor, TensorData},
};
use indexmap::IndexMap;
use rand::{SeedableRng, rngs::StdRng};

pub use crate::adapter::{KEY_PREFIX, PROMPT_KEY_PREFIX};
use crate::{
    Adapter, BaseModel, Batch, DynModule, DynParam, DynTensor, Error, Explanation, Inputs, Labels, ModelInfo,
    ModuleKind, ModuleTree, Outputs, PeftConfig, Plan, Result, TaskPlugin,
    adapter::{AdapterTensor, Role, Tie},
    explain,
    files::AdapterFolder,
    plan::Adapted,
    prompt::{PROMPT_EMBEDDINGS, PROMPT_ENCODER, PromptPlan, PromptShape, PromptTuner, StoredPrompt, Words},
    tokenizer::Tokenizer,
    tuner::{Init, TensorSpec, Tensors},
};

/// The name that PEFT gives an adapter when none is given.
pub const DEFAULT_ADAPTER: &str = "default";

/// A base model with named adapters, some of them active.
///
/// The base is never changed: the module that runs is made from the base and the active adapters, and made anew when they
/// change.
#[derive(Debug)]
pub struct PeftModel {
    base: BaseModel,
    tree: ModuleTree,
    device: Device,
    adapters: IndexMap<String, Adapter>,
    active: Vec<String>,
    enabled: bool,
    training: bool,
    module: Box<dyn DynModule>,
}

impl PeftModel {
    /// The base model without an adapter yet; `device` is where the adapters' tensors live.
    pub fn from_base(base: BaseModel, device: &Device) -> Self {
        let tree = base.tree();
        let module = base.module.boxed_clone().set_training(false);
        Self {
            base,
            tree,
            device: device.clone().autodiff(),
            adapters: IndexMap::new(),
            active: Vec::new(),
            enabled: true,
            training: false,
            module,
        }
    }

    /// Wraps a base model with a fresh adapter: PEFT's `get_peft_model`.
    ///
    /// # Errors
    /// If the configuration selects nothing or something that cannot be adapted.
    pub fn new(base: BaseModel, config: PeftConfig, device: &Device, seed: u64) -> Result<Self> {
        let mut model = Self::from_base(base, device);
        model.add_adapter(DEFAULT_ADAPTER, config, seed)?;
        model.set_active(&[DEFAULT_ADAPTER])?;
        Ok(model)
    }

    /// Wraps a base model with a saved adapter: PEFT's `PeftModel.from_pretrained`.
    ///
    /// # Errors
    /// If the folder cannot be read, or its tensors are not exactly those that its configuration gives this model.
    pub fn from_pretrained(base: BaseModel, folder: &Path, device: &Device) -> Result<Self> {
        let mut model = Self::from_base(base, device);
        model.load_adapter(DEFAULT_ADAPTER, AdapterFolder::read(folder)?)?;
        model.set_active(&[DEFAULT_ADAPTER])?;
        Ok(model)
    }

    /// Adds a fresh adapter. It is not active until [`set_active`](Self::set_active) says so.
    ///
    /// # Errors
    /// If the name is taken or unfit, or the configuration does not fit.
    pub fn add_adapter(&mut self, name: &str, config: PeftConfig, seed: u64) -> Result<()> {
        self.add_adapter_with(name, config, seed, None)
    }

    /// The same for a prompt that begins as a text, which the tokenizer turns into words.
    ///
    /// # Errors
    /// As [`add_adapter`](Self::add_adapter), and if the text cannot be tokenized.
    pub fn add_adapter_with(
        &mut self,
        name: &str,
        config: PeftConfig,
        seed: u64,
        tokenizer: Option<&dyn Tokenizer>,
    ) -> Result<()> {
        self.check_new(name, &config)?;
        let plan = explain::plan(&self.base, &config)?;
        let words = self.words(&plan, tokenizer, seed);
        let prompt = plan.prompt.clone();
        let adapter = self.fill(name, plan, |key, slot| match slot {
            Slot::Tuned(spec, derived) => {
                Ok(derived().map_or_else(|| initial(key, spec, seed), |value| value.to_data()))
            }
            Slot::Prompt(spec) => {
                let derived = match (&prompt, &words, spec.init == Init::Derived) {
                    (Some(prompt), Some(words), true) => prompt.tuner.derived(&spec.name, &prompt.shape, words)?,
                    _ => None,
                };
                Ok(derived.unwrap_or_else(|| initial(key, spec, seed)))
            }
            Slot::Copy(value) => Ok(value.to_data()),
        })?;
        self.adapters.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// Adds a saved adapter. It is not active until [`set_active`](Self::set_active) says so.
    ///
    /// # Errors
    /// [`Error::Tensors`] that lists every tensor of the file that has no place and every place that stays empty.
    pub fn load_adapter(&mut self, name: &str, folder: AdapterFolder) -> Result<()> {
        self.check_new(name, &folder.config)?;
        let mut plan = explain::plan(&self.base, &folder.config)?;
        let prefix = if plan.prompt.is_some() { PROMPT_KEY_PREFIX } else { KEY_PREFIX };
        if let Some(prompt) = &mut plan.prompt
            && !folder.tensors.keys().any(|key| key.starts_with(PROMPT_ENCODER))
            && needs_encoder(&*prompt.tuner, &prompt.shape)
        {
            prompt.tuner = Arc::new(StoredPrompt(Arc::clone(&prompt.tuner)));
        }
        let mut left: HashSet<&str> = folder.tensors.keys().map(String::as_str).collect();
        let mut problems = Vec::new();
        let adapter = self.fill(name, plan, |key, slot| {
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
            Ok(TensorData::new(vec![0.0_f32; shape.iter().product()], shape))
        })?;
        if let Some(prompt) = adapter.prompt() {
            // Where the encoder is there the table follows from it.
            if problems.is_empty() && left.remove(PROMPT_EMBEDDINGS) {
                problems.extend(other_prompt(&adapter, prompt, &folder));
            }
        }
        // With `bias` PEFT also writes the biases inside a saved module's wrapper: the copy again, and the base's own.
        let is_double = |key: &str| {
            adapter.plan.saved.iter().any(|module| {
                let inside = key.strip_prefix(prefix).and_then(|key| key.strip_prefix(module.as_str()));
                inside
                    .is_some_and(|rest| rest.starts_with(".modules_to_save.") || rest.starts_with(".original_module."))
            })
        };
        let mut left: Vec<_> = left.into_iter().filter(|key| !is_double(key)).collect();
        left.sort_unstable();
        problems.extend(left.into_iter().filter_map(|key| self.misfit(key, folder.tensors.get(key)?)));
        if !problems.is_empty() {
            return Err(Error::Tensors { origin: folder.path.display().to_string(), problems });
        }
        self.adapters.insert(name.to_owned(), adapter);
        Ok(())
    }

    /// What is wrong with a tensor that no adapter takes: nothing if it is a copy of the base's embeddings, which PEFT writes
    /// beside adapters of them (`save_embedding_layers`).
    fn misfit(&self, key: &str, data: &TensorData) -> Option<String> {
        let info = &self.base.info;
        let module = key.strip_prefix(KEY_PREFIX).and_then(|key| key.strip_suffix(".weight"));
        let module = module.map(|module| module.strip_suffix(".base_layer").unwrap_or(module));
        let is_embedding = |module: &&str| {
            [&info.input_embedding, &info.output_embedding].into_iter().flatten().any(|embedding| embedding == module)
        };
        let Some(parameter) = module.filter(is_embedding).map(|module| format!("{module}.weight")) else {
            return Some(format!("`{key}`: nothing in the model takes this tensor"));
        };
        let own = self.base_values(&HashSet::from([parameter.as_str()])).remove(&parameter)?;
        let own = if is_stored_transposed(&self.tree, &parameter) { own.transposed() } else { own };
        let floats = |data: TensorData| data.convert::<f32>().try_to_vec::<f32>().unwrap_or_default();
        // The adapter may be of a shorter float type than the base.
        let is_near = |(own, copy): (&f32, &f32)| (own - copy).abs() <= 1e-2 * own.abs() + 1e-5;
        let is_same = own.shape() == data.shape().as_slice()
            && floats(own.to_data()).iter().zip(&floats(data.clone())).all(is_near);
        (!is_same).then(|| {
            format!(
                "`{key}`: is {:?}, and not the base model's own {:?}; adapters that bring other embeddings, as for a resized \
                 vocabulary, are not supported",
                data.shape().as_slice(),
                own.shape()
            )
        })
    }

    fn check_new(&self, name: &str, config: &PeftConfig) -> Result<()> {
        if name.is_empty() || name.contains(['.', '/', '\\']) {
            return Err(Error::Adapter(format!("`{name}` cannot name an adapter: no dots, slashes or nothing at all")));
        }
        if self.adapters.contains_key(name) {
            return Err(Error::Adapter(format!("there is an adapter named `{name}` already")));
        }
        let Some((other, first)) = self.adapters.first() else { return Ok(()) };
        if first.config.task_type != config.task_type {
            return Err(Error::Adapter(format!("adapter `{name}` is for another task type than `{other}`")));
        }
        let biased =
            |config: &PeftConfig| config.options.get("bias").is_some_and(|bias| bias != "none" && !bias.is_null());
        if biased(config) && self.adapters.values().any(|a| biased(&a.config)) {
            return Err(Error::Adapter("only one adapter can train biases: they belong to the base model".to_owned()));
        }
        Ok(())
    }

    /// Builds an adapter's tensors, asking `value` for each in the orientation of memory.
    fn fill(
        &self,
        adapter: &str,
        plan: Plan,
        mut value: impl FnMut(&str, Slot<'_>) -> Result<TensorData>,
    ) -> Result<Adapter> {
        let mut tensors = Vec::new();
        if let Some(prompt) = plan.prompt.clone().map(Arc::new) {
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
                    role: Role::Prompt(Arc::clone(&prompt)),
                    param,
                    stored_transposed: false,
                });
            }
        }
        let derives = |target: &&Adapted| target.layer.tensors().iter().any(|spec| spec.init == Init::Derived);
        let weights: HashSet<String> =
            plan.adapted.iter().filter(derives).map(|target| format!("{}.weight", target.module)).collect();
        let weights = self.base_values(&weights.iter().map(String::as_str).collect());
        for target in &plan.adapted {
            let mut before: Vec<(Arc<str>, DynParam)> = Vec::new();
            for spec in target.layer.tensors() {
                let key = format!("{}.{}", target.module, spec.name);
                let weight = weights.get(&format!("{}.weight", target.module)).filter(|_| spec.init == Init::Derived);
                let derived = || target.layer.derived(&Tensors::new(&before), weight?.clone());
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
        let ties = self.base.info.tied.iter().filter(|_| plan.in_place).map(tie).collect();
        Ok(Adapter { config: plan.config.clone(), plan, tensors, ties })
    }

    /// The base model's words, if a tensor of the prompt begins as some of them.
    fn words<'a>(&self, plan: &Plan, tokenizer: Option<&'a dyn Tokenizer>, seed: u64) -> Option<Words<'a>> {
        let prompt = plan.prompt.as_ref()?;
        prompt.tuner.tensors(&prompt.shape).iter().find(|spec| spec.init == Init::Derived)?;
        let name = format!("{}.weight", self.base.info.input_embedding.as_ref()?);
        let table = self.base_values(&HashSet::from([name.as_str()])).remove(&name)?.get::<2>()?;
        Some(Words { table: table * self.base.info.word_scale, tokenizer, seed })
    }

    fn base_values(&self, wanted: &HashSet<&str>) -> BTreeMap<String, DynTensor> {
        let mut values = BTreeMap::new();
        let info = &self.base.info;
        self.base.module.boxed_clone().map_params(&|path| info.rename(path), &mut |name, param| {
            if wanted.contains(name) {
                values.insert(name.to_owned(), param.tensor().without_autodiff());
            }
            param
        });
        values
    }

    /// Chooses which adapters act, in this order.
    ///
    /// # Errors
    /// [`Error::Adapter`] if one is unknown, or two of them save the same module.
    pub fn set_active(&mut self, names: &[&str]) -> Result<()> {
        let mut saved: HashSet<&str> = HashSet::new();
        for name in names {
            let adapter = self.adapters.get(*name).ok_or_else(|| self.unknown(name))?;
            if adapter.prompt().is_some() && names.len() > 1 {
                return Err(Error::Adapter(format!(
                    "`{name}` is a prompt: it cannot act together with other adapters"
                )));
            }
            if let Some(twice) = adapter.plan.saved.iter().find(|module| !saved.insert(module)) {
                return Err(Error::Adapter(format!("two of the active adapters have a trained copy of `{twice}`")));
            }
        }
        self.sync();
        self.active = names.iter().map(|name| (*name).to_owned()).collect();
        self.reattach();
        Ok(())
    }

    /// Lets the active adapters act or not: PEFT's `disable_adapter`. Trained biases stay, as in PEFT.
    pub fn set_enabled(&mut self, enabled: bool) {
        self.sync();
        self.enabled = enabled;
        self.reattach();
    }

    /// Switches dropout on or off, in the base and in the adapters.
    pub fn set_training(&mut self, training: bool) {
        self.sync();
        self.training = training;
        self.reattach();
    }

    /// Removes an adapter. If it was the only active one, the first of the others becomes active.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is unknown.
    pub fn delete_adapter(&mut self, name: &str) -> Result<Adapter> {
        self.sync();
        let adapter = self.adapters.shift_remove(name).ok_or_else(|| self.unknown(name))?;
        self.active.retain(|active| active != name);
        if self.active.is_empty() {
            self.active.extend(self.adapters.keys().min().cloned());
        }
        self.reattach();
        Ok(adapter)
    }

    fn unknown(&self, name: &str) -> Error {
        let there: Vec<_> = self.adapters.keys().map(String::as_str).collect();
        Error::Adapter(format!("no adapter named `{name}` (there are: {})", there.join(", ")))
    }

    /// Takes the values that training changed from the running module back into the adapters.
    fn sync(&mut self) {
        let values = self.module.attached_params();
        for tensor in self.adapters.values_mut().flat_map(|adapter| &mut adapter.tensors) {
            if let Some(param) = values.get(&tensor.param.id()) {
                tensor.param = param.clone();
            }
        }
    }

    fn reattach(&mut self) {
        let active: Vec<(&str, &Adapter)> = self
            .active
            .iter()
            .filter_map(|name| self.adapters.get_key_value(name))
            .map(|(n, a)| (n.as_str(), a))
            .collect();
        let info = &self.base.info;
        let module = self.base.module.attach(&|path| info.rename(path), &active, self.enabled);
        self.module = module.set_training(self.training);
    }

    /// What the running model says of itself: as the base model, with the positions that a prompt takes.
    pub fn info(&self) -> Arc<ModelInfo> {
        let active = self.active.iter().filter(|_| self.enabled).filter_map(|name| self.adapters.get(name));
        match active.filter_map(Adapter::prompt).next() {
            Some(prompt) => Arc::new(prompt.info(&self.base.info)),
            None => Arc::clone(&self.base.info),
        }
    }

    /// The base model.
    pub fn base(&self) -> &BaseModel {
        &self.base
    }

    /// The device with autodiff on which the adapters are trained.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The names of the active adapters.
    pub fn active(&self) -> &[String] {
        &self.active
    }

    /// The names of all adapters.
    pub fn adapter_names(&self) -> impl Iterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// An adapter with its current values.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is unknown.
    pub fn adapter(&mut self, name: &str) -> Result<&Adapter> {
        self.sync();
        self.adapters.get(name).ok_or_else(|| self.unknown(name))
    }

    /// The task of the adapters; none for the default wrapper.
    ///
    /// # Errors
    /// If the task is not linked.
    pub fn task(&self) -> Result<Option<&'static TaskPlugin>> {
        match self.adapters.first() {
            Some((_, adapter)) => adapter.config.task(),
            None => Ok(None),
        }
    }

    /// What was decided for the first active adapter.
    ///
    /// # Errors
    /// [`Error::Adapter`] if none is active.
    pub fn explanation(&self) -> Result<Explanation> {
        let name = self.active.first().ok_or_else(|| Error::Adapter("no adapter is active".to_owned()))?;
        let adapter = self.adapters.get(name).ok_or_else(|| self.unknown(name))?;
        Ok(Explanation::of(&adapter.plan, &self.tree, adapter.config.task()?, &self.base.info.class_name))
    }

    /// Runs the model. Judge the batch with [`ModelInfo::check`](crate::ModelInfo::check) first.
    pub fn forward(&self, inputs: &Inputs) -> Outputs {
        self.module.forward(&self.prepare(inputs))
    }

    /// The batch with the inputs that follow from its labels, as the task has them: a decoder's.
    ///
    /// # Errors
    /// [`Error::Data`] if the labels are unfit.
    pub fn complete(&self, batch: Batch) -> Result<Batch> {
        match self.task()? {
            Some(plugin) => plugin.task.complete(batch, &self.base.info),
            None => Ok(batch),
        }
    }

    /// The inputs as the task's wrapper hands them to the base model.
    pub fn prepare(&self, inputs: &Inputs) -> Inputs {
        match self.task() {
            Ok(Some(plugin)) => plugin.task.prepare(inputs.clone()),
            _ => inputs.clone(),
        }
    }

    /// The running module, for what the wrapper does not do.
    pub fn module(&self) -> &dyn DynModule {
        &*self.module
    }

    /// Runs the model and computes the task's mean loss, `[1]`.
    ///
    /// # Errors
    /// [`Error::Data`] if the labels are unfit; [`Error::Adapter`] if there is no task.
    pub fn loss(&self, batch: &Batch) -> Result<(Tensor<1>, Outputs)> {
        let Some(task) = self.task()? else {
            return Err(Error::Adapter("the default wrapper has no loss: give the adapter a task_type".to_owned()));
        };
        let batch = task.task.complete(batch.clone(), &self.base.info)?;
        let outputs = self.forward(&batch.inputs);
        let loss = self.loss_of(&outputs, &batch.labels, task)?;
        Ok((loss, outputs))
    }

    /// The mean loss of outputs that are there already, `[1]`: the task's, or the prompt's own.
    ///
    /// # Errors
    /// [`Error::Data`] if the labels are unfit.
    pub fn loss_of(&self, outputs: &Outputs, labels: &Labels, task: &TaskPlugin) -> Result<Tensor<1>> {
        let active = self.active.iter().filter(|_| self.enabled).filter_map(|name| self.adapters.get(name));
        let own = active.filter_map(Adapter::prompt).find_map(|prompt| prompt.tuner.loss(outputs, labels));
        own.unwrap_or_else(|| task.task.loss(outputs, labels, &self.info()))
    }

    /// The gradients of the active adapters' tensors.
    pub fn gradients(&self, loss: &Tensor<1>) -> GradientsParams {
        self.module.gradients(&mut loss.backward())
    }

    /// One step of the optimiser on the active adapters.
    pub fn step(&mut self, optimizer: &mut ModuleOptimizer, lr: f64, gradients: GradientsParams) {
        let module = std::mem::replace(&mut self.module, self.base.module.boxed_clone());
        self.module = module.step(optimizer, lr, gradients);
        if self.adapters.values().any(|adapter| !adapter.ties.is_empty()) {
            self.unify();
        }
    }

    /// Gives all places of a tied parameter the value of the first: an optimiser has one gradient for them, and so changes one.
    fn unify(&mut self) {
        let module = std::mem::replace(&mut self.module, self.base.module.boxed_clone());
        let mut first: HashMap<ParamId, DynParam> = HashMap::new();
        let ties: HashSet<ParamId> = self.adapters.values().flat_map(tied_ids).collect();
        self.module = module.map_params(&str::to_owned, &mut |_, param| match ties.contains(&param.id()) {
            true => first.entry(param.id()).or_insert(param).clone(),
            false => param,
        });
    }

    /// The model in evaluation mode without autodiff.
    pub fn valid(&self) -> Box<dyn DynModule> {
        self.module.valid()
    }

    /// The active adapters' trainable tensors with their keys in the file.
    pub fn trainable(&mut self) -> Vec<AdapterTensor> {
        self.sync();
        let active = self.active.iter().filter_map(|name| self.adapters.get(name));
        active.flat_map(|a| a.tensors.iter().filter(|t| t.param.is_trainable()).cloned()).collect()
    }

    /// The adapter's tensors as its file has them.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is unknown.
    pub fn state_dict(&mut self, name: &str) -> Result<BTreeMap<String, TensorData>> {
        let adapter = self.adapter(name)?;
        let mut tensors: BTreeMap<_, _> =
            adapter.tensors.iter().map(|t| (adapter.file_key(t), t.to_file().to_data())).collect();
        if let Some(prompt) = adapter.prompt() {
            let table = || adapter.prompt_table(prompt).to_data();
            tensors.entry(PROMPT_EMBEDDINGS.to_owned()).or_insert_with(table);
        }
        Ok(tensors)
    }

    /// Replaces an adapter's values, as [`state_dict`](Self::state_dict) gives them.
    ///
    /// # Errors
    /// As [`load_adapter`](Self::load_adapter).
    pub fn load_state_dict(&mut self, name: &str, tensors: BTreeMap<String, TensorData>, origin: &Path) -> Result<()> {
        let active: Vec<String> = self.active.clone();
        let config = self.adapter(name)?.config.clone();
        let old = self.adapters.shift_remove(name);
        let folder = AdapterFolder { path: origin.to_owned(), config, tensors };
        let loaded = self.load_adapter(name, folder);
        if let (Err(_), Some(old)) = (&loaded, old) {
            self.adapters.insert(name.to_owned(), old);
        }
        self.active = active;
        self.reattach();
        loaded
    }

    /// Writes an adapter: PEFT's `save_pretrained`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is unknown, [`Error::Io`].
    pub fn save(&mut self, name: &str, folder: &Path) -> Result<()> {
        let tensors = self.state_dict(name)?;
        let config = self.adapter(name)?.config.clone();
        AdapterFolder::write(folder, name, &config, &tensors)
    }

    /// Folds the active adapters into a copy of the base model: PEFT's `merge_and_unload(safe_merge=True)`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a merged value is not finite; the model is as it was then.
    pub fn merge(&mut self) -> Result<BaseModel> {
        self.sync();
        let active = self.active.iter().filter_map(|name| Some((name, self.adapters.get(name)?)));
        if let Some((name, _)) = active.into_iter().find(|(_, adapter)| adapter.prompt().is_some()) {
            return Err(Error::Adapter(format!(
                "`{name}` is a prompt: it stands before the input and changes no weight, so there is nothing to merge"
            )));
        }
        let mut broken = None;
        let info = Arc::clone(&self.base.info);
        let mut hung: BTreeMap<&str, Vec<(&str, &AdapterTensor)>> = BTreeMap::new();
        for name in &self.active {
            let Some(adapter) = self.adapters.get(name) else { continue };
            for tensor in &adapter.tensors {
                hung.entry(&tensor.parameter).or_default().push((name, tensor));
            }
        }
        let ties: HashMap<&str, (&Tie, DynTensor)> =
            self.active.iter().filter_map(|name| self.adapters.get(name)).flat_map(tied_values).collect();
        let module = self.base.module.boxed_clone().map_params(&|path| info.rename(path), &mut |name, param| {
            if let Some((tie, value)) = ties.get(name) {
                let value = if tie.transposed { value.clone().transposed() } else { value.clone() };
                return with_value(param, value);
            }
            let Some(tensors) = hung.get(name) else { return param };
            let merged = merge_one(&param, tensors);
            if !is_finite(&merged) {
                broken = broken
                    .take()
                    .or_else(|| tensors.first().map(|(adapter, _)| (name.to_owned(), (*adapter).to_owned())));
            }
            with_value(param, merged)
        });
        match broken {
            Some((parameter, adapter)) => Err(Error::NotFinite { parameter, adapter }),
            None => Ok(BaseModel { module, info }),
        }
    }

    /// Takes all adapters off and gives the base model back, unchanged.
    pub fn unload(self) -> BaseModel {
        self.base
    }
}

enum Slot<'a> {
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
        crate::files::PROMPT_ENCODER_WEIGHTS
    ))
}

fn merge_one(param: &DynParam, tensors: &[(&str, &AdapterTensor)]) -> DynTensor {
    let mut value = param.tensor().without_autodiff();
    let mut at = 0;
    while let Some((adapter, first)) = tensors.get(at) {
        let group: Vec<(Arc<str>, DynParam)> = tensors
            .iter()
            .skip(at)
            .take_while(|(name, _)| name == adapter)
            .map(|(_, t)| (Arc::clone(&t.name), t.param.valid()))
            .collect();
        at += group.len().max(1);
        value = match &first.role {
            Role::Saved | Role::Tied { .. } | Role::Bias => first.param.tensor().without_autodiff(),
            Role::Prompt(_) => value,
            Role::Tuned(layer) => layer.merged(&Tensors::new(&group), value),
        };
    }
    value
}

/// The copies that more than one parameter of the base model follows.
fn tied_ids(adapter: &Adapter) -> impl Iterator<Item = ParamId> {
    let is_tied = |tensor: &&AdapterTensor| adapter.ties.iter().any(|tie| tie.original == tensor.parameter);
    adapter.tensors.iter().filter(is_tied).map(|tensor| tensor.param.id())
}

/// What the tied parameters of the base model are.
fn tied_values(adapter: &Adapter) -> impl Iterator<Item = (&str, (&Tie, DynTensor))> {
    adapter.ties.iter().filter_map(|tie| {
        let original = adapter.tensors.iter().find(|tensor| tensor.parameter == tie.original)?;
        Some((tie.copy.as_str(), (tie, original.param.tensor().without_autodiff())))
    })
}

fn with_value(param: DynParam, value: DynTensor) -> DynParam {
    use burn::module::Param;
    match (param, value) {
        (DynParam::R1(p), DynTensor::R1(t)) => DynParam::R1(Param::initialized(p.id, t)),
        (DynParam::R2(p), DynTensor::R2(t)) => DynParam::R2(Param::initialized(p.id, t)),
        (DynParam::R3(p), DynTensor::R3(t)) => DynParam::R3(Param::initialized(p.id, t)),
        (DynParam::R4(p), DynTensor::R4(t)) => DynParam::R4(Param::initialized(p.id, t)),
        (param, _) => param,
    }
}

fn is_finite(tensor: &DynTensor) -> bool {
    let finite = |data: TensorData| {
        data.convert::<f32>().try_to_vec::<f32>().is_ok_and(|values| values.iter().all(|value| value.is_finite()))
    };
    finite(tensor.to_data())
}

/// Copies of `Linear` weights lie in files as PyTorch has them, `[d_out, d_in]`.
fn is_stored_transposed(tree: &ModuleTree, parameter: &str) -> bool {
    let Some((module, "weight")) = parameter.rsplit_once('.') else { return false };
    tree.get(module).is_some_and(|info| info.kind == ModuleKind::Linear)
}

/// A parameter's identity follows from its name, so that optimiser state fits after a restart.
fn param_id(adapter: &str, key: &str) -> ParamId {
    ParamId::from(stable_hash(&(adapter, key)))
}

// `DefaultHasher::new` has fixed keys: the same value on every run of the same toolchain.
fn stable_hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The first value of a tensor: it depends on the seed and the key, not on the order of creation or the device.
fn initial(key: &str, spec: &TensorSpec, seed: u64) -> TensorData {
    let distribution = match spec.init {
        Init::Derived => return TensorData::zeros::<f32, _>(spec.shape.clone()),
        Init::Constant(value) => return TensorData::full::<f32, _>(spec.shape.clone(), value as f32),
        Init::Normal { std } => Distribution::Normal(0.0, std),
        Init::Uniform { bound } => Distribution::Uniform(-bound, bound),
    };
    let mut rng = StdRng::seed_from_u64(stable_hash(&(seed, key)));
    TensorData::random::<f32, _, _>(spec.shape.clone(), distribution, &mut rng)
}
