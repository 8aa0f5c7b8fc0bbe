//! The sequence classification task of peft.
