//! What follows a loss: the gradients of micro-batches added up, clipped together, and PyTorch's AdamW.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::{
    module::ParamId,
    optim::GradientsParams,
    tensor::{DType, Tensor, TensorData},
};
use peft_backends::ops::{AdamW, Trained, adamw};
use peft_core::{Adapter, DynTensor, Error as PeftError, PeftModel, adapter::AdapterTensor, files::TensorFile};

use crate::{Result, recipe::TrainingArguments};

/// What PyTorch calls the running means of the gradient and of its square.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// What PyTorch calls the number of steps that a tensor has had.
const STEP: &str = "step";

/// PyTorch's AdamW on the active adapters of a model.
#[derive(Debug)]
pub struct Optimizer {
    rule: AdamW,
    /// The identity and rank of each trained tensor, by which its gradient is found.
    trained: Vec<(ParamId, usize)>,
    /// What the next step will see, flat.
    gradients: HashMap<ParamId, Tensor<1>>,
    /// Of those tensors that have had a step.
    states: HashMap<ParamId, State>,
}

/// What AdamW remembers of a tensor.
#[derive(Debug, Clone)]
struct State {
    /// Flat, in single precision.
    moments: [Tensor<1>; 2],
    /// How many steps it has had.
    steps: u32,
}

impl Optimizer {
    /// For the tensors that are trained, as [`PeftModel::trainable`] gives them.
    pub fn new(arguments: &TrainingArguments, trained: &[AdapterTensor]) -> Self {
        let rule = AdamW {
            learning_rate: arguments.learning_rate,
            betas: [arguments.adam_beta1, arguments.adam_beta2],
            epsilon: arguments.adam_epsilon,
            weight_decay: arguments.weight_decay,
            max_grad_norm: Some(arguments.max_grad_norm).filter(|norm| *norm > 0.0),
        };
        let trained = trained.iter().map(|tensor| (tensor.param.id(), tensor.param.shape().len())).collect();
        Self { rule, trained, gradients: HashMap::new(), states: HashMap::new() }
    }

    /// Adds the gradients of a micro-batch, as [`PeftModel::gradients`] gives them, to those that the next step will see.
    pub fn accumulate(&mut self, mut gradients: GradientsParams) {
        self.take(&mut gradients);
    }

    /// The same of this optimiser's own tensors, where others train others in the same pass: theirs are left.
    pub fn take(&mut self, gradients: &mut GradientsParams) {
        for (id, rank) in &self.trained {
            let Some(gradient) = DynTensor::take_gradient(gradients, *id, *rank) else { continue };
            let gradient = gradient.flat();
            let sum = match self.gradients.remove(id) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.gradients.insert(*id, sum);
        }
    }

    /// One step at learning rate `lr` with the gradients that were accumulated, which are then gone. Tensors without a gradient
    /// stay as they are, and so does what is remembered of them.
    ///
    /// Returns the norm of all gradients together before clipping, `[1]`; none if there are no gradients.
    pub fn step(&mut self, model: &mut PeftModel, lr: f64) -> Option<Tensor<1>> {
        let mut params = model.module().attached_params();
        let mut stepped = Vec::with_capacity(self.trained.len());
        let mut tensors = Vec::with_capacity(self.trained.len());
        for (id, _) in &self.trained {
            let (Some(gradient), Some(param)) = (self.gradients.remove(id), params.remove(id)) else { continue };
            let value = param.tensor().without_autodiff().flat();
            let state = self.states.remove(id);
            let State { moments, steps } = state.unwrap_or_else(|| {
                let zeros = || Tensor::zeros(value.dims(), (&value.device(), DType::F32));
                State { moments: [zeros(), zeros()], steps: 0 }
            });
            let step = steps.saturating_add(1);
            tensors.push(Trained { value, gradient, moments, step });
            stepped.push((*id, param.shape(), step));
        }
        self.gradients.clear();
        let (updated, norm) = adamw(&AdamW { learning_rate: lr, ..self.rule }, tensors);
        let mut values = HashMap::with_capacity(updated.len());
        for ((id, shape, steps), updated) in stepped.into_iter().zip(updated) {
            values.extend(DynTensor::shaped(updated.value, &shape).map(|value| (id, value)));
            self.states.insert(id, State { moments: updated.moments, steps });
        }
        model.assign(values);
        norm
    }

    /// What is remembered of an adapter's tensors, by their keys in its files and in the orientation of those.
    pub(crate) fn state(&self, adapter: &Adapter) -> BTreeMap<String, TensorData> {
        let mut tensors = BTreeMap::new();
        for tensor in trained(adapter) {
            let key = adapter.file_key(tensor);
            let state = self.states.get(&tensor.param.id());
            let steps = state.map_or(0, |state| i64::from(state.steps));
            tensors.insert(format!("{key}.{STEP}"), TensorData::from([steps]));
            for (name, moment) in MOMENTS.into_iter().zip(state.iter().flat_map(|state| &state.moments)) {
                let shaped = DynTensor::shaped(moment.clone(), &tensor.param.shape());
                tensors.extend(shaped.map(|moment| (format!("{key}.{name}"), tensor.oriented(moment).to_data())));
            }
        }
        tensors
    }

    /// Takes up what [`state`](Self::state) gave, as a file has it.
    ///
    /// # Errors
    /// [`PeftError::Tensors`] that lists all that is missing, is left over or is not what it should be.
    pub(crate) fn restore(&mut self, file: &TensorFile, adapter: &Adapter) -> Result<()> {
        let mut left: BTreeSet<&str> = file.tensors.keys().map(String::as_str).collect();
        let mut problems = Vec::new();
        let mut states = HashMap::new();
        for tensor in trained(adapter) {
            let file_key = adapter.file_key(tensor);
            let mut find = |name: &str, dtype: DType, shape: &[usize]| {
                let key = format!("{file_key}.{name}");
                left.remove(key.as_str());
                let problem = match file.tensors.get(&key) {
                    Some(data) if data.dtype() == dtype && data.shape().as_slice() == shape => {
                        return Some(data.clone());
                    }
                    Some(data) => format!("is {:?} {:?}", data.dtype(), data.shape().as_slice()),
                    None => "is missing".to_owned(),
                };
                problems.push(format!("`{key}`: {problem}, should be {dtype:?} {shape:?}"));
                None
            };
            let value = tensor.to_file();
            let shape = value.shape();
            let steps = find(STEP, DType::I64, &[1]).and_then(|data| data.try_to_vec::<i64>().ok()?.first().copied());
            if steps == Some(0) {
                continue;
            }
            let moments = MOMENTS.map(|name| find(name, DType::F32, &shape));
            match steps.map(u32::try_from) {
                Some(Err(_)) => problems.push(format!("`{file_key}.{STEP}`: is no number of steps")),
                Some(Ok(steps)) => {
                    let device = value.flat().device();
                    let flat = |data| Some(tensor.oriented(DynTensor::from_data(data, &device)?).flat());
                    if let [Some(first), Some(second)] = moments.map(|moment| moment.and_then(flat)) {
                        states.insert(tensor.param.id(), State { moments: [first, second], steps });
                    }
                }
                None => {}
            }
        }
        problems.extend(left.into_iter().map(|key| format!("`{key}`: optimizer state of no trainable parameter")));
        if !problems.is_empty() {
            return Err(PeftError::Tensors { origin: file.path.display().to_string(), problems }.into());
        }
        self.states = states;
        Ok(())
    }
}

/// What an adapter trains.
fn trained(adapter: &Adapter) -> impl Iterator<Item = &AdapterTensor> {
    adapter.tensors.iter().filter(|tensor| tensor.param.is_trainable())
}
