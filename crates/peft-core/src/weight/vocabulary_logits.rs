//! Logits over the vocabulary that are computed on demand: a loss on them does not need all of them at once.

use burn::tensor::{Int, Tensor};

use crate::{FrozenWeight, tensor::dyn_tensor::select_rows, weight::Product};

/// How a backend computes `-log softmax(hidden W)[target]` of rows, in one operation.
///
/// From hidden states `[rows, width]`, a frozen weight `[width, classes]`, the targets and the soft cap of the logits; none where
/// the backend has no such operation for these tensors.
pub type LinearCrossEntropies = fn(&Tensor<2>, &FrozenWeight, Targets<'_>, Option<f64>) -> Option<Tensor<1>>;

/// The class that each row should be.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// On the host: what is computed depends on it. Losses are of the rows that have a target, in their order.
    Known(&'a [Option<usize>]),
    /// On the model's device, `[rows]`, below zero where there is none: nothing that is computed depends on it. Losses are of
    /// all rows, zero where there is no target.
    OnDevice(&'a Tensor<1, Int>),
}

/// Hidden states and the frozen output layer that turns them into logits.
#[derive(Debug, Clone)]
pub struct VocabularyLogits {
    /// `[batch, positions, width]`.
    pub hidden: Tensor<3>,
    /// `[width, classes]`.
    pub weight: FrozenWeight,
    /// Logits become `cap · tanh(logits / cap)`.
    pub soft_cap: Option<f64>,
    /// How the output layer is computed.
    pub product: Product,
    /// How losses are computed without logits.
    pub losses: LinearCrossEntropies,
}

impl VocabularyLogits {
    /// `[batch, positions, classes]`.
    pub fn dims(&self) -> [usize; 3] {
        let [batch, positions, _] = self.hidden.dims();
        [batch, positions, self.weight.dims()[1]]
    }

    /// The logits of all positions, `[batch, positions, classes]`.
    pub fn all(&self) -> Tensor<3> {
        self.of(self.hidden.clone())
    }

    /// The logits of each row's last position, `[batch, 1, classes]`.
    pub fn last(&self) -> Tensor<3> {
        let positions = self.hidden.dims()[1];
        self.of(self.hidden.clone().narrow(1, positions.saturating_sub(1), 1))
    }

    /// The logits of some of the rows of the batch.
    #[must_use]
    pub fn rows(&self, rows: &[usize]) -> Self {
        Self { hidden: select_rows(self.hidden.clone(), rows), ..self.clone() }
    }

    /// The cross-entropies of the positions; none where that takes the logits.
    pub fn cross_entropies(&self, targets: Targets<'_>) -> Option<Tensor<1>> {
        let [batch, positions, width] = self.hidden.dims();
        let hidden = self.hidden.clone().reshape([batch * positions, width]);
        (self.losses)(&hidden, &self.weight, targets, self.soft_cap)
    }

    fn of(&self, hidden: Tensor<3>) -> Tensor<3> {
        let [batch, positions, width] = hidden.dims();
        let logits = self.weight.linear(self.product, hidden.reshape([batch * positions, width]), None);
        let logits = logits.reshape([batch, positions, self.weight.dims()[1]]);
        soft_capped(logits, self.soft_cap)
    }
}

/// Logits as `cap · tanh(logits / cap)`, or as they are without a cap.
pub fn soft_capped(logits: Tensor<3>, cap: Option<f64>) -> Tensor<3> {
    match cap {
        Some(cap) => (logits / cap).tanh() * cap,
        None => logits,
    }
}
