//! Multitask prompt tuning: one table for all tasks, and a low-rank factor for each (Wang et al. 2023, "Multitask Prompt
//! Tuning Enables Parameter-Efficient Transfer Learning").

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use peft_core::{
    Error, Result, TunerPlugin,
    files::TensorFile,
    inventory,
    plugins::{
        plan::TaskRules,
        prompt::{PROMPT_EMBEDDINGS, PromptCall, PromptEntry, PromptShape, PromptTuner, TokenEmbeddings},
        tuner::{Init, TensorSpec, Tensors},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    EMBEDDING, PromptMethod, PromptOptions, Prompting, embedding_spec,
    prompt_tuning::{PromptTuningInit, check_text, first_words, init},
    shape::at_most,
};

inventory::submit! {
    TunerPlugin::new::<Prompting<MultitaskPromptTuning>>(
        "MULTITASK_PROMPT_TUNING",
        "one prompt for several tasks, with a factor for each (Wang et al. 2023)"
    )
}

const COLS: &str = "prefix_task_cols";
const ROWS: &str = "prefix_task_rows";

/// What a fresh multitask prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MultitaskInit {
    /// As in prompt tuning: words of a text.
    Text,
    /// As in prompt tuning: words of the vocabulary.
    SampleVocab,
    /// As in prompt tuning: random vectors.
    #[default]
    Random,
    /// Another prompt, its tasks' factors averaged to one.
    AverageSourceTasks,
    /// Another prompt with the factors of one of its tasks.
    ExactSourceTask,
    /// The table of another prompt, with fresh factors.
    OnlySourceShared,
}

impl MultitaskInit {
    fn is_source(self) -> bool {
        matches!(self, Self::AverageSourceTasks | Self::ExactSourceTask | Self::OnlySourceShared)
    }

    fn of_words(self) -> PromptTuningInit {
        match self {
            Self::Text => PromptTuningInit::Text,
            Self::SampleVocab => PromptTuningInit::SampleVocab,
            _ => PromptTuningInit::Random,
        }
    }
}

/// Options of multitask prompt tuning, in PEFT's names and with PEFT's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MultitaskPromptTuning {
    /// The keys of all prompt methods.
    #[serde(flatten)]
    pub prompt: PromptOptions,
    /// What a fresh prompt is.
    pub prompt_tuning_init: MultitaskInit,
    /// The text for `TEXT`.
    pub prompt_tuning_init_text: Option<String>,
    /// The tokenizer for that text; the base model's where it is absent.
    pub tokenizer_name_or_path: Option<String>,
    /// Not used here; kept for PEFT.
    pub tokenizer_kwargs: Option<Value>,
    /// The safetensors file of the other prompt.
    pub prompt_tuning_init_state_dict_path: Option<String>,
    /// The task of the other prompt that is taken.
    pub prompt_tuning_init_task: usize,
    /// Rank of a task's factor.
    pub num_ranks: usize,
    /// Tasks.
    pub num_tasks: usize,
}

impl Default for MultitaskPromptTuning {
    fn default() -> Self {
        Self {
            prompt: PromptOptions::default(),
            prompt_tuning_init: MultitaskInit::default(),
            prompt_tuning_init_text: None,
            tokenizer_name_or_path: None,
            tokenizer_kwargs: None,
            prompt_tuning_init_state_dict_path: None,
            prompt_tuning_init_task: 0,
            num_ranks: 1,
            num_tasks: 1,
        }
    }
}

impl PromptMethod for MultitaskPromptTuning {
    fn options(&self) -> PromptOptions {
        self.prompt.clone()
    }

    fn check(&self, _task: &TaskRules) -> Result<()> {
        if self.num_ranks == 0 || self.num_tasks == 0 {
            let key = if self.num_ranks == 0 { "num_ranks" } else { "num_tasks" };
            return Err(Error::config(key, "must be at least 1"));
        }
        at_most(&[("num_ranks", self.num_ranks), ("num_tasks", self.num_tasks)])?;
        check_text(self.prompt_tuning_init.of_words(), self.prompt_tuning_init_text.as_deref())?;
        if self.prompt_tuning_init.is_source() && self.prompt_tuning_init_state_dict_path.is_none() {
            let problem = "missing: this prompt_tuning_init needs the file of another prompt";
            return Err(Error::config("prompt_tuning_init_state_dict_path", problem));
        }
        Ok(())
    }
}

impl PromptTuner for MultitaskPromptTuning {
    fn entry(&self) -> PromptEntry {
        PromptEntry::Embeddings
    }

    fn learns(&self) -> String {
        let tasks =
            if self.num_tasks == 1 { "the task has".to_owned() } else { format!("{} tasks share", self.num_tasks) };
        format!(
            "the vectors that {tasks}, and a factor of rank {} for each task that they are multiplied with",
            self.num_ranks
        )
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        let [rows, width] = shape.table(self.entry());
        let fresh = Init::Normal { std: 0.02 };
        let is_source = self.prompt_tuning_init.is_source();
        let table = if is_source { Init::Derived } else { init(self.prompt_tuning_init.of_words()) };
        let takes_factors = is_source && self.prompt_tuning_init != MultitaskInit::OnlySourceShared;
        let factor = if takes_factors { Init::Derived } else { fresh };
        let (cols, factors) = ([self.num_tasks, rows, self.num_ranks], [self.num_tasks, self.num_ranks, width]);
        vec![
            embedding_spec([rows, width], table),
            TensorSpec { name: COLS.into(), shape: cols.to_vec(), init: factor, trainable: true },
            TensorSpec { name: ROWS.into(), shape: factors.to_vec(), init: factor, trainable: true },
        ]
    }

    fn table(&self, tensors: &Tensors<'_>, _training: bool) -> Tensor<2> {
        tensors.get(EMBEDDING)
    }

    /// `table ⊙ (cols[task] · rows[task])` for the task of each row.
    fn prompts(&self, tensors: &Tensors<'_>, call: &PromptCall<'_>) -> Tensor<3> {
        let table = self.table(tensors, call.training).unsqueeze::<3>();
        let factors = tensors.get::<3>(COLS).matmul(tensors.get::<3>(ROWS));
        match call.task_ids {
            Some(tasks) => table * factors.select(0, tasks.clone()),
            None => {
                let [_, rows, width] = factors.dims();
                (table * factors.slice([0..1, 0..rows, 0..width])).expand([call.batch, rows, width])
            }
        }
    }

    fn derived(&self, name: &str, shape: &PromptShape, embeddings: &TokenEmbeddings<'_>) -> Result<Option<TensorData>> {
        let path = self.prompt_tuning_init_state_dict_path.as_deref().filter(|_| self.prompt_tuning_init.is_source());
        let Some(path) = path.map(Path::new) else {
            let rows = shape.table(self.entry())[0];
            let text = self.prompt_tuning_init_text.as_deref();
            return first_words(self.prompt_tuning_init.of_words(), text, rows, embeddings).map(Some);
        };
        let Some(spec) = self.tensors(shape).into_iter().find(|spec| spec.name == name) else { return Ok(None) };
        let file = TensorFile::read(path, "the prompt to begin with")?;
        let key = if name == EMBEDDING { PROMPT_EMBEDDINGS } else { name };
        let wrong = |problem: String| Error::File { path: path.to_owned(), problem };
        let data = file.tensors.get(key).ok_or_else(|| wrong(format!("has no `{key}`")))?.clone().convert::<f32>();
        let found = data.shape().as_slice().to_vec();
        let fits = if name == EMBEDDING { found == spec.shape } else { found.get(1..) == spec.shape.get(1..) };
        if !fits {
            return Err(wrong(format!("`{key}` is {found:?}, this prompt's is {:?}", spec.shape)));
        }
        if name == EMBEDDING {
            return Ok(Some(data));
        }
        // Factors of several tasks become those of the one that is learnt.
        let [tasks, a, b] = [0, 1, 2].map(|axis| found.get(axis).copied().unwrap_or(0));
        let values = Tensor::<3>::from_data(data, &embeddings.table.device());
        let one = match self.prompt_tuning_init {
            MultitaskInit::AverageSourceTasks => values.mean_dim(0),
            _ if self.prompt_tuning_init_task < tasks => {
                let task = self.prompt_tuning_init_task;
                values.slice([task..task + 1, 0..a, 0..b])
            }
            _ => {
                let problem = format!("{}: the other prompt has {tasks} tasks", self.prompt_tuning_init_task);
                return Err(Error::config("prompt_tuning_init_task", problem));
            }
        };
        Ok(Some(one.expand([self.num_tasks, a, b]).to_data()))
    }

    fn table_tensor(&self) -> Option<&'static str> {
        Some(EMBEDDING)
    }

    fn stored(&self) -> &'static [&'static str] {
        &[COLS, ROWS]
    }

    fn prompts_decoder(&self) -> bool {
        true
    }

    fn tasks(&self) -> Option<usize> {
        Some(self.num_tasks)
    }
}
