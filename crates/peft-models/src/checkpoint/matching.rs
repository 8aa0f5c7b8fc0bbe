//! Which tensor of a checkpoint goes to which parameter, decided for all of them before anything is read.

use std::collections::{BTreeSet, HashMap, HashSet};

use peft_core::{BaseModel, ModelInfo, ModuleKind, ModuleTree, tensor::module_tree::is_inside};

use super::shards::{Shards, StoredType};

/// What a parameter is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A tensor of the checkpoint.
    Tensor(String),
    /// A tensor of the checkpoint with another number of words along one of its dimensions in the file.
    Resized(String, usize),
    /// Another parameter, whose memory it shares.
    Tied(String),
    /// The checkpoint lacks this head.
    Fresh,
    /// What the model begins with: it works the parameter out by itself, or the checkpoint lacks a buffer.
    Own,
}

/// A parameter of the model.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) source: Source,
    pub(super) kind: ModuleKind,
    /// Its shape in memory.
    pub(super) shape: Vec<usize>,
}

impl Slot {
    /// Files have the weights of linear layers as `[d_out, d_in]`.
    pub(super) fn is_stored_transposed(&self) -> bool {
        self.kind == ModuleKind::Linear && self.shape.len() == 2
    }

    /// Its shape in files.
    pub(super) fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.is_stored_transposed() {
            shape.reverse();
        }
        shape
    }
}

/// What of a checkpoint may be other than the model needs it.
#[derive(Debug, Default)]
pub(super) struct Leave {
    /// The class that it was saved as.
    pub(super) saved_class: Option<String>,
    /// Whether heads of other shapes are left out.
    pub(super) mismatched_heads: bool,
    /// How many words it has, and how many the model is to have.
    pub(super) words: Option<(usize, usize)>,
}

/// The correspondence of a model and a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Matching {
    pub(super) slots: HashMap<String, Slot>,
    pub(super) initialised: Vec<String>,
    pub(super) ignored: Vec<String>,
    /// Tensors of the checkpoint's own head, in whose place the model has another one.
    pub(super) replaced: Vec<String>,
    /// Parameters that are another parameter: those of the model that the checkpoint does not tell apart.
    pub(super) tied: Vec<(String, String)>,
    /// One line for each tensor that does not fit.
    pub(super) problems: Vec<String>,
}

impl Matching {
    pub(super) fn new(model: &BaseModel, shards: &Shards, leave: &Leave) -> Self {
        let info = &model.info;
        let tree = model.tree();
        let stored: HashMap<String, &str> = shards.names().map(|name| (modern(name, info), name)).collect();
        let prefixes = Prefixes::new(info, &tree, &stored);
        let in_file = |name: &str| stored.get(&prefixes.in_file(name)).copied();
        let mut matching = Self::default();
        // As in Transformers, parameters are not tied if the checkpoint has both and they differ.
        // What cannot be read counts as different, and then is an error where it is read for the parameter.
        let differ = |copy: &str, original: &str| match (shards.values(copy), shards.values(original)) {
            (Ok(copy), Ok(original)) => copy != original,
            _ => true,
        };
        let is_tied = |(copy, original): &&(String, String)| match (in_file(copy), in_file(original)) {
            (Some(copy), Some(original)) => !differ(copy, original),
            _ => true,
        };
        matching.tied = info.tied.iter().filter(is_tied).cloned().collect();
        let mut left: BTreeSet<&str> = stored.keys().map(String::as_str).collect();
        for module in &tree.modules {
            for param in &module.params {
                let name =
                    if module.name.is_empty() { param.name.clone() } else { format!("{}.{}", module.name, param.name) };
                let key = prefixes.in_file(&name);
                let mut slot = Slot { source: Source::Fresh, kind: module.kind.clone(), shape: param.shape.clone() };
                left.remove(key.as_str());
                // Any of the names under which a shared parameter is known will do.
                let copies = matching.tied.iter().filter(|(_, original)| *original == name);
                let found = in_file(&name).or_else(|| copies.filter_map(|(copy, _)| in_file(copy)).next());
                if let Some((_, original)) = matching.tied.iter().find(|(copy, _)| *copy == name) {
                    slot.source = Source::Tied(original.clone());
                } else if info.is_computed(&name) {
                    slot.source = Source::Own;
                } else if let Some((key, axis)) = found.and_then(|key| resized(&name, key, &slot, info, shards, leave))
                {
                    slot.source = Source::Resized(key.to_owned(), axis);
                } else if let Some(key) = found.filter(|key| {
                    is_head(info, &module.name) && leave.leaves(info) && is_of_other_shape(key, &slot, shards)
                }) {
                    matching.initialised.push(name.clone());
                    matching.replaced.push(key.to_owned());
                } else if let Some(key) = found {
                    slot.source = Source::Tensor(key.to_owned());
                    matching.problems.extend(misfit(&name, key, &slot, info, shards));
                } else if param.is_buffer {
                    slot.source = Source::Own;
                } else if is_head(info, &module.name) {
                    matching.initialised.push(name.clone());
                } else {
                    let shape = slot.stored_shape();
                    matching.problems.push(format!("`{key}`: missing (the model needs it with shape {shape:?})"));
                }
                matching.slots.insert(name, slot);
            }
        }
        // A module without parameters is no place for a tensor: the tree lists optional ones that are absent.
        let filled = tree.modules.iter().filter(|module| !module.params.is_empty());
        let tops: HashSet<&str> = filled.map(|module| top(prefixes.relative(&module.name))).collect();
        // Of a head that the checkpoint lacks nothing is taken, whatever lies under its name.
        let fresh = |head: &String| {
            let mut own = matching.slots.iter().filter(|(name, _)| is_inside(name, head)).peekable();
            own.peek().is_some() && own.all(|(_, slot)| slot.source == Source::Fresh)
        };
        let fresh_heads: Vec<&String> = info.head_modules.iter().filter(|head| fresh(head)).collect();
        for key in left {
            if info.ignored_tensors.iter().any(|suffix| key.ends_with(suffix)) {
                continue;
            }
            let relative = key.strip_prefix(&prefixes.file).unwrap_or(key);
            let original = stored.get(key).copied().unwrap_or(key);
            if fresh_heads.iter().any(|head| is_inside(key, head)) {
                matching.replaced.push(original.to_owned());
            } else if tops.contains(top(relative)) {
                let shape = shards.get(original).map(|stored| stored.shape.as_slice()).unwrap_or_default();
                matching.problems.push(format!("`{original}` {shape:?}: nothing in the model takes this tensor"));
            } else {
                matching.ignored.push(original.to_owned());
            }
        }
        matching
    }
}

impl Leave {
    /// Whether a head of another shape is left out: that of another class always is.
    fn leaves(&self, info: &ModelInfo) -> bool {
        self.mismatched_heads || self.saved_class.as_ref().is_some_and(|saved| *saved != info.class_name)
    }
}

/// The dimension in the file that has the checkpoint's number of words where the parameter needs another.
fn resized<'k>(
    name: &str,
    key: &'k str,
    slot: &Slot,
    info: &ModelInfo,
    shards: &Shards,
    leave: &Leave,
) -> Option<(&'k str, usize)> {
    let (own, words) = leave.words.filter(|(own, words)| own != words)?;
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    let is_table = |of: &str| {
        let tied = info.tied.iter().any(|(copy, original)| copy == name && original.starts_with(&format!("{of}.")));
        module == of || tied
    };
    let tables = [&info.input_embedding, &info.output_embedding].into_iter().flatten();
    if !tables.into_iter().any(|table| is_table(table)) && !info.buffers.contains(&name) {
        return None;
    }
    let stored = shards.get(key).filter(|stored| !matches!(stored.dtype, StoredType::Packed(_)))?;
    let (needed, stored) = (slot.stored_shape(), &stored.shape);
    let mut differing = needed.iter().zip(stored).enumerate().filter(|(_, (needed, stored))| needed != stored);
    let (axis, sizes) = differing.next()?;
    (needed.len() == stored.len() && differing.next().is_none() && sizes == (&words, &own)).then_some((key, axis))
}

fn is_of_other_shape(key: &str, slot: &Slot, shards: &Shards) -> bool {
    shards.get(key).is_some_and(|stored| stored.shape != slot.stored_shape())
}

/// The part of a name before its first dot: the module that a head or a backbone is made of.
fn top(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn is_head(info: &ModelInfo, module: &str) -> bool {
    info.head_modules.iter().any(|head| module == head || is_inside(module, head))
}

/// The model's name of a stored tensor. Checkpoints converted from TensorFlow name the parameters of norms differently.
fn modern(name: &str, info: &ModelInfo) -> String {
    let own = |segment: &str| info.stored_segments.iter().find(|(_, stored)| *stored == segment).map(|(own, _)| *own);
    let name = name.split('.').map(|segment| own(segment).unwrap_or(segment)).collect::<Vec<_>>().join(".");
    match name.rsplit_once('.') {
        Some((norm, "gamma")) if norm.ends_with("LayerNorm") => format!("{norm}.weight"),
        Some((norm, "beta")) if norm.ends_with("LayerNorm") => format!("{norm}.bias"),
        _ => name,
    }
}

fn misfit(name: &str, key: &str, slot: &Slot, info: &ModelInfo, shards: &Shards) -> Option<String> {
    let stored = shards.get(key)?;
    let mut needed = slot.stored_shape();
    if matches!(stored.dtype, StoredType::Packed(_)) && !slot.is_stored_transposed() {
        needed.reverse();
    }
    if stored.shape != needed {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let hint = if is_head(info, module) {
            "; this head was trained for other classes: `ignore_mismatched_sizes = true` in [model] starts a fresh one"
        } else {
            ""
        };
        return Some(format!("`{key}`: has shape {:?}, the model needs {needed:?}{hint}", stored.shape));
    }
    let label = || stored.dtype.label();
    (!stored.dtype.is_float()).then(|| format!("`{key}`: holds {}; supported are F32, F16, BF16 and F64", label()))
}

/// What stands before the backbone's names in the model and in the file: `bert.`, or nothing.
#[derive(Debug)]
struct Prefixes {
    model: String,
    file: String,
}

impl Prefixes {
    fn new(info: &ModelInfo, tree: &ModuleTree, stored: &HashMap<String, &str>) -> Self {
        let prefix = format!("{}.", info.base_model_prefix);
        let has_head = !info.base_model_prefix.is_empty() && tree.modules.iter().any(|m| m.name.starts_with(&prefix));
        let model = if has_head { prefix } else { String::new() };
        // Any parameter of the backbone tells it; the first ones are its embeddings.
        let file = tree.params().filter_map(|(name, _)| {
            let relative = name.strip_prefix(&model)?;
            if stored.contains_key(relative) {
                return Some(String::new());
            }
            let mut prefixes = stored.keys().filter_map(|key| key.strip_suffix(relative));
            prefixes.find(|prefix| prefix.strip_suffix('.').is_some_and(|p| !p.contains('.'))).map(str::to_owned)
        });
        let file = file.into_iter().next().unwrap_or_default();
        Self { model, file }
    }

    fn relative<'n>(&self, name: &'n str) -> &'n str {
        name.strip_prefix(&self.model).unwrap_or(name)
    }

    /// The name that a parameter of the model should have in the file.
    fn in_file(&self, name: &str) -> String {
        match name.strip_prefix(&self.model) {
            Some(relative) => format!("{}{relative}", self.file),
            None => name.to_owned(),
        }
    }
}
