//! The extractive question answering task of peft.
