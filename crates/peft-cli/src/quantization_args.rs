//! Options that pack the weights of a model, as all verbs that load one take them.

use clap::{Args, ValueEnum};
use peft::models::{QuantizationConfig, quantization::QuantType};

/// How weights are packed while the model is loaded.
#[derive(Debug, Clone, Args)]
pub(crate) struct QuantizationArgs {
    /// Keep the weights of linear layers in four bits.
    #[arg(long)]
    load_in_4bit: bool,
    /// Keep the weights of linear layers in eight bits.
    #[arg(long, conflicts_with = "load_in_4bit")]
    load_in_8bit: bool,
    /// What codes of four bits stand for; fp4 when absent.
    #[arg(long, value_name = "TYPE", requires = "load_in_4bit")]
    bnb_4bit_quant_type: Option<QuantTypeArg>,
    /// Pack the scales of codes of four bits as well.
    #[arg(long, requires = "load_in_4bit")]
    bnb_4bit_use_double_quant: bool,
    /// Keep the weights of a GGUF file packed as they are there.
    #[arg(long)]
    keep_gguf_packed: bool,
    /// Keep the table of words and the output layer in eight bits.
    #[arg(long)]
    load_embeddings_in_8bit: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum QuantTypeArg {
    Fp4,
    Nf4,
}

impl QuantizationArgs {
    /// The same as a recipe would say it.
    pub(crate) fn config(&self) -> QuantizationConfig {
        QuantizationConfig {
            load_in_4bit: self.load_in_4bit,
            load_in_8bit: self.load_in_8bit,
            bnb_4bit_quant_type: match self.bnb_4bit_quant_type {
                Some(QuantTypeArg::Nf4) => QuantType::Nf4,
                Some(QuantTypeArg::Fp4) | None => QuantType::Fp4,
            },
            bnb_4bit_use_double_quant: self.bnb_4bit_use_double_quant,
            keep_gguf_packed: self.keep_gguf_packed,
            load_embeddings_in_8bit: self.load_embeddings_in_8bit,
            llm_int8_skip_modules: None,
        }
    }
}
