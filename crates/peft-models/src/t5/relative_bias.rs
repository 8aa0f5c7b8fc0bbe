//! Buckets of distances: one each for short ones, wider and wider ones for longer.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// How distances between tokens are put into buckets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets {
    /// How many there are.
    pub(super) count: usize,
    /// From which distance on all are in the last bucket.
    pub(super) max_distance: usize,
    /// Whether half of them is for tokens to the right; otherwise those are nobody's.
    pub(super) both_ways: bool,
}

impl Buckets {
    /// The bucket of each pair of a token and one that it looks at.
    ///
    /// # Shapes
    /// - returned: `[queries, past + queries]`
    pub(super) fn of_pairs(&self, past: usize, queries: usize, device: &Device) -> Tensor<2, Int> {
        let keys = past + queries;
        // Few distances make many pairs.
        let left: Vec<i64> = (0..keys).map(|distance| self.bucket(distance, false)).collect();
        let right: Vec<i64> = (0..keys).map(|distance| self.bucket(distance, true)).collect();
        let of_pair = |query: usize, key: usize| match key.checked_sub(query) {
            Some(0) | None => left.get(query - key),
            Some(distance) => right.get(distance),
        };
        let pairs = (past..keys).flat_map(|query| (0..keys).map(move |key| (query, key)));
        let buckets = pairs.map(|(query, key)| of_pair(query, key).copied().unwrap_or_default());
        Tensor::from_data(TensorData::new(buckets.collect::<Vec<_>>(), [queries, keys]), device)
    }

    /// The bucket of one distance, in single precision as in Transformers: at the borders the rounding decides.
    fn bucket(&self, distance: usize, is_right: bool) -> i64 {
        let count = if self.both_ways { self.count / 2 } else { self.count };
        let (start, distance) = match (self.both_ways, is_right) {
            (true, true) => (count, distance),
            (false, true) => (0, 0),
            (_, false) => (0, distance),
        };
        let exact = count / 2;
        let within = if distance < exact {
            distance
        } else {
            let share = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
            (exact + (share * (count - exact) as f32) as usize).min(count - 1)
        };
        i64::try_from(start + within).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// The distances at which PyTorch begins a new bucket.
    fn check(both_ways: bool, is_right: bool, first: i64, borders: &[usize]) {
        let buckets = Buckets { count: 32, max_distance: 128, both_ways };
        let found: Vec<i64> = (0..300).map(|distance| buckets.bucket(distance, is_right)).collect();
        let expected: Vec<i64> = (0..300)
            .map(|d| first + i64::try_from(borders.iter().filter(|border| **border <= d).count()).unwrap())
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn buckets_begin_where_those_of_pytorch_do() {
        let far = [8, 12, 16, 23, 32, 46, 64, 91];
        let near: Vec<usize> = (1..8).chain(far).collect();
        check(true, false, 0, &near);
        check(true, true, 16, &near);
        let far = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];
        check(false, false, 0, &(1..16).chain(far).collect::<Vec<_>>());
    }

    #[test]
    fn a_past_only_moves_the_queries() {
        let buckets = Buckets { count: 32, max_distance: 128, both_ways: false };
        let whole = buckets.of_pairs(0, 5, &Device::flex()).slice([3..5, 0..5]);
        whole.into_data().assert_eq(&buckets.of_pairs(3, 2, &Device::flex()).into_data(), true);
    }
}
