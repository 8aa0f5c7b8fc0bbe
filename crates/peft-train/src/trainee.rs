//! An adapter that is trained: all that it has for itself, whether others are trained beside it or not.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::tensor::{Tensor, TensorData};
use peft::{
    Error as PeftError, PeftModel,
    example::{Example, collate_labels},
    files::{ADAPTER_CONFIG, AdapterFolder, create_folder, write_atomically},
    model::DEFAULT_ADAPTER,
    models::{
        checkpoint::{CONFIG, save as save_model},
        copy_tokenizer,
    },
    task::Metrics,
};

use crate::{
    Error, Event, Observer, Optimizer, Prepared, Recipe, Result, TrainReport,
    best_metric::chosen_metric,
    checkpoint::{self, BestEvaluation, Checkpoint, Identity, Snapshot, TrainerState},
    evaluate::evaluate,
    exact::Exact,
    labels,
    recipe::{RECIPE_FILE, Strategy},
    report::peak_rss_bytes,
    schedule::Schedule,
    step_plan::StepPlan,
    trainer_log::{EvalLine, TrainLine, TrainerLog},
};

/// Most steps whose losses stay unread: each read waits for the device.
const UNREAD_LOSSES: usize = 16;

/// Examples of one pass, and the share that their loss has in the step's.
pub(crate) struct MicroBatch<'a> {
    pub(crate) examples: Vec<&'a Example>,
    /// By what the loss is a mean of; zero where nothing counts.
    pub(crate) share: f64,
}

/// What an adapter has for itself.
pub(crate) struct Trainee<'a> {
    /// Its name among several.
    pub(crate) name: Option<&'a str>,
    pub(crate) prepared: &'a Prepared,
    pub(crate) plan: StepPlan,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainerState,
    recipe: &'a Recipe,
    schedule: Schedule,
    /// The loss of the step that is being done.
    loss: Option<Tensor<1>>,
    /// Losses of steps that were not read from the device yet.
    unread: Vec<Tensor<1>>,
    /// An epoch and its order.
    order: Option<(usize, Vec<usize>)>,
    /// The adapter of the best evaluation, where it is to be the result.
    best_tensors: Option<BTreeMap<String, TensorData>>,
    /// The last evaluation.
    metrics: Option<Metrics>,
    trainable_params: usize,
    output_dir: PathBuf,
    log: TrainerLog,
}

impl<'a> Trainee<'a> {
    /// At its first step, or where its last checkpoint was written; its output folder is made ready.
    pub(crate) fn new(
        name: Option<&'a str>,
        recipe: &'a Recipe,
        prepared: &'a Prepared,
        model: &mut PeftModel,
        resume: bool,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let trained = model.trainable_of(name.unwrap_or(DEFAULT_ADAPTER))?;
        let mut optimizer = Optimizer::new(&recipe.training, &trained);
        let trainable_params = trained.iter().map(|tensor| tensor.param.shape().iter().product::<usize>()).sum();
        drop(trained);
        let plan = StepPlan::new(&recipe.training, &prepared.train);
        let identity = Identity {
            recipe: recipe.decisive(),
            data: prepared.train.summary.clone(),
            fingerprint: prepared.train.fingerprint(),
        };
        let mut state = TrainerState { max_steps: plan.total, identity, ..TrainerState::default() };
        let output_dir = recipe.output_dir();
        let mut best_tensors = None;
        if let Some(checkpoint) = last_checkpoint(name, &output_dir, model, resume, observer)? {
            let name = name.unwrap_or(DEFAULT_ADAPTER);
            checkpoint.check(&state.identity)?;
            model.load_state_dict(name, checkpoint.adapter, &checkpoint.folder)?;
            optimizer.restore(&checkpoint.optimizer, model.adapter(name)?)?;
            state = checkpoint.state;
            best_tensors = checkpoint.best;
        }
        write_atomically(&output_dir.join(RECIPE_FILE), recipe.to_toml().as_bytes())?;
        Ok(Self {
            name,
            recipe,
            prepared,
            schedule: Schedule::new(&recipe.training, plan.total),
            log: TrainerLog::open(&output_dir, state.global_step)?,
            plan,
            optimizer,
            state,
            loss: None,
            unread: Vec::new(),
            order: None,
            best_tensors,
            metrics: None,
            trainable_params,
            output_dir,
        })
    }

    /// Its name in the model.
    fn adapter(&self) -> &'a str {
        self.name.unwrap_or(DEFAULT_ADAPTER)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state.global_step >= self.plan.total
    }

    pub(crate) fn evaluate_on_start(&mut self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<()> {
        if self.recipe.training.eval_on_start && self.state.global_step == 0 {
            self.evaluate(model, observer)?;
        }
        Ok(())
    }

    /// What the next step sees.
    pub(crate) fn micro_batches(&mut self, model: &PeftModel) -> Result<Vec<MicroBatch<'a>>> {
        let (number, prepared) = (self.state.global_step, self.prepared);
        let epoch = number / self.plan.steps_per_epoch;
        let order = match self.order.take().filter(|(of, _)| *of == epoch) {
            Some((_, order)) => order,
            None => prepared.train.epoch_order(self.recipe.training.seed, epoch),
        };
        // A mean over the whole accumulated batch, not a mean of means: each batch counts by what its loss is a mean of.
        let mut weighted: Vec<(Vec<&'a Example>, f64)> = Vec::new();
        for range in self.plan.batches(number) {
            let groups = order.get(range.start..range.end.min(order.len())).unwrap_or_default();
            let examples: Vec<&Example> = groups.iter().flat_map(|group| prepared.train.group(*group)).collect();
            let weight = model.loss_for(prepared.task, &collate_labels(&examples))?.weight();
            self.state.tokens += examples.iter().map(|example| example.input_ids.len() as u64).sum::<u64>();
            weighted.push((examples, weight));
        }
        self.order = Some((epoch, order));
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        let share = |weight: f64| if weight > 0.0 { weight / total } else { 0.0 };
        let batches = weighted.into_iter().map(|(examples, weight)| MicroBatch { examples, share: share(weight) });
        Ok(batches.collect())
    }

    /// Adds the loss of a batch, by its share, to that of the step.
    pub(crate) fn add_loss(&mut self, loss: Tensor<1>) {
        self.loss = Some(match self.loss.take() {
            Some(sum) => sum + loss,
            None => loss,
        });
    }

    /// The optimiser's step; returns the norm of the gradients before clipping.
    pub(crate) fn step(&mut self, model: &mut PeftModel) -> Option<Tensor<1>> {
        // Only bound examples can leave a whole step without a loss.
        let loss = self.loss.take()?;
        self.unread.push(loss);
        self.optimizer.step(model, self.schedule.at(self.state.global_step))
    }

    /// Counts a step that was done.
    pub(crate) fn count_step(&mut self) -> Result<()> {
        self.state.global_step += 1;
        if self.logs() || self.unread.len() >= UNREAD_LOSSES { self.read_losses() } else { Ok(()) }
    }

    /// Whether the step that was done has a line in the log.
    fn logs(&self) -> bool {
        self.is_done() || self.state.global_step.is_multiple_of(self.recipe.training.logging_steps)
    }

    /// What follows a step: its line of the log, an evaluation, a checkpoint; `over` says that nobody has another. Returns the checkpoint's folder.
    pub(crate) fn after_step(
        &mut self,
        model: &mut PeftModel,
        norm: Option<Tensor<1>>,
        over: bool,
        stops: bool,
        observer: &mut dyn Observer,
    ) -> Result<Option<PathBuf>> {
        let (arguments, step, last) = (&self.recipe.training, self.state.global_step, self.is_done());
        let (eval_strategy, eval_steps) = arguments.evaluation();
        let due = |strategy, steps| match strategy {
            Strategy::No => false,
            Strategy::Steps => step.is_multiple_of(steps),
            Strategy::Epoch => last || step.is_multiple_of(self.plan.steps_per_epoch),
        };
        let evaluates = last || due(eval_strategy, eval_steps);
        // Whoever is done before the others need not begin again if these are interrupted.
        let saves = stops || last && !over || due(arguments.save_strategy, arguments.save_steps);
        if self.logs() {
            let line = self.train_line(step - 1, norm)?;
            self.log.write(&line)?;
            observer.observe(&Event::Logged(&line));
        }
        if evaluates {
            self.evaluate(model, observer)?;
        }
        if saves { self.save(model, observer).map(Some) } else { Ok(None) }
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
            adapter: self.name.map(str::to_owned),
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
    fn measure(&self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<Option<Metrics>> {
        let Some(data) = &self.prepared.eval else { return Ok(None) };
        if let Some(name) = self.name {
            model.set_active(&[name])?;
        }
        let context = self.prepared.context();
        let batch_size = self.recipe.training.per_device_eval_batch_size;
        evaluate(model, data, &context, self.prepared.writing.as_ref(), batch_size, observer).map(Some)
    }

    fn evaluate(&mut self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<()> {
        let started = Instant::now();
        let Some(metrics) = self.measure(model, observer)? else { return Ok(()) };
        let step = self.state.global_step;
        let eval_seconds = started.elapsed().as_secs_f64();
        self.log.write(&EvalLine { step, epoch: self.plan.epochs(step), metrics: &metrics, eval_seconds })?;
        let best = self.is_best(&metrics)?;
        if best && self.recipe.training.load_best_model_at_end {
            self.best_tensors = Some(model.state_dict(self.adapter())?);
        }
        observer.observe(&Event::Evaluated { adapter: self.name, step, metrics: &metrics, best });
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

    fn save(&mut self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<PathBuf> {
        // A checkpoint of a run that has diverged is worth nothing.
        self.read_losses()?;
        let adapter = model.state_dict(self.adapter())?;
        let whole = model.adapter(self.adapter())?;
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
    pub(crate) fn finish(mut self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<TrainReport> {
        // A run that was resumed after its last step has not evaluated yet.
        if self.metrics.is_none() {
            self.metrics = self.measure(model, observer)?;
        }
        let best = self.state.best.take().filter(|_| self.recipe.training.load_best_model_at_end);
        let (written_step, metrics, tensors) = match (best, self.best_tensors.take()) {
            (Some(best), Some(tensors)) => (best.step, best.metrics(), tensors),
            _ => {
                let metrics = self.metrics.take().unwrap_or_default();
                (self.state.global_step, metrics, model.state_dict(self.adapter())?)
            }
        };
        if let Some(key) = tensors.iter().find(|(_, data)| !is_finite(data)).map(|(key, _)| key.clone()) {
            return Err(Error::NotFinite { step: written_step, key });
        }
        copy_tokenizer(&self.recipe.tokenizer(), &self.output_dir)?;
        if let Some(found) = &self.prepared.labels {
            labels::write(&self.output_dir, found)?;
        }
        let adapter = model.adapter(self.adapter())?;
        if adapter.plan.in_place {
            model.load_state_dict(DEFAULT_ADAPTER, tensors, &self.output_dir)?;
            save_model(&model.merge()?, None, &self.output_dir)?;
        } else {
            let config = adapter.config.clone();
            AdapterFolder::write(&self.output_dir, DEFAULT_ADAPTER, &config, &tensors)?;
        }
        let steps = self.state.global_step;
        Ok(TrainReport {
            adapter: self.name.map(str::to_owned),
            train_loss: self.state.loss_sum.0 / steps.max(1) as f64,
            metrics,
            steps,
            tokens_per_second: self.tokens_per_second(),
            step_seconds_median: 0.0,
            peak_rss_bytes: peak_rss_bytes(),
            trainable_params: self.trainable_params,
            train: Some(self.prepared.train.summary.clone()),
            eval: self.prepared.eval.as_ref().map(|eval| eval.summary.clone()),
            written_step,
            output_dir: self.output_dir,
            adapters: Vec::new(),
        })
    }
}

/// Makes an output folder ready: the last checkpoint in it to go on from, or none, and it is empty of an earlier run.
fn last_checkpoint(
    name: Option<&str>,
    output_dir: &Path,
    model: &mut PeftModel,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Option<Checkpoint>> {
    create_folder(output_dir)?;
    checkpoint::sweep(output_dir)?;
    let last = checkpoint::list(output_dir)?.pop();
    let in_place = model.adapter(name.unwrap_or(DEFAULT_ADAPTER))?.plan.in_place;
    let finished = output_dir.join(if in_place { CONFIG } else { ADAPTER_CONFIG });
    match last {
        Some((_, folder)) if resume => return checkpoint::read(&folder).map(Some),
        Some((step, _)) if !finished.exists() => {
            let problem = format!(
                "holds a run that stopped after step {step}; go on with --resume, or remove its checkpoints to start anew"
            );
            return Err(Error::Resume { folder: output_dir.to_owned(), problem });
        }
        None if resume => observer.observe(&Event::Note("no checkpoint to resume from: starting at step 0")),
        _ => {}
    }
    if finished.exists() {
        let note = format!("{}: replacing the finished run there", output_dir.display());
        observer.observe(&Event::Note(&note));
        let io = |source| PeftError::Io { path: finished.clone(), action: "remove", source };
        // Without its configuration a folder is no adapter and no model: what lies there is not the result of this run.
        std::fs::remove_file(&finished).map_err(io)?;
    }
    checkpoint::prune(output_dir, 0)?;
    Ok(None)
}

fn is_finite(data: &TensorData) -> bool {
    let values = data.clone().convert::<f32>().try_to_vec::<f32>();
    values.is_ok_and(|values| values.iter().all(|value| value.is_finite()))
}

fn read(values: Tensor<1>) -> Result<Vec<f32>> {
    let values = values.into_data().convert::<f32>().try_to_vec::<f32>();
    values.map_err(|error| PeftError::Data(format!("the loss cannot be read: {error:?}")).into())
}
