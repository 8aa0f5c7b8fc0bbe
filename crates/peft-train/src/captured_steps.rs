//! Passes that a GPU records once for each shape of a batch and repeats by one command.
//!
//! A recording holds launches and where they read and write. So it knows nothing of a batch: token ids, targets and parameters lie
//! in slots that are written over before each pass, and rows need no mask. They are padded on the right, where a causal model's
//! tokens do not look and where no target counts. The optimiser stays outside.

use std::{collections::HashMap, sync::Arc};

use burn::{
    module::ParamId,
    optim::GradientsParams,
    tensor::{DType, Device, Float, Int, Tensor, TensorData},
};
use peft_backends::{
    Captured,
    capture::is_recordable,
    ops::{Slot, is_random},
};
use peft_core::{
    CheckedBatch, CheckedInputs, DynModule, DynTensor, Error as PeftError, Inputs, Labels, ModelInfo, PeftModel, Task,
    batch::IGNORE,
    data::loss::{check_targets, token_cross_entropy_on_device},
};

use crate::{Recipe, Result};

/// Most recordings that are kept, the least recently used go: each has the memory of a pass for itself.
pub(crate) const MOST: usize = 8;

/// Why the steps of a recipe are not recorded, whatever its model and its device, in words; none if they may be.
pub(crate) fn hindrance(recipe: &Recipe) -> Option<&'static str> {
    match (recipe.apart().len() > 1, recipe.data.packing) {
        (true, _) => Some("the rows of a batch are several adapters'"),
        (false, true) => Some("packed examples need a mask of their own"),
        (false, false) => None,
    }
}

/// The recorded passes of a model with one adapter.
#[derive(Debug)]
pub struct CapturedSteps {
    device: Device,
    task: &'static dyn Task,
    /// The model, with what it trains in slots.
    module: Box<dyn DynModule>,
    trained: Vec<(ParamId, Slot<Float>)>,
    classes: usize,
    checkpointed_layers: usize,
    /// The last used is the last.
    passes: Vec<Pass>,
}

/// A recorded pass over rows of one shape.
#[derive(Debug)]
struct Pass {
    shape: [usize; 2],
    ids: Slot<Int>,
    targets: Slot<Int>,
    captured: Captured<Option<Output>>,
}

/// The mean loss, `[1]`, and its gradients.
type Output = (Tensor<1>, Vec<(ParamId, DynTensor)>);

impl CapturedSteps {
    /// For the active adapter of a model that is in training mode.
    ///
    /// # Errors
    /// Why the model's passes cannot be recorded, in words.
    pub fn new(model: &mut PeftModel, checkpointed_layers: usize) -> Result<Self, String> {
        let device = model.device().clone().inner();
        if !is_recordable(&device) {
            return Err("only a GPU records".to_owned());
        }
        let info = Arc::clone(model.info());
        if !info.supports_graph_capture {
            return Err(format!("{} is not known to look at nothing but token ids", info.class_name));
        }
        if info.num_types().is_some() {
            return Err(format!("{} takes segments beside token ids", info.class_name));
        }
        let [name] = model.active() else { return Err("it is not one adapter that is active".to_owned()) };
        let name = name.clone();
        let adapter = model.adapter(&name).map_err(in_words)?;
        if adapter.plan.prompt.is_some() || adapter.plan.in_place {
            return Err(format!("{} is no adapter of single layers", adapter.config.peft_type));
        }
        if !adapter.plan.adapted.iter().all(|adapted| adapted.layer.records()) {
            return Err(format!("{} is not known to look at no values", adapter.config.peft_type));
        }
        let trained: Vec<_> = adapter.tensors.iter().map(|t| &t.param).filter(|p| p.is_trainable()).cloned().collect();
        let (task, classes) = rehearse(model, &device)?;
        let (mut slots, mut places) = (Vec::new(), HashMap::new());
        for param in trained {
            let id = param.id();
            let Some((slot, place)) = slot(param.tensor().to_data(), &device) else {
                return Err("the GPU has no place for what is trained".to_owned());
            };
            slots.push((id, slot));
            places.insert(id, place);
        }
        let module = model.module().boxed_clone().assign(places);
        Ok(Self { device, task, module, trained: slots, classes, checkpointed_layers, passes: Vec::new() })
    }

    /// The mean loss of a batch, `[1]`, and the gradients of what the model trains as it is now, both multiplied by `share`.
    ///
    /// # Errors
    /// [`PeftError::Data`] if the batch has other inputs than token ids and a mask of padding on the right, or labels that are
    /// unfit.
    pub fn pass(
        &mut self,
        model: &PeftModel,
        batch: &CheckedBatch,
        share: f64,
    ) -> Result<(Tensor<1>, GradientsParams)> {
        let (ids, shape) = only_ids(&batch.inputs)?;
        let targets = self.targets(&batch.labels, shape)?;
        let values = model.module().attached_params();
        for (id, slot) in &mut self.trained {
            let Some(value) = values.get(id) else {
                return Err(unfit("the model has another adapter than was recorded"));
            };
            slot.write(value.tensor().flat());
        }
        let pass = match self.passes.iter().position(|pass| pass.shape == shape) {
            Some(at) => self.passes.remove(at),
            None => {
                if self.passes.len() >= MOST {
                    self.passes.remove(0);
                }
                self.record(shape, model.info())?
            }
        };
        self.passes.push(pass);
        let Some(pass) = self.passes.last_mut() else { unreachable!("there is one") };
        pass.ids.write(ids);
        pass.targets.write(targets);
        let Some((loss, slopes)) = pass.captured.replay() else { return Err(unfit("the model gives no logits")) };
        // Multiplied also where the factor is 1: the next pass writes over what a recording gives.
        let mut gradients = GradientsParams::new();
        for (id, slope) in slopes {
            match slope.clone() {
                DynTensor::R1(slope) => gradients.register(*id, slope.mul_scalar(share)),
                DynTensor::R2(slope) => gradients.register(*id, slope.mul_scalar(share)),
                DynTensor::R3(slope) => gradients.register(*id, slope.mul_scalar(share)),
                DynTensor::R4(slope) => gradients.register(*id, slope.mul_scalar(share)),
            }
        }
        Ok((loss.clone().mul_scalar(share), gradients))
    }

    /// How many passes are kept, and how many of them a device recorded: the others run again each time.
    pub fn kept(&self) -> [usize; 2] {
        let recorded = self.passes.iter().filter(|pass| pass.captured.is_recorded()).count();
        [self.passes.len(), recorded]
    }

    /// What each position should be, brought to the device.
    fn targets(&self, labels: &Labels, [rows, length]: [usize; 2]) -> Result<Tensor<1, Int>> {
        if labels.get("labels")?.shape().as_slice() != [rows, length] {
            return Err(unfit("its labels do not stand beside its token ids"));
        }
        let Some(targets) = self.task.targets(labels, length)? else {
            return Err(unfit("its loss takes more than targets"));
        };
        check_targets(&targets, rows * length, self.classes)?;
        Ok(Tensor::from_data(TensorData::new(targets, [rows * length]), &self.device))
    }

    /// Records the pass over rows of a shape.
    fn record(&self, shape @ [rows, length]: [usize; 2], info: &ModelInfo) -> Result<Pass> {
        let padding = |dims: &[usize], value: i64| TensorData::full::<i64, _>(dims.to_vec(), value);
        let ids = Slot::<Int>::new::<2>(padding(&shape, 0), &self.device);
        let targets = Slot::<Int>::new::<1>(padding(&[rows * length], IGNORE), &self.device);
        let (Some((ids, input_ids)), Some((targets, wanted))) = (ids, targets) else {
            return Err(unfit("the device has no place for it"));
        };
        let inputs =
            Inputs { input_ids: Some(input_ids), checkpointed_layers: self.checkpointed_layers, ..Inputs::default() };
        // Ids of checked batches will stand in the slot.
        let inputs = CheckedInputs::new(self.task.prepare(inputs), info)?;
        let trained: Vec<ParamId> = self.trained.iter().map(|(id, _)| *id).collect();
        let module = self.module.boxed_clone();
        let params = module.attached_params();
        let computation = move || {
            let outputs = module.forward(&inputs);
            let loss = token_cross_entropy_on_device(&outputs, "logits", &wanted).ok()?;
            let gradients = module.gradients(&mut loss.backward());
            let slope = |id: &ParamId| Some((*id, params.get(id)?.gradient(&gradients)?));
            Some((loss.without_autodiff(), trained.iter().filter_map(slope).collect()))
        };
        Ok(Pass { shape, ids, targets, captured: Captured::new(&self.device, computation) })
    }
}

/// Runs the model on one token, to see what a recording would not show: the task and how many classes it tells apart.
fn rehearse(model: &PeftModel, device: &Device) -> Result<(&'static dyn Task, usize), String> {
    let Some(task) = model.task().map_err(in_words)?.map(|plugin| plugin.task) else {
        return Err("the default wrapper has no loss".to_owned());
    };
    let ids = Tensor::zeros([1, 1], (device, DType::I32));
    let inputs = Inputs { input_ids: Some(ids), ..Inputs::default() };
    let inputs = model.check(inputs).map_err(in_words)?.inputs;
    let (outputs, drops) = is_random(|| model.forward(&inputs));
    let outputs = outputs.map_err(in_words)?;
    if drops {
        return Err("dropout is on, and a recording would drop the same values in every step".to_owned());
    }
    let labels = Labels([("labels".to_owned(), TensorData::from([[IGNORE]]))].into());
    if task.targets(&labels, 1).map_err(in_words)?.is_none() {
        return Err("the task's loss takes more than the targets of tokens".to_owned());
    }
    let [.., classes] = outputs.dims::<3>("logits").map_err(in_words)?;
    Ok((task, classes))
}

/// The token ids of a batch and their shape, if it has nothing else but a mask of padding on the right.
fn only_ids(inputs: &Inputs) -> Result<(Tensor<2, Int>, [usize; 2])> {
    let Inputs {
        input_ids: Some(ids),
        attention_mask: Some(mask),
        inputs_embeds: None,
        prompt: None,
        token_type_ids: None,
        position_ids: None,
        decoder_input_ids: None,
        past_key_values: None,
        ..
    } = inputs
    else {
        return Err(unfit("it has other inputs than token ids and a mask"));
    };
    let shape @ [_, length] = ids.dims();
    let mask = mask.clone().into_data().convert::<i64>().try_into_vec::<i64>().unwrap_or_default();
    let is_right_padded = |row: &[i64]| row.is_sorted_by(|a, b| a >= b) && row.first() == Some(&1);
    if mask.len() != ids.shape().num_elements() || !mask.chunks(length.max(1)).all(is_right_padded) {
        return Err(unfit("its padding is not on the right"));
    }
    Ok((ids.clone(), shape))
}

/// A place for values of any rank.
fn slot(data: TensorData, device: &Device) -> Option<(Slot<Float>, DynTensor)> {
    Some(match data.shape().num_dims() {
        1 => Slot::<Float>::new(data, device).map(|(slot, tensor)| (slot, DynTensor::R1(tensor)))?,
        2 => Slot::<Float>::new(data, device).map(|(slot, tensor)| (slot, DynTensor::R2(tensor)))?,
        3 => Slot::<Float>::new(data, device).map(|(slot, tensor)| (slot, DynTensor::R3(tensor)))?,
        _ => Slot::<Float>::new(data, device).map(|(slot, tensor)| (slot, DynTensor::R4(tensor)))?,
    })
}

fn unfit(problem: &str) -> crate::Error {
    PeftError::Data(format!("a batch cannot be trained on by a recorded step: {problem}")).into()
}

fn in_words(error: PeftError) -> String {
    error.to_string()
}
