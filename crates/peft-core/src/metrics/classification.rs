//! Accuracy, precision, recall, F1 and Matthews' correlation of predicted classes.

use std::collections::BTreeMap;

use super::ratio;

/// The class with the highest logit, the first of equals; none of no classes.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let better = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
    logits.iter().copied().enumerate().reduce(better).map(|(class, _)| class)
}

/// The share of predictions that are right.
pub fn accuracy<T: PartialEq>(truth: &[T], predicted: &[T]) -> f64 {
    let pairs = truth.len().min(predicted.len());
    let right = truth.iter().zip(predicted).filter(|(truth, predicted)| truth == predicted).count();
    ratio(right as f64, pairs as f64)
}

/// How the values of several classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// One value from the counts of all classes together.
    Micro,
    /// The plain mean over classes.
    Macro,
    /// The mean over classes, weighted with how often each is the truth.
    Weighted,
}

/// Precision `tp / (tp + fp)`, recall `tp / (tp + fn)` and their harmonic mean `2 tp / (2 tp + fp + fn)`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PrecisionRecallF1 {
    /// Which share of what was predicted is right.
    pub precision: f64,
    /// Which share of what is right was predicted.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

/// Counts of one class: true positives, what was predicted, what is true.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) hits: usize,
    pub(crate) predicted: usize,
    pub(crate) truth: usize,
}

impl Counts {
    pub(crate) fn values(self) -> PrecisionRecallF1 {
        let (hits, predicted, truth) = (self.hits as f64, self.predicted as f64, self.truth as f64);
        PrecisionRecallF1 {
            precision: ratio(hits, predicted),
            recall: ratio(hits, truth),
            f1: ratio(2.0 * hits, predicted + truth),
        }
    }
}

/// Precision, recall and F1 of single-label predictions.
///
/// Averages run over the classes that occur in the truth or in the predictions; averaged F1 is the mean of the classes' F1,
/// not the harmonic mean of averaged precision and recall.
pub fn precision_recall_f1<T: Ord>(truth: &[T], predicted: &[T], average: Average) -> PrecisionRecallF1 {
    let mut classes: BTreeMap<&T, Counts> = BTreeMap::new();
    for (truth, predicted) in truth.iter().zip(predicted) {
        classes.entry(truth).or_default().truth += 1;
        let counts = classes.entry(predicted).or_default();
        counts.predicted += 1;
        counts.hits += usize::from(truth == predicted);
    }
    averaged(classes.values().copied(), average)
}

/// Precision, recall and F1 of multi-label predictions: one row an example, one flag a class.
///
/// Averages run over all classes, those that never occur included.
pub fn multi_label_precision_recall_f1(
    truth: &[Vec<bool>],
    predicted: &[Vec<bool>],
    average: Average,
) -> PrecisionRecallF1 {
    let classes = truth.iter().map(Vec::len).max().unwrap_or(0);
    let counts = (0..classes).map(|class| {
        let mut counts = Counts::default();
        for (truth, predicted) in truth.iter().zip(predicted) {
            let flag = |row: &[bool]| row.get(class).copied().unwrap_or(false);
            let (truth, predicted) = (flag(truth), flag(predicted));
            counts.truth += usize::from(truth);
            counts.predicted += usize::from(predicted);
            counts.hits += usize::from(truth && predicted);
        }
        counts
    });
    averaged(counts, average)
}

fn averaged(classes: impl Iterator<Item = Counts>, average: Average) -> PrecisionRecallF1 {
    let weigh = |counts: Counts, weight: f64| (counts.values(), weight);
    let weighted: Vec<(PrecisionRecallF1, f64)> = match average {
        Average::Micro => {
            let all = classes.fold(Counts::default(), |all, class| Counts {
                hits: all.hits + class.hits,
                predicted: all.predicted + class.predicted,
                truth: all.truth + class.truth,
            });
            return all.values();
        }
        Average::Macro => classes.map(|class| weigh(class, 1.0)).collect(),
        Average::Weighted => classes.map(|class| weigh(class, class.truth as f64)).collect(),
    };
    let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
    let mean = |pick: fn(&PrecisionRecallF1) -> f64| {
        ratio(weighted.iter().map(|(values, weight)| pick(values) * weight).sum(), total)
    };
    PrecisionRecallF1 { precision: mean(|v| v.precision), recall: mean(|v| v.recall), f1: mean(|v| v.f1) }
}

/// Matthews' correlation coefficient for any number of classes (Gorodkin 2004).
///
/// With `s` samples, `c` of them right, `t_k` of class `k` and `p_k` predicted as it:
/// `(c s - Σ p_k t_k) / sqrt((s² - Σ p_k²)(s² - Σ t_k²))`; 0 where truth or predictions are constant.
pub fn matthews<T: Ord>(truth: &[T], predicted: &[T]) -> f64 {
    let mut classes: BTreeMap<&T, (f64, f64)> = BTreeMap::new();
    let (mut samples, mut right) = (0.0, 0.0);
    for (truth, predicted) in truth.iter().zip(predicted) {
        classes.entry(truth).or_default().0 += 1.0;
        classes.entry(predicted).or_default().1 += 1.0;
        samples += 1.0;
        right += f64::from(u8::from(truth == predicted));
    }
    let sum = |value: fn(&(f64, f64)) -> f64| classes.values().map(value).sum::<f64>();
    let spread = (samples * samples - sum(|(_, p)| p * p)) * (samples * samples - sum(|(t, _)| t * t));
    ratio(right * samples - sum(|(t, p)| t * p), spread.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Numbers of scikit-learn 1.9.1.
    const TRUTH: [i64; 10] = [0, 1, 2, 2, 1, 0, 3, 1, 2, 0];
    const PREDICTED: [i64; 10] = [0, 2, 2, 2, 1, 1, 0, 1, 0, 0];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn averages_are_those_of_scikit_learn() {
        let check = |average, precision, recall, f1| {
            let values = precision_recall_f1(&TRUTH, &PREDICTED, average);
            close(values.precision, precision);
            close(values.recall, recall);
            close(values.f1, f1);
        };
        check(Average::Micro, 0.6, 0.6, 0.6);
        check(Average::Macro, 0.45833333333333326, 0.5, 0.47619047619047616);
        check(Average::Weighted, 0.55, 0.6, 0.5714285714285714);
    }

    #[test]
    fn accuracy_counts_what_is_right() {
        close(accuracy(&TRUTH, &PREDICTED), 0.6);
    }

    #[test]
    fn matthews_is_that_of_scikit_learn() {
        close(matthews(&TRUTH, &PREDICTED), 0.4351941398892446);
        close(matthews(&[0, 1, 1, 0], &[1, 0, 0, 1]), -1.0);
    }

    #[test]
    fn multi_label_averages_are_those_of_scikit_learn() {
        let rows =
            |rows: &[[u8; 4]]| rows.iter().map(|r| r.iter().map(|f| *f == 1).collect()).collect::<Vec<Vec<bool>>>();
        let truth = rows(&[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]);
        let predicted = rows(&[[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]);
        let f1 = |average| multi_label_precision_recall_f1(&truth, &predicted, average).f1;
        close(f1(Average::Micro), 0.7272727272727273);
        close(f1(Average::Macro), 0.5416666666666666);
        close(f1(Average::Weighted), 0.7333333333333333);
        close(accuracy(&truth, &predicted), 0.25);
    }

    #[test]
    fn nothing_and_constants_score_zero() {
        let none: [i64; 0] = [];
        close(accuracy(&none, &none), 0.0);
        assert_eq!(precision_recall_f1(&none, &none, Average::Weighted), PrecisionRecallF1::default());
        close(matthews(&[1, 1, 1], &[1, 1, 0]), 0.0);
    }
}
