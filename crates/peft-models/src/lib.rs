//! Transformer architectures on Burn, their Hugging Face checkpoints, and their tokenizers.
//!
//! One file an architecture, registered by its `model_type`; [`blocks`] holds what several share. [`checkpoint::load`] reads
//! a folder as Transformers writes it, [`checkpoint::save`] writes one, [`HfTokenizer`] reads its `tokenizer.json`, and
//! [`hub::Hub`] finds the folder of a name on the Hugging Face Hub.

pub mod base_for;
pub mod blocks;
mod chat_template;
pub mod checkpoint;
mod gguf;
pub mod hub;
mod model_class;
pub mod quantization;
mod tokenizer;
mod tokenizer_files;

mod albert;
mod bart;
mod bert;
mod deberta_v2;
mod distilbert;
mod electra;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gpt2;
mod gpt_neox;
mod llama;
mod marian;
mod mbart;
mod mistral;
mod modernbert;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod t5;

pub use base_for::BaseFor;
pub use gguf::{GgufEntry, gguf_entries};
pub use model_class::{ClassSource, ModelClass};
pub use quantization::QuantizationConfig;
pub use tokenizer::HfTokenizer;
pub use tokenizer_files::{FILES as TOKENIZER_FILES, copy_tokenizer};
