//! How attention scores become weights: scale, soft cap and dropout.

/// How scores become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// What scores are multiplied with.
    pub scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f64>,
    /// Probability of dropping a weight.
    pub drop: f64,
}
