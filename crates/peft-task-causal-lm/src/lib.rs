//! The causal language modelling task of peft.
