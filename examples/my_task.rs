//! A third party's task: one file, found by its word in `task_type`.
//!
//! Ordinal regression: classes in an order, a wrong neighbour is better than a wrong stranger. The head is that of sequence
//! classification with one output; the loss is the squared distance to the rank.
//!
//!     cargo run --release -p peft-examples --example my_task

use std::path::Path;

use burn::tensor::Device;
use peft::{
    AutoClass, Explanation, Labels, ModelInfo, Outputs, PeftConfig, PeftModel, PeftType, Result, Task, TaskPlugin,
    TaskType,
    data::{
        example::{EncodeContext, EncodeOptions, Example, Label, Row, collate},
        loss::{Loss, mse},
    },
    inventory,
    metrics::{Metrics, Scores},
    models::{
        HfTokenizer,
        checkpoint::{self, LoadOptions},
    },
    plugins::task::{Column, LabelSet, Scored},
};
use serde_json::{Value, json};

inventory::submit! {
    TaskPlugin {
        name: "ORDINAL",
        wrapper: "PeftModelForOrdinalRegression",
        auto_class: AutoClass::SEQUENCE_CLASSIFICATION,
        heads: &["classifier", "score"],
        num_transformer_submodules: 1,
        task: &Ordinal,
        summary: "ranks in an order",
    }
}

#[derive(Debug)]
struct Ordinal;

impl Task for Ordinal {
    fn columns(&self) -> &'static [Column] {
        &[
            Column { role: "text", required: true, learnt: false, holds: "the text" },
            Column { role: "label", required: true, learnt: true, holds: "its rank, a whole number" },
        ]
    }

    fn labels(&self, _rows: &[Row], _column: &str) -> Result<Option<LabelSet>> {
        Ok(Some(LabelSet { labels: vec!["rank".to_owned()], problem_type: "regression" }))
    }

    fn encode(&self, row: &Row, context: &EncodeContext<'_>) -> Result<Vec<Example>> {
        let encoding = context.tokenizer.encode(row.text(context.column("text"))?, None, context.options.max_length)?;
        let rank = row.text(context.column("label"))?;
        let rank = rank.parse::<f32>().map_err(|_| row.error(format!("`{rank}` is no rank")))?;
        let labels = [("labels", Label::Float(rank))].into();
        Ok(vec![Example { input_ids: encoding.ids, type_ids: encoding.type_ids, labels, ..Example::default() }])
    }

    fn loss<'a>(&self, labels: &'a Labels, _info: &'a ModelInfo) -> Result<Loss<'a>> {
        let wanted = labels.floats("labels")?;
        Ok(Loss::of_mean(wanted.len() as f64, move |outputs| {
            mse(outputs.get::<2>("logits")?.squeeze_dim::<1>(1), &wanted)
        }))
    }

    fn scores(&self, outputs: &Outputs, examples: &[&Example], _info: &ModelInfo) -> Result<Vec<Scores>> {
        let ranks = outputs.get::<2>("logits")?.into_data().try_to_vec_as::<f32>().unwrap_or_default();
        Ok(ranks.into_iter().take(examples.len()).map(|rank| vec![vec![rank]]).collect())
    }

    fn metrics(&self, rows: &[Scored<'_>], context: &EncodeContext<'_>) -> Result<Metrics> {
        let mut off = 0.0;
        for judged in rows {
            let rank = judged.row.text(context.column("label"))?.parse::<f64>().unwrap_or(0.0);
            off += judged
                .examples
                .iter()
                .flat_map(|(_, s)| s.iter().flatten())
                .map(|s| (f64::from(*s).round() - rank).abs())
                .sum::<f64>();
        }
        Ok([("mean_absolute_error".to_owned(), off / rows.len().max(1) as f64)].into_iter().collect())
    }

    fn answer(&self, row: &Scored<'_>, _context: &EncodeContext<'_>) -> Result<Value> {
        Ok(json!({ "rank": row.examples.first().and_then(|(_, s)| s.first()?.first().copied()) }))
    }
}

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-encoder");
    let device = Device::flex();
    let labels = Ordinal.labels(&[], "label")?;
    let options = LoadOptions { labels, ..LoadOptions::default() };
    let base = checkpoint::load(&folder, &AutoClass::SEQUENCE_CLASSIFICATION, &options, &device)?.base;

    let config = PeftConfig::new(PeftType::LORA, Some(TaskType::new("ORDINAL")))?;
    let explanation = Explanation::new(&base, &config)?;
    println!("{} trains {} in full", explanation.wrapper, explanation.saved.join(", "));
    assert_eq!(explanation.wrapper, "PeftModelForOrdinalRegression");

    let mut model = PeftModel::new(base, config, &device, 0)?;
    let tokenizer = HfTokenizer::from_folder(&folder)?;
    let rows = [("awful", "0"), ("poor", "1"), ("fine", "2"), ("great", "3")].map(|(text, rank)| Row {
        file: Path::new("inline").into(),
        line: 1,
        fields: [("text".to_owned(), text.into()), ("label".to_owned(), rank.into())].into_iter().collect(),
    });
    let info = model.base().info.clone();
    let options = EncodeOptions { max_length: 16, ..EncodeOptions::default() };
    let context = EncodeContext { tokenizer: &tokenizer, info: &info, options: &options, labelled: true };
    let examples: Vec<Example> =
        rows.iter().map(|row| Ordinal.encode(row, &context)).collect::<Result<Vec<_>>>()?.concat();
    let batch = model.check(collate(&examples.iter().collect::<Vec<_>>(), 0, true, &device))?;
    let mut optimizer = burn::optim::AdamWConfig::new().init();
    let first = model.loss(&batch)?.0.into_scalar::<f32>();
    for _ in 0..40 {
        let (loss, _) = model.loss(&batch)?;
        let gradients = model.gradients(&loss);
        model.step(&mut optimizer, 1e-2, gradients);
    }
    let last = model.loss(&batch)?.0.into_scalar::<f32>();
    println!("loss {first:.3} -> {last:.3}");
    assert!(last < first / 4.0);
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
