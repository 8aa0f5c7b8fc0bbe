//! Options that quantize the weights of a model, of all verbs that load one.

use clap::{Args, ValueEnum};
use peft::models::{QuantizationConfig, quantization::QuantType};

/// How weights are quantized while the model is loaded.
#[derive(Debug, Clone, Args)]
pub(crate) struct QuantizationArgs {
    /// Quantize the weights of linear layers to 4 bits.
    #[arg(long)]
    load_in_4bit: bool,
    /// Quantize the weights of linear layers to 8 bits.
    #[arg(long, conflicts_with = "load_in_4bit")]
    load_in_8bit: bool,
    /// 4-bit data type; fp4 when absent.
    #[arg(long, value_name = "TYPE", requires = "load_in_4bit")]
    bnb_4bit_quant_type: Option<QuantTypeArg>,
    /// Quantize the 4-bit scales as well (double quantization).
    #[arg(long, requires = "load_in_4bit")]
    bnb_4bit_use_double_quant: bool,
    /// Keep the weights of a GGUF file quantized as they are.
    #[arg(long)]
    keep_gguf_packed: bool,
    /// Quantize token embeddings and lm_head to 8 bits.
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
