//! The modules of a model by their checkpoint names: what target rules, `explain` and files speak of.

use std::{
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};

/// Whether a module or parameter is part of the module `outer`, and not `outer` itself.
pub fn is_inside(name: &str, outer: &str) -> bool {
    name.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
}

/// How many values a tensor of this shape has; saturates at `usize::MAX`.
pub fn num_values(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, size| product.saturating_mul(*size))
}

/// The sum of such numbers.
pub fn sum_values(numbers: impl IntoIterator<Item = usize>) -> usize {
    numbers.into_iter().fold(0, usize::saturating_add)
}

/// A module's name and those of all that it is inside, the innermost first.
pub fn with_outer(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.rsplit_once('.').map(|(outer, _)| outer))
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
    /// Where each stands, by name.
    index: OnceLock<HashMap<String, usize>>,
}

impl From<Vec<ModuleInfo>> for ModuleTree {
    fn from(modules: Vec<ModuleInfo>) -> Self {
        Self { modules, index: OnceLock::new() }
    }
}

impl ModuleTree {
    /// Walks a module; `rename` turns Burn's dotted paths into checkpoint names.
    pub fn of<M: Module>(module: &M, rename: &dyn Fn(&str) -> String) -> Self {
        let mut walk = Walk { path: Vec::new(), modules: Vec::new(), places: HashMap::new(), rename };
        module.visit(&mut walk);
        // Dropout and other modules without parameters are nothing that a rule could speak of.
        let mut modules = walk.modules;
        let filled = modules.iter().filter(|module| !module.params.is_empty());
        let holding: HashSet<String> = filled.flat_map(|module| with_outer(&module.name)).map(str::to_owned).collect();
        modules.retain(|module| holding.contains(&module.name));
        Self::from(modules)
    }

    /// The module of that name.
    pub fn get(&self, name: &str) -> Option<&ModuleInfo> {
        let named = |(at, module): (usize, &ModuleInfo)| (module.name.clone(), at);
        // The first of a name counts.
        let index = self.index.get_or_init(|| self.modules.iter().enumerate().rev().map(named).collect());
        self.modules.get(*index.get(name)?)
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
        let own = self.params().filter(|(_, p)| !p.is_buffer && seen.insert(p.id));
        sum_values(own.map(|(_, p)| num_values(&p.shape)))
    }
}

struct Walk<'a> {
    path: Vec<(String, String)>,
    modules: Vec<ModuleInfo>,
    places: HashMap<String, usize>,
    rename: &'a dyn Fn(&str) -> String,
}

impl Walk<'_> {
    fn joined(&self) -> String {
        self.path.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }

    /// The module of that name, which is added if it is not there yet.
    fn module(&mut self, name: &str) -> Option<&mut ModuleInfo> {
        let at = match self.places.get(name) {
            Some(at) => *at,
            None => {
                let kind = ModuleKind::Other("module".to_owned());
                self.places.insert(name.to_owned(), self.modules.len());
                self.modules.push(ModuleInfo { name: name.to_owned(), kind, params: Vec::new() });
                self.modules.len() - 1
            }
        };
        self.modules.get_mut(at)
    }

    fn param(&mut self, id: ParamId, shape: Vec<usize>) {
        let full = (self.rename)(&self.joined());
        let (module, name) = full.rsplit_once('.').unwrap_or(("", &full));
        // The container of a parameter is the type that holds it.
        let kind = ModuleKind::from_container(self.path.last().map_or("", |(_, container)| container));
        let param = ParamInfo { name: name.to_owned(), shape, id, is_buffer: false };
        if let Some(info) = self.module(module) {
            info.kind = kind;
            info.params.push(param);
        }
    }
}

impl ModuleVisitor for Walk<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container.to_owned()));
        let name = (self.rename)(&self.joined());
        self.module(&name);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // Entering the parameter itself left an empty module of its name behind.
        let name = (self.rename)(&self.joined());
        if self.modules.last().is_some_and(|module| module.name == name && module.params.is_empty()) {
            self.modules.pop();
            self.places.remove(&name);
        }
        self.param(param.id, param.lazy_shape().to_vec());
    }
}
