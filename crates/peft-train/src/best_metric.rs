//! The metric that says which evaluation was the best.

use peft_core::{Error as PeftError, metrics::Metrics};

use crate::{Result, evaluate::EVAL_LOSS};

/// The metric that picks the best adapter: the one asked for, else the task's first, else the loss.
pub(crate) fn chosen_metric<'a>(metrics: &'a Metrics, wanted: Option<&str>) -> Result<(&'a str, f64)> {
    let found = match wanted {
        // Transformers puts `eval_` before every metric.
        Some(wanted) => metrics.get_key_value(wanted).or_else(|| metrics.get_key_value(wanted.strip_prefix("eval_")?)),
        None => metrics.iter().find(|(name, _)| *name != EVAL_LOSS).or_else(|| metrics.first()),
    };
    let wanted = wanted.unwrap_or("loss");
    let found = found.or_else(|| metrics.get_key_value(&format!("eval_{wanted}")));
    found.map(|(name, value)| (name.as_str(), *value)).ok_or_else(|| {
        let there: Vec<_> = metrics.keys().map(String::as_str).collect();
        PeftError::Config {
            origin: "[training]".to_owned(),
            key: "metric_for_best_model".to_owned(),
            problem: format!("no metric `{wanted}` (there are: {})", there.join(", ")),
        }
        .into()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use peft_core::metrics::greater_is_better;

    use super::*;

    #[test]
    fn the_best_is_picked_by_the_tasks_first_metric() {
        let metrics =
            Metrics::from_iter([("eval_loss".to_owned(), 0.5), ("accuracy".to_owned(), 0.9), ("f1".to_owned(), 0.8)]);
        let pick = |wanted| chosen_metric(&metrics, wanted).unwrap().0;
        assert_eq!([pick(None), pick(Some("f1")), pick(Some("eval_f1"))], ["accuracy", "f1", "f1"]);
        assert_eq!([pick(Some("loss")), pick(Some("eval_loss"))], ["eval_loss", "eval_loss"]);
        assert!(chosen_metric(&metrics, Some("bleu")).unwrap_err().to_string().contains("accuracy"));
        let loss_only = Metrics::from_iter([("eval_loss".to_owned(), 0.5)]);
        assert_eq!(chosen_metric(&loss_only, None).unwrap().0, "eval_loss");
        assert!(greater_is_better("accuracy") && !greater_is_better("eval_loss") && !greater_is_better("perplexity"));
    }
}
