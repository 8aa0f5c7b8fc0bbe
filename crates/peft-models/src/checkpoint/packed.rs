//! Which weights of a model are packed while it is loaded, decided before any is read.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::Device;
use peft_backends::ops::{GgmlType, PackedParts, Packing, quantize, quantize_q8_0};
use peft_core::{Error, ModelInfo, ModuleKind, QuantizedWeight, Result, tensor::module_tree::is_inside};
use serde_json::Value;

use super::{
    matching::{Matching, Slot, Source},
    shards::{Shards, Stored, StoredType},
    values::singles,
};
use crate::quantization::{EMBEDDINGS_KEY, QUANTIZATION_CONFIG, QuantizationConfig, QuantizedMatrix};

/// How and where weights are packed.
#[derive(Debug, Default)]
pub(super) struct Packer {
    /// What dense weights of the file become; what is packed in the file stays as it is.
    packing: Option<Packing>,
    /// The parameters that may be.
    names: HashSet<String>,
    /// The table of words and the output layer, where they are to have eight bits.
    embeddings: HashSet<String>,
    /// Whether what a GGUF file has in blocks stays so.
    keeps_blocks: bool,
    /// What the model's configuration says of it afterwards.
    pub(super) config: Option<Value>,
}

impl Packer {
    /// The linear layers' weights, but for the output layer, heads, what is tied and what is to be skipped.
    ///
    /// # Errors
    /// [`Error::Config`] if the options contradict each other or the file, if a skipped module is none of the model's, and if
    /// nothing is left to pack.
    pub(super) fn new(asked: &QuantizationConfig, plan: &Matching, info: &ModelInfo) -> Result<Self> {
        let packing = asked.packing()?;
        let own = QuantizationConfig::of_model(&info.config)?;
        let skip = asked.llm_int8_skip_modules.iter().flatten();
        let mut names = HashSet::new();
        let mut skipped = HashSet::new();
        for (name, slot) in &plan.slots {
            let Some(module) = name.strip_suffix(".weight").filter(|_| is_packable(name, slot, info)) else { continue };
            match skip.clone().find(|entry| QuantizationConfig::is_skipped_as(entry, module)) {
                Some(entry) => _ = skipped.insert(entry),
                None => _ = names.insert(name.clone()),
            }
        }
        // A head or the output layer may be named, though it is not packed anyway.
        let is_whole = |entry: &String| {
            plan.slots.keys().any(|name| {
                name.rsplit_once('.').is_some_and(|(module, _)| QuantizationConfig::is_skipped_as(entry, module))
            })
        };
        if let Some(entry) = skip.clone().find(|entry| !skipped.contains(entry) && !is_whole(entry)) {
            let problem = format!("no module of the model is named `{entry}`");
            return Err(Error::config("llm_int8_skip_modules", problem));
        }
        if packing.is_some() && own.is_some() {
            let key = if asked.load_in_4bit { "load_in_4bit" } else { "load_in_8bit" };
            let problem =
                format!("the model is packed already ({QUANTIZATION_CONFIG} in its config.json): take it away");
            return Err(Error::config(key, problem));
        }
        if packing.is_some() && names.is_empty() {
            return Err(Error::config("load_in_4bit", "the model has no linear layer that could be packed"));
        }
        let embeddings =
            if asked.load_embeddings_in_8bit { embeddings(asked, plan, info)? } else { HashSet::default() };
        let keeps_blocks = asked.keep_gguf_packed || packing.is_some();
        Ok(Self { packing, names, embeddings, keeps_blocks, config: packing.map(|_| asked.to_value()) })
    }

    /// The table of words, for itself and for an output layer that is tied to it; none if it is to be dense.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn read_table(
        &self,
        name: &str,
        slot: &Slot,
        shards: &Shards,
        device: &Device,
    ) -> Result<Option<QuantizedMatrix>> {
        let Source::Tensor(key) = &slot.source else { return Ok(None) };
        let is_packed = slot.kind == ModuleKind::Embedding && (self.keeps_blocks || self.embeddings.contains(name));
        let Some(stored) = shards.get(key).filter(|_| is_packed) else { return Ok(None) };
        let bytes = shards.values(key)?.unwrap_or_default();
        let Some(parts) = self.blocks(name, stored, &bytes) else { return Ok(None) };
        weight(parts, "float32", device, key, shards).map(Some)
    }

    /// The packed weight of a parameter; none if it is dense.
    ///
    /// # Errors
    /// [`Error::Tensors`] for parts that do not fit.
    pub(super) fn read(
        &self,
        name: &str,
        slot: &Slot,
        shards: &Shards,
        device: &Device,
    ) -> Result<Option<Arc<dyn QuantizedWeight>>> {
        let Source::Tensor(key) = &slot.source else { return Ok(None) };
        let is_embedding = self.embeddings.contains(name);
        let Some(stored) = shards.get(key).filter(|_| is_embedding || self.names.contains(name)) else {
            return Ok(None);
        };
        let (parts, dtype) = match (&stored.dtype, self.packing) {
            (StoredType::Packed(packed), _) => (packed.read(shards, key)?, packed.dtype.clone()),
            (_, packing) => {
                let bytes = shards.values(key)?.unwrap_or_default();
                let parts = match packing {
                    Some(packing) if !is_embedding => pack(stored, slot, &bytes, packing),
                    _ => self.blocks(name, stored, &bytes),
                };
                let Some(parts) = parts else { return Ok(None) };
                (parts, torch_name(stored).to_owned())
            }
        };
        Ok(Some(Arc::new(weight(parts, &dtype, device, key, shards)?)))
    }

    /// What the file has in blocks, where that stays; and else blocks of eight bits of what is to have them.
    fn blocks(&self, name: &str, stored: &Stored, bytes: &[u8]) -> Option<PackedParts> {
        let is_embedding = self.embeddings.contains(name);
        let kept = Some(stored).filter(|_| self.keeps_blocks || is_embedding).and_then(|stored| blocks(stored, bytes));
        kept.or_else(|| Some(stored).filter(|_| is_embedding).and_then(|stored| eight_bits(stored, bytes)))
    }
}

/// The table of words, and the output layer where it is not tied to it.
///
/// # Errors
/// [`Error::Config`] if one of them cannot be packed.
fn embeddings(asked: &QuantizationConfig, plan: &Matching, info: &ModelInfo) -> Result<HashSet<String>> {
    let wrong = |problem: String| Error::config(EMBEDDINGS_KEY, problem);
    let slot = |module: &Option<String>| {
        let name = format!("{}.weight", module.as_ref()?);
        plan.slots.get_key_value(&name)
    };
    let (table, words) =
        slot(&info.input_embedding).ok_or_else(|| wrong("the model has no table of words".to_owned()))?;
    let is_table = |copy: &String| plan.slots.get(copy).is_some_and(|copy| copy.kind != ModuleKind::Linear);
    if let Some((copy, _)) = plan.tied.iter().find(|(copy, original)| original == table && is_table(copy)) {
        return Err(wrong(format!("`{table}` cannot be packed: `{copy}` takes its words from the same memory")));
    }
    let is_skipped = |name: &str| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        asked.llm_int8_skip_modules.iter().flatten().any(|entry| QuantizationConfig::is_skipped_as(entry, module))
    };
    let output = slot(&info.output_embedding)
        .filter(|(name, output)| matches!(output.source, Source::Tensor(_)) && !is_skipped(name));
    let mut names = HashSet::new();
    for (name, slot) in [Some((table, words)), output].into_iter().flatten() {
        let (width, block) = (slot.stored_shape().last().copied().unwrap_or_default(), GgmlType::Q8_0.block());
        if !width.is_multiple_of(block) {
            return Err(wrong(format!("`{name}` has rows of {width} values, which are no whole blocks of {block}")));
        }
        names.insert(name.clone());
    }
    Ok(names)
}

fn weight(parts: PackedParts, dtype: &str, device: &Device, key: &str, shards: &Shards) -> Result<QuantizedMatrix> {
    QuantizedMatrix::new(parts, dtype, device).map_err(|problem| Error::Tensors {
        origin: shards.origin.clone(),
        problems: vec![format!("`{key}`: {problem}")],
    })
}

/// What a GGUF file has in blocks of several values, its rows in the order of Transformers.
fn blocks(stored: &Stored, bytes: &[u8]) -> Option<PackedParts> {
    let (StoredType::Ggml(kind, layout), &[d_out, d_in]) = (&stored.dtype, stored.shape.as_slice()) else {
        return None;
    };
    let is_whole = kind.block() > 1 && d_in.is_multiple_of(kind.block()) && !layout.plus_one;
    let codes = is_whole.then(|| layout.ordered(bytes.to_vec(), d_out))?;
    Some(PackedParts::of_blocks(*kind, [d_out, d_in], codes))
}

/// Blocks of eight bits of a table, some rows at a time: as floats it may be larger than all that is left of the model.
fn eight_bits(stored: &Stored, bytes: &[u8]) -> Option<PackedParts> {
    /// Values that are floats at a time.
    const BAND: usize = 1 << 20;
    let &[d_out, d_in] = stored.shape.as_slice() else { return None };
    let rows = match stored.dtype {
        StoredType::Plain(_) => (BAND / d_in.max(1)).clamp(1, d_out.max(1)),
        // The order of their rows may be another.
        StoredType::Ggml(..) | StoredType::Packed(_) => d_out.max(1),
    };
    let mut band = stored.clone();
    let mut codes = Vec::with_capacity(GgmlType::Q8_0.bytes(d_out * d_in)?);
    for (at, bytes) in bytes.chunks((bytes.len().div_ceil(d_out.max(1)) * rows).max(1)).enumerate() {
        let dims = [rows.min(d_out.saturating_sub(at * rows)), d_in];
        band.shape = dims.to_vec();
        codes.extend(quantize_q8_0(&singles(&band, bytes, false), dims)?.codes);
    }
    Some(PackedParts::of_blocks(GgmlType::Q8_0, [d_out, d_in], codes))
}

fn is_packable(name: &str, slot: &Slot, info: &ModelInfo) -> bool {
    let module = name.rsplit_once('.').map_or("", |(module, _)| module);
    let is_head = info.head_modules.iter().any(|head| module == head || is_inside(module, head));
    let is_tied = info.tied.iter().any(|(copy, original)| copy == name || original == name);
    let is_output = info.output_embedding.as_deref() == Some(module);
    slot.kind.is_linear() && slot.shape.len() == 2 && !is_head && !is_tied && !is_output
}

fn pack(stored: &Stored, slot: &Slot, bytes: &[u8], packing: Packing) -> Option<PackedParts> {
    // Linear layers' weights are packed as files have them; GPT-2's projections are turned to look alike.
    let turned = !slot.is_stored_transposed();
    let values = singles(stored, bytes, turned);
    let [d_in, d_out] = [0, 1].map(|side| slot.shape.get(side).copied().unwrap_or_default());
    quantize(&values, [d_out, d_in], packing)
}

fn torch_name(stored: &Stored) -> &'static str {
    match stored.dtype.label().as_str() {
        "BF16" => "bfloat16",
        "F16" => "float16",
        _ => "float32",
    }
}
