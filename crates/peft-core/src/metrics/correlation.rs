//! How predicted numbers go along with the right ones.

use super::ratio;

/// Pearson's correlation: covariance over the product of the standard deviations; 0 where a side is constant.
pub fn pearson(truth: &[f64], predicted: &[f64]) -> f64 {
    let count = truth.len().min(predicted.len());
    let mean = |values: &[f64]| ratio(values.iter().take(count).sum(), count as f64);
    let (mean_truth, mean_predicted) = (mean(truth), mean(predicted));
    let (mut covariance, mut spread_truth, mut spread_predicted) = (0.0, 0.0, 0.0);
    for (truth, predicted) in truth.iter().zip(predicted) {
        let (truth, predicted) = (truth - mean_truth, predicted - mean_predicted);
        covariance += truth * predicted;
        spread_truth += truth * truth;
        spread_predicted += predicted * predicted;
    }
    ratio(covariance, (spread_truth * spread_predicted).sqrt())
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs; 0 where a side is constant.
pub fn spearman(truth: &[f64], predicted: &[f64]) -> f64 {
    let count = truth.len().min(predicted.len());
    let ranked = |values: &[f64]| ranks(&values.iter().copied().take(count).collect::<Vec<_>>());
    pearson(&ranked(truth), &ranked(predicted))
}

/// The mean of the squared differences.
pub fn mean_squared_error(truth: &[f64], predicted: &[f64]) -> f64 {
    let count = truth.len().min(predicted.len());
    ratio(truth.iter().zip(predicted).map(|(truth, predicted)| (truth - predicted).powi(2)).sum(), count as f64)
}

/// The rank of each value, from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    sorted.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in sorted.chunk_by(|(_, a), (_, b)| a == b) {
        let shared = before as f64 + (tied.len() + 1) as f64 / 2.0;
        for (index, _) in tied {
            if let Some(rank) = ranks.get_mut(*index) {
                *rank = shared;
            }
        }
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    // Numbers of SciPy 1.17.1.
    const TRUTH: [f64; 7] = [1.0, 2.0, 2.0, 3.5, 5.0, 0.5, 2.0];
    const PREDICTED: [f64; 7] = [0.9, 2.4, 1.1, 3.0, 3.0, 1.1, 2.6];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn correlations_are_those_of_scipy() {
        close(pearson(&TRUTH, &PREDICTED), 0.8019061671955101);
        close(spearman(&TRUTH, &PREDICTED), 0.8680790595108568);
    }

    #[test]
    fn equal_values_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
    }

    #[test]
    fn nothing_and_constants_score_zero() {
        close(pearson(&[], &[]), 0.0);
        close(spearman(&[1.0, 2.0, 3.0], &[4.0, 4.0, 4.0]), 0.0);
        close(mean_squared_error(&[], &[]), 0.0);
    }

    #[test]
    fn mean_squared_error_is_a_mean() {
        close(mean_squared_error(&[1.0, 2.0], &[3.0, 1.0]), 2.5);
    }
}
