//! Parameter-efficient fine-tuning on Burn: the facade.
//!
//! Every feature links a plugin crate: a crate that is only listed in `Cargo.toml` is silently absent from the program, so
//! each is named here by its re-export.
#![warn(unused_crate_dependencies)]

pub use peft_backends as backends;
pub use peft_core::*;
#[cfg(feature = "generate")]
pub use peft_generate as generate;
#[cfg(feature = "models")]
pub use peft_models as models;
#[cfg(feature = "causal-lm")]
pub use peft_task_causal_lm as causal_lm;
#[cfg(feature = "feature-extraction")]
pub use peft_task_feature_extraction as feature_extraction;
#[cfg(feature = "question-ans")]
pub use peft_task_question_ans as question_ans;
#[cfg(feature = "seq-cls")]
pub use peft_task_seq_cls as seq_cls;
#[cfg(feature = "seq2seq-lm")]
pub use peft_task_seq2seq_lm as seq2seq_lm;
#[cfg(feature = "token-cls")]
pub use peft_task_token_cls as token_cls;
#[cfg(feature = "train")]
pub use peft_train as train;
#[cfg(feature = "tuners")]
pub use peft_tuners as tuners;
