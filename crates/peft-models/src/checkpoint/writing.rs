//! Writing a model as Transformers would: configuration, weights, and the tokenizer that came with it.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use burn::tensor::{DType, TensorData};
use peft_core::{
    BaseModel, Error, ModelInfo, ModuleKind, QuantizedWeight, Result,
    files::{create_folder, read_bytes, write_atomically, write_safetensors},
    tensor::finite::first_not_finite,
    weight::quantized::base_value,
};
use serde_json::Value;

use super::{CONFIG, WEIGHTS};
use crate::{quantization::QUANTIZATION_CONFIG, tokenizer_files::copy_tokenizer};

/// Writes a plain Hugging Face checkpoint: linear weights as PyTorch has them, tied parameters once.
///
/// Where training or merging made tied parameters differ both are written, and the configuration says that they are no
/// longer tied. `source` is the folder that the model came from, for its tokenizer.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a type that safetensors cannot hold; [`Error::NotFiniteOutput`] before anything is written if a
/// weight is NaN or an infinity.
pub fn save(base: &BaseModel, source: Option<&Path>, folder: &Path) -> Result<()> {
    let info = &base.info;
    let mut tensors = stored_tensors(base);
    if let Some(name) = first_not_finite(&tensors) {
        return Err(Error::NotFiniteOutput { output: name.to_owned() });
    }
    let mut config = info.config.clone();
    let stored = |(name, weight): (&str, &Arc<dyn QuantizedWeight>)| weight.stored(&info.stored(name));
    let packed: Vec<_> = base.quantized.iter().flat_map(stored).collect();
    if packed.is_empty() {
        config.shift_remove(QUANTIZATION_CONFIG);
    }
    let dtype = tensors.values().next().map(|data| data.dtype());
    // `tie_word_embeddings` is of all tables of words: where one is told apart, none may be left out.
    let is_tied = config.get("tie_word_embeddings") != Some(&Value::Bool(false));
    if info.tied.iter().any(|(copy, original)| tensors.get(copy) != tensors.get(original)) {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    } else if is_tied {
        tensors.retain(|name, _| !info.tied.iter().any(|(copy, _)| copy == name));
    }
    config.insert("architectures".to_owned(), Value::from(vec![info.class_name.as_str()]));
    if let Some(name) = dtype.and_then(torch_name) {
        config.shift_remove("torch_dtype");
        config.insert("dtype".to_owned(), name.into());
    }
    create_folder(folder)?;
    let mut tensors: BTreeMap<_, _> = tensors.into_iter().map(|(name, data)| (info.stored(&name), data)).collect();
    tensors.extend(packed);
    write_safetensors(&folder.join(WEIGHTS), &tensors)?;
    if let Some(source) = source {
        let generation = source.join("generation_config.json");
        if generation.exists() {
            write_atomically(
                &folder.join("generation_config.json"),
                &read_bytes(&generation, "a generation's settings")?,
            )?;
        }
        copy_tokenizer(source, folder)?;
    }
    // The configuration comes last: a folder without one is no model.
    let path = folder.join(CONFIG);
    let text = serde_json::to_string_pretty(&config)
        .map_err(|error| Error::File { path: path.clone(), problem: error.to_string() })?;
    write_atomically(&path, format!("{text}\n").as_bytes())
}

fn stored_tensors(base: &BaseModel) -> BTreeMap<String, TensorData> {
    let tree = base.tree();
    let mut tensors = BTreeMap::new();
    base.module.boxed_clone().map_params(&|path| base.info.rename(path), &mut |name, param| {
        let packed = base.quantized.get(name);
        if base.info.is_computed(name) || packed.is_some_and(|packed| !packed.stored(name).is_empty()) {
            return param;
        }
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let is_linear = tree.get(module).is_some_and(|module| module.kind == ModuleKind::Linear);
        let value = base_value(&param, packed);
        let value = if is_linear { value.transposed() } else { value };
        tensors.insert(name.to_owned(), value.to_data());
        param
    });
    tensors
}

/// The type that the configuration says a model has: `dtype`, or `torch_dtype` of older ones; none where it says nothing or
/// single precision, which is what models are computed in.
pub fn stated_dtype(info: &ModelInfo) -> Option<DType> {
    let stated = info.config.get("dtype").or_else(|| info.config.get("torch_dtype"))?.as_str()?;
    let half = [DType::BF16, DType::F16];
    half.into_iter().find(|dtype| torch_name(*dtype) == Some(stated.trim_start_matches("torch.")))
}

/// The name of a type in `config.json`.
pub fn torch_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("float32"),
        DType::F16 => Some("float16"),
        DType::BF16 => Some("bfloat16"),
        DType::F64 => Some("float64"),
        _ => None,
    }
}
