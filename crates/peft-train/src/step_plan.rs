//! Which batches each step of a run has.

use crate::{Dataset, recipe::TrainingArguments};

/// Which batches each step has.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    /// Groups of examples in a batch.
    pub groups_per_batch: usize,
    /// Batches in a pass over the data.
    pub batches_per_epoch: usize,
    /// Batches in a step; the last step of an epoch may have fewer.
    pub batches_per_step: usize,
    /// Steps in a pass over the data.
    pub steps_per_epoch: usize,
    /// All steps.
    pub total: usize,
}

impl StepPlan {
    /// The steps that Transformers would do.
    pub fn new(arguments: &TrainingArguments, data: &Dataset) -> Self {
        let groups_per_batch = arguments.per_device_train_batch_size.max(1);
        let batches_per_epoch = data.groups().div_ceil(groups_per_batch);
        let steps_per_epoch = batches_per_epoch.div_ceil(arguments.gradient_accumulation_steps).max(1);
        let by_epochs = (arguments.num_train_epochs * steps_per_epoch as f64).ceil() as usize;
        let total = usize::try_from(arguments.max_steps).unwrap_or(by_epochs);
        Self {
            groups_per_batch,
            batches_per_epoch,
            batches_per_step: arguments.gradient_accumulation_steps,
            steps_per_epoch,
            total,
        }
    }

    /// Passes over the data after so many steps.
    pub fn epochs(&self, steps: usize) -> f64 {
        steps as f64 / self.steps_per_epoch as f64
    }

    /// The positions in the epoch's order that each batch of a step takes.
    pub(crate) fn batches(&self, step: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let first = (step % self.steps_per_epoch) * self.batches_per_step;
        let last = (first + self.batches_per_step).min(self.batches_per_epoch);
        let size = self.groups_per_batch;
        (first..last).map(move |batch| batch * size..(batch + 1) * size)
    }
}

#[cfg(test)]
mod tests {
    use peft_core::data::example::Example;

    use super::*;
    use crate::dataset::DataSummary;

    fn plan(examples: usize, batch: usize, accumulation: usize, epochs: f64, max_steps: i64) -> StepPlan {
        let data = Dataset {
            rows: Vec::new(),
            examples: vec![Example::default(); examples],
            group_size: 1,
            summary: DataSummary::default(),
        };
        let arguments = TrainingArguments {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            num_train_epochs: epochs,
            max_steps,
            ..TrainingArguments::default()
        };
        StepPlan::new(&arguments, &data)
    }

    #[test]
    fn steps_are_counted_as_transformers_counts_them() {
        assert_eq!(plan(100, 16, 1, 3.0, -1).total, 21);
        assert_eq!(plan(100, 16, 4, 3.0, -1).total, 6);
        assert_eq!(plan(100, 16, 1, 0.5, -1).total, 4);
        assert_eq!(plan(100, 16, 1, 3.0, 5).total, 5);
        assert_eq!(plan(3, 16, 8, 1.0, -1).total, 1);
    }

    #[test]
    fn the_steps_of_an_epoch_take_each_batch_once() {
        let plan = plan(10, 2, 2, 2.0, -1);
        let all: Vec<Vec<_>> = (0..3).map(|step| plan.batches(step).collect()).collect();
        assert_eq!(all.concat(), [0..2, 2..4, 4..6, 6..8, 8..10]);
        assert_eq!([all[0].len(), all[1].len(), all[2].len()], [2, 2, 1]);
        assert_eq!(plan.batches(3).collect::<Vec<_>>(), all[0]);
        assert_eq!(plan.epochs(3), 1.0);
    }
}
