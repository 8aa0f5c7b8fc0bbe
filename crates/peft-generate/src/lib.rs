//! Text generation as Transformers does it: greedy search, sampling and beam search over any model with a head for words.
//!
//! A model reads its prompts once; after that it reads one token of each row a step and finds what came before in
//! [`PastKeyValues`](peft_core::PastKeyValues). [`GenerationConfig`] has the names and the defaults of Transformers.

mod beam;
mod config;
mod decoder;
mod generate;
mod logits;
mod sample;
mod stop;

pub use config::{DEFAULT_NEW_TOKENS, EarlyStopping, GenerationConfig};
pub use generate::{Generated, Generator, Prompts, Watch, check};
pub use logits::{Written, process};
pub use stop::{before_stop, settled};
