//! Activation checkpointing: how many layers keep their input alone, chosen by what all of them may keep.

use std::collections::HashSet;

use peft_core::{
    BaseModel, Error as PeftError, ModuleTree, Plan,
    data::example::{Example, Label},
    model::explain,
    plugins::prompt::PromptEntry,
    tensor::module_tree::with_outer,
};
use serde::Serialize;

use crate::{Prepared, Recipe, Result, recipe::WeightType};

/// What the layers keep between the pass forward and the pass back, by an estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Activations {
    /// Layers of the model, those of an encoder and a decoder together.
    pub layers: usize,
    /// How many of them run again in the pass back instead of keeping what they compute.
    pub recomputed: usize,
    /// What is kept of the largest batch, in bytes.
    pub kept_bytes: u64,
    /// What would be kept if no layer ran again, in bytes.
    pub all_bytes: u64,
    /// For [`Inputs::checkpointed_layers`](peft_core::Inputs::checkpointed_layers): as `recomputed`, with the layers counted that have
    /// nothing to keep.
    #[serde(skip)]
    pub checkpointed_layers: usize,
    /// Whether more is kept than was allowed, for want of layers to run again.
    pub exceeds: bool,
}

/// What one layer keeps for the backward pass, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Kept {
    /// If it keeps what it computes.
    pub(crate) all: u64,
    /// If it keeps its input alone; none where the input needs no gradient, so that the layer is never recomputed.
    pub(crate) input: Option<u64>,
}

/// What one layer keeps of each token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptPerToken {
    /// The layer's name.
    pub(crate) layer: String,
    /// Whether its tokens are the target's: a decoder of an encoder-decoder.
    of_target: bool,
    kept: Kept,
}

impl KeptPerToken {
    /// Of a batch with so many source and target tokens.
    pub(crate) fn of(&self, tokens: [u64; 2]) -> Kept {
        let [source, target] = tokens;
        let tokens = if self.of_target { target } else { source };
        let Kept { all, input } = self.kept;
        Kept { all: all.saturating_mul(tokens), input: input.map(|input| input.saturating_mul(tokens)) }
    }
}

impl Activations {
    /// What the recipe asks for; none if it asks for nothing.
    ///
    /// # Errors
    /// If it asks for something that the model or the method cannot do.
    pub fn choose(recipe: &Recipe, prepared: &Prepared) -> Result<Option<Self>> {
        let training = &recipe.training;
        let key = match (training.gradient_checkpointing, training.activation_memory_mb) {
            (true, _) => "gradient_checkpointing",
            (false, Some(_)) => "activation_memory_mb",
            (false, None) => return Ok(None),
        };
        let plan = explain::plan(&prepared.base, &recipe.adapter)?;
        let problem = if !prepared.base.info.supports_checkpointing {
            Some(format!("the layers of {} always keep what they compute", prepared.base.info.class_name))
        } else if plan.prompt.as_ref().is_some_and(|prompt| prompt.tuner.entry() == PromptEntry::PastKeyValues) {
            Some(format!("{} does not work with it, as in PEFT: it enters every layer", recipe.adapter.peft_type))
        } else {
            None
        };
        if let Some(problem) = problem {
            let (origin, key) = (recipe.path.display().to_string(), key.to_owned());
            return Err(PeftError::Config { origin, key, problem }.into());
        }
        let budget = training.activation_memory_mb.map(|megabytes| megabytes.saturating_mul(1_000_000));
        let tokens = tokens(recipe, prepared);
        let layers = kept(recipe, prepared, &plan, &prepared.base.tree());
        let layers: Vec<Kept> = layers.iter().map(|layer| layer.of(tokens)).collect();
        Ok(Some(fewest(&layers, budget)))
    }
}

impl std::fmt::Display for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layers, recomputed, .. } = self;
        let [kept, all] = [self.kept_bytes, self.all_bytes].map(|bytes| bytes.div_ceil(1_000_000));
        match recomputed {
            0 => write!(f, "recomputing none of {layers} layers: about {all} MB kept of the largest batch")?,
            _ => write!(
                f,
                "recomputing {recomputed} of {layers} layers: about {kept} MB kept of the largest batch instead of {all}"
            )?,
        }
        if self.exceeds {
            f.write_str(", which is more than activation_memory_mb: take smaller batches or shorter examples")?;
        }
        Ok(())
    }
}

/// The fewest layers, the first ones, that have to run again for the rest to fit; all without a budget. The last is never among
/// them: the pass back begins with what it would have kept.
fn fewest(kept: &[Kept], budget: Option<u64>) -> Activations {
    let total = |checkpointed: usize| {
        let layers = kept.iter().enumerate();
        layers
            .map(|(at, layer)| layer.input.filter(|_| at < checkpointed).unwrap_or(layer.all))
            .fold(0, u64::saturating_add)
    };
    let most = kept.len().saturating_sub(1);
    let fits = |checkpointed: &usize| budget.is_some_and(|budget| total(*checkpointed) <= budget);
    let checkpointed_layers = (0..most).find(fits).unwrap_or(most);
    let again = kept.iter().take(checkpointed_layers).filter(|layer| layer.input.is_some());
    Activations {
        layers: kept.len(),
        recomputed: again.count(),
        kept_bytes: total(checkpointed_layers),
        all_bytes: total(0),
        checkpointed_layers,
        exceeds: budget.is_some_and(|budget| total(checkpointed_layers) > budget),
    }
}

/// What each layer keeps of a token, in the order in which they run.
///
/// A linear layer's output is kept by what comes behind it (norms, attention, activations); an adapted layer keeps its input as
/// well, once for all that share it. Of a layer with a gated feed-forward block only the attention's output is kept so: the results
/// of its norms and what goes into the block's last layer are made anew. Scores and what norms and adapters keep besides are small.
pub(crate) fn kept(recipe: &Recipe, prepared: &Prepared, plan: &Plan, tree: &ModuleTree) -> Vec<KeptPerToken> {
    let BaseModel { info, .. } = &prepared.base;
    let saved = plan.saved_params(tree);
    let trained: HashSet<&str> = plan.adapted.iter().map(|adapted| adapted.module.as_str()).collect();
    let parameters: HashSet<&str> = saved.iter().chain(&plan.biases).map(String::as_str).collect();
    let holding_saved: HashSet<&str> = saved.iter().flat_map(|name| with_outer(name).skip(1)).collect();
    let is_half = matches!(recipe.model.dtype, Some(WeightType::Bf16 | WeightType::F16));
    let bytes: u64 = if is_half { 2 } else { 4 };

    let gated: HashSet<&str> = tree
        .modules
        .iter()
        .filter_map(|module| layer_of(&module.name).filter(|_| module.name.ends_with(".gate_proj")))
        .collect();
    let mut layers: Vec<KeptPerToken> = Vec::new();
    let mut inputs: HashSet<(&str, usize)> = HashSet::new();
    // Whether what the layer reads is part of a graph, and whether what it gives is.
    let mut is_tracked = [plan.prompt.is_some(); 2];
    for module in &tree.modules {
        let is_trained = trained.contains(module.name.as_str())
            || module
                .params
                .iter()
                .any(|param| parameters.contains(format!("{}.{}", module.name, param.name).as_str()));
        let Some(layer) = layer_of(&module.name) else {
            // What is trained before the layers, an embedding; heads stand behind them.
            is_tracked = is_tracked.map(|tracked| tracked || is_trained && layers.is_empty());
            continue;
        };
        if layers.last().is_none_or(|last| last.layer != layer) {
            is_tracked[0] = is_tracked[1];
            let of_target = info.shift_right.is_some() && layer.contains("decoder.");
            layers.push(KeptPerToken { layer: layer.to_owned(), of_target, kept: Kept { all: 0, input: None } });
            inputs.clear();
        }
        let (Some(KeptPerToken { kept, .. }), true, Some((d_in, d_out))) =
            (layers.last_mut(), module.kind.is_linear(), module.weight_dims())
        else {
            is_tracked[1] |= is_trained;
            continue;
        };
        let parent = module.name.rsplit_once('.').map_or("", |(parent, _)| parent);
        is_tracked[1] |= is_trained;
        kept.all = kept.all.saturating_add(bytes.saturating_mul(d_out as u64));
        let is_adapter_alone = trained.contains(module.name.as_str()) && !holding_saved.contains(module.name.as_str());
        let is_rebuilt = is_adapter_alone && gated.contains(layer) && !module.name.ends_with(".o_proj");
        if is_trained && !is_rebuilt && inputs.insert((parent, d_in)) {
            kept.all = kept.all.saturating_add(bytes.saturating_mul(d_in as u64));
        }
        // Every layer begins with a projection of its input.
        if is_tracked[0] && kept.input.is_none() {
            kept.input = Some(bytes.saturating_mul(d_in as u64));
        }
        if !is_tracked[1] {
            kept.all = 0;
        }
    }
    layers
}

/// The part of a name up to the number of a layer.
fn layer_of(name: &str) -> Option<&str> {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if part.parse::<usize>().is_ok() {
            return name.get(..end);
        }
        end += 1;
    }
    None
}

/// The most tokens of a batch with its padding: those that are read and those that are to be written.
fn tokens(recipe: &Recipe, prepared: &Prepared) -> [u64; 2] {
    let data = &prepared.train;
    let rows = recipe.training.per_device_train_batch_size.saturating_mul(data.group_size).min(data.examples.len());
    lengths(recipe, prepared).map(|length| (rows * length) as u64)
}

/// The longest source and target, with their padding and what a prompt adds.
pub(crate) fn lengths(recipe: &Recipe, prepared: &Prepared) -> [usize; 2] {
    let data = &prepared.train;
    let longest = |length: fn(&Example) -> usize| data.examples.iter().map(length).max().unwrap_or(0);
    let multiple = recipe.training.multiple(recipe.training.captured_steps);
    let source = prepared.padded(longest(|example| example.input_ids.len()), multiple);
    let target = longest(|example| {
        let lengths =
            example.labels.values().map(|label| if let Label::Tokens(tokens) = label { tokens.len() } else { 0 });
        lengths.max().unwrap_or(0)
    });
    let target = if target == 0 { source } else { target };
    [source, target].map(|length| length + prepared.info.virtual_outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(all: u64, input: u64) -> Kept {
        Kept { all, input: (input > 0).then_some(input) }
    }

    #[test]
    fn the_first_layers_run_again_and_no_more_than_needed() {
        // Two below the lowest adapted one, which has no gradient to hand on.
        let layers = [layer(0, 0), layer(0, 0), layer(100, 0), layer(100, 10), layer(100, 10), layer(100, 10)];
        let chosen = |budget| {
            let Activations { recomputed, kept_bytes, all_bytes, checkpointed_layers, exceeds, layers } =
                fewest(&layers, budget);
            assert_eq!((layers, all_bytes), (6, 400));
            (recomputed, checkpointed_layers, kept_bytes, exceeds)
        };
        assert_eq!(chosen(Some(400)), (0, 0, 400, false));
        assert_eq!(chosen(Some(399)), (1, 4, 310, false));
        assert_eq!(chosen(Some(310)), (1, 4, 310, false));
        assert_eq!(chosen(Some(220)), (2, 5, 220, false));
        assert_eq!(chosen(Some(219)), (2, 5, 220, true));
        assert_eq!(chosen(None), (2, 5, 220, false));
    }

    #[test]
    fn layers_are_told_by_their_number() {
        assert_eq!(layer_of("model.layers.12.mlp.up_proj"), Some("model.layers.12"));
        assert_eq!(layer_of("encoder.block.0.layer.1.SelfAttention.q"), Some("encoder.block.0"));
        assert_eq!(layer_of("model.embed_tokens"), None);
    }
}
