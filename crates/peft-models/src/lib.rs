//! Transformer architectures of peft on Burn, loaded from Hugging Face checkpoints.
