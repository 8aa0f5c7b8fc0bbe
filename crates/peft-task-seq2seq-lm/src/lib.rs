//! The sequence-to-sequence language modelling task of peft.
