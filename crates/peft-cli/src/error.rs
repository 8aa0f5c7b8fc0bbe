//! What ends the program early, and with which exit code.

/// An error of a verb.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// From the library.
    #[error(transparent)]
    Peft(#[from] peft::Error),
    /// From training, evaluation or data.
    #[error(transparent)]
    Train(#[from] peft_train::Error),
    /// From the choice of a device.
    #[error(transparent)]
    Device(#[from] peft::backends::device::DeviceError),
    /// Wrong use of the command line.
    #[error("{0}")]
    Usage(String),
    /// Writing results to stdout failed.
    #[error("cannot write to stdout")]
    Stdout(#[source] std::io::Error),
}

impl CliError {
    /// The documented exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Peft(error) => error.exit_code(),
            Self::Train(error) => error.exit_code(),
            Self::Device(error) => error.exit_code(),
            Self::Usage(_) => 2,
            Self::Stdout(_) => 1,
        }
    }
}
