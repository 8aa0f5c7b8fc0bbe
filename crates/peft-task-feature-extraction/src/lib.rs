//! The feature extraction task of peft.
