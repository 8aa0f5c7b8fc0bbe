//! Steps of training, timed one by one.

use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use peft::train::{Optimizer, report::peak_rss_bytes};
use peft::{
    CheckedBatch, Error, PeftModel, Result,
    adapter::AdapterFolder,
    models::checkpoint::{self, LoadOptions, Loaded},
};
use serde::Serialize;

use crate::{
    burn_lora::BurnLora,
    case::{Train, Whose, batches, device, seconds_since, tokens},
};

/// What a run came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Of each step, before its update.
    losses: Vec<f32>,
    /// Of each step.
    step_seconds: Vec<f64>,
    /// Of each step.
    tokens: usize,
    /// What the weights of the base model take.
    base_bytes: usize,
    /// Largest resident memory by the end of loading.
    loaded_rss_bytes: Option<u64>,
    /// Largest resident memory by the end of the steps.
    peak_rss_bytes: Option<u64>,
    /// What the pools of a GPU hold after the steps; none of the processor.
    device_bytes: Option<u64>,
    /// From the start of the process to the end of the first step.
    first_step_seconds: f64,
    /// Writing, reading and merging the adapter; none where that was not asked for.
    #[serde(flatten)]
    after: Option<After>,
}

/// Seconds of what follows training.
#[derive(Debug, Serialize)]
struct After {
    save_seconds: f64,
    load_seconds: f64,
    merge_seconds: f64,
}

/// A model in training.
trait Side {
    /// One step; returns the loss before it, `[1]`.
    fn step(&mut self, batch: &CheckedBatch) -> Result<Tensor<1>>;
}

/// Does the case.
///
/// # Errors
/// If model, adapter or batches cannot be read or do not fit each other.
pub(crate) fn run(case: &Train) -> Result<Figures> {
    peft::backends::ops::set_fused(case.lora != Whose::BurnPlain);
    if case.lora == Whose::Ours {
        // As the program does.
        peft::backends::memory::keep_freed();
    }
    let device = device(case.device.as_deref())?;
    let model = load(case, &device)?;
    let (base_bytes, loaded_rss_bytes) = (model.base().bytes(), peak_rss_bytes());
    let batches = batches(&case.batches)?.into_iter().map(|batch| model.check(batch)).collect::<Result<Vec<_>>>()?;
    let mut after = None;
    let figures = match case.lora {
        Whose::Ours if case.by_rows => steps(&mut Together::new(model, case)?, case, &batches)?,
        Whose::Ours => {
            let mut ours = Ours::new(model, case);
            let figures = steps(&mut ours, case, &batches)?;
            after = case.save.as_ref().map(|folder| ours.after(folder)).transpose()?;
            figures
        }
        Whose::Burn | Whose::BurnPlain => steps(&mut BurnLora::new(model, case)?, case, &batches)?,
    };
    Ok(Figures { after, base_bytes, loaded_rss_bytes, ..figures })
}

/// The base model and the adapters, all active.
fn load(case: &Train, device: &Device) -> Result<PeftModel> {
    let folder = AdapterFolder::read(&case.adapter)?;
    let task = folder.config.task()?.ok_or_else(|| Error::Adapter("the adapter has no task_type".to_owned()))?;
    let (dtype, quantization) = (Some(DType::from(case.dtype)), case.quantization.clone());
    let options = LoadOptions { dtype, quantization, ..LoadOptions::default() };
    let Loaded { base, .. } = checkpoint::load(&case.model, &task.auto_class, &options, device)?;
    let mut model = PeftModel::from_base(base, device);
    let names: Vec<String> = (0..case.adapters).map(|number| format!("adapter{number}")).collect();
    for name in &names {
        model.load_adapter(name, AdapterFolder::read(&case.adapter)?)?;
    }
    // Of adapters that have rows of their own none needs to act on all, nor could two that have a head each.
    let active = if case.by_rows { 1 } else { names.len() };
    model.set_active(&names.iter().take(active).map(String::as_str).collect::<Vec<_>>())?;
    model.set_training(true);
    Ok(model)
}

fn steps(side: &mut dyn Side, case: &Train, batches: &[CheckedBatch]) -> Result<Figures> {
    let first = batches.first().ok_or_else(|| Error::Data("there are no batches".to_owned()))?;
    let tokens = tokens(&first.inputs);
    let (mut losses, mut step_seconds) = (Vec::new(), Vec::new());
    let mut first_step_seconds = f64::NAN;
    for batch in batches.iter().cycle().take(case.steps) {
        let started = Instant::now();
        // Read in each step, as the other side does: the read waits until all is computed.
        losses.push(side.step(batch)?.into_scalar::<f32>());
        step_seconds.push(started.elapsed().as_secs_f64());
        if losses.len() == 1 {
            first_step_seconds = seconds_since(case.started);
        }
    }
    let device = first.inputs.input_ids.as_ref().map(Tensor::device);
    Ok(Figures {
        losses,
        step_seconds,
        tokens,
        device_bytes: device.and_then(|device| device.memory_pool_usage()).map(|usage| usage.bytes_reserved),
        peak_rss_bytes: peak_rss_bytes(),
        first_step_seconds,
        ..Figures::default()
    })
}

/// This library, by what its trainer calls.
struct Ours {
    model: PeftModel,
    optimizer: Optimizer,
    lr: f64,
}

impl Ours {
    fn new(mut model: PeftModel, case: &Train) -> Self {
        let optimizer = Optimizer::new(&case.training, &model.trainable());
        Self { model, optimizer, lr: case.training.learning_rate }
    }

    fn after(&mut self, folder: &std::path::Path) -> Result<After> {
        let name = self.model.active().first().cloned().unwrap_or_default();
        let folder = AdapterFolder::place(folder, &name);
        let (saved, save_seconds) = timed(|| {
            let tensors = self.model.state_dict(&name)?;
            let config = self.model.adapter(&name)?.config.clone();
            AdapterFolder::write(&folder, "default", &config, &tensors)
        });
        saved?;
        let (loaded, load_seconds) = timed(|| self.model.load_adapter("again", AdapterFolder::read(&folder)?));
        loaded?;
        let (merged, merge_seconds) = timed(|| self.model.merge());
        merged?;
        Ok(After { save_seconds, load_seconds, merge_seconds })
    }
}

impl Side for Ours {
    fn step(&mut self, batch: &CheckedBatch) -> Result<Tensor<1>> {
        let (loss, _outputs) = self.model.loss(batch)?;
        self.optimizer.accumulate(self.model.gradients(&loss));
        self.optimizer.step(&mut self.model, self.lr);
        Ok(loss.without_autodiff())
    }
}

/// This library with an adapter for each share of the rows, all in one pass.
struct Together {
    model: PeftModel,
    /// By the adapter's name, in the order of the rows.
    optimizers: Vec<(String, Optimizer)>,
    lr: f64,
}

impl Together {
    fn new(mut model: PeftModel, case: &Train) -> Result<Self> {
        let names: Vec<String> = model.adapter_names().map(ToOwned::to_owned).collect();
        let mut optimizers = Vec::with_capacity(names.len());
        for name in names {
            let trained = model.trainable_of(&name)?;
            optimizers.push((name, Optimizer::new(&case.training, &trained)));
        }
        Ok(Self { model, optimizers, lr: case.training.learning_rate })
    }
}

impl Side for Together {
    fn step(&mut self, batch: &CheckedBatch) -> Result<Tensor<1>> {
        let rows = batch.inputs.batch().unwrap_or_default();
        let share = rows.div_ceil(self.optimizers.len().max(1)).max(1);
        let of: Vec<&str> =
            (0..rows).filter_map(|row| self.optimizers.get(row / share)).map(|(name, _)| name.as_str()).collect();
        self.model.set_rows(&of)?;
        let (losses, _outputs) = self.model.losses_by_adapter(batch)?;
        let count = losses.len();
        let sum = losses.into_iter().map(|one| one.loss).reduce(|sum, loss| sum + loss);
        let sum = sum.ok_or_else(|| Error::Data("no row has a label".to_owned()))?;
        let mut gradients = self.model.gradients(&sum);
        for (_, optimizer) in &mut self.optimizers {
            optimizer.take(&mut gradients);
            optimizer.step(&mut self.model, self.lr);
        }
        Ok(sum.without_autodiff() / count as f64)
    }
}

impl Side for BurnLora {
    fn step(&mut self, batch: &CheckedBatch) -> Result<Tensor<1>> {
        BurnLora::step(self, batch)
    }
}

/// What a function returns, and how many seconds it took.
pub(crate) fn timed<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let value = f();
    (value, started.elapsed().as_secs_f64())
}
