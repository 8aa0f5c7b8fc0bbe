//! The training loop: from a recipe to an adapter folder.
//!
//! A step is decided by its number alone: which examples, which learning rate, which seed for dropout. What training has
//! changed so far is in the adapter and the optimiser. A checkpoint of those two therefore goes on to the same bits.
//!
//! Several adapters share the passes forward and back and nothing else: each has a `Trainee`, as if it were trained alone.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use burn::tensor::{Device, Tensor};
use peft_backends::device;
use peft_core::{CheckedBatch, PeftModel, data::example::Example, metrics::Metrics, tensor::module_tree::is_inside};

use crate::{
    CapturedSteps, Error, Event, Observer, Prepared, Recipe, Result, TrainReport,
    activations::Activations,
    captured_steps,
    dataset::batch,
    memory::Memory,
    prepare::{joint, prepare_all, prompt_tokenizer},
    report::{median, peak_rss_bytes},
    run_directory::{RunDirectory, common_steps},
    seeds,
    step_plan::StepPlan,
    trainee::{MicroBatch, Trainee},
};

/// Sets dropout apart from other uses of the recipe's seed.
const DROPOUT: u64 = 3;

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

/// Trains an adapter as a recipe says and writes it to the recipe's `output_dir`; several at once, each to a folder in it.
///
/// # Errors
/// Whatever is wrong with recipe, data or model, before the first step; [`Error::Interrupted`] after a checkpoint when
/// `stop` was set; [`Error::Diverged`] or [`Error::NotFinite`] if the loss or the result is no number any more.
pub fn train(recipe: &Recipe, options: &TrainOptions, observer: &mut dyn Observer) -> Result<TrainReport> {
    let apart = recipe.apart();
    let runs = apart.iter().map(|(_, one)| RunDirectory::open(one, options.resume)).collect::<Result<Vec<_>>>()?;
    let prepared = prepare_all(recipe, &options.device)?;
    let (whole, largest) = joint(recipe, &prepared);
    let activations = Activations::choose(&whole, largest)?;
    prepared.iter().for_each(|prepared| observer.observe(&Event::Prepared(prepared)));
    let memory = Memory::estimate(&whole, largest, activations.as_ref(), &options.device)?;
    if options.check_memory {
        memory.check()?;
    }
    if let Some(warning) = memory.warning() {
        observer.observe(&Event::Note(&format!("memory may run out: {warning}")));
    }
    let mut model = PeftModel::from_base(largest.base.clone(), &options.device);
    for ((name, recipe), prepared) in apart.iter().zip(&prepared) {
        let tokenizer = prompt_tokenizer(recipe)?;
        let tokenizer = tokenizer.as_deref().unwrap_or(&*prepared.tokenizer);
        model
            .add_adapter_with(name, recipe.adapter.clone(), recipe.training.seed, Some(tokenizer))
            .map_err(|error| error.in_file(&recipe.path))?;
        model.set_active(&[name])?;
        let explanation = model.explanation()?;
        observer.observe(&Event::Adapted(&explanation));
        let lost = lost_heads(&prepared.initialised, &explanation.saved);
        if !lost.is_empty() {
            // As in PEFT, which does not say so.
            observer.observe(&Event::Note(&format!(
                "{} start at random and are neither trained nor saved with the adapter, so it will not give these answers \
                 again: list their modules in modules_to_save",
                lost.join(", ")
            )));
        }
    }
    if let Some(activations) = &activations {
        observer.observe(&Event::Note(&activations.to_string()));
    }
    if !recipe.adapters.is_empty() {
        // What cannot be one of several is refused before anything is written.
        let names: Vec<&str> = apart.iter().map(|(name, _)| *name).collect();
        model.set_rows(&names).map_err(|error| error.in_file(&recipe.path))?;
        model.clear_rows();
    }
    model.set_training(true);

    let checkpointed_layers = activations.map_or(0, |activations| activations.checkpointed_layers);
    let captured = capture(recipe, &prepared, &mut model, checkpointed_layers, observer);
    let several = !recipe.adapters.is_empty();
    let from = if options.resume { resumed_steps(&apart, &prepared, &runs, observer)? } else { None };
    let mut trainees = Vec::with_capacity(apart.len());
    for (at, (((name, recipe), prepared), run)) in apart.into_iter().zip(&prepared).zip(runs).enumerate() {
        let (name, from) = (several.then_some(name), from.as_ref().and_then(|steps| steps.get(at).copied()));
        trainees.push(Trainee::new(name, recipe, prepared, &mut model, run, from, observer)?);
    }
    let mut run = Run {
        seed: recipe.training.seed,
        trainees,
        model,
        checkpointed_layers,
        multiple: recipe.training.multiple(captured.is_some()),
        captured,
        is_noted: false,
        step_seconds: Vec::new(),
        output_dir: recipe.output_dir(),
        device: options.device.clone().inner(),
    };
    run.all_steps(options, observer)?;
    run.finish(observer)
}

/// The step that each adapter goes on after; none, and a note, if there is no checkpoint.
fn resumed_steps(
    apart: &[(&str, &Recipe)],
    prepared: &[Prepared],
    runs: &[RunDirectory],
    observer: &mut dyn Observer,
) -> Result<Option<Vec<usize>>> {
    let total =
        |((_, recipe), prepared): (&(&str, &Recipe), &Prepared)| StepPlan::new(&recipe.training, &prepared.train).total;
    let totals: Vec<usize> = apart.iter().zip(prepared).map(total).collect();
    let steps = common_steps(runs, &totals)?;
    if steps.is_none() {
        observer.observe(&Event::Note("no checkpoint to resume from: starting at step 0"));
    }
    Ok(steps)
}

/// What records the passes, where the recipe asks for it; a note if that cannot be, or will not pay.
fn capture(
    recipe: &Recipe,
    prepared: &[Prepared],
    model: &mut PeftModel,
    checkpointed_layers: usize,
    observer: &mut dyn Observer,
) -> Option<CapturedSteps> {
    if !recipe.training.captured_steps {
        return None;
    }
    let captured = match captured_steps::hindrance(recipe) {
        Some(reason) => Err(reason.to_owned()),
        None => CapturedSteps::new(model, checkpointed_layers),
    };
    let mut note = |text: String| observer.observe(&Event::Note(&format!("captured_steps: {text}")));
    let captured = captured.map_err(|reason| note(format!("CUDA graphs are off: {reason}"))).ok()?;
    let multiple = recipe.training.multiple(true);
    let lengths: BTreeSet<usize> = prepared.iter().flat_map(|prepared| prepared.padded_lengths(multiple)).collect();
    if lengths.len() > captured_steps::MOST {
        note(format!(
            "rows are padded to {} lengths, and the recordings of {} are kept: a greater pad_to_multiple_of has fewer",
            lengths.len(),
            captured_steps::MOST
        ));
    }
    Some(captured)
}

/// The fresh parameters of which the adapter keeps nothing.
fn lost_heads<'a>(initialised: &'a [String], saved: &[String]) -> Vec<&'a str> {
    let is_lost = |name: &&str| !saved.iter().any(|module| is_inside(name, module));
    initialised.iter().map(String::as_str).filter(is_lost).collect()
}

struct Run<'a> {
    seed: u64,
    trainees: Vec<Trainee<'a>>,
    model: PeftModel,
    /// How many layers keep their input alone.
    checkpointed_layers: usize,
    /// Rows are padded to a multiple of so many positions.
    multiple: usize,
    captured: Option<CapturedSteps>,
    /// Whether it was said that a pass could not be recorded.
    is_noted: bool,
    step_seconds: Vec<f64>,
    output_dir: PathBuf,
    device: Device,
}

/// Those that take part in a pass, each with its batch.
type Parts<'r, 'a> = Vec<(&'r mut Trainee<'a>, &'r MicroBatch<'a>)>;

impl<'a> Run<'a> {
    fn are_several(&self) -> bool {
        self.trainees.iter().any(|trainee| trainee.name.is_some())
    }

    /// Steps done and all steps, of the adapter that has most.
    fn progress(&self) -> (usize, usize) {
        let most = |count: fn(&Trainee<'_>) -> usize| self.trainees.iter().map(count).max().unwrap_or_default();
        (most(|trainee| trainee.state.global_step), most(|trainee| trainee.plan.total))
    }

    fn all_steps(&mut self, options: &TrainOptions, observer: &mut dyn Observer) -> Result<()> {
        let (done, total) = self.progress();
        observer.observe(&Event::Started { done, total });
        for trainee in &mut self.trainees {
            trainee.evaluate_on_start(&mut self.model, observer)?;
        }
        loop {
            let started = Instant::now();
            let stepped = self.step()?;
            if stepped.is_empty() {
                return Ok(());
            }
            let seconds = started.elapsed().as_secs_f64();
            self.step_seconds.push(seconds);
            self.note_unrecorded(observer);
            let (step, total) = self.progress();
            observer.observe(&Event::Step { step, total });

            let over = self.trainees.iter().all(Trainee::is_done);
            // After the last step a checkpoint would only repeat the result.
            let stops = !over && options.stop.load(Ordering::Relaxed);
            let (mut saves, mut stepping) = (false, Vec::with_capacity(stepped.len()));
            for (at, norm) in stepped {
                let Some(trainee) = self.trainees.get_mut(at) else { continue };
                trainee.state.seconds += seconds;
                trainee.after_step(&mut self.model, norm, observer)?;
                saves |= trainee.saves(over, stops);
                stepping.push(at);
            }
            let mut last = None;
            if saves {
                // Runs go on from a step that all of them have.
                for at in &stepping {
                    let Some(trainee) = self.trainees.get_mut(*at) else { continue };
                    let saved = trainee.save(&mut self.model, observer)?;
                    last = last.or(Some(saved));
                }
                // Not before all have theirs: a kill must leave one that all have.
                stepping.iter().filter_map(|at| self.trainees.get(*at)).try_for_each(Trainee::prune)?;
            }
            if let Some(own) = last.filter(|_| stops) {
                let checkpoint = if self.are_several() { self.output_dir.clone() } else { own };
                return Err(Error::Interrupted { step, checkpoint });
            }
        }
    }

    /// Says it once if a device that should record could not.
    fn note_unrecorded(&mut self, observer: &mut dyn Observer) {
        let Some([kept, recorded]) = self.captured.as_ref().map(CapturedSteps::kept) else { return };
        if recorded < kept && !std::mem::replace(&mut self.is_noted, true) {
            let note = "captured_steps: the device could not record a pass, which it does anew in each step";
            observer.observe(&Event::Note(note));
        }
    }

    /// One step of the optimisers of all that are not done: their places, and the norms of their gradients before clipping.
    fn step(&mut self) -> Result<Vec<(usize, Option<Tensor<1>>)>> {
        let mut work = Vec::with_capacity(self.trainees.len());
        for (at, trainee) in self.trainees.iter_mut().enumerate().filter(|(_, trainee)| !trainee.is_done()) {
            let batches = trainee.micro_batches(&self.model)?;
            work.push((at, trainee, batches));
        }
        // All steps of a run have one number.
        let number = work.iter().map(|(_, trainee, _)| trainee.state.global_step).max().unwrap_or_default();
        for index in 0..work.iter().map(|(.., batches)| batches.len()).max().unwrap_or_default() {
            let parts: Parts<'_, 'a> = work
                .iter_mut()
                .filter_map(|(_, trainee, batches)| Some((&mut **trainee, batches.get(index)?)))
                .filter(|(_, batch)| batch.share > 0.0)
                .collect();
            let Some((first, _)) = parts.first() else { continue };
            device::seed(&self.device, seeds::derive(self.seed, &[DROPOUT, number as u64, index as u64]));
            let examples: Vec<&Example> = parts.iter().flat_map(|(_, batch)| batch.examples.iter().copied()).collect();
            let longest = examples.iter().map(|example| example.input_ids.len()).max().unwrap_or_default();
            let prepared = first.prepared;
            let least = prepared.padded(longest, self.multiple);
            let CheckedBatch { inputs, labels } =
                batch(&examples, least, prepared.task, &prepared.context(), &self.device)?;
            let batch = CheckedBatch { inputs: inputs.with_checkpointed_layers(self.checkpointed_layers), labels };
            pass(&mut self.model, self.captured.as_mut(), &batch, parts)?;
        }
        let mut stepped = Vec::with_capacity(work.len());
        for (at, trainee, _) in work {
            stepped.push((at, trainee.step(&mut self.model)));
            trainee.count_step()?;
        }
        Ok(stepped)
    }

    /// Writes the results.
    fn finish(mut self, observer: &mut dyn Observer) -> Result<TrainReport> {
        let ((steps, _), several) = (self.progress(), self.are_several());
        let mut reports = Vec::with_capacity(self.trainees.len());
        let step_seconds_median = median(self.step_seconds);
        for trainee in self.trainees {
            let report = trainee.finish(&mut self.model, observer)?;
            reports.push(TrainReport { step_seconds_median, ..report });
        }
        if !several {
            return Ok(reports.swap_remove(0));
        }
        let sum = |of: fn(&TrainReport) -> f64| reports.iter().map(of).sum::<f64>();
        Ok(TrainReport {
            adapter: None,
            train_loss: sum(|report| report.train_loss) / reports.len().max(1) as f64,
            metrics: Metrics::new(),
            steps,
            tokens_per_second: sum(|report| report.tokens_per_second),
            step_seconds_median,
            peak_rss_bytes: peak_rss_bytes(),
            trainable_params: reports.iter().map(|report| report.trainable_params).sum(),
            train: None,
            eval: None,
            written_step: steps,
            output_dir: self.output_dir,
            adapters: reports,
        })
    }
}

/// The passes forward and back of the batches of all as one, which count by their shares.
fn pass(
    model: &mut PeftModel,
    captured: Option<&mut CapturedSteps>,
    batch: &CheckedBatch,
    parts: Parts<'_, '_>,
) -> Result<()> {
    if let Some(captured) = captured {
        // They are one adapter's, which has the batch for itself.
        for (trainee, part) in parts {
            let (loss, mut gradients) = captured.pass(model, batch, part.share)?;
            trainee.add_loss(loss);
            trainee.optimizer.take(&mut gradients);
        }
        return Ok(());
    }
    let names: Option<Vec<_>> = parts
        .iter()
        .flat_map(|(trainee, batch)| {
            let name = trainee.name;
            batch.examples.iter().map(move |_| name)
        })
        .collect();
    let mut losses = match names {
        Some(names) => {
            model.set_rows(&names)?;
            let (losses, _outputs) = model.losses_by_adapter(batch)?;
            losses.into_iter().map(|loss| (Some(loss.adapter), loss.loss)).collect()
        }
        // It trains alone.
        None => vec![(None, model.loss(batch)?.0)],
    };
    let mut sum: Option<Tensor<1>> = None;
    let mut optimizers = Vec::with_capacity(parts.len());
    for (trainee, batch) in parts {
        if let Some(at) = losses.iter().position(|(name, _)| name.as_deref() == trainee.name) {
            let (_, loss) = losses.swap_remove(at);
            let loss = if batch.share == 1.0 { loss } else { loss.mul_scalar(batch.share) };
            trainee.add_loss(loss.clone().without_autodiff());
            sum = Some(match sum {
                Some(sum) => sum + loss,
                None => loss,
            });
        }
        optimizers.push(&mut trainee.optimizer);
    }
    if let Some(sum) = sum {
        let mut gradients = model.gradients(&sum);
        optimizers.into_iter().for_each(|optimizer| optimizer.take(&mut gradients));
    }
    Ok(())
}
