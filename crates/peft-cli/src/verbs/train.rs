//! `peft train`: fine-tune as a recipe says.

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::Device;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use peft::train::{
    Event, Observer, Prepared, Recipe, TrainOptions, TrainReport,
    activations::Activations,
    check_output_dir,
    dataset::DataSummary,
    memory::Memory,
    prepare::{joint, prepare_all},
    schedule::Schedule,
    step_plan::StepPlan,
};
use peft::{Explanation, backends::signals::Hangup, metrics::Metrics, models::hub::Needed};
use serde_json::{Map, Value, json};

use super::explain;
use crate::{CliError, Globals, session, terminal};

/// Fine-tune a model from a recipe
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft train recipe.toml
  peft train recipe.toml --dry-run
  peft train recipe.toml training.learning_rate=1e-4 adapter.r=16 training.output_dir=runs/r16
  peft train recipe.toml --resume

Paths in a recipe are looked for beside it first, then in the working directory; output_dir is relative to the working
directory. Ctrl-C finishes the step, writes a checkpoint and ends with code 130; a second one ends at once. So does the end of the
terminal, unless nohup has it ignored.")]
pub(crate) struct Train {
    /// The recipe, in TOML.
    #[arg(value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// Values that replace those of the recipe.
    #[arg(value_name = "section.key=value")]
    overrides: Vec<String>,
    /// Resolve, validate and explain everything, then stop.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Start even if the run would not fit into memory by the estimate.
    #[arg(long)]
    no_memory_check: bool,
    /// Go on from the last checkpoint in output_dir.
    #[arg(long)]
    resume: bool,
}

impl Train {
    pub(crate) fn run(self, globals: &Globals) -> Result<(), CliError> {
        session::dtype(globals)?;
        let mut overrides = self.overrides;
        overrides.extend(globals.dtype.iter().map(|dtype| format!("model.dtype={dtype}")));
        let recipe = Recipe::read(&self.recipe, &overrides)?;
        let device = session::device(globals)?;
        session::fetch(&recipe, Needed::Model, globals)?;
        if self.dry_run {
            return dry_run(&recipe, &device, globals);
        }
        let options =
            TrainOptions { resume: self.resume, device, check_memory: !self.no_memory_check, stop: stop_on_signals()? };
        let mut progress = Progress { globals, bar: None };
        let report = peft::train::train(&recipe, &options, &mut progress);
        progress.clear();
        let report = report?;
        if globals.json { terminal::json(&report) } else { terminal::result(summary(&report)) }
    }
}

/// A flag that ctrl-C, a request to end and the end of the terminal set; a second ctrl-C ends the program.
fn stop_on_signals() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let hangup = Hangup::inherited();
    let flag = Arc::clone(&stop);
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::Usage(format!("cannot listen for ctrl-C: {error}")))?;
    // A terminal that goes away says so more than once, which is no second ctrl-C.
    hangup.sets(Arc::clone(&stop));
    Ok(stop)
}

fn dry_run(recipe: &Recipe, device: &Device, globals: &Globals) -> Result<(), CliError> {
    check_output_dir(recipe)?;
    let all = prepare_all(recipe, device)?;
    let (whole, largest) = joint(recipe, &all);
    let activations = Activations::choose(&whole, largest)?;
    let memory = Memory::estimate(&whole, largest, activations.as_ref(), device)?;
    let is_one_of_several = !recipe.adapters.is_empty();
    let mut parts = Vec::with_capacity(all.len());
    for ((name, recipe), prepared) in recipe.apart().into_iter().zip(&all) {
        let explanation =
            Explanation::new(&prepared.base, &recipe.adapter).map_err(|error| error.in_file(&recipe.path))?;
        let plan = StepPlan::new(&recipe.training, &prepared.train);
        parts.push(Part {
            adapter: is_one_of_several.then_some(name),
            recipe,
            prepared,
            explanation,
            schedule: Schedule::new(&recipe.training, plan.total),
            plan,
        });
    }
    if globals.json {
        let mut adapters: Vec<Map<String, Value>> = parts.iter().map(Part::to_json).collect();
        let mut report = match recipe.adapters.is_empty() {
            true => adapters.swap_remove(0),
            false => Map::from_iter([("adapters".to_owned(), json!(adapters))]),
        };
        report.insert("activations".to_owned(), json!(activations));
        report.insert("memory".to_owned(), json!(memory));
        report.insert("recipe".to_owned(), json!(recipe.to_map()));
        return terminal::json(&report);
    }
    for part in &parts {
        if let Some(name) = part.adapter {
            terminal::result(format!("adapter `{name}`"))?;
        }
        part.show()?;
    }
    if let Some(activations) = activations {
        terminal::result(activations)?;
    }
    terminal::result(memory)?;
    terminal::result(format!("\n{}", recipe.to_toml().trim_end()))
}

/// What a dry run finds of an adapter.
struct Part<'a> {
    /// Its name, of one of several.
    adapter: Option<&'a str>,
    recipe: &'a Recipe,
    prepared: &'a Prepared,
    explanation: Explanation,
    plan: StepPlan,
    schedule: Schedule,
}

impl Part<'_> {
    fn to_json(&self) -> Map<String, Value> {
        let Self { prepared, .. } = self;
        let mut map = Map::from_iter([
            ("explanation".to_owned(), json!(self.explanation)),
            ("train".to_owned(), json!(prepared.train.summary)),
            ("eval".to_owned(), json!(prepared.eval.as_ref().map(|eval| &eval.summary))),
            ("labels".to_owned(), json!(prepared.labels.as_ref().map(|labels| &labels.labels))),
            ("problem_type".to_owned(), json!(prepared.labels.as_ref().map(|labels| labels.problem_type))),
            ("notes".to_owned(), json!(prepared.notes)),
            ("max_length".to_owned(), json!(prepared.options.max_length)),
            ("steps".to_owned(), json!(self.plan.total)),
            ("warmup_steps".to_owned(), json!(self.schedule.warmup)),
        ]);
        map.extend(self.adapter.map(|name| ("adapter".to_owned(), name.into())));
        map
    }

    fn show(&self) -> Result<(), CliError> {
        terminal::result(explain::prose(&self.explanation, &self.prepared.base, &self.recipe.adapter)?)?;
        terminal::result("")?;
        for line in data_lines(self.prepared) {
            terminal::result(line)?;
        }
        terminal::result(format!(
            "steps: {} ({} each epoch), warmup {}, peak learning rate {:e}",
            self.plan.total, self.plan.steps_per_epoch, self.schedule.warmup, self.schedule.peak
        ))
    }
}

pub(super) fn data_lines(prepared: &Prepared) -> Vec<String> {
    let line = |what: &str, data: &DataSummary| {
        let long = data.long_rows(&prepared.options).map(|long| format!(" ({long})")).unwrap_or_default();
        let left_out = match data.without_loss {
            0 => String::new(),
            count => format!(", {count} of them with no token in the loss"),
        };
        format!(
            "{what}: {} rows{long}, {} examples{left_out}, {} tokens, {} loss tokens",
            data.rows, data.examples, data.tokens, data.loss_tokens
        )
    };
    let mut lines = vec![line("train", &prepared.train.summary)];
    lines.extend(prepared.eval.as_ref().map(|eval| line("eval", &eval.summary)));
    lines.extend(prepared.labels.as_ref().map(|labels| match labels.problem_type {
        "regression" => {
            format!("regression: the labels are numbers, and so is what is predicted ({})", labels.labels.join(", "))
        }
        "multi_label_classification" => format!("labels: {} (several classes for each row)", labels.labels.join(", ")),
        _ => format!("labels: {}", labels.labels.join(", ")),
    }));
    lines.extend(prepared.notes.iter().map(|note| format!("note: {note}")));
    if !prepared.initialised.is_empty() {
        lines.push(format!("newly initialized (not in the checkpoint): {}", prepared.initialised.join(", ")));
    }
    lines
}

fn summary(report: &TrainReport) -> String {
    let mut lines = vec![format!("train_loss {:.4} after {} steps", report.train_loss, report.steps)];
    lines.extend(report.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")));
    lines.push(format!("{:.0} tokens/s, {:.3} s/step", report.tokens_per_second, report.step_seconds_median));
    let which =
        if report.written_step == report.steps { String::new() } else { format!(" (step {})", report.written_step) };
    if report.adapters.is_empty() {
        lines.push(format!("adapter{which} in {}", report.output_dir.display()));
    }
    for one in &report.adapters {
        let name = one.adapter.as_deref().unwrap_or_default();
        lines.push(format!("\nadapter `{name}`\n{}", summary(one)));
    }
    lines.join("\n")
}

/// A bar on a terminal, lines elsewhere; all of it on stderr.
struct Progress<'a> {
    globals: &'a Globals,
    bar: Option<ProgressBar>,
}

impl Progress<'_> {
    fn say(&self, text: impl std::fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| terminal::note(self.globals, text)),
            None => terminal::note(self.globals, text),
        }
    }

    fn start(&mut self, done: usize, total: usize) {
        if done > 0 {
            self.say(format!("resuming after step {done} of {total}"));
        }
        if self.globals.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left {msg}");
        let bar = ProgressBar::new(total as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(done as u64);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress<'_> {
    fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Note(note) => self.say(format!("note: {note}")),
            Event::Prepared(prepared) => data_lines(prepared).into_iter().for_each(|line| self.say(line)),
            Event::Adapted(explanation) => {
                explanation.notes.iter().for_each(|note| self.say(format!("note: {note}")));
                self.say(explanation.trainable_sentence());
            }
            Event::Started { done, total } => self.start(*done, *total),
            Event::Step { step, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message("");
                    bar.set_position(*step as u64);
                }
            }
            Event::Logged(line) => self.say(format!(
                "step {:>6}  {}epoch {:.2}  loss {:.4}  lr {:.2e}  {:.0} tokens/s",
                line.step,
                whose(line.adapter.as_deref()),
                line.epoch,
                line.loss,
                line.learning_rate,
                line.tokens_per_second
            )),
            Event::Evaluating { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("(evaluating {done}/{total})"));
                }
            }
            Event::Evaluated { adapter, step, metrics, best } => {
                let mark = if *best { "  best so far" } else { "" };
                self.say(format!("step {step:>6}  {}{}{mark}", whose(*adapter), in_one_line(metrics)));
            }
            Event::Saved(folder) => self.say(format!("saved {}", folder.display())),
            _ => {}
        }
    }
}

/// The name of one of several adapters, before what is said of it.
fn whose(adapter: Option<&str>) -> String {
    adapter.map(|name| format!("{name}  ")).unwrap_or_default()
}

fn in_one_line(metrics: &Metrics) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}
