//! What ends the program early, and with which exit code.

/// An error of a verb.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// From the library.
    #[error(transparent)]
    Peft(#[from] peft::Error),
    /// From training, evaluation or data.
    #[error(transparent)]
    Train(#[from] peft::train::Error),
    /// From the choice of a device.
    #[error(transparent)]
    Device(#[from] peft::backends::device::DeviceError),
    /// The machine's memory does not suffice.
    #[error("out of memory: {0}; take a smaller batch, max_length, r or model, or pack the weights (load_in_4bit)")]
    Memory(String),
    /// The device's memory does not suffice.
    #[error(
        "the device ran out of memory ({0}); take gradient_checkpointing, a smaller per_device_train_batch_size or max_length, \
         pack the weights with load_in_4bit, or use --device cpu; peft train --dry-run estimates what a recipe needs"
    )]
    DeviceMemory(String),
    /// The device or its driver stopped working.
    #[error("the device failed: {0}; peft doctor shows which devices work, --device cpu always does")]
    DeviceFailed(String),
    /// A mistake in the program.
    #[error("internal error: {0}; run with RUST_BACKTRACE=1 and report it")]
    Internal(String),
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
            Self::Memory(_) | Self::DeviceMemory(_) | Self::DeviceFailed(_) => 5,
            Self::Usage(_) => 2,
            Self::Stdout(_) | Self::Internal(_) => 1,
        }
    }
}
