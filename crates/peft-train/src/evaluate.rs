//! Running a model over a data set without training it: metrics and answers.

use std::ops::Range;

use burn::tensor::Device;
use peft_core::{
    Error as PeftError, PeftModel, Task,
    data::example::{EncodeContext, Example},
    metrics::{Metrics, Scores},
    plugins::task::Scored,
    tensor::finite::check_finite,
};
use serde_json::{Value, json};

use crate::{Dataset, Error, Event, Observer, Result, Writing, dataset::batch, row_adapters::Runner};

/// The name of the loss among the metrics.
pub const EVAL_LOSS: &str = "eval_loss";

/// The mean loss (`eval_loss`, first) and the task's metrics over labelled rows.
///
/// The loss is the mean over all labels of the data set, whatever the batches. With `writing` the model also writes its
/// answers, which are compared with those that are wanted.
///
/// # Errors
/// If the rows or the outputs do not suit the task.
pub fn evaluate(
    model: &PeftModel,
    data: &Dataset,
    context: &EncodeContext<'_>,
    writing: Option<&Writing>,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Metrics> {
    let task = task_of_model(model)?;
    let device = model.device().clone().inner();
    let mut runner = Runner::Whole(model.valid());
    let all = 0..data.examples.len();
    let (scores, loss) = Pass { task, context, device, batch_size }.run(&mut runner, data, all.clone(), observer)?;
    let mut metrics = Metrics::new();
    // Where nothing counts there is nothing to measure, and a mean of nothing is no number.
    if let Some(loss) = loss {
        metrics.insert(EVAL_LOSS.to_owned(), loss);
        metrics.extend(task.metrics(&judged(data, 0..data.rows.len(), all, &scores), context)?);
    }
    if let Some(writing) = writing {
        let mut writer = writing.writer(model.device(), context, batch_size);
        let written = writer.write(&mut runner, 0..data.rows.len(), observer)?;
        writer.finish(observer);
        metrics.extend(writing.metrics(&written));
    }
    Ok(metrics)
}

/// What [`evaluate`] will have metrics of, before anything was run: their names, with values that mean nothing.
///
/// # Errors
/// If the rows do not suit the task.
pub(crate) fn named_metrics(
    task: &dyn Task,
    data: &Dataset,
    context: &EncodeContext<'_>,
    writing: Option<&Writing>,
) -> Result<Metrics> {
    let unsaid = vec![Scores::new(); data.examples.len()];
    let mut metrics = Metrics::new();
    if data.summary.loss_tokens > 0 {
        metrics.insert(EVAL_LOSS.to_owned(), f64::NAN);
        let rows = judged(data, 0..data.rows.len(), 0..data.examples.len(), &unsaid);
        metrics.extend(task.metrics(&rows, context)?);
    }
    metrics.extend(writing.map(|writing| writing.metrics(&[])).unwrap_or_default());
    Ok(metrics)
}

/// Answers to the rows of a data set.
#[derive(Debug)]
pub struct Predict<'a> {
    /// What the task needs beside the rows.
    pub context: &'a EncodeContext<'a>,
    /// What the rows ask to be written, if they ask for texts.
    pub writing: Option<&'a Writing>,
    /// The adapter of each row ([`row_adapters`](crate::row_adapters::row_adapters)), rows of different ones in one batch; the
    /// active ones when absent.
    pub adapters: Option<&'a [String]>,
    /// Examples of a batch.
    pub batch_size: usize,
}

/// Most batches whose rows are sorted by length together before they are answered.
const MOST_BATCHES: usize = 32;

impl Predict<'_> {
    /// Hands over the answer of each row in the order of the rows, soon after the row was run: `{"text"}` if texts are asked for
    /// (null for a row that asks for none), else what the task answers.
    ///
    /// # Errors
    /// If the rows or the outputs do not suit the task, and whatever `answer` returns.
    pub fn run<E: From<Error>>(
        &self,
        model: &mut PeftModel,
        data: &Dataset,
        observer: &mut dyn Observer,
        answer: &mut dyn FnMut(Value) -> Result<(), E>,
    ) -> Result<(), E> {
        let task = task_of_model(model)?;
        let device = model.device().clone();
        let mut runner = Runner::new(model, self.adapters);
        let batch_size = self.batch_size.max(1);
        let mut writer = self.writing.map(|writing| writing.writer(&device, self.context, batch_size));
        let pass = Pass { task, context: self.context, device: device.clone().inner(), batch_size };
        let (mut start, mut batches) = (0, 1);
        while start < data.rows.len() {
            // The first answers come at once; later ones are sorted among more of their kind.
            let rows = start..data.rows.len().min(start.saturating_add(batch_size.saturating_mul(batches)));
            (start, batches) = (rows.end, MOST_BATCHES.min(batches * 2));
            if let Some(writer) = &mut writer {
                for text in writer.write(&mut runner, rows, observer)? {
                    answer(json!({ "text": text }))?;
                }
                continue;
            }
            let examples = data.examples_of(&rows);
            let (scores, _) = pass.run(&mut runner, data, examples.clone(), observer)?;
            for row in judged(data, rows, examples, &scores) {
                answer(task.answer(&row, self.context).map_err(Error::from)?)?;
            }
        }
        if let Some(writer) = writer {
            writer.finish(observer);
        }
        Ok(())
    }
}

fn task_of_model(model: &PeftModel) -> Result<&'static dyn Task> {
    match model.task()? {
        Some(plugin) => Ok(plugin.task),
        None => {
            Err(PeftError::Adapter("the adapter has no task_type: there is nothing to measure or to answer".to_owned())
                .into())
        }
    }
}

/// One pass of a model over a data set.
struct Pass<'a> {
    task: &'a dyn Task,
    context: &'a EncodeContext<'a>,
    device: Device,
    batch_size: usize,
}

impl Pass<'_> {
    /// The scores of these examples, and their mean loss where there are labels.
    fn run(
        &self,
        runner: &mut Runner<'_>,
        data: &Dataset,
        of: Range<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<Scores>, Option<f64>)> {
        let mut scores: Vec<Scores> = vec![Scores::new(); of.len()];
        let (mut loss_sum, mut weight_sum) = (0.0, 0.0);
        let mut done = of.start;
        for groups in data.by_length(&of).chunks(self.batch_size.max(1)) {
            let examples: Vec<&Example> = groups.iter().flat_map(|group| data.group(*group)).collect();
            let batch = batch(&examples, 0, self.task, self.context, &self.device)?;
            let rows: Vec<usize> = examples.iter().map(|example| example.row).collect();
            let outputs = runner.forward(&rows, &batch.inputs)?;
            if self.context.labelled && !batch.labels.is_empty() {
                let loss = runner.loss_for(self.task, &batch.labels)?;
                let weight = loss.weight();
                if weight > 0.0 {
                    let mean = loss.mean(&outputs)?.into_scalar::<f32>();
                    check_finite(&[mean], EVAL_LOSS)?;
                    loss_sum += f64::from(mean) * weight;
                    weight_sum += weight;
                }
            }
            let found = self.task.scores(&outputs, &examples, self.context.info)?;
            let places = groups.iter().flat_map(|group| group * data.group_size..(group + 1) * data.group_size);
            for (place, found) in places.zip(found) {
                if let Some(slot) = place.checked_sub(of.start).and_then(|place| scores.get_mut(place)) {
                    *slot = found;
                }
            }
            done += examples.len();
            observer.observe(&Event::Evaluating { done, total: data.examples.len() });
        }
        Ok((scores, (weight_sum > 0.0).then(|| loss_sum / weight_sum)))
    }
}

/// These rows with their examples and scores.
fn judged<'a>(data: &'a Dataset, rows: Range<usize>, examples: Range<usize>, scores: &'a [Scores]) -> Vec<Scored<'a>> {
    let of = data.rows.get(rows.clone()).unwrap_or_default();
    let mut judged: Vec<Scored<'a>> = of.iter().map(|row| Scored { row, examples: Vec::new() }).collect();
    for (example, scores) in data.examples.get(examples).unwrap_or_default().iter().zip(scores) {
        if let Some(row) = example.row.checked_sub(rows.start).and_then(|row| judged.get_mut(row)) {
            row.examples.push((example, scores));
        }
    }
    // A row that `overflow = "drop"` leaves out has nothing to be judged by.
    judged.retain(|row| !row.examples.is_empty());
    judged
}
