//! Data, training loop, checkpoints and metrics of peft.
