//! A base model and its named adapters: PEFT's `PeftModel`.

mod embeddings;
mod merging;
mod rows;
mod tensors;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use burn::{
    module::ParamId,
    optim::{GradientsParams, ModuleOptimizer},
    tensor::{Device, Tensor, TensorData},
};
use indexmap::IndexMap;

use crate::{
    Adapter, AutoClass, BaseModel, Batch, CheckedBatch, CheckedInputs, DynModule, DynParam, DynTensor, Error,
    Explanation, Labels, ModelInfo, ModuleTree, Outputs, PeftConfig, Plan, Result, RunningModel, Task, TaskPlugin,
    adapter::{
        AdapterFolder, AdapterTensor,
        rows::{AdapterRows, BASE},
    },
    batch::IGNORE,
    data::{loss::Loss, tokenizer::Tokenizer},
    model::{
        attach::Acting,
        explain,
        running_model::{loss_for, run},
    },
    plugins::{
        prompt::{PROMPT_EMBEDDINGS, PromptPlan},
        tuner::Init,
    },
};
pub use rows::AdapterLoss;
use tensors::{Slot, initial, is_stored_transposed};

/// The name that PEFT gives an adapter when none is given.
pub const DEFAULT_ADAPTER: &str = "default";

/// A base model with named adapters, some of them active.
///
/// The base is never changed: the module that runs is made from the base and the active adapters, and made again when they
/// change.
#[derive(Debug)]
pub struct PeftModel {
    base: BaseModel,
    tree: ModuleTree,
    device: Device,
    adapters: IndexMap<String, Adapter>,
    active: Vec<String>,
    /// The adapters of the rows of a batch, where each row has its own.
    rows: Option<Arc<AdapterRows>>,
    enabled: bool,
    training: bool,
    module: Box<dyn DynModule>,
    info: Arc<ModelInfo>,
}

impl PeftModel {
    /// The base model without an adapter yet; `device` is where the adapters' tensors live.
    pub fn from_base(base: BaseModel, device: &Device) -> Self {
        let tree = base.tree();
        let module = base.unadapted();
        let info = Arc::clone(&base.info);
        Self {
            base,
            tree,
            device: device.clone().autodiff(),
            adapters: IndexMap::new(),
            active: Vec::new(),
            rows: None,
            enabled: true,
            training: false,
            module,
            info,
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

    /// [`add_adapter`](Self::add_adapter) for a prompt that is initialized from a text, which needs the tokenizer.
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
        self.check_biases(&plan)?;
        if plan.in_place && !self.base.quantized.is_empty() {
            let problem = format!("{} trains every weight, which needs an unquantized model", config.peft_type);
            return Err(Error::config("peft_type", problem));
        }
        let words = self.token_embeddings(&plan, tokenizer, seed);
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

    fn check_new(&self, name: &str, config: &PeftConfig) -> Result<()> {
        if name.is_empty() || name.contains(['.', '/', '\\']) {
            return Err(Error::Adapter(format!("`{name}` cannot name an adapter: no dots, slashes or nothing at all")));
        }
        if name == BASE {
            let problem = "stands for the base model without an adapter: give the adapter another name";
            return Err(Error::Adapter(format!("`{name}` cannot name an adapter: it {problem}")));
        }
        if self.adapters.contains_key(name) {
            return Err(Error::Adapter(format!("there is an adapter named `{name}` already")));
        }
        let Some((other, first)) = self.adapters.first() else { return Ok(()) };
        if let (Some(own), Some(task)) = (&first.config.task_type, &config.task_type)
            && own != task
        {
            return Err(Error::Adapter(format!("adapter `{name}` is for another task type than `{other}`")));
        }
        Ok(())
    }

    /// Refuses a second adapter that trains biases of the base model.
    fn check_biases(&self, plan: &Plan) -> Result<()> {
        if plan.biases.is_empty() || self.adapters.values().all(|adapter| adapter.plan.biases.is_empty()) {
            return Ok(());
        }
        Err(Error::Adapter("only one adapter can train biases: they belong to the base model".to_owned()))
    }

    /// Chooses which adapters act, in this order.
    ///
    /// # Errors
    /// [`Error::Adapter`] if one is unknown, or two of them save the same module.
    pub fn set_active(&mut self, names: &[&str]) -> Result<()> {
        let mut saved: HashSet<&str> = HashSet::new();
        for name in names {
            let adapter = self.adapters.get(*name).ok_or_else(|| self.unknown(name))?;
            if adapter.plan.prompt.is_some() && names.len() > 1 {
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
        self.rows = None;
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
        // Whatever may be named for a row is attached to the model, so that its gradients add up over batches of other rows.
        let attached: Vec<(&String, &Adapter)> = match &self.rows {
            Some(_) => self.adapters.iter().filter(|(_, adapter)| self.refuses_rows(adapter).is_none()).collect(),
            None => self.active.iter().filter_map(|name| self.adapters.get_key_value(name)).collect(),
        };
        let attached: Vec<(&str, &Adapter)> =
            attached.into_iter().map(|(name, adapter)| (name.as_str(), adapter)).collect();
        let acting = match &self.rows {
            _ if !self.enabled => Acting::Off,
            Some(rows) => Acting::ByRow(Arc::clone(rows)),
            None => Acting::Together,
        };
        let info = &self.base.info;
        let module = self.base.module.attach(&|path| info.rename(path), &self.base.quantized, &attached, &acting);
        self.module = module.set_training(self.training);
        self.info = match self.prompt() {
            Some(prompt) => Arc::new(prompt.info(&self.base.info)),
            None => Arc::clone(&self.base.info),
        };
    }

    /// The prompt before the input, if there is one.
    fn prompt(&self) -> Option<&PromptPlan> {
        let acts = self.enabled && self.rows.is_none();
        let active = self.active.iter().filter(|_| acts).filter_map(|name| self.adapters.get(name));
        active.filter_map(|adapter| adapter.plan.prompt.as_deref()).next()
    }

    /// What the running model says of itself: as the base model, with the positions that a prompt takes.
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
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

    /// What the model is for: the task of the adapters, else that of the base model's class. None for a backbone with an adapter
    /// that has no task.
    ///
    /// # Errors
    /// If the task is not linked.
    pub fn task(&self) -> Result<Option<&'static TaskPlugin>> {
        let own = match self.adapters.first() {
            Some((_, adapter)) => adapter.config.task()?,
            None => None,
        };
        let class = Some(&self.base.info.class).filter(|c| self.adapters.is_empty() || **c != AutoClass::MODEL);
        Ok(own.or_else(|| class.and_then(TaskPlugin::of_class)))
    }

    /// The task of PEFT's wrapper; none where there is none but the default one, for a base model alone and for one that is trained
    /// as a whole.
    ///
    /// # Errors
    /// If the task is not linked.
    pub fn wrapper(&self) -> Result<Option<&'static TaskPlugin>> {
        match self.adapters.first() {
            Some((_, adapter)) if !adapter.plan.in_place => adapter.config.task(),
            _ => Ok(None),
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

    /// Checks a batch for the model as it is now, with the inputs that follow from its labels (a decoder's), and brings it to the
    /// model's device.
    ///
    /// # Errors
    /// [`Error::Data`] with what the model cannot take.
    pub fn check(&self, batch: impl Into<Batch>) -> Result<CheckedBatch> {
        let task = self.task()?.map(|plugin| plugin.task);
        Ok(CheckedBatch::new(batch.into(), task, &self.info)?.on(&self.device.clone().inner()))
    }

    /// Runs the model.
    ///
    /// # Errors
    /// [`Error::Data`] if the inputs were checked for another model and do not suit this one; [`Error::Adapter`] if its rows have
    /// adapters of their own and are others, or cannot be told apart by a layer.
    pub fn forward(&self, inputs: &CheckedInputs) -> Result<Outputs> {
        let task = self.wrapper()?.map(|plugin| plugin.task);
        run(&*self.module, &self.info, self.rows.as_deref(), task, inputs)
    }

    /// The inputs as the task's wrapper hands them to the base model.
    pub fn prepare(&self, inputs: &CheckedInputs) -> CheckedInputs {
        match self.wrapper() {
            Ok(Some(plugin)) => inputs.clone().map(|inputs| plugin.task.prepare(inputs)),
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
    pub fn loss(&self, batch: &CheckedBatch) -> Result<(Tensor<1>, Outputs)> {
        let Some(task) = self.task()? else {
            return Err(Error::Adapter("the default wrapper has no loss: give the adapter a task_type".to_owned()));
        };
        let outputs = self.forward(&batch.inputs)?;
        let loss = self.loss_of(&outputs, &batch.labels, task)?;
        Ok((loss, outputs))
    }

    /// The mean loss of outputs that are there already, `[1]`: the task's, or the prompt's own.
    ///
    /// # Errors
    /// [`Error::Data`] if the labels are unfit.
    pub fn loss_of(&self, outputs: &Outputs, labels: &Labels, task: &TaskPlugin) -> Result<Tensor<1>> {
        let loss = self.loss_for(task.task, labels)?;
        if loss.weight() == 0.0 {
            return Err(Error::Data(format!("no label counts, all of them are {IGNORE}: there is no loss")));
        }
        loss.mean(outputs)
    }

    /// The loss of labels, before there are outputs: the task's, or the prompt's own.
    ///
    /// # Errors
    /// [`Error::Data`] if the labels are unfit.
    pub fn loss_for<'a>(&'a self, task: &dyn Task, labels: &'a Labels) -> Result<Loss<'a>> {
        loss_for(self.prompt().map(|prompt| &*prompt.tuner), task, labels, &self.info)
    }

    /// The gradients of the active adapters' tensors.
    pub fn gradients(&self, loss: &Tensor<1>) -> GradientsParams {
        self.module.gradients(&mut loss.backward())
    }

    /// One step of one of Burn's optimisers on the active adapters.
    pub fn step(&mut self, optimizer: &mut ModuleOptimizer, lr: f64, gradients: GradientsParams) {
        let module = std::mem::replace(&mut self.module, self.base.module.boxed_clone());
        self.module = module.step(optimizer, lr, gradients);
        if self.adapters.values().any(|adapter| !adapter.ties.is_empty()) {
            self.unify();
        }
    }

    /// Gives tensors of the active adapters new values, by identity: what an optimiser does that works out its steps by itself.
    pub fn assign(&mut self, values: HashMap<ParamId, DynTensor>) {
        let module = std::mem::replace(&mut self.module, self.base.module.boxed_clone());
        self.module = module.assign(values);
    }

    /// Assigns the value of the first occurrence of a tied parameter to all others: an optimiser has one gradient for them, and so changes one.
    fn unify(&mut self) {
        let module = std::mem::replace(&mut self.module, self.base.module.boxed_clone());
        let mut first: HashMap<ParamId, DynParam> = HashMap::new();
        let ties: HashSet<ParamId> = self.adapters.values().flat_map(tied_ids).collect();
        self.module = module.map_params(&str::to_owned, &mut |_, param| match ties.contains(&param.id()) {
            true => first.entry(param.id()).or_insert(param).clone(),
            false => param,
        });
    }

    /// The model in evaluation mode without autodiff, as its adapters are now.
    #[must_use]
    pub fn valid(&self) -> RunningModel {
        let task = self.wrapper().ok().flatten().map(|plugin| plugin.task);
        let prompt = self.prompt().map(|prompt| Arc::clone(&prompt.tuner));
        RunningModel {
            module: self.module.valid(),
            info: Arc::clone(&self.info),
            rows: self.rows.clone(),
            task,
            prompt,
        }
    }

    /// The active adapters' trainable tensors with their keys in the file.
    pub fn trainable(&mut self) -> Vec<AdapterTensor> {
        self.sync();
        let active = self.active.iter().filter_map(|name| self.adapters.get(name));
        active.flat_map(|a| a.tensors.iter().filter(|t| t.param.is_trainable()).cloned()).collect()
    }

    /// One adapter's trainable tensors, whether it is active or not.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is unknown.
    pub fn trainable_of(&mut self, name: &str) -> Result<Vec<AdapterTensor>> {
        Ok(self.adapter(name)?.tensors.iter().filter(|t| t.param.is_trainable()).cloned().collect())
    }

    /// The adapter's tensors as its file has them.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it is unknown.
    pub fn state_dict(&mut self, name: &str) -> Result<BTreeMap<String, TensorData>> {
        self.sync();
        let adapter = self.adapters.get(name).ok_or_else(|| self.unknown(name))?;
        let mut tensors: BTreeMap<_, _> =
            adapter.tensors.iter().map(|t| (adapter.file_key(t), t.to_file().to_data())).collect();
        let embeddings =
            self.base_values(&adapter.embeddings.iter().map(|(_, parameter)| parameter.as_str()).collect());
        for (key, parameter) in &adapter.embeddings {
            let Some(value) = embeddings.get(parameter) else { continue };
            let value =
                if is_stored_transposed(&self.tree, parameter) { value.clone().transposed() } else { value.clone() };
            tensors.insert(key.clone(), value.to_data());
        }
        if let Some(prompt) = &adapter.plan.prompt {
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

    /// Takes all adapters off and gives the base model back, unchanged.
    #[must_use = "the adapters are gone"]
    pub fn unload(self) -> BaseModel {
        self.base
    }
}

/// The copies that more than one parameter of the base model follows.
fn tied_ids(adapter: &Adapter) -> impl Iterator<Item = ParamId> {
    let is_tied = |tensor: &&AdapterTensor| adapter.ties.iter().any(|tie| tie.original == tensor.parameter);
    adapter.tensors.iter().filter(is_tied).map(|tensor| tensor.param.id())
}

/// A service shares one model among its threads.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<PeftModel>();
};
