//! What goes into a model and what comes out, by the names that Transformers uses.

mod inputs;
mod labels;
mod outputs;
pub mod past;

pub use inputs::Inputs;
pub use labels::{IGNORE, Labels};
pub use outputs::Outputs;
pub use past::PastKeyValues;

/// Inputs and labels together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The inputs of the model.
    pub inputs: Inputs,
    /// The labels; may be empty.
    pub labels: Labels,
}

impl From<Inputs> for Batch {
    fn from(inputs: Inputs) -> Self {
        Self { inputs, labels: Labels::default() }
    }
}
