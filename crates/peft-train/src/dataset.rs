//! Encoded rows: the examples of a data file, their order in an epoch and their batches.

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use peft_core::{
    BadRows, CheckedBatch, Error as PeftError, ModelInfo, Task,
    data::example::{EncodeContext, EncodeOptions, Example, Label, Padding, Row, collate_labels, collate_to},
    tensor::random,
};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::{Result, columns, packing::pack, seeds};

/// How much there is of a data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSummary {
    /// Rows of the file.
    pub rows: usize,
    /// Examples made from them.
    pub examples: usize,
    /// Tokens of the examples.
    pub tokens: usize,
    /// What the loss is a mean of: rows, or tokens that carry a label; none without labels.
    pub loss_tokens: usize,
    /// Examples in which nothing counts for the loss; training leaves them out.
    pub without_loss: usize,
    /// Rows that were left out because they are too long.
    pub too_long: usize,
    /// Rows of which something was cut off because they are too long.
    pub cut: usize,
}

impl DataSummary {
    /// What became of rows that are too long, in words; none if there are none.
    pub fn long_rows(&self, options: &EncodeOptions) -> Option<String> {
        let limit = limit(options);
        let left_out = format!("{} left out, longer than {limit} tokens", self.too_long);
        let cut = format!("{} cut to {limit} tokens", self.cut);
        match (self.too_long, self.cut) {
            (0, 0) => None,
            (_, 0) => Some(left_out),
            (0, _) => Some(cut),
            (..) => Some(format!("{left_out}; {cut}")),
        }
    }

    /// Why rows with labels are nothing to learn from or to measure on; none if they are something.
    pub fn nothing(&self, options: &EncodeOptions) -> Option<String> {
        let limit = limit(options);
        if self.rows > 0 && self.too_long == self.rows {
            return Some(format!(
                "all {} rows are longer than {limit} tokens, and overflow = \"drop\" leaves them out: raise max_length, or set \
                 overflow = \"truncate\"",
                self.rows
            ));
        }
        if self.loss_tokens > 0 {
            return None;
        }
        // Training counts those apart that it leaves out.
        let examples = self.examples.max(self.without_loss);
        let mut problem = format!("none of its {} rows ({examples} examples) has a token in the loss", self.rows);
        if self.cut > 0 {
            problem.push_str(&format!(
                "; {} rows were cut to {limit} tokens, so that nothing of what is wanted is left",
                self.cut
            ));
        }
        Some(problem)
    }
}

/// The keys that limit an example, as a recipe has them.
fn limit(options: &EncodeOptions) -> String {
    let target = options.max_target_length.map(|most| format!(" (max_target_length = {most})")).unwrap_or_default();
    format!("max_length = {}{target}", options.max_length)
}

/// The rows of a file and the examples made from them.
#[derive(Debug)]
pub struct Dataset {
    /// The rows.
    pub rows: Vec<Row>,
    /// The examples in the order of their rows.
    pub examples: Vec<Example>,
    /// How many consecutive examples stay together.
    pub group_size: usize,
    /// How much there is.
    pub summary: DataSummary,
}

impl Dataset {
    /// Encodes rows for training: examples without anything that counts for the loss are left out.
    ///
    /// # Errors
    /// With file and line of the row.
    pub fn for_training(rows: Vec<Row>, task: &dyn Task, context: &EncodeContext<'_>) -> Result<Self> {
        Self::encode(rows, task, context, true)
    }

    /// Encodes rows for evaluation or prediction, where every row counts.
    ///
    /// # Errors
    /// With file and line of the row.
    pub fn for_evaluation(rows: Vec<Row>, task: &dyn Task, context: &EncodeContext<'_>) -> Result<Self> {
        Self::encode(rows, task, context, false)
    }

    fn encode(rows: Vec<Row>, task: &dyn Task, context: &EncodeContext<'_>, drop_lossless: bool) -> Result<Self> {
        let group_size = task.group_size().max(1);
        let mut summary = DataSummary { rows: rows.len(), ..DataSummary::default() };
        let mut examples = Vec::with_capacity(rows.len());
        let mut loss_tokens = 0.0;
        columns::check(&rows, task, &context.options.columns, context.labelled)?;
        task.check_rows(&rows, context)?;
        let mut bad = BadRows::default();
        for (index, row) in rows.iter().enumerate() {
            let encoded = task.encode(row, context).map_err(|error| at_row(row, error));
            let Some(encoded) = bad.take(encoded)? else { continue };
            summary.too_long += usize::from(encoded.is_empty());
            summary.cut += usize::from(encoded.iter().any(|example| example.cut));
            for mut example in encoded {
                example.row = index;
                if bad.take(check(&example, row, context.info))?.is_none() {
                    continue;
                }
                if let Some(tasks) = context.info.num_tasks {
                    let Some(task) = bad.take(task_id(row, tasks))? else { continue };
                    example.labels.insert(TASK_IDS, Label::Class(task));
                }
                // Of grouped examples only the whole group has a loss.
                if context.labelled && group_size == 1 {
                    let weight = task
                        .loss(&collate_labels(&[&example]), context.info)
                        .map_err(|error| at_row(row, error))?
                        .weight();
                    loss_tokens += weight;
                    summary.without_loss += usize::from(weight <= 0.0);
                    if weight <= 0.0 && drop_lossless {
                        continue;
                    }
                }
                summary.tokens += example.input_ids.len();
                examples.push(example);
            }
        }
        bad.finish()?;
        if context.labelled && group_size > 1 {
            let mut counts = Vec::with_capacity(examples.len());
            for group in examples.chunks(group_size) {
                let weight = task.loss(&collate_labels(&group.iter().collect::<Vec<_>>()), context.info)?.weight();
                loss_tokens += weight;
                summary.without_loss += if weight > 0.0 { 0 } else { group.len() };
                counts.resize(counts.len() + group.len(), weight > 0.0 || !drop_lossless);
            }
            let mut counts = counts.into_iter();
            examples.retain(|_| counts.next().unwrap_or(true));
            summary.tokens = examples.iter().map(|example| example.input_ids.len()).sum();
        }
        summary.examples = examples.len();
        summary.loss_tokens = loss_tokens as usize;
        Ok(Self { rows, examples, group_size, summary })
    }

    /// That there is something to measure on.
    ///
    /// # Errors
    /// [`PeftError::File`] with the file of the rows and why nothing in it counts.
    pub fn check_measurable(&self, task: &dyn Task, context: &EncodeContext<'_>) -> Result<()> {
        let Some(problem) = self.summary.nothing(context.options) else { return Ok(()) };
        let learnt = task.columns().iter().filter(|column| column.learnt).map(|column| context.column(column.role));
        let lacking = learnt.filter(|name| !self.rows.iter().any(|row| row.fields.contains_key(*name)));
        let lacking: Vec<String> = lacking.map(|name| format!("; no row has `{name}`")).collect();
        let problem = problem + &lacking.concat();
        let path = self.rows.first().map(|row| row.file.to_path_buf()).unwrap_or_default();
        Err(PeftError::File { path, problem: format!("nothing to evaluate on: {problem}") }.into())
    }

    /// The same tokens in packed examples; see [`pack`].
    #[must_use]
    pub fn packed(self, max_length: usize) -> Self {
        let examples = pack(self.examples, max_length);
        let summary = DataSummary { examples: examples.len(), ..self.summary };
        Self { examples, summary, ..self }
    }

    /// How many groups of examples that stay together there are.
    pub fn groups(&self) -> usize {
        self.examples.len().div_ceil(self.group_size)
    }

    /// The examples of a group.
    pub fn group(&self, group: usize) -> &[Example] {
        let start = (group * self.group_size).min(self.examples.len());
        let end = (start + self.group_size).min(self.examples.len());
        self.examples.get(start..end).unwrap_or_default()
    }

    /// The groups in the order of an epoch: another one in each, the same for the same seed.
    pub fn epoch_order(&self, seed: u64, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.groups()).collect();
        order.shuffle(&mut random::seeded(seeds::derive(seed, &[ORDER, epoch as u64])));
        order
    }

    /// The groups of these examples from short to long, so that little of a batch is padding.
    pub(crate) fn by_length(&self, examples: &Range<usize>) -> Vec<usize> {
        let mut order: Vec<usize> =
            (examples.start / self.group_size..examples.end.div_ceil(self.group_size)).collect();
        order.sort_by_key(|group| self.group(*group).iter().map(|e| e.input_ids.len()).max());
        order
    }

    /// The examples of these rows.
    pub(crate) fn examples_of(&self, rows: &Range<usize>) -> Range<usize> {
        let before = |row: usize| self.examples.partition_point(|example| example.row < row);
        before(rows.start)..before(rows.end)
    }
}

/// The column that names a row's task, by number, for a prompt that several tasks share.
const TASK_ID: &str = "task_id";
const TASK_IDS: &str = "task_ids";

/// The task of a row; task 0 where there is only one.
fn task_id(row: &Row, tasks: usize) -> peft_core::Result<i64> {
    let value = match row.fields.get(TASK_ID) {
        None if tasks == 1 => return Ok(0),
        None => return Err(row.missing(TASK_ID)),
        Some(value) => value,
    };
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    let task = number.filter(|task| usize::try_from(*task).is_ok_and(|task| task < tasks));
    task.and_then(|task| i64::try_from(task).ok()).ok_or_else(|| {
        let last = tasks.saturating_sub(1);
        row.error(format!("column `{TASK_ID}` should be a task's number, 0 to {last}, found {value}"))
    })
}

/// Sets the order of examples apart from other uses of the recipe's seed.
const ORDER: u64 = 1;
const SPLIT: u64 = 2;

/// The positions of rows whose longest has so many, where they come in multiples: no more than `most`, unless it has more.
pub(crate) fn padded(longest: usize, multiple: usize, most: usize) -> usize {
    longest.checked_next_multiple_of(multiple.max(1)).unwrap_or(usize::MAX).min(most).max(longest)
}

/// Pads examples to their longest, or to `least` positions, with segments where the model takes them, checks them on the host and
/// brings them to a device.
pub(crate) fn batch(
    examples: &[&Example],
    least: usize,
    task: &dyn Task,
    context: &EncodeContext<'_>,
    device: &Device,
) -> peft_core::Result<CheckedBatch> {
    let info = context.info;
    let segments = info.num_types().is_some() && examples.iter().any(|e| !e.type_ids.is_empty());
    // Behind a prompt the last position is read, whatever stands there.
    let left = info.pools_last_token && info.virtual_outputs > 0;
    let host = Device::flex();
    let mut batch = collate_to(Padding { left, least }, examples, context.tokenizer.pad_id(), segments, &host);
    if let Some(tasks) = batch.labels.0.remove(TASK_IDS) {
        batch.inputs.task_ids = Some(Tensor::from_data(tasks, &host));
    }
    Ok(CheckedBatch::new(batch, Some(task), info)?.on(device))
}

/// Takes a share of the rows out for evaluation, rounded up: the same rows for the same seed.
///
/// # Errors
/// [`PeftError::Data`] if one of the two parts would be empty.
pub fn split(rows: Vec<Row>, share: f64, seed: u64) -> Result<(Vec<Row>, Vec<Row>)> {
    let total = rows.len();
    let taken = (total as f64 * share).ceil() as usize;
    if taken == 0 || taken >= total {
        let problem = format!("eval_split = {share} of {total} rows leaves nothing to train or to evaluate on");
        return Err(PeftError::Data(problem).into());
    }
    let mut order: Vec<usize> = (0..total).collect();
    order.shuffle(&mut random::seeded(seeds::derive(seed, &[SPLIT])));
    let mut is_eval = vec![false; total];
    for index in order.into_iter().take(taken) {
        if let Some(mark) = is_eval.get_mut(index) {
            *mark = true;
        }
    }
    let (eval, train): (Vec<_>, Vec<_>) = rows.into_iter().zip(is_eval).partition(|(_, is_eval)| *is_eval);
    let rows = |part: Vec<(Row, bool)>| part.into_iter().map(|(row, _)| row).collect();
    Ok((rows(train), rows(eval)))
}

/// Judges an example on the host, where nothing has to be read back from a device.
fn check(example: &Example, row: &Row, info: &ModelInfo) -> peft_core::Result<()> {
    if example.input_ids.is_empty() {
        return Err(row.error("has no tokens"));
    }
    let lacks = |token: &i64| !example.input_ids.iter().any(|id| i64::from(*id) == *token);
    if let Some(token) = info.pooled_token.filter(lacks) {
        let problem =
            format!("has no token {token}, whose state {} reads: does the tokenizer add it?", info.class_name);
        return Err(row.error(problem));
    }
    let tokens = example.input_ids.len();
    if let Some(positions) = info.exceeded(tokens) {
        let problem = format!("has {tokens} tokens: the model has {positions}; set max_length");
        return Err(row.error(problem));
    }
    for (what, ids, limit) in
        [("token", &example.input_ids, info.number("vocab_size")), ("segment", &example.type_ids, info.num_types())]
    {
        let Some(limit) = limit else { continue };
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= limit)) {
            let last = limit.saturating_sub(1);
            return Err(
                row.error(format!("{what} id {id} is outside the model's 0 to {last}: is the tokenizer its own?"))
            );
        }
    }
    Ok(())
}

/// The same error with the row's place, if it does not say so itself.
fn at_row(row: &Row, error: PeftError) -> PeftError {
    match error {
        PeftError::Data(problem) if !problem.starts_with(&row.place()) => row.error(problem),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{path::Path, sync::Arc};

    use serde_json::{Map, json};

    use super::*;

    fn rows(count: usize) -> Vec<Row> {
        let file: Arc<Path> = Arc::from(Path::new("train.tsv"));
        (0..count)
            .map(|line| Row { file: Arc::clone(&file), line, fields: Map::from_iter([("n".to_owned(), json!(line))]) })
            .collect()
    }

    fn dataset(count: usize, group_size: usize) -> Dataset {
        let example = |at: usize| Example { input_ids: vec![1; count - at], ..Example::default() };
        Dataset {
            rows: rows(count),
            examples: (0..count).map(example).collect(),
            group_size,
            summary: DataSummary::default(),
        }
    }

    #[test]
    fn an_epoch_has_every_group_once_in_its_own_order() {
        let data = dataset(20, 2);
        let (first, again, second) = (data.epoch_order(7, 0), data.epoch_order(7, 0), data.epoch_order(7, 1));
        assert_eq!(first, again);
        assert_ne!(first, second);
        assert_ne!(first, data.epoch_order(8, 0));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn grouped_examples_stay_together() {
        let data = dataset(5, 2);
        let sizes: Vec<_> = (0..data.groups()).map(|group| data.group(group).len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
    }

    #[test]
    fn short_examples_come_first_by_length() {
        assert_eq!(dataset(4, 1).by_length(&(0..4)), [3, 2, 1, 0]);
    }

    #[test]
    fn rows_are_padded_as_far_as_examples_may_go() {
        for (longest, multiple, expected) in [(5, 8, 8), (8, 8, 8), (17, 8, 20), (21, 8, 21), (5, 1, 5)] {
            assert_eq!(padded(longest, multiple, 20), expected);
        }
    }

    #[test]
    fn a_split_keeps_every_row_on_one_side() {
        let (train, eval) = split(rows(10), 0.25, 3).unwrap();
        assert_eq!((train.len(), eval.len()), (7, 3));
        let mut lines: Vec<_> = train.iter().chain(&eval).map(|row| row.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, (0..10).collect::<Vec<_>>());
        assert!(split(rows(1), 0.5, 0).is_err());
    }

    #[test]
    fn what_the_model_cannot_take_is_named_with_its_row() {
        let row = &rows(3)[2];
        let mut info = ModelInfo::custom();
        info.config.insert("vocab_size".to_owned(), json!(10));
        info.max_positions = Some(2);
        let judge = |ids: &[u32]| check(&Example { input_ids: ids.to_vec(), ..Example::default() }, row, &info);
        assert!(judge(&[0, 9]).is_ok());
        for (ids, says) in [(&[][..], "no tokens"), (&[10], "token id 10"), (&[1, 1, 1], "3 tokens")] {
            let message = judge(ids).unwrap_err().to_string();
            assert!(message.starts_with("train.tsv:2: ") && message.contains(says), "{message}");
        }
    }
}
