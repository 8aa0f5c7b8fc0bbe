//! Which tensor of a checkpoint goes to which parameter, decided for all of them before anything is read.

use std::collections::{BTreeSet, HashMap, HashSet};

use peft_core::{BaseModel, ModelInfo, ModuleKind, ModuleTree, module_tree::is_inside};

use super::shards::{Shards, StoredType};

/// What a parameter is filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A tensor of the checkpoint.
    Tensor(String),
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

/// The correspondence of a model and a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Matching {
    pub(super) slots: HashMap<String, Slot>,
    pub(super) initialised: Vec<String>,
    pub(super) ignored: Vec<String>,
    /// Parameters that are another parameter: those of the model that the checkpoint does not tell apart.
    pub(super) tied: Vec<(String, String)>,
    /// One line for each tensor that does not fit.
    pub(super) problems: Vec<String>,
}

impl Matching {
    pub(super) fn new(model: &BaseModel, shards: &Shards) -> Self {
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
                let found = || in_file(&name).or_else(|| copies.filter_map(|(copy, _)| in_file(copy)).next());
                if let Some((_, original)) = matching.tied.iter().find(|(copy, _)| *copy == name) {
                    slot.source = Source::Tied(original.clone());
                } else if info.is_computed(&name) {
                    slot.source = Source::Own;
                } else if let Some(key) = found() {
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
        for key in left {
            if info.ignored_tensors.iter().any(|suffix| key.ends_with(suffix)) {
                continue;
            }
            let relative = key.strip_prefix(&prefixes.file).unwrap_or(key);
            let original = stored.get(key).copied().unwrap_or(key);
            if tops.contains(top(relative)) {
                let shape = shards.get(original).map(|stored| stored.shape.as_slice()).unwrap_or_default();
                matching.problems.push(format!("`{original}` {shape:?}: nothing in the model takes this tensor"));
            } else {
                matching.ignored.push(original.to_owned());
            }
        }
        matching
    }
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
        let hint = if is_head(info, module) { "; this head was trained for other classes" } else { "" };
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
