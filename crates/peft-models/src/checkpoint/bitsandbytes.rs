//! Packed weights in a checkpoint: several tensors of the file that are one of the model.

use std::collections::BTreeMap;

use burn::tensor::Device;
use peft_backends::ops::{FourBit, PackedParts, Packing, ScaleParts};
use peft_core::{Error, Result};
use safetensors::Dtype;

use super::shards::{Shards, Stored, StoredType};
use crate::quantization::{
    ABSMAX, FORMAT, NESTED_ABSMAX, NESTED_MAP, QUANT_MAP, QUANT_STATE, QuantState, QuantizedMatrix, SCB,
};

/// What a checkpoint says of a packed weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PackedInfo {
    pub(super) packing: Packing,
    /// Values that share a scale.
    block: usize,
    /// Block size and offset of scales that are packed themselves.
    nested: Option<(usize, f32)>,
    /// The type that the weight had before.
    pub(super) dtype: String,
    /// `[d_out, d_in]`.
    dims: [usize; 2],
}

/// The parts of each packed weight, among the tensors of a checkpoint: what is found is one tensor of the model's shape.
///
/// # Errors
/// One line for each weight that is not whole.
pub(super) fn gather(shards: &Shards) -> (BTreeMap<String, PackedInfo>, Vec<String>) {
    let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
    for name in shards.names() {
        let info = if let Some((weight, kind)) = name.split_once(QUANT_STATE) {
            four_bit(shards, name, kind).map(|info| (weight.to_owned(), info))
        } else if let Some(module) = name.strip_suffix(SCB) {
            eight_bit(shards, module).map(|info| (format!("{module}.weight"), info))
        } else {
            continue;
        };
        match info {
            Ok((weight, _)) if shards.get(&weight).is_none() => {
                problems.push(format!("`{weight}`: missing, and `{name}` is there"));
            }
            Ok((weight, info)) => {
                found.insert(weight, info);
            }
            Err(problem) => problems.push(format!("`{name}`: {problem}")),
        }
    }
    (found, problems)
}

fn four_bit(shards: &Shards, name: &str, kind: &str) -> Result<PackedInfo, String> {
    let codes = match kind {
        "nf4" => FourBit::Nf4,
        "fp4" => FourBit::Fp4,
        other => return Err(format!("packed as {other}; supported are nf4, fp4 and int8")),
    };
    let bytes = shards.values(name).map_err(|error| error.to_string())?.unwrap_or_default();
    let state: QuantState = serde_json::from_slice(&bytes).map_err(|error| format!("not its description: {error}"))?;
    let QuantState { blocksize, dtype, shape, nested_blocksize, nested_offset, .. } = state;
    let &[d_out, d_in] = shape.as_slice() else { return Err(format!("has shape {shape:?}, which is no matrix")) };
    let nested = nested_blocksize.zip(nested_offset);
    let packing = Packing::FourBit { codes, nested: nested.is_some() };
    Ok(PackedInfo { packing, block: blocksize, nested, dtype, dims: [d_out, d_in] })
}

fn eight_bit(shards: &Shards, module: &str) -> Result<PackedInfo, String> {
    let weight = shards.get(&format!("{module}.weight")).ok_or("its weight is missing")?;
    let format = shards.values(&format!("{module}{FORMAT}")).map_err(|error| error.to_string())?;
    if format.is_some_and(|format| format.iter().any(|byte| *byte != 0)) {
        return Err("its values are not in rows; save the model with a newer bitsandbytes".to_owned());
    }
    let (&[d_out, d_in], StoredType::Plain(Dtype::I8)) = (weight.shape.as_slice(), &weight.dtype) else {
        return Err(format!("its weight is {} of shape {:?}", weight.dtype.label(), weight.shape));
    };
    let dtype = "float16".to_owned();
    Ok(PackedInfo { packing: Packing::Int8, block: 1, nested: None, dtype, dims: [d_out, d_in] })
}

impl PackedInfo {
    /// Its shape as that of the weight which is packed.
    pub(super) fn shape(&self) -> Vec<usize> {
        self.dims.to_vec()
    }

    /// The names of the tensors that belong to a weight.
    pub(super) fn sides(weight: &str) -> Vec<String> {
        let module = weight.strip_suffix(".weight").unwrap_or(weight);
        let four = [ABSMAX, QUANT_MAP, NESTED_ABSMAX, NESTED_MAP].map(|suffix| format!("{weight}{suffix}"));
        let states = ["nf4", "fp4"].map(|kind| format!("{weight}{QUANT_STATE}{kind}"));
        let eight = [SCB, FORMAT].map(|suffix| format!("{module}{suffix}"));
        four.into_iter().chain(states).chain(eight).collect()
    }

    /// The weight's parts as a matrix on a device.
    ///
    /// # Errors
    /// [`Error::Tensors`] if they do not fit together.
    pub(super) fn matrix(
        &self,
        shards: &Shards,
        weight: &str,
        parts: PackedParts,
        device: &Device,
    ) -> Result<QuantizedMatrix> {
        QuantizedMatrix::new(parts, &self.dtype, device).map_err(|problem| Error::Tensors {
            origin: shards.origin.clone(),
            problems: vec![format!("`{weight}`: {problem}")],
        })
    }

    /// Reads the weight.
    ///
    /// # Errors
    /// [`Error::Tensors`] for a part that is missing or of another type.
    pub(super) fn read(&self, shards: &Shards, weight: &str) -> Result<PackedParts> {
        let module = weight.strip_suffix(".weight").unwrap_or(weight);
        let wrong = |name: &str, problem: &str| Error::Tensors {
            origin: shards.origin.clone(),
            problems: vec![format!("`{name}`: {problem}")],
        };
        let part = |name: String, is_right: fn(&Stored) -> bool| -> Result<Vec<u8>> {
            let stored = shards.get(&name).or_else(|| shards.side(&name)).ok_or_else(|| wrong(&name, "missing"))?;
            if !is_right(stored) {
                return Err(wrong(&name, &format!("holds {}", stored.dtype.label())));
            }
            Ok(shards.values(&name)?.unwrap_or_default().into_owned())
        };
        let is_byte: fn(&Stored) -> bool = |stored| matches!(stored.dtype, StoredType::Plain(Dtype::U8));
        let is_single: fn(&Stored) -> bool = |stored| matches!(stored.dtype, StoredType::Plain(Dtype::F32));
        let singles = |name: String| -> Result<Vec<f32>> {
            Ok(part(name, is_single)?.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let scales = match (self.packing, self.nested) {
            (Packing::Int8, _) => ScaleParts::Plain(singles(format!("{module}{SCB}"))?),
            (_, None) => ScaleParts::Plain(singles(format!("{weight}{ABSMAX}"))?),
            (_, Some((block, offset))) => ScaleParts::Nested {
                codes: part(format!("{weight}{ABSMAX}"), is_byte)?,
                absmax: singles(format!("{weight}{NESTED_ABSMAX}"))?,
                map: singles(format!("{weight}{NESTED_MAP}"))?,
                block,
                offset,
            },
        };
        // Any type of whole numbers may hold the codes: `bnb_4bit_quant_storage`.
        let codes = part(weight.to_owned(), |_| true)?;
        Ok(PackedParts { dims: self.dims, packing: self.packing, block: self.block, codes, scales })
    }
}
