//! Filling a model: from the bytes of a file to parameters on a device.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use burn::{
    module::{Param, ParamId},
    tensor::{DType, Device, Element, Tensor, TensorData},
};
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
    vec::HalfBitsVecExt,
};
use peft_core::{
    BaseModel, DynParam, DynTensor, ModelInfo, ModuleKind, QuantizedWeight, Result, weight::quantized::placeholder,
};
use safetensors::Dtype;

use super::{
    fresh,
    matching::{Matching, Slot, Source},
    packed::Packer,
    shards::{Shards, Stored, StoredType},
};
use crate::quantization::QUANTIZATION_CONFIG;

/// Fills every parameter as the matching says. Parameters that are tied share memory.
///
/// # Errors
/// As [`Shards::values`].
pub(super) fn fill(
    model: BaseModel,
    plan: &Matching,
    shards: &Shards,
    packer: &Packer,
    dtype: DType,
    seed: u64,
    device: &Device,
) -> Result<BaseModel> {
    let known = Arc::clone(&model.info);
    let mut info = ModelInfo { tied: plan.tied.clone(), ..ModelInfo::clone(&known) };
    info.config.extend(packer.config.clone().map(|config| (QUANTIZATION_CONFIG.to_owned(), config)));
    let info = Arc::new(info);
    let read = |name: &str, slot: &Slot| -> Result<Option<DynTensor>> {
        let transposed = slot.is_stored_transposed();
        Ok(match &slot.source {
            Source::Tensor(key) => {
                let Some(stored) = shards.get(key) else { return Ok(None) };
                if let StoredType::Packed(packed) = &stored.dtype {
                    let weight = packed.read(shards, key)?;
                    return Ok(Some(DynTensor::R2(packed.matrix(shards, key, weight, device)?.dense()).cast(dtype)));
                }
                shards.values(key)?.and_then(|bytes| on_device(floats(stored, &bytes, transposed, dtype), device))
            }
            Source::Resized(key, axis) => {
                let Some(stored) = shards.get(key) else { return Ok(None) };
                let bytes = shards.values(key)?.unwrap_or_default();
                let needed = slot.stored_shape();
                let values = resized(singles(stored, &bytes, false), &stored.shape, &needed, *axis);
                let value = TensorData::new(values, needed).convert_dtype(dtype);
                on_device(value, device).map(|value| if transposed { value.transposed() } else { value })
            }
            Source::Fresh => {
                let value = fresh::value(name, &slot.kind, &slot.stored_shape(), &info, seed).convert_dtype(dtype);
                on_device(value, device).map(|value| if transposed { value.transposed() } else { value })
            }
            Source::Tied(_) | Source::Own => None,
        })
    };
    // The table of words, by the names of all parameters that are it: each as its own layer has it.
    let mut packed: BTreeMap<String, Arc<dyn QuantizedWeight>> = BTreeMap::new();
    for (name, slot) in plan.slots.iter().filter(|(_, slot)| slot.kind == ModuleKind::Embedding) {
        let copies = info.tied.iter().filter(|(_, original)| original == name).map(|(copy, _)| copy);
        let copies: Vec<_> = copies.filter_map(|copy| Some((copy, plan.slots.get(copy)?))).collect();
        // A table that a trained copy or another layer takes as it lies has to be dense.
        if copies.iter().any(|(_, copy)| copy.kind != ModuleKind::Linear) {
            continue;
        }
        let Some(weight) = packer.read_table(name, slot, shards, device)? else { continue };
        if let Source::Tensor(key) = &slot.source {
            shards.forget(key);
        }
        packed.extend(
            copies
                .iter()
                .map(|(copy, _)| -> (String, Arc<dyn QuantizedWeight>) { ((*copy).clone(), Arc::new(weight.clone())) }),
        );
        packed.insert(name.clone(), Arc::new(weight.as_table()));
    }
    let stands_for = |id: ParamId, slot: &Slot| {
        let dims = [0, 1].map(|side| slot.shape.get(side).copied().unwrap_or_default());
        DynParam::R2(placeholder(id, dims, dtype, device))
    };
    let originals = info.tied.iter().map(|(_, original)| original.as_str());
    let mut shared: HashMap<&str, (&Slot, DynTensor)> = HashMap::new();
    for (name, slot) in
        originals.filter(|name| !packed.contains_key(*name)).filter_map(|name| Some((name, plan.slots.get(name)?)))
    {
        if let Some(value) = read(name, slot)? {
            shared.insert(name, (slot, value));
        }
    }
    let mut failure = None;
    let module = model.module.map_params(&|path| info.rename(path), &mut |name, param| {
        let Some(slot) = plan.slots.get(name) else { return param };
        // What the checkpoint tells apart is no longer the same parameter.
        let is_apart = |(copy, _): &&(String, String)| copy == name && !plan.tied.iter().any(|(copy, _)| copy == name);
        let id = if known.tied.iter().any(|pair| is_apart(&pair)) { ParamId::new() } else { param.id() };
        if packed.contains_key(name) {
            return stands_for(id, slot);
        }
        let value = match &slot.source {
            Source::Tied(original) => shared.get(original.as_str()).map(|(original, value)| {
                let is_turned = original.is_stored_transposed() != slot.is_stored_transposed();
                if is_turned { value.clone().transposed() } else { value.clone() }
            }),
            Source::Own => on_device(param.tensor().to_data().convert_dtype(dtype), device),
            _ if failure.is_some() => None,
            _ => match (shared.get(name), packer.read(name, slot, shards, device)) {
                (Some((_, value)), _) => Some(value.clone()),
                (None, Ok(Some(weight))) => {
                    packed.insert(name.to_owned(), weight);
                    if let Source::Tensor(key) = &slot.source {
                        shards.forget(key);
                    }
                    return stands_for(id, slot);
                }
                (None, Ok(None)) => read(name, slot).unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                }),
                (None, Err(error)) => {
                    failure = Some(error);
                    None
                }
            },
        };
        if let Source::Tensor(key) = &slot.source {
            shards.forget(key);
        }
        value.map_or_else(|| param.clone(), |value| parameter(id, value))
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(BaseModel { module, info, quantized: packed.into_iter().collect() }),
    }
}

/// Values with another size along one dimension: cut off, or with rows more that are the mean of those there are. A bias gets
/// zeros.
fn resized(values: Vec<f32>, from: &[usize], to: &[usize], axis: usize) -> Vec<f32> {
    let (Some(old), Some(new)) = (from.get(axis).copied(), to.get(axis).copied()) else { return values };
    let width: usize = to.iter().skip(axis + 1).product::<usize>().max(1);
    let mut grown = Vec::with_capacity(to.iter().product());
    for block in values.chunks(old.max(1) * width) {
        grown.extend_from_slice(block.get(..new.min(old) * width).unwrap_or(block));
        if width == 1 {
            grown.extend(std::iter::repeat_n(0.0, new.saturating_sub(old)));
            continue;
        }
        let mut mean = vec![0.0_f64; width];
        for row in block.chunks(width) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / old.max(1) as f64);
        }
        (old..new).for_each(|_| grown.extend(mean.iter().map(|value| *value as f32)));
    }
    grown
}

fn parameter(id: ParamId, value: DynTensor) -> DynParam {
    match value {
        DynTensor::R1(tensor) => DynParam::R1(Param::initialized(id, tensor)),
        DynTensor::R2(tensor) => DynParam::R2(Param::initialized(id, tensor)),
        DynTensor::R3(tensor) => DynParam::R3(Param::initialized(id, tensor)),
        DynTensor::R4(tensor) => DynParam::R4(Param::initialized(id, tensor)),
    }
}

/// Unlike `DynTensor::from_data` this keeps the data's type.
fn on_device(data: TensorData, device: &Device) -> Option<DynTensor> {
    let options = (device, data.dtype());
    Some(match data.rank() {
        1 => DynTensor::R1(Tensor::from_data(data, options)),
        2 => DynTensor::R2(Tensor::from_data(data, options)),
        3 => DynTensor::R3(Tensor::from_data(data, options)),
        4 => DynTensor::R4(Tensor::from_data(data, options)),
        _ => return None,
    })
}

/// A tensor's values in single precision, with its two dimensions swapped or not.
pub(super) fn singles(stored: &Stored, bytes: &[u8], transposed: bool) -> Vec<f32> {
    floats(stored, bytes, transposed, DType::F32).try_into_vec::<f32>().unwrap_or_default()
}

/// Copies a tensor out of the file, converted, and in the orientation of memory.
fn floats(stored: &Stored, bytes: &[u8], transposed: bool, dtype: DType) -> TensorData {
    let shape = stored.shape.as_slice();
    let stored = match &stored.dtype {
        StoredType::Plain(stored) => *stored,
        StoredType::Packed(_) => return TensorData::new(Vec::<f32>::new(), [0]),
        StoredType::Ggml(kind, layout) => {
            let values = layout.undo(kind.dequantize(bytes), shape);
            return arranged(values, shape, transposed).convert_dtype(dtype);
        }
    };
    let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>();
    let singles = match stored {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F16 if dtype == DType::F16 => return arranged(halves().reinterpret_into::<f16>(), shape, transposed),
        Dtype::BF16 if dtype == DType::BF16 => return arranged(halves().reinterpret_into::<bf16>(), shape, transposed),
        Dtype::F16 => halves().reinterpret_cast::<f16>().to_f32_vec(),
        _ => halves().reinterpret_cast::<bf16>().to_f32_vec(),
    };
    arranged(singles, shape, transposed).convert_dtype(dtype)
}

/// The values with their two dimensions swapped, if they have two and `transposed` says so.
fn arranged<E: Element + Default>(values: Vec<E>, shape: &[usize], transposed: bool) -> TensorData {
    /// Lines of a cache that a block reads and writes at a time.
    const BLOCK: usize = 32;
    let (true, &[rows, columns]) = (transposed, shape) else { return TensorData::new(values, shape.to_vec()) };
    let mut turned = vec![E::default(); values.len()];
    for (block, band) in turned.chunks_mut((BLOCK * rows).max(1)).enumerate() {
        for first in (0..rows).step_by(BLOCK) {
            for (column, line) in (block * BLOCK..columns).zip(band.chunks_mut(rows)) {
                for (row, value) in (first..rows.min(first + BLOCK)).zip(&mut line[first..]) {
                    *value = values[row * columns + column];
                }
            }
        }
    }
    TensorData::new(turned, [columns, rows])
}
