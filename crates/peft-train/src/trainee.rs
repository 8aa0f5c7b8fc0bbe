//! An adapter that is trained: all that it has for itself, whether others are trained beside it or not.

use std::{path::PathBuf, time::Instant};

use burn::tensor::Tensor;
use peft_core::{
    Error as PeftError, PeftModel,
    adapter::AdapterFolder,
    data::example::{Example, collate_labels},
    metrics::Metrics,
    model::peft_model::DEFAULT_ADAPTER,
    tensor::finite::first_not_finite,
};
use peft_models::{checkpoint::save as save_model, copy_tokenizer};

use crate::{
    Error, Event, Observer, Optimizer, Prepared, Recipe, Result, TrainReport,
    best_model::{BestEvaluation, BestModel},
    checkpoint::{self, Checkpoint, Snapshot, TrainerState},
    evaluate::evaluate,
    exact::Exact,
    identity::Identity,
    labels,
    recipe::Strategy,
    report::peak_rss_bytes,
    run_directory::RunDirectory,
    schedule::Schedule,
    step_plan::StepPlan,
    trainer_log::{EvalLine, TrainLine},
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
    best: Option<BestModel>,
    /// The last evaluation.
    metrics: Option<Metrics>,
    trainable_params: usize,
    run: RunDirectory,
}

impl<'a> Trainee<'a> {
    /// At its first step, or after that whose checkpoint it goes on from; its output folder is made ready.
    pub(crate) fn new(
        name: Option<&'a str>,
        recipe: &'a Recipe,
        prepared: &'a Prepared,
        model: &mut PeftModel,
        mut run: RunDirectory,
        from: Option<usize>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let trained = model.trainable_of(name.unwrap_or(DEFAULT_ADAPTER))?;
        let mut optimizer = Optimizer::new(&recipe.training, &trained);
        let trainable_params = trained.iter().map(|tensor| tensor.param.shape().iter().product::<usize>()).sum();
        drop(trained);
        let plan = StepPlan::new(&recipe.training, &prepared.train);
        let identity = Identity::new(recipe, prepared)?;
        let mut state = TrainerState { max_steps: plan.total, identity, ..TrainerState::default() };
        let mut best = None;
        if let Some(step) = from {
            let name = name.unwrap_or(DEFAULT_ADAPTER);
            let checkpoint = checkpoint::read(&run.checkpoint(step))?;
            check(&checkpoint, &state, recipe, prepared)?;
            if !checkpoint.state.identity.knows_base(recipe) {
                let note = "the checkpoint is of a version that did not look at the base model: whether that has changed is not known";
                observer.observe(&Event::Note(note));
            }
            best = best_of(&checkpoint, recipe, &run)?;
            model.load_state_dict(name, checkpoint.adapter, &checkpoint.folder)?;
            optimizer.restore(&checkpoint.optimizer, model.adapter(name)?)?;
            // What it was begun with does not count any more.
            state = TrainerState { identity: state.identity, ..checkpoint.state };
        }
        // A checkpoint is used with the tokenizer and the classes of its run, also if the run never ends.
        run.begin(recipe, state.global_step, |folder| {
            copy_tokenizer(&recipe.tokenizer(), folder)?;
            prepared.labels.as_ref().map_or(Ok(()), |found| labels::write(folder, found))
        })?;
        if run.replaces() {
            let note = format!(
                "{}: replacing the finished run there, as soon as this one has a checkpoint or its result",
                run.path().display()
            );
            observer.observe(&Event::Note(&note));
        }
        Ok(Self {
            name,
            recipe,
            prepared,
            schedule: Schedule::new(&recipe.training, plan.total),
            plan,
            optimizer,
            state,
            loss: None,
            unread: Vec::new(),
            order: None,
            best,
            metrics: None,
            trainable_params,
            run,
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
        // Only grouped examples can leave a whole step without a loss.
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

    /// What follows a step: its line of the log, an evaluation.
    pub(crate) fn after_step(
        &mut self,
        model: &mut PeftModel,
        norm: Option<Tensor<1>>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let (arguments, step) = (&self.recipe.training, self.state.global_step);
        let (eval_strategy, eval_steps) = arguments.evaluation();
        let evaluates = self.is_done() || self.is_due(eval_strategy, eval_steps);
        if self.logs() {
            let line = self.train_line(step - 1, norm)?;
            self.run.log(&line)?;
            observer.observe(&Event::Logged(&line));
        }
        if evaluates { self.evaluate(model, observer) } else { Ok(()) }
    }

    /// Whether the step that was done has a checkpoint; `over` says that nobody has another step, `stops` that the run ends here.
    pub(crate) fn saves(&self, over: bool, stops: bool) -> bool {
        let arguments = &self.recipe.training;
        // Whoever is done before the others need not begin again if these are interrupted.
        stops || self.is_done() && !over || self.is_due(arguments.save_strategy, arguments.save_steps)
    }

    fn is_due(&self, strategy: Strategy, steps: usize) -> bool {
        let step = self.state.global_step;
        match strategy {
            Strategy::No => false,
            Strategy::Steps => step.is_multiple_of(steps),
            Strategy::Epoch => self.is_done() || step.is_multiple_of(self.plan.steps_per_epoch),
        }
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
        let measured = self.measure(model, observer);
        let Some(metrics) = measured.map_err(|error| self.why_not_finite(error, model))? else { return Ok(()) };
        let step = self.state.global_step;
        let eval_seconds = started.elapsed().as_secs_f64();
        self.run.log(&EvalLine { step, epoch: self.plan.epochs(step), metrics: &metrics, eval_seconds })?;
        let arguments = &self.recipe.training;
        let before = self.best.as_ref().map(|best| &best.evaluation);
        let better = BestEvaluation::better(&metrics, step, arguments, before)?;
        let best = better.is_some();
        if let Some(evaluation) = better {
            let kept = arguments.load_best_model_at_end;
            let adapter = if kept { Some(model.state_dict(self.adapter())?) } else { None };
            self.best = Some(BestModel { evaluation, adapter });
        }
        observer.observe(&Event::Evaluated { adapter: self.name, step, metrics: &metrics, best });
        self.metrics = Some(metrics);
        Ok(())
    }

    /// Of an evaluation that gives no number, what training has to do with it.
    fn why_not_finite(&mut self, error: Error, model: &mut PeftModel) -> Error {
        let step = self.state.global_step;
        let output = match error {
            Error::Peft(PeftError::NotFiniteOutput { output }) if step > 0 => output,
            other => return other,
        };
        // A loss or a value that went wrong before says more than what followed from it.
        if let Err(diverged) = self.read_losses() {
            return diverged;
        }
        match model.state_dict(self.adapter()).map(|tensors| first_not_finite(&tensors).map(str::to_owned)) {
            Ok(Some(key)) => Error::NotFinite { step, key },
            _ => Error::EvaluationNotFinite { step, output },
        }
    }

    /// Writes a checkpoint, and says where.
    pub(crate) fn save(&mut self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<PathBuf> {
        // A checkpoint of a run that has diverged is worth nothing.
        self.read_losses()?;
        let adapter = model.state_dict(self.adapter())?;
        let whole = model.adapter(self.adapter())?;
        let snapshot = Snapshot {
            state: &self.state,
            config: &whole.config,
            adapter: &adapter,
            optimizer: &self.optimizer.state(whole),
            best: self.best.as_ref(),
        };
        let folder = self.run.save(&snapshot)?;
        observer.observe(&Event::Saved(&folder));
        Ok(folder)
    }

    /// Removes the checkpoints beyond `save_total_limit`.
    pub(crate) fn prune(&self) -> Result<()> {
        self.recipe.training.save_total_limit.map_or(Ok(()), |limit| self.run.prune(limit))
    }

    /// Writes the result.
    pub(crate) fn finish(mut self, model: &mut PeftModel, observer: &mut dyn Observer) -> Result<TrainReport> {
        // A run that was killed behind its last checkpoint has not pruned.
        self.prune()?;
        // A run that was resumed after its last step has not evaluated yet.
        if self.metrics.is_none() {
            let measured = self.measure(model, observer);
            self.metrics = measured.map_err(|error| self.why_not_finite(error, model))?;
        }
        let best = self.best.take().filter(|_| self.recipe.training.load_best_model_at_end);
        let (written_step, metrics, tensors) = match best {
            Some(BestModel { evaluation, adapter: Some(tensors) }) => (evaluation.step, evaluation.metrics(), tensors),
            _ => {
                let metrics = self.metrics.take().unwrap_or_default();
                (self.state.global_step, metrics, model.state_dict(self.adapter())?)
            }
        };
        if let Some(key) = first_not_finite(&tensors) {
            return Err(Error::NotFinite { step: written_step, key: key.to_owned() });
        }
        let (name, output_dir) = (self.adapter(), self.run.path().to_owned());
        self.run.finish(|folder| {
            let adapter = model.adapter(name)?;
            if adapter.plan.in_place {
                model.load_state_dict(DEFAULT_ADAPTER, tensors, &output_dir)?;
                save_model(&model.merge()?, None, folder)?;
            } else {
                let config = adapter.config.clone();
                AdapterFolder::write(folder, DEFAULT_ADAPTER, &config, &tensors)?;
            }
            Ok(())
        })?;
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
            output_dir,
            adapters: Vec::new(),
        })
    }
}

/// Refuses a checkpoint that is not of this run.
fn check(checkpoint: &Checkpoint, now: &TrainerState, recipe: &Recipe, prepared: &Prepared) -> Result<()> {
    let (then, folder) = (&checkpoint.state, &checkpoint.folder);
    now.identity.check(&then.identity, folder, checkpoint.best.is_some(), recipe, prepared)?;
    if then.max_steps != now.max_steps {
        let problem = format!("of a run of {} steps, and the recipe has {}", then.max_steps, now.max_steps);
        return Err(Error::Resume { folder: folder.clone(), problem });
    }
    Ok(())
}

/// The best so far of a run that goes on, if the recipe still means the same by it.
fn best_of(checkpoint: &Checkpoint, recipe: &Recipe, run: &RunDirectory) -> Result<Option<BestModel>> {
    let Some(best) = &checkpoint.best else { return Ok(None) };
    let refuse = |problem: String| Err(Error::Resume { folder: checkpoint.folder.clone(), problem });
    let (arguments, step) = (&recipe.training, best.evaluation.step);
    if let Some((key, now, then)) = best.evaluation.other_choice(arguments) {
        return refuse(format!(
            "`training.{key}` is {now} now and was {then} when this was written, and the best value so far cannot be compared with \
             those to come; resume with the same value, or start anew in another output_dir"
        ));
    }
    let mut evaluation = best.evaluation.clone();
    evaluation.is_kept = Some(arguments.load_best_model_at_end);
    if !arguments.load_best_model_at_end {
        return Ok(Some(BestModel { evaluation, adapter: None }));
    }
    let of_its_step = run.checkpoint(step);
    let adapter = match &best.adapter {
        Some(adapter) => adapter.clone(),
        None if of_its_step.is_dir() => checkpoint::adapter(&of_its_step)?,
        None => {
            return refuse(format!(
                "`training.load_best_model_at_end` is true now and was false when this was written, and the best adapter so far, of step \
                 {step}, was not kept; resume with false, or start anew in another output_dir"
            ));
        }
    };
    Ok(Some(BestModel { evaluation, adapter: Some(adapter) }))
}

fn read(values: Tensor<1>) -> Result<Vec<f32>> {
    let values = values.into_data().convert::<f32>().try_to_vec::<f32>();
    values.map_err(|error| PeftError::Data(format!("the loss cannot be read: {error:?}")).into())
}
