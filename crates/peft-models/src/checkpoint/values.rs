//! Filling a model: from the bytes of a file to parameters on a device.

use std::{collections::HashMap, sync::Arc};

use burn::{
    module::{Param, ParamId},
    tensor::{DType, Device, Tensor, TensorData},
};
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use peft_core::{BaseModel, DynParam, DynTensor};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;

use super::{
    fresh,
    matching::{Matching, Slot, Source},
    shards::Shards,
};

/// Fills every parameter as the matching says. Parameters that are tied share memory.
pub(super) fn fill(
    model: BaseModel,
    plan: &Matching,
    shards: &Shards,
    dtype: DType,
    seed: u64,
    device: &Device,
) -> BaseModel {
    let info = Arc::clone(&model.info);
    let std = info.config.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    // As it lies in the file.
    let stored = |name: &str, slot: &Slot| {
        let data = match &slot.source {
            Source::Tensor(key) => floats(&shards.view(key)?, dtype),
            Source::Fresh => fresh::value(name, &slot.kind, &slot.stored_shape(), std, seed).convert_dtype(dtype),
            Source::Tied(_) => return None,
        };
        on_device(data, device)
    };
    let originals = info.tied.iter().map(|(_, original)| original.as_str());
    let shared: HashMap<&str, DynTensor> =
        originals.filter_map(|name| Some((name, stored(name, plan.slots.get(name)?)?))).collect();
    let module = model.module.map_params(&|path| info.rename(path), &mut |name, param| {
        let Some(slot) = plan.slots.get(name) else { return param };
        let value = match &slot.source {
            Source::Tied(original) => shared.get(original.as_str()).cloned(),
            _ => shared.get(name).cloned().or_else(|| stored(name, slot)),
        };
        match value {
            Some(value) if slot.is_stored_transposed() => parameter(param.id(), value.transposed()),
            Some(value) => parameter(param.id(), value),
            None => param,
        }
    });
    BaseModel { module, info }
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

/// Copies a tensor out of the file and converts it on the way.
fn floats(view: &TensorView<'_>, dtype: DType) -> TensorData {
    let (bytes, shape) = (view.data(), view.shape().to_vec());
    let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>();
    let singles = match view.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F16 if dtype == DType::F16 => {
            return TensorData::new(halves().reinterpret_cast::<f16>().to_vec(), shape);
        }
        Dtype::BF16 if dtype == DType::BF16 => {
            return TensorData::new(halves().reinterpret_cast::<bf16>().to_vec(), shape);
        }
        Dtype::F16 => halves().reinterpret_cast::<f16>().to_f32_vec(),
        _ => halves().reinterpret_cast::<bf16>().to_f32_vec(),
    };
    TensorData::new(singles, shape).convert_dtype(dtype)
}
