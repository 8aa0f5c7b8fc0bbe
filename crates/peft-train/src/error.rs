//! What ends training early: a recipe, data, or a run that cannot go on.

use std::path::PathBuf;

use crate::recipe::Place;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: where it stands, what was found, what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the library: data, files, models, adapters.
    #[error(transparent)]
    Peft(#[from] peft_core::Error),
    /// A recipe that is not TOML.
    #[error("{place}: not valid TOML: {problem}")]
    Syntax {
        /// Where.
        place: Box<Place>,
        /// What the parser said.
        problem: String,
    },
    /// A file that is no recipe.
    #[error("{}: {problem}", path.display())]
    NoRecipe {
        /// The file.
        path: PathBuf,
        /// What it is, and what a recipe is.
        problem: String,
    },
    /// A section that recipes do not have.
    #[error("{place}: unknown section [{section}]; {hint}")]
    UnknownSection {
        /// Where.
        place: Box<Place>,
        /// The section.
        section: String,
        /// What was probably meant.
        hint: String,
    },
    /// A key that its section does not have.
    #[error("{place}: unknown key `{key}` in [{section}]; {hint}")]
    UnknownKey {
        /// Where.
        place: Box<Place>,
        /// The section.
        section: String,
        /// The key.
        key: String,
        /// What was probably meant.
        hint: String,
    },
    /// A value that cannot be used, or one that is missing.
    #[error("{place}: `{key}` in [{section}]: {problem}")]
    Value {
        /// Where.
        place: Box<Place>,
        /// The section.
        section: String,
        /// The key.
        key: String,
        /// What was found and what would be right.
        problem: String,
    },
    /// An override on the command line that is not `section.key=value`.
    #[error("`{argument}`: not an override; {hint}")]
    Override {
        /// The argument.
        argument: String,
        /// What to write.
        hint: String,
    },
    /// A run that cannot be gone on with, or must not be started over.
    #[error("{}: {problem}", folder.display())]
    Resume {
        /// The checkpoint or the output folder.
        folder: PathBuf,
        /// What differs and what can be done.
        problem: String,
    },
    /// The run would not fit into the device's memory.
    #[error("not enough memory: {problem}; --no-memory-check starts anyway")]
    Memory {
        /// What is needed, what is there, and what would fit.
        problem: String,
    },
    /// The loss is not a number any more.
    #[error("the loss is {loss} at step {step}; try a smaller learning_rate, warmup_steps, or a max_grad_norm above 0")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// An evaluation of what was trained gives no number, though the loss of every step was one.
    #[error(
        "the evaluation after step {step} gives NaN or infinity (`{output}`); try a smaller learning_rate, warmup_steps, a \
         max_grad_norm above 0, or bf16 in place of f16"
    )]
    EvaluationNotFinite {
        /// The step.
        step: usize,
        /// The output or the metric.
        output: String,
    },
    /// A trained value is not a number: the last step went too far for the loss to have shown it.
    #[error("`{key}` holds values that are not finite after step {step}; try a smaller learning_rate")]
    NotFinite {
        /// The step.
        step: usize,
        /// The tensor.
        key: String,
    },
    /// The run was stopped from outside after it had saved itself.
    #[error("interrupted after step {step}; checkpoint {} saved; continue with --resume", checkpoint.display())]
    Interrupted {
        /// The last step that was finished.
        step: usize,
        /// Where the run goes on from.
        checkpoint: PathBuf,
    },
}

impl Error {
    /// The exit code that a program ends with on this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Peft(error) => error.exit_code(),
            Self::Syntax { .. }
            | Self::NoRecipe { .. }
            | Self::UnknownSection { .. }
            | Self::UnknownKey { .. }
            | Self::Value { .. }
            | Self::Override { .. }
            | Self::Resume { .. } => 2,
            Self::Memory { .. } => 5,
            Self::Diverged { .. } | Self::EvaluationNotFinite { .. } | Self::NotFinite { .. } => 1,
            Self::Interrupted { .. } => 130,
        }
    }
}
