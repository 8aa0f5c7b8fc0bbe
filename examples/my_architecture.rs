//! A third party's architecture: one file, found by `model_type` of `config.json`, loaded and adapted like the built-in ones.
//!
//!     cargo run --release -p peft-examples --example my_architecture

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{Device, Tensor, TensorData, activation::tanh},
};
use peft::{
    ArchitecturePlugin, AutoClass, BaseModel, Explanation, Forward, Inputs, ModelInfo, Outputs, PeftConfig, PeftModel,
    PeftType, Result, TaskType, adapted_embedding, adapted_linear, inventory,
    models::checkpoint::{self, LoadOptions},
};
use serde_json::{Map, Value, json};

inventory::submit! {
    ArchitecturePlugin {
        name: "bag-of-words",
        classes: &[AutoClass::SEQUENCE_CLASSIFICATION],
        build,
        summary: "the mean of word vectors, and a layer",
    }
}

#[derive(Module, Debug)]
struct BagOfWords {
    words: Embedding,
    hidden: Linear,
    classifier: Linear,
}

fn build(config: &Map<String, Value>, _class: &AutoClass, device: &Device) -> Result<BaseModel> {
    let mut info = ModelInfo::custom();
    info.model_type = "bag-of-words".to_owned();
    info.class_name = "BagOfWordsForSequenceClassification".to_owned();
    info.config = config.clone();
    info.input_embedding = Some("words".to_owned());
    info.head_modules = vec!["classifier".to_owned()];
    let (vocab, hidden) = (info.number("vocab_size").unwrap_or(100), info.number("hidden_size").unwrap_or(8));
    let module = BagOfWords {
        words: EmbeddingConfig::new(vocab, hidden).init(device),
        hidden: LinearConfig::new(hidden, hidden).init(device),
        classifier: LinearConfig::new(hidden, info.num_labels()).init(device),
    };
    Ok(BaseModel::new(Box::new(module), info))
}

impl Forward for BagOfWords {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let ids = inputs.input_ids.clone().expect("this model reads input_ids");
        let mean = adapted_embedding(&self.words, ids).mean_dim(1).squeeze_dim::<2>(1);
        let logits = adapted_linear(&self.classifier, tanh(adapted_linear(&self.hidden, mean)));
        Outputs::new().with("logits", logits)
    }
}

fn main() -> Result<()> {
    let device = Device::flex();
    let folder = tempfile::tempdir().expect("a temporary folder");

    // A checkpoint of this architecture, as any tool would have written it.
    let config = json!({ "model_type": "bag-of-words", "vocab_size": 20, "hidden_size": 8, "num_labels": 3 });
    let Value::Object(config) = config else { unreachable!("it is an object") };
    let made = build(&config, &AutoClass::SEQUENCE_CLASSIFICATION, &device)?;
    checkpoint::save(&made, None, folder.path())?;

    // From here on it is a model like any other: `explain`, targets, heads, files.
    let base =
        checkpoint::load(folder.path(), &AutoClass::SEQUENCE_CLASSIFICATION, &LoadOptions::default(), &device)?.base;
    let config = PeftConfig::new(PeftType::LORA, Some(TaskType::SEQ_CLS))?.with("target_modules", "all-linear")?;
    let explanation = Explanation::new(&base, &config)?;
    assert_eq!(explanation.targeted, ["hidden"]);
    assert_eq!(explanation.saved, ["classifier"]);
    let model = PeftModel::new(base, config, &device, 0)?;
    let ids = Tensor::from_data(TensorData::from([[1_i64, 2, 3], [4, 5, 6]]), &device);
    let batch = model.check(Inputs { input_ids: Some(ids), ..Inputs::default() })?;
    let outputs = model.forward(&batch.inputs)?;
    assert_eq!(outputs.get::<2>("logits")?.dims(), [2, 3]);
    println!("{}", explanation.trainable_sentence());
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
