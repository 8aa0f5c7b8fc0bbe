//! The best evaluation so far, and the adapter as it was then: one value, there as a whole or not at all.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use indexmap::IndexMap;
use peft_core::metrics::Metrics;
use serde::{Deserialize, Serialize};

use crate::{Result, best_metric::chosen_metric, exact::Exact, recipe::TrainingArguments};

/// An evaluation that was better than all before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BestEvaluation {
    /// The step after which it was done.
    pub(crate) step: usize,
    /// The metric that it is the best by.
    pub(crate) metric: String,
    /// Whether more of it is better; none in checkpoints of earlier versions.
    #[serde(default)]
    greater_is_better: Option<bool>,
    /// Its value.
    value: Exact,
    /// All metrics.
    metrics: IndexMap<String, Exact>,
    /// Whether the adapter of that step is kept; none in checkpoints of earlier versions.
    #[serde(default)]
    pub(crate) is_kept: Option<bool>,
}

/// The best so far.
#[derive(Debug)]
pub(crate) struct BestModel {
    pub(crate) evaluation: BestEvaluation,
    /// The adapter of that step, where it is to be the result.
    pub(crate) adapter: Option<BTreeMap<String, TensorData>>,
}

impl BestEvaluation {
    /// The evaluation after `step`, if it is better than the best so far. One with a metric that is no number never is.
    pub(crate) fn better(
        metrics: &Metrics,
        step: usize,
        arguments: &TrainingArguments,
        best: Option<&Self>,
    ) -> Result<Option<Self>> {
        let (metric, value) = chosen_metric(metrics, arguments.metric_for_best_model.as_deref())?;
        let greater = greater_is_better(arguments, metric);
        let is_better = best.is_none_or(|best| if greater { value > best.value.0 } else { value < best.value.0 });
        if !is_better || metrics.values().any(|value| value.is_nan()) {
            return Ok(None);
        }
        Ok(Some(Self {
            step,
            metric: metric.to_owned(),
            greater_is_better: Some(greater),
            value: Exact(value),
            metrics: metrics.iter().map(|(name, value)| (name.clone(), Exact(*value))).collect(),
            is_kept: Some(arguments.load_best_model_at_end),
        }))
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.metrics.iter().map(|(name, value)| (name.clone(), value.0)).collect()
    }

    /// Which key of `[training]` says now that another value would be the best, and what it says and said.
    pub(crate) fn other_choice(&self, arguments: &TrainingArguments) -> Option<(&'static str, String, String)> {
        let metrics = self.metrics();
        let wanted = arguments.metric_for_best_model.as_deref();
        match chosen_metric(&metrics, wanted) {
            Ok((metric, _)) if metric == self.metric => {
                let (now, then) = (greater_is_better(arguments, metric), self.greater_is_better?);
                (now != then).then(|| ("greater_is_better", now.to_string(), then.to_string()))
            }
            Ok((metric, _)) => Some(("metric_for_best_model", metric.to_owned(), self.metric.clone())),
            Err(_) => Some(("metric_for_best_model", wanted.unwrap_or("absent").to_owned(), self.metric.clone())),
        }
    }
}

fn greater_is_better(arguments: &TrainingArguments, metric: &str) -> bool {
    arguments.greater_is_better.unwrap_or_else(|| peft_core::metrics::greater_is_better(metric))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn metrics(loss: f64, accuracy: f64) -> Metrics {
        Metrics::from_iter([("eval_loss".to_owned(), loss), ("accuracy".to_owned(), accuracy)])
    }

    fn by(metric: &str) -> TrainingArguments {
        TrainingArguments { metric_for_best_model: Some(metric.to_owned()), ..TrainingArguments::default() }
    }

    #[test]
    fn a_loss_that_is_no_number_is_never_the_best() {
        for (metric, loss, accuracy) in
            [("accuracy", f64::NAN, 0.9), ("eval_loss", f64::NAN, 0.9), ("accuracy", 0.1, f64::NAN)]
        {
            assert!(BestEvaluation::better(&metrics(loss, accuracy), 1, &by(metric), None).unwrap().is_none());
        }
        assert!(BestEvaluation::better(&metrics(0.1, 0.9), 1, &by("accuracy"), None).unwrap().is_some());
    }

    #[test]
    fn values_of_two_metrics_or_directions_are_not_compared() {
        let best = BestEvaluation::better(&metrics(0.5, 0.9), 3, &by("eval_loss"), None).unwrap().unwrap();
        assert_eq!(best.other_choice(&by("loss")), None);
        assert_eq!(best.other_choice(&by("accuracy")).unwrap().0, "metric_for_best_model");
        assert_eq!(best.other_choice(&by("bleu")).unwrap().0, "metric_for_best_model");
        let greater = TrainingArguments { greater_is_better: Some(true), ..by("eval_loss") };
        assert_eq!(best.other_choice(&greater).unwrap().0, "greater_is_better");
        let better = |loss| BestEvaluation::better(&metrics(loss, 0.0), 4, &by("eval_loss"), Some(&best)).unwrap();
        assert!(better(0.4).is_some() && better(0.5).is_none() && better(0.6).is_none());
    }
}
