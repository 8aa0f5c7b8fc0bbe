//! Running a model over a data set without training it: metrics and answers.

use burn::tensor::Device;
use peft::{
    Error as PeftError, Labels, PeftModel, Task,
    example::{EncodeContext, Example},
    task::{Judged, Metrics, Scores},
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
    let (scores, loss) = Pass { task, context, device, batch_size }.run(&mut runner, data, observer)?;
    let mut metrics = Metrics::new();
    metrics.extend(loss.map(|loss| (EVAL_LOSS.to_owned(), loss)));
    metrics.extend(task.metrics(&judged(data, &scores)?, context)?);
    if let Some(writing) = writing {
        let written = writing.write(&mut runner, model.device(), context, batch_size, observer)?;
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
    let mut metrics = Metrics::from_iter([(EVAL_LOSS.to_owned(), f64::NAN)]);
    metrics.extend(task.metrics(&judged(data, &unsaid)?, context)?);
    metrics.extend(writing.map(|writing| writing.metrics(&[])).unwrap_or_default());
    Ok(metrics)
}

/// The answer for each row, in the order of the rows: `{"text"}` if `writing` asks for texts (null for a row
/// that does not), else what the task answers.
///
/// With `adapters` each row is answered by the adapter of that name ([`row_adapters`](crate::row_adapters::row_adapters)), rows of
/// different ones in one batch.
///
/// # Errors
/// If the rows or the outputs do not suit the task.
pub fn predict(
    model: &mut PeftModel,
    data: &Dataset,
    context: &EncodeContext<'_>,
    writing: Option<&Writing>,
    adapters: Option<&[String]>,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Value>> {
    let task = task_of_model(model)?;
    let device = model.device().clone();
    let mut runner = Runner::new(model, adapters);
    if let Some(writing) = writing {
        let written = writing.write(&mut runner, &device, context, batch_size, observer)?;
        return Ok(written.into_iter().map(|text| json!({ "text": text })).collect());
    }
    let pass = Pass { task, context, device: device.inner(), batch_size };
    let (scores, _) = pass.run(&mut runner, data, observer)?;
    let answers = judged(data, &scores)?.iter().map(|row| task.answer(row, context)).collect::<peft::Result<_>>()?;
    Ok(answers)
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
    /// The scores of every example, and the mean loss where there are labels.
    fn run(
        &self,
        runner: &mut Runner<'_>,
        data: &Dataset,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<Scores>, Option<f64>)> {
        let mut scores: Vec<Scores> = vec![Scores::new(); data.examples.len()];
        let (mut loss_sum, mut weight_sum) = (0.0, 0.0);
        let mut done = 0;
        for groups in data.by_length().chunks(self.batch_size.max(1)) {
            let examples: Vec<&Example> = groups.iter().flat_map(|group| data.group(*group)).collect();
            let batch = batch(&examples, 0, self.task, self.context, &self.device)?;
            let rows: Vec<usize> = examples.iter().map(|example| example.row).collect();
            let outputs = runner.forward(&rows, &batch.inputs)?;
            let weight = self.weight(&batch.labels)?;
            if weight > 0.0 {
                let loss = self.task.loss(&outputs, &batch.labels, self.context.info)?;
                loss_sum += f64::from(loss.into_scalar::<f32>()) * weight;
                weight_sum += weight;
            }
            let found = self.task.scores(&outputs, &examples, self.context.info)?;
            let places = groups.iter().flat_map(|group| group * data.bound..(group + 1) * data.bound);
            for (place, found) in places.zip(found) {
                if let Some(slot) = scores.get_mut(place) {
                    *slot = found;
                }
            }
            done += examples.len();
            observer.observe(&Event::Evaluating { done, total: data.examples.len() });
        }
        Ok((scores, (weight_sum > 0.0).then(|| loss_sum / weight_sum)))
    }

    fn weight(&self, labels: &Labels) -> Result<f64> {
        if self.context.labelled && !labels.is_empty() {
            Ok(self.task.loss_weight(labels, self.context.info)?)
        } else {
            Ok(0.0)
        }
    }
}

/// The rows with their examples and scores.
fn judged<'a>(data: &'a Dataset, scores: &'a [Scores]) -> Result<Vec<Judged<'a>>> {
    let mut rows: Vec<Judged<'a>> = data.rows.iter().map(|row| Judged { row, examples: Vec::new() }).collect();
    for (example, scores) in data.examples.iter().zip(scores) {
        if let Some(row) = rows.get_mut(example.row) {
            row.examples.push((example, scores));
        }
    }
    // A row that `overflow = "drop"` leaves out has nothing to be judged by.
    rows.retain(|row| !row.examples.is_empty());
    if rows.is_empty() {
        return Err(Error::from(PeftError::Data("no row is left to evaluate".to_owned())));
    }
    Ok(rows)
}
