//! LoRA: a trainable low-rank product beside a frozen weight (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large
//! Language Models").
//!
//! `y = x W + scale · (x Aᵀ) Bᵀ`, with `A` random and `B` zero, so that a fresh adapter changes nothing.

mod config;
mod dora;
mod layer;

use std::{collections::HashSet, sync::Arc};

use peft_core::{
    Error, ModelInfo, ModuleKind, ModuleTree, PeftConfig, Plan, Result, Tuner, TunerPlugin,
    error::quoted,
    inventory,
    plugins::{
        plan::{Adapted, TaskRules},
        tuner::LayerTuner,
    },
};
use serde_json::Value;

pub use config::{Bias, InitLoraWeights, Lora, MOST_RANK};
pub use dora::{DoraEmbedding, DoraLinear};
pub(crate) use layer::as_dtype;
pub use layer::{LoraEmbedding, LoraLinear};

use crate::{defaults, pattern::PatternMap, select::Rules, trainable_tokens::TrainableTokens};

inventory::submit! { TunerPlugin::new::<Lora>("LORA", "low-rank adaptation (Hu et al. 2021)") }

const SUPPORTED: [ModuleKind; 3] = [ModuleKind::Linear, ModuleKind::Conv1D, ModuleKind::Embedding];

impl Tuner for Lora {
    fn rank_option(&self) -> Option<&'static str> {
        Some("r")
    }

    fn plan(&self, config: &PeftConfig, model: &ModuleTree, info: &ModelInfo, task: &TaskRules) -> Result<Plan> {
        self.check()?;
        let strict = !config.inference_mode;
        self.check_init(!strict)?;
        if strict && self.trainable_token_indices.as_ref().is_some_and(|tokens| !tokens.is_null()) {
            let problem = "training of single tokens is not supported yet; saved adapters that have some can be used";
            return Err(Error::config("trainable_token_indices", problem));
        }
        let rules = Rules {
            tuner: "LoRA",
            supported: &SUPPORTED,
            defaults: defaults::lora(&info.model_type),
            shorten: true,
            strict,
        };
        let selection = self.targets.select(model, info, task, rules)?;
        let mut notes = selection.notes;

        let ranks = PatternMap::new("rank_pattern", &self.rank_pattern)?;
        let alphas = PatternMap::new("alpha_pattern", &self.alpha_pattern)?;
        let names: Vec<&str> = selection.adapted.iter().map(|(name, _)| name.as_str()).collect();
        let idle_ranks = ranks.unmatched(&names)?.into_iter().map(|key| ("rank_pattern", key));
        let idle_alphas = alphas.unmatched(&names)?.into_iter().map(|key| ("alpha_pattern", key));
        for (option, key) in idle_ranks.chain(idle_alphas) {
            let problem = format!("`{}` matches no adapted module", quoted(key));
            if strict {
                return Err(Error::config(option, problem));
            }
            notes.push(format!("{option}: {problem}"));
        }

        let mut adapted = Vec::with_capacity(selection.adapted.len());
        let mut conv1d = 0;
        for (module, reason) in &selection.adapted {
            let Some(module_info) = model.get(module) else { continue };
            let Some((rows, columns)) = module_info.weight_dims() else { continue };
            let rank = ranks.get(module)?.unwrap_or(self.r);
            let alpha = alphas.get(module)?.unwrap_or(self.lora_alpha);
            if rank == 0 || rank > MOST_RANK {
                let problem = format!("rank {rank} for `{module}`: must be from 1 to {MOST_RANK}");
                return Err(Error::config("rank_pattern", problem));
            }
            let scale = self.scale(rank, alpha);
            let init = self.init_lora_weights.clone();
            let layer: Arc<dyn LayerTuner> = if module_info.kind == ModuleKind::Embedding {
                let layer = LoraEmbedding { entries: rows, dimensions: columns, rank, scale, init };
                if self.use_dora { Arc::new(DoraEmbedding(layer)) } else { Arc::new(layer) }
            } else {
                let layer = LoraLinear { d_in: rows, d_out: columns, rank, scale, dropout: self.lora_dropout, init };
                if self.use_dora { Arc::new(DoraLinear(layer)) } else { Arc::new(layer) }
            };
            conv1d += usize::from(module_info.kind == ModuleKind::Conv1D);
            adapted.push(Adapted { module: module.clone(), reason: reason.clone(), layer });
        }

        let tokens = TrainableTokens::plan(self.trainable_token_indices.as_ref(), model, info)?;
        if let Some(both) = tokens.iter().find(|table| adapted.iter().any(|adapted| adapted.module == table.module)) {
            let problem = format!("`{}` is in target_modules as well, which is not supported together", both.module);
            return Err(Error::config("trainable_token_indices", problem));
        }

        let mut resolved = config.clone();
        let set = |resolved: &mut PeftConfig, key: &str, value: Value| resolved.options.insert(key.to_owned(), value);
        set(&mut resolved, "target_modules", to_value(&selection.target_modules));
        if !selection.saved.entries.is_empty() {
            set(&mut resolved, "modules_to_save", to_value(&selection.saved.entries));
        }
        let fan_in_fan_out = conv1d > 0 && conv1d == adapted.len();
        if conv1d == 0 && self.fan_in_fan_out || fan_in_fan_out && !self.fan_in_fan_out {
            notes.push(format!("fan_in_fan_out: set to {fan_in_fan_out}, which is what the adapted layers are"));
            set(&mut resolved, "fan_in_fan_out", fan_in_fan_out.into());
        }
        let biases = match self.bias {
            Bias::None => Vec::new(),
            Bias::All => model.params().map(|(name, _)| name).filter(|name| is_bias(name)).collect(),
            Bias::LoraOnly => adapted
                .iter()
                .filter(|a| model.get(&a.module).is_some_and(|info| info.param("bias").is_some()))
                .map(|a| format!("{}.bias", a.module))
                .collect(),
        };
        let mut plan = Plan {
            config: resolved,
            adapted,
            tokens,
            skipped: selection.skipped,
            saved: selection.saved.modules,
            biases,
            in_place: false,
            prompt: None,
            notes,
        };
        // The bias of a saved module is trained with its copy already.
        let copied: HashSet<String> = plan.saved_params(model).into_iter().collect();
        plan.biases.retain(|bias| !copied.contains(bias));
        Ok(plan)
    }
}

fn is_bias(parameter: &str) -> bool {
    parameter == "bias" || parameter.ends_with(".bias")
}

fn to_value(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
