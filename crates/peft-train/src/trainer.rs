//! The training loop: from a recipe to an adapter folder.
//!
//! A step is decided by its number alone: which examples, which learning rate, which seed for dropout. What training has
//! changed so far is in the adapter and the optimiser. A checkpoint of those two therefore goes on to the same bits.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use burn::tensor::{Device, Tensor, TensorData};
use peft::{
    Error as PeftError, PeftModel,
    backends::device,
    example::{Example, collate_labels},
    files::{ADAPTER_CONFIG, AdapterFolder, create_folder, write_atomically},
    model::DEFAULT_ADAPTER,
    models::{
        checkpoint::{CONFIG, save as save_model},
        copy_tokenizer,
    },
    module_tree::is_inside,
    task::Metrics,
};

use crate::{
    Error, Event, Observer, Optimizer, Prepared, Recipe, Result, TrainReport,
    activations::Activations,
    best_metric::chosen_metric,
    checkpoint::{self, BestEvaluation, Identity, Snapshot, TrainerState},
    dataset::batch,
    evaluate::evaluate,
    exact::Exact,
    labels,
    memory::Memory,
    prepare::{prepare, prompt_tokenizer},
    recipe::{RECIPE_FILE, Strategy},
    report::{median, peak_rss_bytes},
    schedule::Schedule,
    seeds,
    step_plan::StepPlan,
    trainer_log::{EvalLine, TrainLine, TrainerLog},
};

/// Sets dropout apart from other uses of the recipe's seed.
const DROPOUT: u64 = 3;

/// Most steps whose losses stay unread: each read waits for the device.
const UNREAD_LOSSES: usize = 16;

/// How a recipe is run.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Whether to go on from the last checkpoint in the output folder.
    pub resume: bool,
    /// Where to compute.
    pub device: Device,
    /// Whether a run that would not fit into memory, by an estimate, is refused.
    pub check_memory: bool,
    /// Set from outside to stop after the step that is being done.
    pub stop: Arc<AtomicBool>,
}

impl TrainOptions {
    /// A run from the start that nothing stops.
    pub fn new(device: Device) -> Self {
        Self { resume: false, device, check_memory: true, stop: Arc::default() }
    }
}

/// Trains an adapter as a recipe says and writes it to the recipe's `output_dir`.
///
/// # Errors
/// Whatever is wrong with recipe, data or model, before the first step; [`Error::Interrupted`] after a checkpoint when
/// `stop` was set; [`Error::Diverged`] or [`Error::NotFinite`] if the loss or the result is no number any more.
pub fn train(recipe: &Recipe, options: &TrainOptions, observer: &mut dyn Observer) -> Result<TrainReport> {
    let prepared = prepare(recipe, &options.device)?;
    let activations = Activations::choose(recipe, &prepared)?;
    observer.observe(&Event::Prepared(&prepared));
    let memory = Memory::estimate(recipe, &prepared, activations.as_ref(), &options.device)?;
    if options.check_memory {
        memory.check()?;
    }
    if let Some(warning) = memory.warning() {
        observer.observe(&Event::Note(&format!("memory may not do: {warning}")));
    }
    let seed = recipe.training.seed;
    let mut model = PeftModel::from_base(prepared.base.clone(), &options.device);
    let tokenizer = prompt_tokenizer(recipe)?;
    let tokenizer = tokenizer.as_deref().unwrap_or(&*prepared.tokenizer);
    model
        .add_adapter_with(DEFAULT_ADAPTER, recipe.adapter.clone(), seed, Some(tokenizer))
        .map_err(|error| error.in_file(&recipe.path))?;
    model.set_active(&[DEFAULT_ADAPTER])?;
    let explanation = model.explanation()?;
    observer.observe(&Event::Adapted(&explanation));
    if let Some(activations) = &activations {
        observer.observe(&Event::Note(&activations.to_string()));
    }
    let lost = lost_heads(&prepared.initialised, &explanation.saved);
    if !lost.is_empty() {
        // As in PEFT, which does not say so.
        observer.observe(&Event::Note(&format!(
            "{} start at random and are neither trained nor saved with the adapter, so it will not give these answers again: \
             list their modules in modules_to_save",
            lost.join(", ")
        )));
    }
    model.set_training(true);

    let trained = model.trainable();
    let optimizer = Optimizer::new(&recipe.training, &trained);
    let trainable_params = trained.iter().map(|tensor| tensor.param.shape().iter().product::<usize>()).sum();
    drop(trained);
    let plan = StepPlan::new(&recipe.training, &prepared.train);
    let identity = Identity {
        recipe: recipe.decisive(),
        data: prepared.train.summary.clone(),
        fingerprint: prepared.train.fingerprint(),
    };
    let mut run = Run {
        recipe,
        prepared: &prepared,
        schedule: Schedule::new(&recipe.training, plan.total),
        state: TrainerState { max_steps: plan.total, identity, ..TrainerState::default() },
        plan,
        model,
        optimizer,
        unread: Vec::new(),
        order: None,
        forgetful_layers: activations.map_or(0, |activations| activations.forgetful_layers),
        best_tensors: None,
        metrics: None,
        step_seconds: Vec::new(),
        output_dir: recipe.output_dir(),
        device: options.device.clone().inner(),
    };
    let log = run.open(options.resume, observer)?;
    run.all_steps(&log, options, observer)?;
    run.finish(trainable_params, observer)
}

/// The fresh parameters of which the adapter keeps nothing.
fn lost_heads<'a>(initialised: &'a [String], saved: &[String]) -> Vec<&'a str> {
    let is_lost = |name: &&str| !saved.iter().any(|module| is_inside(name, module));
    initialised.iter().map(String::as_str).filter(is_lost).collect()
}

struct Run<'a> {
    recipe: &'a Recipe,
    prepared: &'a Prepared,
    plan: StepPlan,
    schedule: Schedule,
    model: PeftModel,
    optimizer: Optimizer,
    state: TrainerState,
    /// Losses of steps that were not read from the device yet.
    unread: Vec<Tensor<1>>,
    /// An epoch and its order.
    order: Option<(usize, Vec<usize>)>,
    /// How many layers keep their input alone.
    forgetful_layers: usize,
    /// The adapter of the best evaluation, where it is to be the result.
    best_tensors: Option<BTreeMap<String, TensorData>>,
    /// The last evaluation.
    metrics: Option<Metrics>,
    step_seconds: Vec<f64>,
    output_dir: PathBuf,
    device: Device,
}

impl Run<'_> {
    /// Makes the output folder ready: empty of an earlier run, or taken up from its last checkpoint.
    fn open(&mut self, resume: bool, observer: &mut dyn Observer) -> Result<TrainerLog> {
        create_folder(&self.output_dir)?;
        checkpoint::sweep(&self.output_dir)?;
        let last = checkpoint::list(&self.output_dir)?.pop();
        let in_place = self.model.adapter(DEFAULT_ADAPTER)?.plan.in_place;
        let finished = self.output_dir.join(if in_place { CONFIG } else { ADAPTER_CONFIG });
        match last {
            Some((_, folder)) if resume => self.restore(checkpoint::read(&folder)?)?,
            Some((step, _)) if !finished.exists() => {
                let problem = format!(
                    "holds a run that stopped after step {step}; go on with --resume, or remove its checkpoints to start anew"
                );
                return Err(Error::Resume { folder: self.output_dir.clone(), problem });
            }
            None if resume => observer.observe(&Event::Note("no checkpoint to resume from: starting at step 0")),
            _ => {}
        }
        if self.state.global_step == 0 {
            if finished.exists() {
                let note = format!("{}: replacing the finished run there", self.output_dir.display());
                observer.observe(&Event::Note(&note));
                let io = |source| PeftError::Io { path: finished.clone(), action: "remove", source };
                // Without its configuration a folder is no adapter and no model: what lies there is not the result of this run.
                std::fs::remove_file(&finished).map_err(io)?;
            }
            checkpoint::prune(&self.output_dir, 0)?;
        }
        let text = self.recipe.to_toml();
        write_atomically(&self.output_dir.join(RECIPE_FILE), text.as_bytes())?;
        observer.observe(&Event::Started { done: self.state.global_step, total: self.plan.total });
        TrainerLog::open(&self.output_dir, self.state.global_step)
    }

    fn restore(&mut self, checkpoint: checkpoint::Checkpoint) -> Result<()> {
        checkpoint.check(&self.state.identity)?;
        self.model.load_state_dict(DEFAULT_ADAPTER, checkpoint.adapter, &checkpoint.folder)?;
        self.optimizer.restore(&checkpoint.optimizer, self.model.adapter(DEFAULT_ADAPTER)?)?;
        self.state = checkpoint.state;
        self.best_tensors = checkpoint.best;
        Ok(())
    }

    fn all_steps(&mut self, log: &TrainerLog, options: &TrainOptions, observer: &mut dyn Observer) -> Result<()> {
        let arguments = &self.recipe.training;
        let (eval_strategy, eval_steps) = arguments.evaluation();
        if arguments.eval_on_start && self.state.global_step == 0 {
            self.evaluate(log, observer)?;
        }
        while self.state.global_step < self.plan.total {
            let started = Instant::now();
            let number = self.state.global_step;
            let norm = self.step(number)?;
            let step = number + 1;
            self.state.global_step = step;
            let last = step == self.plan.total;
            let logs = last || step.is_multiple_of(arguments.logging_steps);
            if logs || self.unread.len() >= UNREAD_LOSSES {
                self.read_losses()?;
            }
            let seconds = started.elapsed().as_secs_f64();
            self.step_seconds.push(seconds);
            self.state.seconds += seconds;
            observer.observe(&Event::Step { step, total: self.plan.total });

            let due = |strategy, steps| match strategy {
                Strategy::No => false,
                Strategy::Steps => step.is_multiple_of(steps),
                Strategy::Epoch => last || step.is_multiple_of(self.plan.steps_per_epoch),
            };
            let (evaluates, saves) =
                (last || due(eval_strategy, eval_steps), due(arguments.save_strategy, arguments.save_steps));
            if logs {
                let line = self.train_line(number, norm)?;
                log.write(&line)?;
                observer.observe(&Event::Logged(&line));
            }
            if evaluates {
                self.evaluate(log, observer)?;
            }
            // After the last step a checkpoint would only repeat the result.
            let stops = !last && options.stop.load(Ordering::Relaxed);
            if saves || stops {
                let folder = self.save(observer)?;
                if stops {
                    return Err(Error::Interrupted { step, checkpoint: folder });
                }
            }
        }
        Ok(())
    }

    /// One step of the optimiser; returns the norm of the gradients before clipping.
    fn step(&mut self, number: usize) -> Result<Option<Tensor<1>>> {
        let arguments = &self.recipe.training;
        let prepared = self.prepared;
        let epoch = number / self.plan.steps_per_epoch;
        let order = match self.order.take().filter(|(of, _)| *of == epoch) {
            Some((_, order)) => order,
            None => prepared.train.epoch_order(arguments.seed, epoch),
        };
        // A mean over the whole accumulated batch, not a mean of means: each batch counts by what its loss is a mean of.
        let mut micro_batches: Vec<(Vec<&Example>, f64)> = Vec::new();
        for range in self.plan.batches(number) {
            let groups = order.get(range.start..range.end.min(order.len())).unwrap_or_default();
            let examples: Vec<&Example> = groups.iter().flat_map(|group| prepared.train.group(*group)).collect();
            let weight = prepared.task.loss_weight(&collate_labels(&examples), &prepared.info)?;
            micro_batches.push((examples, weight));
        }
        self.order = Some((epoch, order));
        let total: f64 = micro_batches.iter().map(|(_, weight)| weight).sum();

        let mut loss_sum: Option<Tensor<1>> = None;
        for (index, (examples, weight)) in micro_batches.iter().enumerate() {
            self.state.tokens += examples.iter().map(|example| example.input_ids.len() as u64).sum::<u64>();
            if *weight <= 0.0 {
                continue;
            }
            device::seed(&self.device, seeds::derive(arguments.seed, &[DROPOUT, number as u64, index as u64]));
            let mut batch = batch(examples, &*prepared.tokenizer, &prepared.info, &self.device);
            batch.inputs.forgetful_layers = self.forgetful_layers;
            let (loss, _outputs) = self.model.loss(&batch)?;
            let loss = if *weight == total { loss } else { loss.mul_scalar(weight / total) };
            self.optimizer.accumulate(self.model.gradients(&loss));
            let loss = loss.without_autodiff();
            loss_sum = Some(match loss_sum {
                Some(sum) => sum + loss,
                None => loss,
            });
        }
        // Only bound examples can leave a whole step without a loss.
        let Some(loss) = loss_sum else { return Ok(None) };
        self.unread.push(loss);
        Ok(self.optimizer.step(&mut self.model, self.schedule.at(number)))
    }

    /// Reads the losses that are still on the device.
    fn read_losses(&mut self) -> Result<()> {
        if self.unread.is_empty() {
            return Ok(());
        }
        let first = self.state.global_step + 1 - self.unread.len();
        let values = read(Tensor::cat(std::mem::take(&mut self.unread), 0))?;
        for (at, loss) in values.into_iter().enumerate() {
            if !loss.is_finite() {
                return Err(Error::Diverged { step: first + at, loss });
            }
            self.state.loss_sum.0 += f64::from(loss);
            self.state.losses_since_log.push(Exact(f64::from(loss)));
        }
        Ok(())
    }

    fn train_line(&mut self, number: usize, norm: Option<Tensor<1>>) -> Result<TrainLine> {
        let losses = std::mem::take(&mut self.state.losses_since_log);
        let loss = losses.iter().map(|loss| loss.0).sum::<f64>() / losses.len().max(1) as f64;
        let norm = norm.map(read).transpose()?.and_then(|norm| norm.first().copied());
        Ok(TrainLine {
            step: number + 1,
            epoch: self.plan.epochs(number + 1),
            loss,
            learning_rate: self.schedule.at(number),
            grad_norm: norm.map(f64::from),
            seconds: self.state.seconds,
            tokens_per_second: self.tokens_per_second(),
        })
    }

    fn tokens_per_second(&self) -> f64 {
        if self.state.seconds > 0.0 { self.state.tokens as f64 / self.state.seconds } else { 0.0 }
    }

    /// The metrics of the adapter as it is now; none without evaluation rows.
    fn measure(&self, observer: &mut dyn Observer) -> Result<Option<Metrics>> {
        let Some(data) = &self.prepared.eval else { return Ok(None) };
        let context = self.prepared.context();
        let batch_size = self.recipe.training.per_device_eval_batch_size;
        evaluate(&self.model, data, &context, self.prepared.writing.as_ref(), batch_size, observer).map(Some)
    }

    fn evaluate(&mut self, log: &TrainerLog, observer: &mut dyn Observer) -> Result<()> {
        let started = Instant::now();
        let Some(metrics) = self.measure(observer)? else { return Ok(()) };
        let step = self.state.global_step;
        let eval_seconds = started.elapsed().as_secs_f64();
        log.write(&EvalLine { step, epoch: self.plan.epochs(step), metrics: &metrics, eval_seconds })?;
        let best = self.is_best(&metrics)?;
        if best && self.recipe.training.load_best_model_at_end {
            self.best_tensors = Some(self.model.state_dict(DEFAULT_ADAPTER)?);
        }
        observer.observe(&Event::Evaluated { step, metrics: &metrics, best });
        self.metrics = Some(metrics);
        Ok(())
    }

    /// Remembers the evaluation if it is the best so far.
    fn is_best(&mut self, metrics: &Metrics) -> Result<bool> {
        let arguments = &self.recipe.training;
        let (name, value) = chosen_metric(metrics, arguments.metric_for_best_model.as_deref())?;
        let greater = arguments.greater_is_better.unwrap_or_else(|| peft::metrics::greater_is_better(name));
        let better = match &self.state.best {
            _ if value.is_nan() => false,
            None => true,
            Some(best) if greater => value > best.value.0,
            Some(best) => value < best.value.0,
        };
        if better {
            let metrics = metrics.iter().map(|(name, value)| (name.clone(), Exact(*value))).collect();
            let step = self.state.global_step;
            self.state.best = Some(BestEvaluation { step, metric: name.to_owned(), value: Exact(value), metrics });
        }
        Ok(better)
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<PathBuf> {
        // A checkpoint of a run that has diverged is worth nothing.
        self.read_losses()?;
        let adapter = self.model.state_dict(DEFAULT_ADAPTER)?;
        let whole = self.model.adapter(DEFAULT_ADAPTER)?;
        let snapshot = Snapshot {
            state: &self.state,
            config: &whole.config,
            adapter: &adapter,
            optimizer: &self.optimizer.state(whole),
            best: self.best_tensors.as_ref(),
        };
        let folder = checkpoint::write(&self.output_dir, &snapshot)?;
        if let Some(limit) = self.recipe.training.save_total_limit {
            checkpoint::prune(&self.output_dir, limit)?;
        }
        observer.observe(&Event::Saved(&folder));
        Ok(folder)
    }

    /// Writes the result.
    fn finish(mut self, trainable_params: usize, observer: &mut dyn Observer) -> Result<TrainReport> {
        // A run that was resumed after its last step has not evaluated yet.
        if self.metrics.is_none() {
            self.metrics = self.measure(observer)?;
        }
        let best = self.state.best.take().filter(|_| self.recipe.training.load_best_model_at_end);
        let (written_step, metrics, tensors) = match (best, self.best_tensors.take()) {
            (Some(best), Some(tensors)) => (best.step, best.metrics(), tensors),
            _ => {
                let metrics = self.metrics.take().unwrap_or_default();
                (self.state.global_step, metrics, self.model.state_dict(DEFAULT_ADAPTER)?)
            }
        };
        if let Some(key) = tensors.iter().find(|(_, data)| !is_finite(data)).map(|(key, _)| key.clone()) {
            return Err(Error::NotFinite { step: written_step, key });
        }
        copy_tokenizer(&self.recipe.tokenizer(), &self.output_dir)?;
        if let Some(found) = &self.prepared.labels {
            labels::write(&self.output_dir, found)?;
        }
        let adapter = self.model.adapter(DEFAULT_ADAPTER)?;
        if adapter.plan.in_place {
            self.model.load_state_dict(DEFAULT_ADAPTER, tensors, &self.output_dir)?;
            save_model(&self.model.merge()?, None, &self.output_dir)?;
        } else {
            let config = adapter.config.clone();
            AdapterFolder::write(&self.output_dir, DEFAULT_ADAPTER, &config, &tensors)?;
        }
        let steps = self.state.global_step;
        Ok(TrainReport {
            train_loss: self.state.loss_sum.0 / steps.max(1) as f64,
            metrics,
            steps,
            tokens_per_second: self.tokens_per_second(),
            step_seconds_median: median(self.step_seconds),
            peak_rss_bytes: peak_rss_bytes(),
            trainable_params,
            written_step,
            output_dir: self.output_dir,
        })
    }
}

fn is_finite(data: &TensorData) -> bool {
    let values = data.clone().convert::<f32>().try_to_vec::<f32>();
    values.is_ok_and(|values| values.iter().all(|value| value.is_finite()))
}

fn read(values: Tensor<1>) -> Result<Vec<f32>> {
    let values = values.into_data().convert::<f32>().try_to_vec::<f32>();
    values.map_err(|error| PeftError::Data(format!("the loss cannot be read: {error:?}")).into())
}
