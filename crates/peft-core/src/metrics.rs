//! Metrics as the field computes them: pure functions of slices, one file a family.
//!
//! Slices that are compared are of equal length; what one has more than the other is not looked at. Metrics of nothing are
//! 0 unless a function says otherwise, and so is a ratio whose denominator is 0.

pub mod bleu;
pub mod chrf;
pub mod classification;
pub mod correlation;
pub mod entities;
pub mod likelihood;
mod ngrams;
pub mod rouge;
pub mod squad;
pub mod texts;

use indexmap::IndexMap;

/// Metrics by name, in the order in which they are shown; the first is the one that picks the best model.
pub type Metrics = IndexMap<String, f64>;

/// The model's outputs for one example, on the host: as many vectors as the task needs.
pub type Scores = Vec<Vec<f32>>;

/// Whether more of a metric is better; only losses, errors and perplexities are minimised.
///
/// A prefix as in `eval_loss` changes nothing.
pub fn greater_is_better(metric: &str) -> bool {
    let metric = metric.strip_prefix("eval_").unwrap_or(metric);
    !(metric.ends_with("loss") || matches!(metric, "perplexity" | "mse" | "rmse" | "mae"))
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 { 0.0 } else { numerator / denominator }
}

#[cfg(test)]
mod tests {
    use super::greater_is_better;

    #[test]
    fn losses_and_perplexity_are_minimised() {
        for metric in ["loss", "eval_loss", "perplexity", "eval_perplexity", "mse"] {
            assert!(!greater_is_better(metric), "{metric}");
        }
        for metric in ["accuracy", "f1", "pearson", "exact_match", "eval_f1"] {
            assert!(greater_is_better(metric), "{metric}");
        }
    }
}
