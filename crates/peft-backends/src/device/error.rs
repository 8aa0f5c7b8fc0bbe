//! Why a device cannot be used, with the exit code of a program that ends on it.

/// Why a device cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The word names no device.
    #[error("unknown device `{name}` (devices: cpu, wgpu, wgpu:N, cuda, cuda:N)")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The backend is not part of this program.
    #[error(
        "device `{backend}` is not built into this program (built in: {built_in}): build it with `--features {backend}`"
    )]
    NotBuiltIn {
        /// The backend, which is also the name of the cargo feature.
        backend: &'static str,
        /// What would work, comma separated.
        built_in: String,
    },
    /// The machine has no such device, or its driver does not work.
    #[error("device `{name}` does not work here: {reason}")]
    Unavailable {
        /// What was asked for.
        name: String,
        /// What the backend said.
        reason: String,
    },
}

impl DeviceError {
    /// The exit code that a program ends with on this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown { .. } | Self::NotBuiltIn { .. } => 2,
            Self::Unavailable { .. } => 5,
        }
    }
}
