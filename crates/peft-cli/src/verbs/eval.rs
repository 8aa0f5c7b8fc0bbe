//! `peft eval`: the task's metrics on labelled data.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use peft::train::{
    Dataset, Writing,
    data::{Part, note_on_paragraphs, read_part, read_stream, stream_formats},
    evaluate::evaluate,
    prepare::{generation_of_adapter, options_of_adapter},
};
use peft::{
    ModelInfo, PeftModel, Task,
    data::example::{EncodeContext, EncodeOptions, Overflow, Pooling, Row},
    files::read_bytes,
    models::{ClassSource, HfTokenizer},
};
use serde_json::{Value, json};

use crate::{
    CliError, Globals,
    generation_args::GenerationArgs,
    session::ModelArgs,
    terminal::{self, Notes},
};

/// Measure an adapter on labelled data
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  peft eval --model bert --adapter out --data dev.tsv
  peft eval --model bert --adapter out --data dev.csv --column text=sentence --column label=stars --json
  peft eval --model t5 --adapter out --data dev.jsonl --predict-with-generate num_beams=4 max_new_tokens=64

Columns, max_length and doc_stride are those of the adapter's recipe.toml unless they are given; classes those of its
labels.json where the base model has none of its own.")]
pub(crate) struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Let the model write its answers, and compare them with those that are wanted.
    #[arg(long)]
    predict_with_generate: bool,
    #[command(flatten)]
    generation: GenerationArgs,
}

impl Eval {
    pub(crate) fn run(mut self, globals: &Globals) -> Result<(), CliError> {
        if !self.predict_with_generate && !self.generation.is_empty() {
            let problem = "options of generation have no effect without --predict-with-generate";
            return Err(CliError::Usage(problem.to_owned()));
        }
        let model = self.model.open(globals)?;
        let opened = self.data.open(&self.model, &model, true)?;
        let writing = if self.predict_with_generate {
            let writing = opened.writing(&self.model, &model, &self.generation, globals)?;
            let nothing = || CliError::Usage("--predict-with-generate: no row asks for a text".to_owned());
            Some(writing.ok_or_else(nothing)?)
        } else {
            None
        };
        opened.notes().for_each(|note| terminal::note(globals, format!("note: {note}")));
        if let (None, Some(task)) = (&writing, model.task()?) {
            opened.data.check_measurable(task.task, &opened.context())?;
        }
        let (context, batch_size) = (opened.context(), self.data.batch_size);
        let metrics = evaluate(&model, &opened.data, &context, writing.as_ref(), batch_size, &mut Notes(globals))?;
        if globals.json {
            let mut document = json!(metrics);
            let summary = &opened.data.summary;
            if let Value::Object(document) = &mut document {
                let counts = [
                    ("rows", summary.rows),
                    ("examples", summary.examples),
                    ("too_long", summary.too_long),
                    ("cut", summary.cut),
                    ("without_loss", summary.without_loss),
                ];
                document.extend(counts.map(|(name, count)| (name.to_owned(), count.into())));
            }
            return terminal::json(&document);
        }
        for (name, value) in &metrics {
            terminal::result(format!("{name} {value:.6}"))?;
        }
        Ok(())
    }
}

/// Which rows, and how they become examples.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// The rows: .tsv, .csv, .jsonl, .json (SQuAD), .conll, .conllu, .txt or .parquet; a folder with a test or validation file; or
    /// - for standard input, JSON Lines if --format is not given.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The format of --data, whatever its extension.
    #[arg(long, value_name = "FORMAT", value_parser = clap::builder::PossibleValuesParser::new(stream_formats()))]
    format: Option<String>,
    /// Examples of a batch.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    pub(crate) batch_size: usize,
    /// The column that plays a role, such as text=sentence; may be given several times.
    #[arg(long, value_name = "ROLE=NAME", value_parser = column)]
    column: Vec<(String, String)>,
    /// Most tokens of an example.
    #[arg(long, value_name = "N", value_parser = positive)]
    max_length: Option<usize>,
    /// What happens to a longer row: raise, truncate or drop.
    #[arg(long, value_name = "RULE", value_parser = word::<Overflow>)]
    overflow: Option<Overflow>,
    /// Tokens that neighbouring windows of a long context share.
    #[arg(long, value_name = "N")]
    doc_stride: Option<usize>,
    /// How the states of a text's tokens become one vector: mean, cls, last or max.
    #[arg(long, value_name = "HOW", value_parser = word::<Pooling>)]
    pooling: Option<Pooling>,
    /// Do not L2-normalize embeddings.
    #[arg(long)]
    no_normalize: bool,
    /// What scores of pairs are divided by, so that they are cosines.
    #[arg(long, value_name = "X", value_parser = scale)]
    score_scale: Option<f64>,
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a whole number above 0".to_owned())
}

fn scale(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "must be a number above 0".to_owned())
}

pub(super) fn column(text: &str) -> Result<(String, String), String> {
    let (role, name) = text.split_once('=').ok_or_else(|| "must be ROLE=NAME".to_owned())?;
    Ok((role.to_owned(), name.to_owned()))
}

/// A word of an enumeration; the error is serde's, which lists the words.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// Rows made ready for a model.
pub(crate) struct Opened {
    /// The folder of the adapter that acts first.
    adapter: PathBuf,
    tokenizer: HfTokenizer,
    info: Arc<ModelInfo>,
    options: EncodeOptions,
    /// How prompts are read.
    prompts: EncodeOptions,
    labelled: bool,
    pub(crate) data: Dataset,
}

impl Opened {
    /// What the task needs beside the rows.
    pub(crate) fn context(&self) -> EncodeContext<'_> {
        let (tokenizer, info) = (&self.tokenizer, &self.info);
        EncodeContext { tokenizer, info, options: &self.options, labelled: self.labelled }
    }

    /// What the user should know of how the rows were read.
    pub(crate) fn notes(&self) -> impl Iterator<Item = String> {
        let summary = &self.data.summary;
        let long = summary.long_rows(&self.options).map(|long| {
            let used = summary.rows.saturating_sub(summary.too_long);
            format!("{used} of {} rows are used, {long}", summary.rows)
        });
        let without = (summary.without_loss > 0 && self.labelled).then(|| {
            format!("{} of {} examples have nothing that counts for the loss", summary.without_loss, summary.examples)
        });
        [long, without, note_on_paragraphs(&self.data.rows)].into_iter().flatten()
    }

    /// What the rows ask the model to write; none where they ask for nothing.
    pub(crate) fn writing(
        &self,
        args: &ModelArgs,
        model: &PeftModel,
        generation: &GenerationArgs,
        globals: &Globals,
    ) -> Result<Option<Writing>, CliError> {
        let Some(task) = model.task()? else { return Ok(None) };
        let config = generation_of_adapter(&self.adapter, args.folder(), model.info())?;
        let config = generation.over(&config, &self.tokenizer, globals)?;
        let context = EncodeContext { options: &self.prompts, ..self.context() };
        Ok(Writing::new(&self.data, task, &context, config)?)
    }
}

impl DataArgs {
    /// Reads and encodes the rows as the adapter's own recipe would.
    pub(crate) fn open(&self, args: &ModelArgs, model: &PeftModel, labelled: bool) -> Result<Opened, CliError> {
        let class = args.base().map(|base| base.class.source);
        let Some(plugin) = model.task()?.filter(|_| class != Some(ClassSource::Backbone)) else {
            let problem = match args.adapters().is_empty() {
                true => "the model was saved without the head of a task: give --adapter ADAPTER; peft forward runs it",
                false => "the adapter has no task_type: there is nothing to measure or to answer; peft forward runs it",
            };
            return Err(CliError::Usage(problem.to_owned()));
        };
        let active = model.active().first();
        let folder = args.adapters().iter().find(|adapter| Some(&adapter.name) == active);
        // A model that was trained as a whole has all of it beside itself.
        let folder = folder.map_or(args.folder(), |adapter| &adapter.path).to_owned();
        let tokenizer = match HfTokenizer::from_folder(args.tokenizer_folder()) {
            // `peft train` leaves the tokenizer beside the adapter.
            Err(peft::Error::NotFound { path, what }) => match HfTokenizer::from_folder(&folder) {
                Err(peft::Error::NotFound { .. }) => return Err(peft::Error::NotFound { path, what }.into()),
                found => found?,
            },
            found => found?,
        };
        let info = model.info();
        let mut options = options_of_adapter(&folder, args.folder(), plugin.task, info)?;
        self.adjust(&mut options, plugin.task, info)?;
        let rows = self.rows()?;
        if !labelled {
            self.answer_every_row(&mut options, plugin.task, info, &tokenizer, rows.first())?;
        }
        let context = EncodeContext { tokenizer: &tokenizer, info, options: &options, labelled };
        let data = Dataset::for_evaluation(rows, plugin.task, &context)?;
        if labelled {
            plugin.task.check_examples(&data.examples, &context).map_err(|error| match error {
                peft::Error::Data(problem) => peft::Error::File { path: self.data.clone(), problem },
                other => other,
            })?;
        }
        let prompts = if self.max_length.is_some() { options.clone() } else { self.unlimited(&options, info) };
        Ok(Opened { adapter: folder, tokenizer, info: Arc::clone(info), options, prompts, labelled, data })
    }

    fn rows(&self) -> Result<Vec<Row>, CliError> {
        if self.data == Path::new("-") {
            return Ok(read_stream(std::io::stdin().lock(), "standard input", self.format.as_deref())?);
        }
        if let Some(format) = &self.format {
            let bytes = read_bytes(&self.data, "a data file")?;
            return Ok(read_stream(bytes.as_slice(), &self.data.display().to_string(), Some(format))?);
        }
        Ok(read_part(&self.data, Part::Test)?)
    }

    /// Without the limits of the training, which are none for what is asked of the model: a prompt is read whole.
    fn unlimited(&self, options: &EncodeOptions, info: &ModelInfo) -> EncodeOptions {
        EncodeOptions {
            max_length: info.room().unwrap_or(usize::MAX),
            overflow: self.overflow.unwrap_or(Overflow::Raise),
            ..options.clone()
        }
    }

    /// Rows that are answered are not left out, and prompts are read whole.
    fn answer_every_row(
        &self,
        options: &mut EncodeOptions,
        task: &dyn Task,
        info: &ModelInfo,
        tokenizer: &HfTokenizer,
        first: Option<&Row>,
    ) -> Result<(), CliError> {
        if self.overflow == Some(Overflow::Drop) {
            let problem = "--overflow drop: predict answers every row; take truncate or raise";
            return Err(CliError::Usage(problem.to_owned()));
        }
        let whole = self.unlimited(options, info);
        let context = EncodeContext { tokenizer, info, options: &whole, labelled: false };
        // A row that cannot be read is told of with all others.
        let is_prompt =
            self.max_length.is_none() && first.is_some_and(|row| !matches!(task.asks(row, &context), Ok(None)));
        if is_prompt {
            *options = whole;
        } else if options.overflow == Overflow::Drop {
            options.overflow = Overflow::Truncate;
        }
        Ok(())
    }

    fn adjust(&self, options: &mut EncodeOptions, task: &dyn Task, info: &ModelInfo) -> Result<(), CliError> {
        for (role, name) in &self.column {
            let roles: Vec<_> = task.columns().iter().map(|column| column.role).collect();
            if !roles.contains(&role.as_str()) {
                let problem =
                    format!("--column {role}={name}: the task has no such column; its columns: {}", roles.join(", "));
                return Err(CliError::Usage(problem));
            }
            options.columns.insert(role.clone(), name.clone());
        }
        if let (Some(wanted), Some(most)) = (self.max_length, info.room())
            && wanted > most
        {
            return Err(CliError::Usage(format!("--max-length {wanted} is more than the model's {most} positions")));
        }
        options.max_length = self.max_length.unwrap_or(options.max_length);
        options.overflow = self.overflow.unwrap_or(options.overflow);
        options.doc_stride = self.doc_stride.unwrap_or(options.doc_stride);
        options.pooling = self.pooling.unwrap_or(options.pooling);
        options.normalize &= !self.no_normalize;
        options.score_scale = self.score_scale.unwrap_or(options.score_scale);
        Ok(())
    }
}
