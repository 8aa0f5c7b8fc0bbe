//! Packed weights in files, as bitsandbytes and Transformers name their parts.

use burn::tensor::{DType, TensorData};
use peft_backends::ops::{PackedParts, Packing, ScaleParts};
use serde::{Deserialize, Serialize};

/// What follows the weight's name: the scales of codes of four bits.
pub(crate) const ABSMAX: &str = ".absmax";
/// What codes of four bits stand for.
pub(crate) const QUANT_MAP: &str = ".quant_map";
/// The shape and the rest, as JSON; then the type's name.
pub(crate) const QUANT_STATE: &str = ".quant_state.bitsandbytes__";
/// The scales of scales.
pub(crate) const NESTED_ABSMAX: &str = ".nested_absmax";
/// What the codes of scales stand for.
pub(crate) const NESTED_MAP: &str = ".nested_quant_map";
/// What follows the module's name: the scales of eight bits.
pub(crate) const SCB: &str = ".SCB";
/// What follows the weight's name: how eight bits lie.
pub(crate) const FORMAT: &str = ".weight_format";

/// What is said of a weight of four bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct QuantState {
    pub(crate) quant_type: String,
    pub(crate) blocksize: usize,
    /// The type that it had before.
    pub(crate) dtype: String,
    /// `[d_out, d_in]`.
    pub(crate) shape: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nested_blocksize: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nested_dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nested_offset: Option<f32>,
}

/// The tensors of a packed weight by their names in files.
pub(super) fn tensors(parameter: &str, parts: PackedParts, dtype: &str) -> Vec<(String, TensorData)> {
    let named = |suffix: &str, data: TensorData| (format!("{parameter}{suffix}"), data);
    let flat = |values: Vec<f32>| {
        let count = values.len();
        TensorData::new(values, [count])
    };
    let PackedParts { dims, packing, block, codes, scales } = parts;
    let count = codes.len();
    if let Packing::Ggml(_) = packing {
        return Vec::new();
    }
    let Packing::FourBit { codes: kind, .. } = packing else {
        let module = parameter.strip_suffix(".weight").unwrap_or(parameter);
        let ScaleParts::Plain(scales) = scales else { return Vec::new() };
        return vec![
            named("", TensorData::from_bytes_vec(codes, dims, DType::I8)),
            (format!("{module}{SCB}"), flat(scales)),
            (format!("{module}{FORMAT}"), TensorData::new(vec![0_u8], Vec::<usize>::new())),
        ];
    };
    let mut state = QuantState {
        quant_type: kind.name().to_owned(),
        blocksize: block,
        dtype: dtype.to_owned(),
        shape: dims.to_vec(),
        nested_blocksize: None,
        nested_dtype: None,
        nested_offset: None,
    };
    let mut tensors =
        vec![named("", TensorData::new(codes, [count, 1])), named(QUANT_MAP, TensorData::from(*kind.values()))];
    match scales {
        ScaleParts::Plain(scales) => tensors.push(named(ABSMAX, flat(scales))),
        ScaleParts::Nested { codes, absmax, map, block, offset } => {
            let count = codes.len();
            tensors.push(named(ABSMAX, TensorData::new(codes, [count])));
            tensors.push(named(NESTED_ABSMAX, flat(absmax)));
            tensors.push(named(NESTED_MAP, flat(map)));
            state.nested_blocksize = Some(block);
            state.nested_dtype = Some("float32".to_owned());
            state.nested_offset = Some(offset);
        }
    }
    let state = serde_json::to_vec(&state).unwrap_or_default();
    let count = state.len();
    tensors.push(named(&format!("{QUANT_STATE}{}", kind.name()), TensorData::new(state, [count])));
    tensors
}
