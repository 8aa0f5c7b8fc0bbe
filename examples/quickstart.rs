//! From a checkpoint to a saved adapter, from Rust.
//!
//!     cargo run --release -p peft-examples --example quickstart

use std::path::Path;

use burn::{
    optim::AdamWConfig,
    tensor::{Device, Tensor, TensorData},
};
use peft::{
    AutoClass, Batch, Inputs, Labels, PeftConfig, PeftModel, PeftType, Result, TaskType,
    data::tokenizer::Tokenizer,
    models::{
        HfTokenizer,
        checkpoint::{self, LoadOptions},
    },
};

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-encoder");
    let device = Device::flex();
    let base = checkpoint::load(&folder, &AutoClass::SEQUENCE_CLASSIFICATION, &LoadOptions::default(), &device)?.base;

    let config = PeftConfig::new(PeftType::LORA, Some(TaskType::SEQ_CLS))?.with("r", 4)?.with("lora_alpha", 8)?;
    let mut model = PeftModel::new(base, config, &device, 0)?;
    println!("{}", model.explanation()?.trainable_sentence());

    let texts =
        ["i love this phone", "great sound, very happy", "a terrible waste of money", "i hate the broken screen"];
    let batch = encode(&HfTokenizer::from_folder(&folder)?, &texts, &[1, 1, 0, 0])?;
    // Ids inside the vocabulary, no more tokens than positions: what is not checked cannot be run.
    let batch = model.check(batch)?;

    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).with_epsilon(1e-8).init();
    let mut losses = Vec::new();
    for _ in 0..30 {
        let (loss, _) = model.loss(&batch)?;
        let gradients = model.gradients(&loss);
        model.step(&mut optimizer, 5e-3, gradients);
        losses.push(loss.into_scalar::<f32>());
    }
    println!("loss {:.3} -> {:.3}", losses[0], losses[29]);
    assert!(losses[29] < losses[0] / 2.0);

    // The folder is PEFT's: `PeftModel.from_pretrained` of Python reads it, and this reads Python's.
    let out = tempfile::tempdir().expect("a temporary folder");
    model.save("default", out.path())?;
    let base = checkpoint::load(&folder, &AutoClass::SEQUENCE_CLASSIFICATION, &LoadOptions::default(), &device)?.base;
    let again = PeftModel::from_pretrained(base, out.path(), &device)?;
    let logits = |model: &PeftModel| model.forward(&batch.inputs)?.get::<2>("logits").map(|t| t.to_data());
    assert_eq!(logits(&again)?, logits(&model)?);
    Ok(())
}

fn encode(tokenizer: &dyn Tokenizer, texts: &[&str], classes: &[i64]) -> Result<Batch> {
    let rows = texts.iter().map(|text| tokenizer.encode(text, None, 32)).collect::<Result<Vec<_>>>()?;
    let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let cell = |row: usize, at: usize| {
        rows[row].ids.get(at).map_or((i64::from(tokenizer.pad_id()), 0), |id| (i64::from(*id), 1))
    };
    let cells: Vec<(i64, i64)> =
        (0..rows.len()).flat_map(|row| (0..width).map(move |at| (row, at))).map(|(r, a)| cell(r, a)).collect();
    let tensor = |values: Vec<i64>| Tensor::from_data(TensorData::new(values, [texts.len(), width]), &Device::flex());
    let inputs = Inputs {
        input_ids: Some(tensor(cells.iter().map(|(id, _)| *id).collect())),
        attention_mask: Some(tensor(cells.iter().map(|(_, mask)| *mask).collect())),
        ..Inputs::default()
    };
    let labels = TensorData::new(classes.to_vec(), [classes.len()]);
    Ok(Batch { inputs, labels: Labels([("labels".to_owned(), labels)].into()) })
}

#[test]
fn it_runs() {
    main().unwrap();
}
