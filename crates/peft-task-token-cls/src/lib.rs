//! The token classification task of peft.
