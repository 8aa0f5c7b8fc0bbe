//! The learning rate of each step, as Transformers' `get_scheduler` has it.

use crate::recipe::{SchedulerType, TrainingArguments};

/// A learning rate that depends on the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// How it changes.
    pub kind: SchedulerType,
    /// Its highest value.
    pub peak: f64,
    /// Steps in which it rises.
    pub warmup: usize,
    /// All steps.
    pub total: usize,
}

impl Schedule {
    /// The schedule of a run with `total` optimiser steps.
    pub fn new(arguments: &TrainingArguments, total: usize) -> Self {
        let share = |share: f64| (total as f64 * share).ceil() as usize;
        let warmup = match arguments.warmup_steps {
            steps if steps >= 1.0 => steps as usize,
            steps if steps > 0.0 => share(steps),
            _ => share(arguments.warmup_ratio),
        };
        Self { kind: arguments.lr_scheduler_type, peak: arguments.learning_rate, warmup, total }
    }

    /// The learning rate of a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        let warming = step < self.warmup && self.kind != SchedulerType::Constant;
        if warming {
            return self.peak * (step as f64 / self.warmup.max(1) as f64);
        }
        let after = step.saturating_sub(self.warmup) as f64;
        let rest = self.total.saturating_sub(self.warmup).max(1) as f64;
        let factor = match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => self.total.saturating_sub(step) as f64 / rest,
            SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * after / rest).cos()),
            SchedulerType::InverseSqrt => {
                let scale = if self.warmup == 0 { 10_000.0 } else { self.warmup as f64 };
                1.0 / ((step as f64 + scale - self.warmup as f64) / scale).sqrt()
            }
        };
        self.peak * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of Transformers 5.23.0: `get_scheduler(kind, optimizer, num_warmup_steps, 10)` at 2e-4.
    fn expected() -> Vec<(SchedulerType, usize, [f64; 10])> {
        use SchedulerType::*;
        let flat = [0.0002; 10];
        let warm = [0.0, 6.666666666666667e-05, 0.00013333333333333334];
        let warmed = |rest: [f64; 7]| std::array::from_fn(|at| if at < 3 { warm[at] } else { rest[at - 3] });
        vec![
            (Constant, 0, flat),
            (Constant, 3, flat),
            (ConstantWithWarmup, 0, flat),
            (ConstantWithWarmup, 3, warmed([0.0002; 7])),
            (Linear, 0, [0.0002, 0.00018, 0.00016, 0.00014, 0.00012, 0.0001, 8e-05, 6e-05, 4e-05, 2e-05]),
            (
                Linear,
                3,
                warmed([
                    0.0002,
                    0.00017142857142857143,
                    0.00014285714285714287,
                    0.00011428571428571428,
                    8.571428571428571e-05,
                    5.714285714285714e-05,
                    2.857142857142857e-05,
                ]),
            ),
            (
                Cosine,
                0,
                [
                    0.0002,
                    0.00019510565162951537,
                    0.00018090169943749476,
                    0.00015877852522924732,
                    0.00013090169943749476,
                    0.0001,
                    6.909830056250527e-05,
                    4.12214747707527e-05,
                    1.9098300562505266e-05,
                    4.8943483704846475e-06,
                ],
            ),
            (
                Cosine,
                3,
                warmed([
                    0.0002,
                    0.0001900968867902419,
                    0.00016234898018587337,
                    0.00012225209339563145,
                    7.774790660436858e-05,
                    3.7651019814126654e-05,
                    9.903113209758096e-06,
                ]),
            ),
            (
                InverseSqrt,
                0,
                [
                    0.0002,
                    0.00019999000074993753,
                    0.00019998000299950014,
                    0.00019997000674831295,
                    0.00019996001199600142,
                    0.0001999500187421909,
                    0.0001999400269865071,
                    0.00019993003672857563,
                    0.0001999200479680224,
                    0.00019991006070447338,
                ],
            ),
            (
                InverseSqrt,
                3,
                warmed([
                    0.0002,
                    0.00017320508075688776,
                    0.0001549193338482967,
                    0.0001414213562373095,
                    0.0001309307341415954,
                    0.0001224744871391589,
                    0.00011547005383792517,
                ]),
            ),
        ]
    }

    #[test]
    fn learning_rates_are_those_of_transformers() {
        for (kind, warmup, expected) in expected() {
            let schedule = Schedule { kind, peak: 2e-4, warmup, total: 10 };
            for (step, expected) in expected.into_iter().enumerate() {
                let found = schedule.at(step);
                // Python multiplies in another order: the last digits may differ.
                assert!(
                    (found - expected).abs() < 1e-18,
                    "{kind:?} warmup {warmup} step {step}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn warmup_is_given_in_steps_or_as_a_share() {
        let warmup = |warmup_steps, warmup_ratio| {
            let arguments = TrainingArguments { warmup_steps, warmup_ratio, ..TrainingArguments::default() };
            Schedule::new(&arguments, 25).warmup
        };
        assert_eq!([warmup(0.0, 0.0), warmup(7.0, 0.5), warmup(0.1, 0.0), warmup(0.0, 0.1)], [0, 7, 3, 3]);
    }

    #[test]
    fn the_learning_rate_never_leaves_its_bounds() {
        for (kind, warmup, _) in expected() {
            let schedule = Schedule { kind, peak: 1.0, warmup, total: 4 };
            assert!((0..50).all(|step| (0.0..=1.0).contains(&schedule.at(step))), "{kind:?}");
        }
    }
}
