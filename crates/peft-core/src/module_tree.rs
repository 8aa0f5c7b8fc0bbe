//! The modules of a model by their checkpoint names: what target rules, `explain` and files speak of.

use std::collections::HashSet;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};

/// Whether a module or parameter is part of the module `outer`, and not `outer` itself.
pub fn is_inside(name: &str, outer: &str) -> bool {
    name.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
}

/// What a module is, as far as a tuner cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleKind {
    /// `burn::nn::Linear`, weight `[d_in, d_out]`.
    Linear,
    /// GPT-2's [`Conv1D`](crate::Conv1D), weight `[d_in, d_out]` in files as well.
    Conv1D,
    /// `burn::nn::Embedding`, weight `[entries, dimensions]`.
    Embedding,
    /// A layer or root-mean-square norm.
    Norm,
    /// Anything else, with the name of its type.
    Other(String),
}

impl ModuleKind {
    /// From the container string that Burn hands to visitors.
    pub fn from_container(container: &str) -> Self {
        match container.strip_prefix("Struct:").unwrap_or(container) {
            "Linear" => Self::Linear,
            "Conv1D" => Self::Conv1D,
            "Embedding" => Self::Embedding,
            "LayerNorm" | "RmsNorm" => Self::Norm,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether `all-linear` considers it.
    pub fn is_linear(&self) -> bool {
        matches!(self, Self::Linear | Self::Conv1D)
    }

    /// Its name for messages.
    pub fn label(&self) -> &str {
        match self {
            Self::Linear => "Linear",
            Self::Conv1D => "Conv1D",
            Self::Embedding => "Embedding",
            Self::Norm => "Norm",
            Self::Other(name) => name,
        }
    }
}

/// A parameter directly below a module.
#[derive(Debug, Clone)]
pub struct ParamInfo {
    /// The last part of its name: `weight`, `bias`.
    pub name: String,
    /// Its shape in memory (Burn's orientation).
    pub shape: Vec<usize>,
    /// Its identity; parameters that are tied share one.
    pub id: ParamId,
    /// Whether it is stored but no parameter.
    pub is_buffer: bool,
}

/// A module and its own parameters.
#[derive(Debug, Clone)]
pub struct ModuleInfo {
    /// The dotted name, as in the checkpoint.
    pub name: String,
    /// What it is.
    pub kind: ModuleKind,
    /// The parameters that are its own, not those of modules inside it.
    pub params: Vec<ParamInfo>,
}

impl ModuleInfo {
    /// The parameter of that name.
    pub fn param(&self, name: &str) -> Option<&ParamInfo> {
        self.params.iter().find(|param| param.name == name)
    }

    /// `(d_in, d_out)` of a linear layer, `(entries, dimensions)` of an embedding: the shape of a rank 2 `weight`.
    pub fn weight_dims(&self) -> Option<(usize, usize)> {
        match self.param("weight")?.shape.as_slice() {
            [rows, columns] => Some((*rows, *columns)),
            _ => None,
        }
    }
}

/// Every module of a model, outer before inner, in the order of the model.
#[derive(Debug, Clone, Default)]
pub struct ModuleTree {
    /// The modules, without the model itself.
    pub modules: Vec<ModuleInfo>,
}

impl ModuleTree {
    /// Walks a module; `rename` turns Burn's dotted paths into checkpoint names.
    pub fn of<M: Module>(module: &M, rename: &dyn Fn(&str) -> String) -> Self {
        let mut walk = Walk { path: Vec::new(), tree: Self::default(), rename };
        module.visit(&mut walk);
        // Dropout and other modules without parameters are nothing that a rule could speak of.
        let mut tree = walk.tree;
        let holds = |outer: &str| {
            tree.modules.iter().any(|m| !m.params.is_empty() && (m.name == outer || is_inside(&m.name, outer)))
        };
        let kept: Vec<bool> = tree.modules.iter().map(|m| holds(&m.name)).collect();
        let mut kept = kept.into_iter();
        tree.modules.retain(|_| kept.next().unwrap_or(true));
        tree
    }

    /// The module of that name.
    pub fn get(&self, name: &str) -> Option<&ModuleInfo> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// All parameters with their full names.
    pub fn params(&self) -> impl Iterator<Item = (String, &ParamInfo)> {
        self.modules.iter().flat_map(|module| {
            module.params.iter().map(move |param| {
                let dot = if module.name.is_empty() { "" } else { "." };
                (format!("{}{dot}{}", module.name, param.name), param)
            })
        })
    }

    /// Takes note of which tensors are no parameters, by full name.
    pub(crate) fn mark_buffers(&mut self, buffers: &[&str]) {
        for module in &mut self.modules {
            let dot = if module.name.is_empty() { "" } else { "." };
            for param in &mut module.params {
                param.is_buffer = buffers.contains(&format!("{}{dot}{}", module.name, param.name).as_str());
            }
        }
    }

    /// How many values the model has; tied parameters count once, buffers not at all.
    pub fn num_params(&self) -> usize {
        let mut seen = HashSet::new();
        self.params()
            .filter(|(_, p)| !p.is_buffer && seen.insert(p.id))
            .map(|(_, p)| p.shape.iter().product::<usize>())
            .sum()
    }
}

struct Walk<'a> {
    path: Vec<(String, String)>,
    tree: ModuleTree,
    rename: &'a dyn Fn(&str) -> String,
}

impl Walk<'_> {
    fn joined(&self) -> String {
        self.path.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }

    fn param(&mut self, id: ParamId, shape: Vec<usize>) {
        let full = (self.rename)(&self.joined());
        let (module, name) = full.rsplit_once('.').unwrap_or(("", &full));
        // The container of a parameter is the type that holds it.
        let kind = ModuleKind::from_container(self.path.last().map_or("", |(_, container)| container));
        let param = ParamInfo { name: name.to_owned(), shape, id, is_buffer: false };
        match self.tree.modules.iter_mut().find(|m| m.name == module) {
            Some(info) => {
                info.kind = kind;
                info.params.push(param);
            }
            None => self.tree.modules.push(ModuleInfo { name: module.to_owned(), kind, params: vec![param] }),
        }
    }
}

impl ModuleVisitor for Walk<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container.to_owned()));
        let name = (self.rename)(&self.joined());
        let known = self.tree.modules.iter().any(|module| module.name == name);
        if !known {
            let kind = ModuleKind::Other("module".to_owned());
            self.tree.modules.push(ModuleInfo { name, kind, params: Vec::new() });
        }
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // Entering the parameter itself left an empty module of its name behind.
        let name = (self.rename)(&self.joined());
        if self.tree.modules.last().is_some_and(|module| module.name == name && module.params.is_empty()) {
            self.tree.modules.pop();
        }
        self.param(param.id, param.lazy_shape().to_vec());
    }
}
