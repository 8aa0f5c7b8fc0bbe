//! Tuners of peft: target selection, head rules, LoRA.
