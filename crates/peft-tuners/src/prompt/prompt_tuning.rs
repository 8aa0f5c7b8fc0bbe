//! Prompt tuning: vectors before the embedded input, learnt as they are (Lester et al. 2021, "The Power of Scale for
//! Parameter-Efficient Prompt Tuning").

use burn::tensor::{Tensor, TensorData};
use peft_core::{
    Error, Result, TunerPlugin, inventory,
    plugins::{
        plan::TaskRules,
        prompt::{PromptEntry, PromptShape, PromptTuner, TokenEmbeddings},
        tuner::{Init, TensorSpec, Tensors},
    },
    tensor::random::seeded,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{EMBEDDING, PromptMethod, PromptOptions, Prompting, embedding_spec};

inventory::submit! {
    TunerPlugin::new::<Prompting<PromptTuning>>("PROMPT_TUNING", "learnt vectors before the input (Lester et al. 2021)")
}

/// What the virtual tokens of a fresh prompt are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptTuningInit {
    /// TokenEmbeddings of a text.
    Text,
    /// TokenEmbeddings of the vocabulary, drawn with equal chances.
    SampleVocab,
    /// Normal with mean 0 and standard deviation 1.
    #[default]
    Random,
}

/// Options of prompt tuning, in PEFT's names and with PEFT's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptTuning {
    /// The keys of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptOptions,
    /// What the virtual tokens of a fresh prompt are.
    pub prompt_tuning_init: PromptTuningInit,
    /// The text for `TEXT`, cut or repeated to as many tokens as there are.
    pub prompt_tuning_init_text: Option<String>,
    /// The tokenizer for that text; the base model's where it is absent.
    pub tokenizer_name_or_path: Option<String>,
    /// Not used here; kept for PEFT.
    pub tokenizer_kwargs: Option<Value>,
}

impl PromptMethod for PromptTuning {
    fn options(&self) -> PromptOptions {
        self.prompt.clone()
    }

    fn check(&self, _task: &TaskRules) -> Result<()> {
        check_text(self.prompt_tuning_init, self.prompt_tuning_init_text.as_deref())
    }
}

impl PromptTuner for PromptTuning {
    fn entry(&self) -> PromptEntry {
        PromptEntry::Embeddings
    }

    fn learns(&self) -> String {
        "the vectors themselves".to_owned()
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        vec![embedding_spec(shape.table(self.entry()), init(self.prompt_tuning_init))]
    }

    fn table(&self, tensors: &Tensors<'_>, _training: bool) -> Tensor<2> {
        tensors.get(EMBEDDING)
    }

    fn derived(
        &self,
        _name: &str,
        shape: &PromptShape,
        embeddings: &TokenEmbeddings<'_>,
    ) -> Result<Option<TensorData>> {
        let rows = shape.table(self.entry())[0];
        let text = self.prompt_tuning_init_text.as_deref();
        first_words(self.prompt_tuning_init, text, rows, embeddings).map(Some)
    }

    fn table_tensor(&self) -> Option<&'static str> {
        Some(EMBEDDING)
    }
}

/// A prompt that begins as a text needs one.
pub(super) fn check_text(init: PromptTuningInit, text: Option<&str>) -> Result<()> {
    match (init, text) {
        (PromptTuningInit::Text, None) => {
            let problem = "missing: prompt_tuning_init = \"TEXT\" needs the text to begin with";
            Err(Error::config("prompt_tuning_init_text", problem))
        }
        _ => Ok(()),
    }
}

pub(super) fn init(init: PromptTuningInit) -> Init {
    match init {
        PromptTuningInit::Random => Init::Normal { std: 1.0 },
        PromptTuningInit::Text | PromptTuningInit::SampleVocab => Init::Derived,
    }
}

/// The token embeddings that a fresh prompt is initialized from, `[rows, width]`.
pub(super) fn first_words(
    init: PromptTuningInit,
    text: Option<&str>,
    rows: usize,
    embeddings: &TokenEmbeddings<'_>,
) -> Result<TensorData> {
    if init != PromptTuningInit::Text {
        let vocabulary = embeddings.table.dims()[0].max(1);
        let mut rng = seeded(embeddings.seed);
        let ids: Vec<usize> = (0..rows).map(|_| rng.random_range(0..vocabulary)).collect();
        return embeddings.embed("prompt_tuning_init", &ids);
    }
    const KEY: &str = "prompt_tuning_init_text";
    let Some(tokenizer) = embeddings.tokenizer else {
        return Err(Error::config(KEY, "a prompt that begins as a text needs a tokenizer, and none was given"));
    };
    let encoding = tokenizer.encode(text.unwrap_or_default(), None, usize::MAX)?;
    let ids: Vec<usize> = encoding.ids.iter().map(|id| usize::try_from(*id).unwrap_or(usize::MAX)).collect();
    if ids.is_empty() {
        return Err(Error::config(KEY, "the tokenizer makes nothing of this text"));
    }
    embeddings.embed(KEY, &ids.into_iter().cycle().take(rows).collect::<Vec<_>>())
}
