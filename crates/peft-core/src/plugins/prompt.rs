//! Prompt learning: trainable virtual tokens before the input of a frozen model.
//!
//! How many sub-modules of the model get them follows from the task; what they are made of is a [`PromptTuner`].

use std::{fmt::Debug, sync::Arc};

use burn::tensor::{Int, Tensor, TensorData};

use crate::{
    Inputs, Labels, ModelInfo, PastKeyValues, Result,
    data::{loss::Loss, tokenizer::Tokenizer},
    plugins::tuner::{TensorSpec, Tensors},
    tensor::module_tree::num_values,
};

/// The key of the prompt in `adapter_model.safetensors`.
pub const PROMPT_EMBEDDINGS: &str = "prompt_embeddings";

/// Prefix of the keys of tensors that only training needs, which have a file of their own.
pub const PROMPT_ENCODER: &str = "prompt_encoder.";

/// Where virtual tokens enter the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptEntry {
    /// As vectors before the embedded input: as if they were token embeddings.
    Embeddings,
    /// As keys and values before those of the input, in every layer's attention.
    PastKeyValues,
}

/// The sizes of a prompt, as `adapter_config.json` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptShape {
    /// Virtual tokens before the input.
    pub num_virtual_tokens: usize,
    /// Sub-modules of the model that have rows in the table: 2 for an encoder and its decoder, else 1.
    pub num_transformer_submodules: usize,
    /// Width of a virtual token; for keys and values, of one layer's keys.
    pub token_dim: usize,
    /// Layers with keys and values.
    pub num_layers: usize,
    /// Heads that the keys are split into.
    pub num_attention_heads: usize,
}

impl PromptShape {
    /// The table of all virtual tokens, `[rows, width]`, as files have it.
    pub fn table(&self, entry: PromptEntry) -> [usize; 2] {
        match entry {
            PromptEntry::Embeddings => {
                [self.num_virtual_tokens.saturating_mul(self.num_transformer_submodules), self.token_dim]
            }
            PromptEntry::PastKeyValues => [self.num_virtual_tokens, num_values(&[2, self.num_layers, self.token_dim])],
        }
    }
}

/// A way of making prompts, with its options: the second trait of the tuner registry.
///
/// Tensors are described, not held, as with [`LayerTuner`](crate::plugins::tuner::LayerTuner).
pub trait PromptTuner: Debug + Send + Sync {
    /// Where its virtual tokens enter the model.
    fn entry(&self) -> PromptEntry;

    /// What is trained, as `explain` says it.
    fn learns(&self) -> String;

    /// The tensors of the prompt encoder, by the names that PEFT's module gives them.
    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec>;

    /// The virtual tokens that files hold as `prompt_embeddings`.
    ///
    /// # Shapes
    /// - returned: [`PromptShape::table`]
    fn table(&self, tensors: &Tensors<'_>, training: bool) -> Tensor<2>;

    /// The virtual tokens of each row of a batch. The default: the same table for all.
    ///
    /// # Shapes
    /// - returned: `[batch, rows, width]`
    fn prompts(&self, tensors: &Tensors<'_>, call: &PromptCall<'_>) -> Tensor<3> {
        let table = self.table(tensors, call.training);
        let [rows, width] = table.dims();
        table.reshape([1, rows, width]).expand([call.batch, rows, width])
    }

    /// The value in a fresh prompt of its [`Init::Derived`](crate::plugins::tuner::Init::Derived) tensor of this name.
    ///
    /// # Errors
    /// If what it is made from is missing.
    fn derived(&self, _name: &str, _shape: &PromptShape, _words: &TokenEmbeddings<'_>) -> Result<Option<TensorData>> {
        Ok(None)
    }

    /// The tensor that is the table itself, if one is: it is not stored twice.
    fn table_tensor(&self) -> Option<&'static str> {
        None
    }

    /// Names of further tensors in PEFT's file.
    fn stored(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether the second half of the table goes before the decoder's input where there are two sub-modules.
    fn prompts_decoder(&self) -> bool {
        false
    }

    /// How many tasks there are, where each row of a batch names its own and gets that one's prompt.
    fn tasks(&self) -> Option<usize> {
        None
    }

    /// What a tensor of rank 2 is brought back to after a step of training, for a method that has bounds.
    fn constrain(&self, _name: &str, _value: Tensor<2>) -> Option<Tensor<2>> {
        None
    }

    /// The loss where it is not the task's own, in training and evaluation alike.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) if the labels are absent or unfit.
    fn loss<'a>(&'a self, _labels: &'a Labels) -> Option<Result<Loss<'a>>> {
        None
    }
}

/// What a prompt is made for.
#[derive(Debug, Clone, Copy)]
pub struct PromptCall<'a> {
    /// Rows of the batch.
    pub batch: usize,
    /// The task of each row, `[batch]`; task 0 when absent.
    pub task_ids: Option<&'a Tensor<1, Int>>,
    /// Whether dropout acts.
    pub training: bool,
}

/// The token embeddings of the base model, from which a prompt may be initialized.
#[derive(Debug)]
pub struct TokenEmbeddings<'a> {
    /// With [`ModelInfo::embedding_scale`] applied, `[vocabulary, width]`.
    pub table: Tensor<2>,
    /// Tokenizes the text of a prompt, where one was given.
    pub tokenizer: Option<&'a dyn Tokenizer>,
    /// The adapter's seed.
    pub seed: u64,
}

impl TokenEmbeddings<'_> {
    /// The embeddings of these tokens, `[ids, width]`, in single precision.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if an id lies outside the vocabulary; `key` is the option that named it.
    pub fn embed(&self, key: &str, ids: &[usize]) -> Result<TensorData> {
        let words = self.table.dims()[0];
        if let Some(outside) = ids.iter().find(|id| **id >= words) {
            let problem = format!("token {outside} is not in the model's vocabulary of {words}");
            return Err(crate::Error::config(key, problem));
        }
        let ids: Vec<i64> = ids.iter().map(|id| i64::try_from(*id).unwrap_or(i64::MAX)).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::from(ids.as_slice()), &self.table.device());
        Ok(self.table.clone().select(0, ids).to_data().convert::<f32>())
    }
}

/// A prompt as it was decided for a model: how it is made and how it enters.
#[derive(Debug, Clone)]
pub struct PromptPlan {
    /// How it is made.
    pub tuner: Arc<dyn PromptTuner>,
    /// Its sizes.
    pub shape: PromptShape,
    /// Whether the task's wrapper hands segments on.
    pub keeps_token_types: bool,
    /// Whether the model has a decoder that looks at an encoder.
    pub is_encoder_decoder: bool,
}

impl PromptPlan {
    /// The model's info with the prompt: fewer positions are left for text.
    pub fn info(&self, info: &ModelInfo) -> ModelInfo {
        let shown = match self.tuner.entry() {
            PromptEntry::Embeddings => self.shape.num_virtual_tokens,
            PromptEntry::PastKeyValues => 0,
        };
        ModelInfo {
            virtual_tokens: self.shape.num_virtual_tokens,
            virtual_outputs: shown,
            num_tasks: self.tuner.tasks(),
            ..info.clone()
        }
    }

    /// The prompt for people: how many tokens, where they enter, what is trained and what is stored.
    pub fn sentences(&self) -> Vec<String> {
        let shape = self.shape;
        let tokens = match shape.num_virtual_tokens {
            1 => "1 virtual token stands".to_owned(),
            tokens => format!("{tokens} virtual tokens stand"),
        };
        let entry = self.tuner.entry();
        let place = match (entry, self.is_encoder_decoder) {
            (PromptEntry::Embeddings, false) => "before the embedded input".to_owned(),
            (PromptEntry::Embeddings, true)
                if self.tuner.prompts_decoder() && shape.num_transformer_submodules == 2 =>
            {
                "before the embedded input of the encoder, and as many before the decoder's".to_owned()
            }
            (PromptEntry::Embeddings, true) => "before the embedded input of the encoder".to_owned(),
            (PromptEntry::PastKeyValues, is_crossed) => format!(
                "as keys and values before those of the input, in the {} ({} heads of {})",
                match is_crossed {
                    true => format!("self-attention of all {} layers of the decoder", shape.num_layers),
                    false => format!("attention of all {} layers", shape.num_layers),
                },
                shape.num_attention_heads,
                shape.token_dim / shape.num_attention_heads.max(1),
            ),
        };
        let [rows, width] = shape.table(entry);
        let mut stored = format!("stored: `{PROMPT_EMBEDDINGS}` [{rows}, {width}]");
        stored.extend(self.tuner.stored().iter().map(|name| format!(", `{name}`")));
        let unused = rows - shape.num_virtual_tokens.min(rows);
        if entry == PromptEntry::Embeddings && unused > 0 && !self.tuner.prompts_decoder() {
            stored.push_str(&format!(
                "; the table has rows for {} sub-modules, as PEFT makes it, of which the last {unused} are never read",
                shape.num_transformer_submodules
            ));
        }
        vec![format!("{tokens} {place}"), format!("learnt: {}", self.tuner.learns()), stored]
    }

    /// The inputs with the virtual tokens before them, as PEFT's wrappers hand them to the base model.
    ///
    /// In generation a later pass has them in its past keys and values, and its positions count on after them.
    pub(crate) fn before(&self, inputs: &Inputs, tensors: &Tensors<'_>, training: bool) -> Inputs {
        let mut inputs = inputs.clone();
        let Some(batch) = inputs.batch() else { return inputs };
        if !self.keeps_token_types {
            inputs.token_type_ids = None;
        }
        let tokens = self.shape.num_virtual_tokens;
        let begins = inputs.past_key_values.as_ref().is_none_or(|past| past.length() == 0);
        match self.tuner.entry() {
            PromptEntry::Embeddings => {
                // Virtual tokens have positions like words, so positions are counted anew.
                inputs.position_ids = None;
                inputs.attention_mask = inputs.attention_mask.map(|mask| behind(mask, tokens, 1));
                let decodes = self.tuner.prompts_decoder() && self.shape.num_transformer_submodules == 2;
                if begins && (decodes || inputs.encoder_outputs.is_none()) {
                    let task_ids = inputs.task_ids.clone();
                    let call = PromptCall { batch, task_ids: task_ids.as_ref(), training };
                    let prompts = self.tuner.prompts(tensors, &call);
                    let [_, rows, width] = prompts.dims();
                    inputs.token_type_ids = inputs.token_type_ids.map(|types| behind(types, tokens, 0));
                    if decodes {
                        inputs.decoder_prompt = Some(prompts.clone().slice([0..batch, tokens..rows, 0..width]));
                        inputs.decoder_attention_mask =
                            inputs.decoder_attention_mask.map(|mask| behind(mask, tokens, 1));
                    }
                    inputs.prompt = Some(prompts.slice([0..batch, 0..tokens, 0..width]));
                }
            }
            PromptEntry::PastKeyValues => {
                let shift = i64::try_from(tokens).unwrap_or(i64::MAX);
                inputs.position_ids = inputs.position_ids.map(|positions| positions + shift);
                let mask = match self.is_encoder_decoder {
                    true => &mut inputs.decoder_attention_mask,
                    false => &mut inputs.attention_mask,
                };
                *mask = mask.take().map(|mask| behind(mask, tokens, 1));
                if begins {
                    let past = inputs.past_key_values.get_or_insert_default();
                    self.fill(past, self.tuner.table(tensors, training), batch);
                }
            }
        }
        inputs
    }

    /// Puts the keys and values that the table holds before the input of every layer.
    ///
    /// With two sub-modules PEFT counts four rows a layer, modulo the table, and uses the first two.
    fn fill(&self, past: &PastKeyValues, table: Tensor<2>, batch: usize) {
        let PromptShape { num_virtual_tokens: tokens, num_layers: layers, num_attention_heads: heads, .. } = self.shape;
        let dim = self.shape.token_dim / heads.max(1);
        let rows = table.reshape([tokens, 2 * layers, heads, dim]).permute([1, 2, 0, 3]);
        let step = if self.shape.num_transformer_submodules == 2 { 4 } else { 2 };
        let row = |at: usize| {
            let at = at % (2 * layers);
            rows.clone().slice([at..at + 1, 0..heads, 0..tokens, 0..dim]).expand([batch, heads, tokens, dim])
        };
        past.fill((0..layers).map(|layer| (row(step * layer), row(step * layer + 1))).collect());
    }
}

/// Prepends columns of one value, `[rows, columns + …]`.
fn behind(table: Tensor<2, Int>, columns: usize, value: i64) -> Tensor<2, Int> {
    let [rows, _] = table.dims();
    let front = Tensor::<2, Int>::full([rows, columns], value, (&table.device(), table.dtype()));
    Tensor::cat(vec![front, table], 1)
}

/// A prompt as a file holds it, without the encoder that made it: its table is trained directly.
#[derive(Debug, Clone)]
pub(crate) struct StoredPrompt(pub(crate) Arc<dyn PromptTuner>);

impl PromptTuner for StoredPrompt {
    fn entry(&self) -> PromptEntry {
        self.0.entry()
    }

    fn learns(&self) -> String {
        "the stored table itself, since the encoder that made it is not in the folder".to_owned()
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        let shape = shape.table(self.entry()).to_vec();
        let init = crate::plugins::tuner::Init::Constant(0.0);
        vec![TensorSpec { name: PROMPT_EMBEDDINGS.into(), shape, init, trainable: true }]
    }

    fn table(&self, tensors: &Tensors<'_>, _training: bool) -> Tensor<2> {
        tensors.get(PROMPT_EMBEDDINGS)
    }

    fn table_tensor(&self) -> Option<&'static str> {
        Some(PROMPT_EMBEDDINGS)
    }

    fn loss<'a>(&'a self, labels: &'a Labels) -> Option<Result<Loss<'a>>> {
        self.0.loss(labels)
    }
}
