//! Context-aware prompt tuning: a prompt that begins as given tokens and may move away from each by so much (Blau et al.
//! 2024, "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods").

use std::collections::BTreeSet;

use burn::tensor::{Tensor, TensorData};
use peft_core::{
    Error, Labels, Result, TunerPlugin,
    batch::IGNORE,
    data::loss::{self, Loss},
    inventory,
    plugins::{
        plan::TaskRules,
        prompt::{PromptEntry, PromptShape, PromptTuner, TokenEmbeddings},
        tuner::{Init, TensorSpec, Tensors},
    },
};
use serde::{Deserialize, Serialize};

use super::{EMBEDDING, PromptMethod, PromptOptions, Prompting, shape::one_of};

inventory::submit! {
    TunerPlugin::new::<Prompting<Cpt>>("CPT", "given tokens as a prompt, moved a little (Blau et al. 2024)")
}

const DELTA: &str = "delta_embedding.weight";

/// Options of context-aware prompt tuning, in PEFT's names and with PEFT's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpt {
    /// The keys of all prompt methods; all but `modules_to_save` follow from the tokens and the model.
    #[serde(flatten)]
    pub prompt: PromptOptions,
    /// The tokens that the prompt begins as; `[0]` where they are absent.
    pub cpt_token_ids: Option<Vec<usize>>,
    /// 1 for each of them, as PEFT has it; without effect.
    pub cpt_mask: Option<Vec<i64>>,
    /// What each token is, by its remainder modulo 4: 1 and 3 a template, 2 an input, 0 an answer; ones where absent.
    pub cpt_tokens_type_mask: Option<Vec<i64>>,
    /// `none`, or `decay`: answers count less the further they are from the last.
    pub opt_weighted_loss_type: String,
    /// What an answer's weight is multiplied with from one to the one before.
    pub opt_loss_decay_factor: f64,
    /// How far an input may move, for a width of 2048.
    pub opt_projection_epsilon: f64,
    /// How far a template may move, for a width of 2048.
    pub opt_projection_format_epsilon: f64,
    /// Not used here; kept for PEFT.
    pub tokenizer_name_or_path: Option<String>,
}

impl Default for Cpt {
    fn default() -> Self {
        Self {
            prompt: PromptOptions::default(),
            cpt_token_ids: None,
            cpt_mask: None,
            cpt_tokens_type_mask: None,
            opt_weighted_loss_type: "none".to_owned(),
            opt_loss_decay_factor: 1.0,
            opt_projection_epsilon: 0.1,
            opt_projection_format_epsilon: 0.1,
            tokenizer_name_or_path: None,
        }
    }
}

impl Cpt {
    fn tokens(&self) -> Vec<usize> {
        self.cpt_token_ids.clone().unwrap_or_else(|| vec![0])
    }

    fn types(&self) -> Vec<i64> {
        self.cpt_tokens_type_mask.clone().unwrap_or_else(|| vec![1; self.tokens().len()])
    }

    /// How far each token may move.
    fn reach(&self, width: usize) -> Vec<f32> {
        let scaled = |epsilon: f64| (epsilon * (width as f64 / 2048.0).sqrt()) as f32;
        let reach = |kind: &i64| match kind.rem_euclid(4) {
            1 | 3 if *kind > 0 => scaled(self.opt_projection_format_epsilon),
            2 if *kind > 0 => scaled(self.opt_projection_epsilon),
            _ => 1e-10,
        };
        self.types().iter().map(reach).collect()
    }
}

impl PromptMethod for Cpt {
    fn options(&self) -> PromptOptions {
        PromptOptions {
            num_virtual_tokens: Some(self.tokens().len()),
            num_transformer_submodules: Some(1),
            modules_to_save: self.prompt.modules_to_save.clone(),
            ..PromptOptions::default()
        }
    }

    fn check(&self, task: &TaskRules) -> Result<()> {
        if task.task_type.as_deref() != Some("CAUSAL_LM") {
            return Err(Error::config("task_type", "CPT works for CAUSAL_LM alone"));
        }
        one_of("opt_weighted_loss_type", &self.opt_weighted_loss_type, &["none", "decay"])?;
        let count = self.tokens().len();
        let masks = [
            ("cpt_mask", self.cpt_mask.as_ref().map(Vec::len)),
            ("cpt_tokens_type_mask", self.cpt_tokens_type_mask.as_ref().map(Vec::len)),
        ];
        match masks.into_iter().find(|(_, length)| length.is_some_and(|length| length != count)) {
            Some((key, length)) => {
                let problem = format!("{} entries for {count} cpt_token_ids", length.unwrap_or(0));
                Err(Error::config(key, problem))
            }
            None => Ok(()),
        }
    }
}

impl PromptTuner for Cpt {
    fn entry(&self) -> PromptEntry {
        PromptEntry::Embeddings
    }

    fn learns(&self) -> String {
        "how far each vector moves away from its token, within the reach of its type".to_owned()
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        let shape = shape.table(self.entry()).to_vec();
        let init = Init::Constant(0.0);
        vec![
            TensorSpec { name: EMBEDDING.into(), shape: shape.clone(), init: Init::Derived, trainable: false },
            TensorSpec { name: DELTA.into(), shape, init, trainable: true },
        ]
    }

    /// The tokens and what they moved; only templates and inputs get a gradient.
    fn table(&self, tensors: &Tensors<'_>, _training: bool) -> Tensor<2> {
        let (tokens, delta) = (tensors.get::<2>(EMBEDDING), tensors.get::<2>(DELTA));
        let moves: Vec<f32> = self.types().iter().map(|kind| f32::from(u8::from(kind.rem_euclid(4) != 0))).collect();
        let count = moves.len();
        let moves = Tensor::<2>::from_data(TensorData::new(moves, [count, 1]), &delta.device().inner());
        let fixed = delta.clone().detach() * (moves.clone() * -1.0 + 1.0);
        tokens + delta * moves + fixed
    }

    fn derived(
        &self,
        _name: &str,
        _shape: &PromptShape,
        embeddings: &TokenEmbeddings<'_>,
    ) -> Result<Option<TensorData>> {
        embeddings.embed("cpt_token_ids", &self.tokens()).map(Some)
    }

    /// A token that moved further than it may is pulled back.
    fn constrain(&self, name: &str, value: Tensor<2>) -> Option<Tensor<2>> {
        if name != DELTA {
            return None;
        }
        let [count, width] = value.dims();
        let reach = Tensor::<2>::from_data(TensorData::new(self.reach(width), [count, 1]), &value.device());
        let length = value.clone().square().sum_dim(1).sqrt();
        let longer = length.clone().greater(reach.clone());
        let factor = Tensor::ones_like(&length).mask_where(longer, reach / length);
        Some(value * factor)
    }

    /// The mean cross-entropy of the answers in the prompt and in the text.
    ///
    /// `input_type_mask` among the labels says what the tokens of the text are; without it they are all of an answer.
    fn loss<'a>(&'a self, labels: &'a Labels) -> Option<Result<Loss<'a>>> {
        Some(self.weighted(labels))
    }
}

impl Cpt {
    fn weighted<'a>(&self, labels: &'a Labels) -> Result<Loss<'a>> {
        let (own, types) = (self.tokens(), self.types());
        let text = labels.integers("labels")?;
        let [batch, width] = match labels.get("labels")?.shape().as_slice() {
            [batch, width] => [*batch, *width],
            shape => return Err(Error::Data(format!("`labels` should be [batch, tokens], are {shape:?}"))),
        };
        let length = own.len() + width;
        let kinds = match labels.0.contains_key("input_type_mask") {
            true => labels.integers("input_type_mask")?,
            false => vec![4; text.len()],
        };
        let highest = types.iter().max().copied().unwrap_or(0);
        let mut targets = Vec::with_capacity(batch * length);
        let mut weights = Vec::with_capacity(batch * length);
        for (text, kinds) in text.chunks(width.max(1)).zip(kinds.chunks(width.max(1))) {
            let raised = kinds.iter().map(|kind| if *kind > 0 { kind + highest } else { *kind });
            let kinds: Vec<i64> = types.iter().copied().chain(raised).skip(1).collect();
            let ids = own.iter().map(|id| i64::try_from(*id).unwrap_or(IGNORE)).chain(text.iter().copied()).skip(1);
            let is_answer = |kind: i64| kind > 0 && kind.rem_euclid(4) == 0;
            let groups: BTreeSet<i64> = kinds.iter().copied().filter(|kind| is_answer(*kind)).collect();
            let weight = |kind: i64| {
                let after = groups.range(kind..).count().saturating_sub(1);
                let decays = self.opt_weighted_loss_type == "decay";
                if decays { self.opt_loss_decay_factor.powi(i32::try_from(after).unwrap_or(i32::MAX)) } else { 1.0 }
            };
            targets
                .extend(ids.zip(&kinds).map(|(id, kind)| if is_answer(*kind) { id } else { IGNORE }).chain([IGNORE]));
            weights.extend(kinds.iter().map(|kind| weight(*kind)).chain([1.0]));
        }
        let total = targets.iter().filter(|target| **target != IGNORE).count();
        if total == 0 {
            let problem = format!(
                "nothing counts for the loss: with types up to {highest} in cpt_tokens_type_mask the text's own is {}, and \
                 only multiples of 4 are answers",
                highest + 4
            );
            return Err(Error::Data(problem));
        }
        Ok(Loss::of_mean(total as f64, move |outputs| {
            let [rows, found, _] = outputs.dims::<3>("logits")?;
            if [rows, found] != [batch, length] {
                let virtual_tokens = length - width;
                return Err(Error::Data(format!(
                    "{batch} rows of {width} labels and {virtual_tokens} virtual tokens for {rows} rows of {found} positions"
                )));
            }
            let losses = loss::token_cross_entropies(outputs, "logits", &targets)?;
            let counted = targets.iter().zip(&weights).filter(|(target, _)| **target != IGNORE);
            let shares: Vec<f32> = counted.map(|(_, weight)| (weight / total as f64) as f32).collect();
            let shares = Tensor::<1>::from_data(TensorData::new(shares, [total]), &losses.device().inner());
            Ok((losses * shares).sum())
        }))
    }
}
