//! Devices and fused operations of peft.
