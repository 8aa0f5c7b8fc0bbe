//! A third party's prompt method: one file, found by its word in `peft_type`.
//!
//! Virtual tokens of low rank, `table = U V`: many tokens that differ little.
//!
//!     cargo run --release -p peft-examples --example my_prompt

use std::path::Path;

use burn::{
    optim::AdamWConfig,
    tensor::{Device, Tensor, TensorData},
};
use peft::{
    AutoClass, Batch, Inputs, Labels, PeftConfig, PeftModel, PeftType, PromptTuner, Result, TaskType, TunerPlugin,
    inventory,
    models::checkpoint::{self, LoadOptions},
    plugins::{
        prompt::{PromptEntry, PromptShape},
        tuner::{Init, TensorSpec, Tensors},
    },
    tuners::prompt::{PromptMethod, PromptOptions, Prompting},
};
use serde::{Deserialize, Serialize};

inventory::submit! {
    TunerPlugin::new::<Prompting<LowRankPrompt>>("LOW_RANK_PROMPT", "virtual tokens of low rank")
}

/// The keys of all prompt methods, and one of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
struct LowRankPrompt {
    #[serde(flatten)]
    prompt: PromptOptions,
    rank: usize,
}

impl Default for LowRankPrompt {
    fn default() -> Self {
        Self { prompt: PromptOptions::default(), rank: 2 }
    }
}

impl PromptMethod for LowRankPrompt {
    fn options(&self) -> PromptOptions {
        self.prompt.clone()
    }
}

impl PromptTuner for LowRankPrompt {
    fn entry(&self) -> PromptEntry {
        PromptEntry::Embeddings
    }

    fn learns(&self) -> String {
        format!("two factors of rank {}", self.rank)
    }

    fn tensors(&self, shape: &PromptShape) -> Vec<TensorSpec> {
        let [rows, width] = shape.table(self.entry());
        let spec = |name: &'static str, shape: [usize; 2]| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            init: Init::Normal { std: 0.5 },
            trainable: true,
        };
        vec![spec("u", [rows, self.rank]), spec("v", [self.rank, width])]
    }

    fn table(&self, tensors: &Tensors<'_>, _training: bool) -> Tensor<2> {
        tensors.get::<2>("u").matmul(tensors.get::<2>("v"))
    }
}

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-encoder");
    let device = Device::flex();
    let load = || checkpoint::load(&folder, &AutoClass::SEQUENCE_CLASSIFICATION, &LoadOptions::default(), &device);
    let config = PeftConfig::new(PeftType::new("LOW_RANK_PROMPT"), Some(TaskType::SEQ_CLS))?
        .with("num_virtual_tokens", 8)?
        .with("rank", 3)?;
    let mut model = PeftModel::new(load()?.base, config, &device, 0)?;
    let explanation = model.explanation()?;
    println!("{}\n{}", explanation.prompt.join("\n"), explanation.trainable_sentence());

    let ids = TensorData::from([[2_i64, 17, 40, 3], [2, 88, 41, 3]]);
    let labels = Labels([("labels".to_owned(), TensorData::from([0_i64, 1]))].into());
    let inputs = Inputs { input_ids: Some(Tensor::from_data(ids, &device)), ..Inputs::default() };
    let batch = model.check(Batch { inputs, labels })?;
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..20 {
        let (loss, _) = model.loss(&batch)?;
        let gradients = model.gradients(&loss);
        model.step(&mut optimizer, 1e-2, gradients);
        losses.push(loss.into_scalar::<f32>());
    }
    println!("loss {:.3} -> {:.3}", losses[0], losses[19]);
    assert!(losses[19] < losses[0]);

    // PEFT's file gets the table that the factors make; a second file keeps the factors, to train on.
    let out = tempfile::tempdir().expect("a temporary folder");
    model.save("default", out.path())?;
    let again = PeftModel::from_pretrained(load()?.base, out.path(), &device)?;
    let logits = |model: &PeftModel| model.forward(&batch.inputs)?.get::<2>("logits").map(|t| t.to_data());
    assert_eq!(logits(&again)?, logits(&model)?);
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
