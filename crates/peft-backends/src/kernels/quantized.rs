//! Weights in four or eight bits a value: the formats, quantizing, and products that dequantize a band at a time.

pub(crate) mod codebook;
pub(crate) mod frozen;
pub(crate) mod ggml;
pub(crate) mod parts;
pub(crate) mod q8_0;
pub(crate) mod quantize;
pub(crate) mod reader;
