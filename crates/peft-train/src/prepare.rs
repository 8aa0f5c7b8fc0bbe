//! From a recipe to everything that training needs, judged before the first step.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{DType, Device};
use peft_backends::memory::capacity;
use peft_core::{
    BadRows, BaseModel, Error as PeftError, ModelInfo, Plan, Task, TaskPlugin,
    data::{
        example::{EncodeContext, EncodeOptions, Pooling, Row},
        tokenizer::Tokenizer,
    },
    model::explain,
    plugins::task::LabelSet,
};
use peft_models::{
    HfTokenizer,
    checkpoint::{self, LoadOptions, Loaded},
};

use peft_generate::GenerationConfig;

use crate::{
    Dataset, Error, Recipe, Result, Writing,
    best_metric::chosen_metric,
    columns,
    data::{Part, has_part, note_on_paragraphs, read_part},
    dataset,
    evaluate::named_metrics,
    labels::PROBLEM_TYPES,
    packing::check_kept_apart,
    pooling::SentenceEncoder,
    recipe::{DataArguments, Init, TrainingArguments},
    row_adapters::named_adapters,
};

/// Most tokens of an example where neither the recipe nor the model says less: the default of `SFTConfig`.
pub const DEFAULT_MAX_LENGTH: usize = 1024;

/// Everything that training needs but the adapter.
#[derive(Debug)]
pub struct Prepared {
    /// The base model with the task's head.
    pub base: BaseModel,
    /// What the model says of itself with the adapter's prompt before its input, if there is one.
    pub info: Arc<ModelInfo>,
    /// Parameters that the checkpoint lacks and that start at random.
    pub initialised: Vec<String>,
    /// The task.
    pub task: &'static dyn Task,
    /// The base model's tokenizer.
    pub tokenizer: Box<dyn Tokenizer>,
    /// The classes, where the task has some.
    pub labels: Option<LabelSet>,
    /// The training rows.
    pub train: Dataset,
    /// The evaluation rows.
    pub eval: Option<Dataset>,
    /// What the model is to write for the evaluation rows.
    pub writing: Option<Writing>,
    /// How rows become examples.
    pub options: EncodeOptions,
    /// What the user should know of how the data were read.
    pub notes: Vec<String>,
}

impl Prepared {
    /// The positions of rows whose longest has so many, where they come in multiples.
    pub(crate) fn padded(&self, longest: usize, multiple: usize) -> usize {
        dataset::padded(longest, multiple, self.options.max_length.min(self.info.room().unwrap_or(usize::MAX)))
    }

    /// The lengths that batches of the training examples can have with that padding.
    pub(crate) fn padded_lengths(&self, multiple: usize) -> BTreeSet<usize> {
        self.train.examples.iter().map(|example| self.padded(example.input_ids.len(), multiple)).collect()
    }

    /// What the task needs to turn labelled rows into examples.
    pub fn context(&self) -> EncodeContext<'_> {
        EncodeContext { tokenizer: &*self.tokenizer, info: &self.info, options: &self.options, labelled: true }
    }
}

/// How the rows that an adapter was trained on became examples, from its folder's `recipe.toml`; the defaults if it has none.
///
/// # Errors
/// If the recipe is broken, or what the model's folder says of its pooling.
pub fn options_of_adapter(folder: &Path, model: &Path, task: &dyn Task, info: &ModelInfo) -> Result<EncodeOptions> {
    let data = Recipe::of_adapter(folder)?.map_or_else(DataArguments::default, |recipe| recipe.data);
    let most = info.room().unwrap_or(usize::MAX);
    let encoder = sentence_encoder(task, &[folder, model])?;
    let max_length = data.max_length.or(encoder.max_seq_length).unwrap_or(DEFAULT_MAX_LENGTH).min(most);
    Ok(encode_options(&data, &encoder, max_length))
}

/// How a model writes: as its own folder says, with what the adapter's `recipe.toml` says of generation over it.
///
/// # Errors
/// If one of the files is broken.
pub fn generation_of_adapter(folder: &Path, model: &Path, info: &ModelInfo) -> Result<GenerationConfig> {
    let training = Recipe::of_adapter(folder)?.map_or_else(TrainingArguments::default, |recipe| recipe.training);
    generation_config(&training, model, info)
}

fn generation_config(training: &TrainingArguments, model: &Path, info: &ModelInfo) -> Result<GenerationConfig> {
    let mut config = GenerationConfig::of_model(model, &info.config)?;
    if let Some(length) = training.generation_max_length {
        // The model's own limit would go before it.
        (config.max_length, config.max_new_tokens) = (Some(length), None);
    }
    config.num_beams = training.generation_num_beams.unwrap_or(config.num_beams);
    Ok(config)
}

/// What `predict_with_generate` asks for.
fn writing(
    recipe: &Recipe,
    task: &TaskPlugin,
    eval: Option<&Dataset>,
    context: &EncodeContext<'_>,
) -> Result<Option<Writing>> {
    if !recipe.training.predict_with_generate {
        return Ok(None);
    }
    let config = generation_config(&recipe.training, &recipe.model_folder(), context.info)?;
    let config = config.with(&serde_json::Map::new(), "generation_config.json")?;
    let writing = eval.map(|eval| Writing::new(eval, task, context, config)).transpose()?;
    let problem = match &writing {
        None => "there is nothing to evaluate on: give `eval` or `eval_split` in [data]".to_owned(),
        Some(None) => {
            format!("no row asks {} to write anything: give a prompt and its completion, or a conversation", task.name)
        }
        Some(Some(_)) => return Ok(writing.flatten()),
    };
    let (origin, key) = (recipe.path.display().to_string(), "predict_with_generate".to_owned());
    Err(PeftError::Config { origin, key, problem }.into())
}

/// What a sentence encoder's files say, where the task pools vectors.
fn sentence_encoder(task: &dyn Task, folders: &[&Path]) -> Result<SentenceEncoder> {
    if task.pools() { SentenceEncoder::of_folders(folders) } else { Ok(SentenceEncoder::default()) }
}

fn encode_options(data: &DataArguments, encoder: &SentenceEncoder, max_length: usize) -> EncodeOptions {
    EncodeOptions {
        columns: data.columns.clone(),
        max_length,
        max_target_length: data.max_target_length,
        source_prefix: data.source_prefix.clone(),
        overflow: data.overflow,
        doc_stride: data.doc_stride,
        completion_only_loss: data.completion_only_loss,
        assistant_only_loss: data.assistant_only_loss,
        pooling: data.pooling.or(encoder.pooling).unwrap_or(Pooling::Mean),
        lower_case: encoder.lower_case,
        normalize: data.normalize,
        score_scale: data.score_scale,
    }
}

/// Resolves a recipe: reads the rows, finds their classes, opens the base model with the task's head, encodes the rows. Of
/// several adapters the first.
///
/// # Errors
/// Whatever is wrong with the recipe, the data or the model; file and line for a row.
pub fn prepare(recipe: &Recipe, device: &Device) -> Result<Prepared> {
    Ok(resolve(recipe, device, true)?.swap_remove(0))
}

/// The same for each of the adapters, in the order of [`Recipe::apart`], over one base model.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_all(recipe: &Recipe, device: &Device) -> Result<Vec<Prepared>> {
    resolve(recipe, device, true)
}

/// What stands for all adapters where a batch is estimated: a recipe whose batches are those of all together, and whichever has
/// the longest example.
pub fn joint<'a>(recipe: &Recipe, all: &'a [Prepared]) -> (Recipe, &'a Prepared) {
    let mut whole = recipe.clone();
    let rows = &mut whole.training.per_device_train_batch_size;
    *rows = rows.saturating_mul(all.len());
    let longest = |prepared: &&Prepared| prepared.train.examples.iter().map(|e| e.input_ids.len()).max();
    let Some(largest) = all.iter().max_by_key(longest) else { unreachable!("a recipe has an adapter") };
    (whole, largest)
}

/// [`prepare`] without the weights of the base model: for looking at the data.
///
/// # Errors
/// As [`prepare`].
pub fn preview(recipe: &Recipe, device: &Device) -> Result<Prepared> {
    Ok(preview_all(recipe, device)?.swap_remove(0))
}

/// [`prepare_all`] without the weights of the base model.
///
/// # Errors
/// As [`prepare`].
pub fn preview_all(recipe: &Recipe, device: &Device) -> Result<Vec<Prepared>> {
    resolve(recipe, device, false)
}

/// The rows of an adapter.
struct Rows {
    source: PathBuf,
    /// Those of `eval_split` are taken out once all classes are known.
    train: Vec<Row>,
    eval: Option<Vec<Row>>,
}

/// The files of rows, each read once however many adapters take theirs from it.
struct Files {
    read: Vec<(PathBuf, Part, Arc<Vec<Row>>)>,
    /// Whether what was read may be asked for again.
    shared: bool,
}

impl Files {
    fn rows(&mut self, path: &Path, part: Part) -> Result<Arc<Vec<Row>>> {
        if let Some((.., rows)) = self.read.iter().find(|(known, of, _)| known == path && *of == part) {
            return Ok(Arc::clone(rows));
        }
        let rows = Arc::new(read_part(path, part)?);
        if self.shared {
            self.read.push((path.to_owned(), part, Arc::clone(&rows)));
        }
        Ok(rows)
    }
}

impl Rows {
    fn read(recipe: &Recipe, files: &mut Files) -> Result<Self> {
        let source = recipe.locate(&recipe.data.train);
        let mut read = |source: &Path, part| own_rows(files.rows(source, part)?, &recipe.data);
        let train = read(&source, Part::Train)?;
        if let Some(name) = recipe.data.adapter.as_ref().filter(|_| train.is_empty()) {
            let problem = format!("no row has `{name}` in its column `{}`", recipe.data.column_of_adapters());
            return Err(PeftError::File { path: source, problem }.into());
        }
        let eval = match (&recipe.data.eval, recipe.data.eval_split) {
            (Some(eval), _) => Some(read(&recipe.locate(eval), Part::Validation)?),
            (None, None) if source.is_dir() && has_part(&source, Part::Validation)? => {
                Some(read(&source, Part::Validation)?)
            }
            (None, _) => None,
        };
        let eval = eval.filter(|rows| !rows.is_empty() || recipe.data.adapter.is_none());
        Ok(Self { source, train, eval })
    }

    /// The rows with those of `eval_split` apart.
    fn split(self, recipe: &Recipe) -> Result<Self> {
        let Some(share) = recipe.data.eval_split else { return Ok(self) };
        let (train, eval) = dataset::split(self.train, share, recipe.training.seed)?;
        Ok(Self { train, eval: Some(eval), ..self })
    }
}

/// The rows of the adapter that the recipe wants those of; all if it wants no one's.
fn own_rows(rows: Arc<Vec<Row>>, data: &DataArguments) -> Result<Vec<Row>> {
    let Some(name) = &data.adapter else { return Ok(Arc::unwrap_or_clone(rows)) };
    columns::has(&rows, data.column_of_adapters(), "adapter_column in [data]")?;
    let mut bad = BadRows::default();
    let mut own = Vec::new();
    for row in rows.iter() {
        let is_own = row.text(data.column_of_adapters()).map(|named| named == name);
        own.extend((bad.take(is_own)? == Some(true)).then(|| row.clone()));
    }
    bad.finish()?;
    Ok(own)
}

/// That each row which several adapters share out among them is one's.
fn check_shared(recipe: &Recipe, files: &mut Files) -> Result<()> {
    if recipe.apart().iter().all(|(_, one)| one.data.adapter.is_none()) || recipe.adapters.is_empty() {
        return Ok(());
    }
    let known: Vec<&str> = recipe.adapters.iter().map(|one| one.name.as_str()).collect();
    let rows = files.rows(&recipe.locate(&recipe.data.train), Part::Train)?;
    named_adapters(&rows, recipe.data.column_of_adapters(), &known).map(drop)
}

fn resolve(recipe: &Recipe, device: &Device, weights: bool) -> Result<Vec<Prepared>> {
    let Some(task) = recipe.adapter.task()? else {
        let problem = "missing: training needs a task; the default wrapper has no loss".to_owned();
        return Err(PeftError::Config {
            origin: recipe.path.display().to_string(),
            key: "task_type".to_owned(),
            problem,
        }
        .into());
    };
    let (folder, config) = (recipe.model_folder(), recipe.model_config());
    if recipe.model.config.is_none() && !folder.exists() {
        let hint = match folder.components().count() {
            1 => "; a model on the Hub is org/name, as google-bert/bert-base-uncased",
            _ => "",
        };
        let what =
            format!("the base model of the recipe, beside it, in the working directory or in the Hub's cache{hint}");
        return Err(PeftError::NotFound { path: folder, what }.into());
    }
    let mut files = Files { read: Vec::new(), shared: !recipe.adapters.is_empty() };
    check_shared(recipe, &mut files)?;
    let apart: Vec<&Recipe> = recipe.apart().into_iter().map(|(_, one)| one).collect();
    let rows: Vec<Rows> = apart.iter().map(|one| Rows::read(one, &mut files)).collect::<Result<_>>()?;
    drop(files);

    for rows in &rows {
        columns::check(&rows.train, task.task, &recipe.data.columns, true)?;
    }
    let label_column = label_column(task, &recipe.data.columns);
    let found = match rows.as_slice() {
        [one] => task.task.labels(&one.train, &label_column).map_err(|error| about_rows(error, &one.source, recipe))?,
        // One head's classes are those of all.
        several => {
            let all: Vec<Row> = several.iter().flat_map(|rows| rows.train.iter().cloned()).collect();
            task.task.labels(&all, &label_column).map_err(|error| error.in_file(&recipe.path))?
        }
    };
    let has_own = has_own_classes(&config, task, found.as_ref())?;
    let are_other = has_own && found.as_ref().map_or(Ok(false), |found| are_other_classes(&config, found))?;
    let gives_way = recipe.model.ignore_mismatched_sizes && are_other;
    let labels = if has_own && !gives_way { None } else { found.clone() };
    let options = LoadOptions {
        dtype: recipe.model.dtype.map(Into::into),
        labels,
        seed: recipe.training.seed,
        quantization: recipe.model.quantization.clone(),
        ignore_mismatched_sizes: recipe.model.ignore_mismatched_sizes,
        ..LoadOptions::default()
    };
    let skeleton = checkpoint::skeleton(&config, &task.auto_class, &options, device)?;
    // What the model cannot take is refused before its weights are read.
    let plan = |one: &&Recipe| explain::plan(&skeleton, &one.adapter).map_err(|error| error.in_file(&recipe.path));
    let plans: Vec<Plan> = apart.iter().map(plan).collect::<peft_core::Result<_>>()?;
    let (base, initialised, replaced) = if !weights {
        (skeleton, Vec::new(), Vec::new())
    } else if recipe.model.init == Some(Init::Random) {
        check_size(&skeleton, &config, device)?;
        (checkpoint::random(&config, &task.auto_class, &options, device)?, Vec::new(), Vec::new())
    } else {
        let loaded = checkpoint::load(&folder, &task.auto_class, &options, device)?;
        let Loaded { base, initialised, replaced, .. } = loaded;
        (base, initialised, replaced)
    };
    let each = apart.into_iter().zip(plans).zip(rows);
    let each = each.map(|((one, plan), rows)| {
        let model = Model {
            base: base.clone(),
            initialised: initialised.clone(),
            replaced: replaced.clone(),
            found: found.clone(),
            weights,
            is_for_others: are_other && !gives_way,
        };
        encoded(one, task, model, plan, rows.split(one)?, device)
    });
    each.collect()
}

/// That a new model, whose size only its configuration says, is no larger than what there is for it.
fn check_size(skeleton: &BaseModel, config: &Path, device: &Device) -> Result<()> {
    let width = DType::F32.size() as u64;
    let bytes = (skeleton.tree().num_params() as u64).saturating_mul(width);
    let Some(available) = capacity(device).filter(|available| bytes > *available) else { return Ok(()) };
    let [needed, available] = [bytes, available].map(|bytes| bytes.div_ceil(1_000_000));
    let problem = format!("a new model of these sizes takes {needed} MB, and {available} MB are there");
    let origin = config.display().to_string();
    Err(PeftError::Config { origin, key: String::new(), problem }.into())
}

/// A base model, what was found of it, and whether its weights are there.
struct Model {
    base: BaseModel,
    initialised: Vec<String>,
    /// What of the checkpoint's own head is left out.
    replaced: Vec<String>,
    found: Option<LabelSet>,
    weights: bool,
    /// Whether its head is for other classes than those of the data.
    is_for_others: bool,
}

fn encoded(
    recipe: &Recipe,
    task: &'static TaskPlugin,
    model: Model,
    plan: Plan,
    rows: Rows,
    device: &Device,
) -> Result<Prepared> {
    let Model { base, initialised, replaced, found, weights, is_for_others } = model;
    let Rows { source, train, eval } = rows;
    let of_rows = |error: PeftError| match about_rows(error, &source, recipe) {
        PeftError::Data(problem) if is_for_others => PeftError::Data(format!(
            "{problem}\nthe checkpoint's head is for other classes: `ignore_mismatched_sizes = true` in [model] starts a fresh one"
        )),
        other => other,
    };
    let mut notes: Vec<String> = train_and(eval.as_deref(), &train).filter_map(note_on_paragraphs).collect();
    if !replaced.is_empty() {
        notes.push(format!(
            "the checkpoint has another head, which is left out for a fresh one: {}",
            replaced.join(", ")
        ));
    }
    let tokenizer: Box<dyn Tokenizer> = Box::new(HfTokenizer::from_folder(&recipe.tokenizer())?);

    let info = plan.prompt.map_or_else(|| Arc::clone(&base.info), |prompt| Arc::new(prompt.info(&base.info)));
    let encoder = sentence_encoder(task.task, &[&recipe.model_folder()])?;
    let max_length = max_length(recipe, &encoder, &info)?;
    let options = encode_options(&recipe.data, &encoder, max_length);
    let context = EncodeContext { tokenizer: &*tokenizer, info: &info, options: &options, labelled: true };
    let train = Dataset::for_training(train, task.task, &context).map_err(|error| match error {
        Error::Peft(error) => of_rows(error).into(),
        other => other,
    })?;
    // Of rows that are all too long there is more to say than what the task misses.
    if train.summary.too_long < train.summary.rows {
        task.task.check_examples(&train.examples, &context).map_err(of_rows)?;
    }
    if let Some(problem) = train.summary.nothing(&options) {
        let path = recipe.locate(&recipe.data.train);
        return Err(PeftError::File { path, problem: format!("nothing to learn from: {problem}") }.into());
    }
    let train = if recipe.data.packing {
        check_packing(recipe, task)?;
        if weights {
            check_kept_apart(&base, &train.examples, tokenizer.pad_id(), device)?;
        }
        train.packed(max_length)
    } else {
        train
    };
    let eval = eval.map(|rows| Dataset::for_evaluation(rows, task.task, &context)).transpose()?;
    let writing = writing(recipe, task, eval.as_ref(), &context)?;
    if let Some(eval) = eval.as_ref().filter(|_| writing.is_none()) {
        eval.check_measurable(task.task, &context)?;
    }
    if let (Some(wanted), Some(eval)) = (&recipe.training.metric_for_best_model, &eval) {
        let metrics = named_metrics(task.task, eval, &context, writing.as_ref())?;
        chosen_metric(&metrics, Some(wanted)).map_err(|error| match error {
            Error::Peft(error) => error.in_file(&recipe.path).into(),
            other => other,
        })?;
    }
    let labels = found.map(|found| {
        notes.extend(note_on_numbers(&found, &base.info));
        LabelSet { labels: base.info.labels(), problem_type: problem_type(&found, &base.info) }
    });
    notes.extend(labels.as_ref().and_then(|labels| note_on_regression(labels, &train, &options)));
    Ok(Prepared { base, info, initialised, task: task.task, tokenizer, labels, train, eval, writing, options, notes })
}

/// The tokenizer that the adapter's configuration names for the text that a prompt begins as; none if it names none, or what it
/// names is the base model or not here, in which case the base model's serves.
pub(crate) fn prompt_tokenizer(recipe: &Recipe) -> Result<Option<Box<dyn Tokenizer>>> {
    let named = recipe.adapter.options.get("tokenizer_name_or_path").and_then(|value| value.as_str());
    let folder = named.map(|named| recipe.locate(named)).filter(|folder| folder.is_dir());
    Ok(match folder {
        Some(folder) => Some(Box::new(HfTokenizer::from_folder(&folder)?)),
        None => None,
    })
}

/// What is wrong with all rows together names their file, unless it names each row with its own.
fn about_rows(error: PeftError, source: &Path, recipe: &Recipe) -> PeftError {
    match error {
        PeftError::Data(problem) if !problem.starts_with(&source.display().to_string()) => {
            PeftError::File { path: source.to_owned(), problem }
        }
        other => other.in_file(&recipe.path),
    }
}

fn check_packing(recipe: &Recipe, task: &TaskPlugin) -> Result<()> {
    let wrong = |problem: String| -> Error {
        PeftError::Config { origin: recipe.path.display().to_string(), key: "packing".to_owned(), problem }.into()
    };
    if !task.task.packs() {
        return Err(wrong(format!("the examples of {} cannot be packed", task.name)));
    }
    if recipe.adapter.tuner().map_err(|error| error.in_file(&recipe.path))?.is_prompt() {
        return Err(wrong("virtual tokens stand before a whole sequence, not before each example in it".to_owned()));
    }
    Ok(())
}

/// The rows of the two parts.
fn train_and<'a>(eval: Option<&'a [Row]>, train: &'a [Row]) -> impl Iterator<Item = &'a [Row]> {
    [Some(train), eval].into_iter().flatten()
}

/// What kind of problem it is: the model's own word goes before what the labels look like.
fn problem_type(found: &LabelSet, info: &ModelInfo) -> &'static str {
    match info.problem_type() {
        Some(own) => PROBLEM_TYPES.into_iter().find(|kind| *kind == own).unwrap_or(found.problem_type),
        None if info.num_labels() == 1 => "regression",
        // Whole numbers with a decimal point are classes of a model that has several.
        None if found.problem_type == "regression" && info.num_labels() != found.labels.len() => {
            "single_label_classification"
        }
        None => found.problem_type,
    }
}

/// That labels which are numbers were read as the ids of the model's classes.
fn note_on_numbers(found: &LabelSet, info: &ModelInfo) -> Option<String> {
    const SHOWN: usize = 10;
    let names = info.labels();
    let is_number = |label: &String| label.parse::<i64>().is_ok();
    // `1.0` looks like a number to predict, but not to a model with classes.
    let are_numbers = found.labels.iter().all(is_number) || found.problem_type != problem_type(found, info);
    if found.labels.is_empty() || !are_numbers || names.iter().any(is_number) || found.labels == names {
        return None;
    }
    let pairs: Vec<String> = names.iter().take(SHOWN).enumerate().map(|(id, name)| format!("{id} = {name}")).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    Some(format!("the labels are numbers of the model's classes: {}{more}", pairs.join(", ")))
}

/// That labels without a fraction make a regression because they are written with a decimal point.
fn note_on_regression(labels: &LabelSet, train: &Dataset, options: &EncodeOptions) -> Option<String> {
    let whole = |row: &Row| {
        let value = row.fields.get(options.columns.get("label").map_or("label", String::as_str))?;
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
        Some(number.fract() == 0.0)
    };
    let is_one = labels.problem_type == "regression" && labels.labels.len() == 1;
    (is_one && train.rows.iter().all(|row| whole(row) == Some(true))).then(|| {
        "the labels are whole numbers written with a decimal point, which makes this a regression; write 0 and 1, or names, for \
         classes"
            .to_owned()
    })
}

/// The column that holds what is to be learnt.
fn label_column(task: &TaskPlugin, columns: &BTreeMap<String, String>) -> String {
    let role = task.task.columns().iter().find(|column| column.learnt).map_or("label", |column| column.role);
    columns.get(role).cloned().unwrap_or_else(|| role.to_owned())
}

/// Whether the base model was saved with a head of this task whose classes have names of their own.
fn has_own_classes(folder: &Path, task: &TaskPlugin, found: Option<&LabelSet>) -> Result<bool> {
    let config = checkpoint::read_config(folder)?;
    let suffix = task.auto_class.as_str().trim_start_matches("AutoModel");
    let saved_as = config.get("architectures").and_then(|classes| classes.get(0)).and_then(|class| class.as_str());
    if suffix.is_empty() || !saved_as.is_some_and(|class| class.ends_with(suffix)) {
        return Ok(false);
    }
    // A head whose classes were never named takes the names of the data, if they are as many.
    let info = ModelInfo { config, ..ModelInfo::custom() };
    let unnamed = info.labels().iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"));
    Ok(!unnamed || found.is_none_or(|found| found.labels.len() != info.num_labels()))
}

/// Whether some classes of the data are none of the model's, neither by name nor by number.
fn are_other_classes(folder: &Path, found: &LabelSet) -> Result<bool> {
    let own = ModelInfo { config: checkpoint::read_config(folder)?, ..ModelInfo::custom() }.labels();
    let is_own = |label: &String| own.contains(label) || label.parse().is_ok_and(|id: usize| id < own.len());
    Ok(!found.labels.iter().all(is_own))
}

fn max_length(recipe: &Recipe, encoder: &SentenceEncoder, info: &ModelInfo) -> Result<usize> {
    let most = info.room().unwrap_or(usize::MAX);
    let wanted = [("max_length", recipe.data.max_length), ("max_target_length", recipe.data.max_target_length)];
    for (key, wanted) in wanted {
        if let Some((wanted, positions)) = wanted.and_then(|wanted| Some((wanted, info.exceeded(wanted)?))) {
            let problem = format!("{wanted} is more than the model's {positions}");
            let (origin, key) = (recipe.path.display().to_string(), key.to_owned());
            return Err(Error::from(PeftError::Config { origin, key, problem }));
        }
    }
    let default = || most.min(encoder.max_seq_length.unwrap_or(DEFAULT_MAX_LENGTH));
    Ok(recipe.data.max_length.unwrap_or_else(default))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_adapters_share_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.txt");
        let again = |shared: bool| {
            std::fs::write(&path, "a row\n").unwrap();
            let mut files = Files { read: Vec::new(), shared };
            assert_eq!(files.rows(&path, Part::Train).unwrap().len(), 1);
            std::fs::remove_file(&path).unwrap();
            files.rows(&path, Part::Train).map(|rows| rows.len())
        };
        assert_eq!(again(true).unwrap(), 1);
        assert!(again(false).is_err());
    }
}
