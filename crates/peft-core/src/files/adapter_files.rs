//! The names of the files of an adapter folder.

/// The configuration's file name.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The tensors' file name.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// The tensors' file name in PyTorch's own format: read where there is no other, never written.
pub const ADAPTER_PYTORCH_WEIGHTS: &str = "adapter_model.bin";
/// The file of what only the training of a prompt needs; PEFT ignores it.
pub const PROMPT_ENCODER_WEIGHTS: &str = "prompt_encoder.safetensors";
