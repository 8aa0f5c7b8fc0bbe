use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{
    data::example::{EncodeOptions, Overflow, collate_labels},
    plugins::registry::find,
};
use peft_testing::FakeTokenizer;

use super::*;

const TOKENIZER: FakeTokenizer = FakeTokenizer::new(2).with_eos_token(2);

fn row(line: usize, fields: Value) -> Row {
    peft_testing::row("train.jsonl", line, fields)
}

fn with_context<T>(info: &ModelInfo, labelled: bool, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options = EncodeOptions { max_length: 4, overflow: Overflow::Truncate, ..EncodeOptions::default() };
    run(&EncodeContext { tokenizer: &TOKENIZER, info, options: &options, labelled })
}

fn encode(fields: Value, labelled: bool) -> Result<Vec<Example>> {
    with_context(&ModelInfo::custom(), labelled, |context| CausalLm.encode(&row(1, fields.clone()), context))
}

fn check(fields: Value, labelled: bool, ids: &[u32], labels: &[i64]) {
    let examples = encode(fields, labelled).unwrap();
    assert_eq!(examples[0].input_ids, ids);
    assert_eq!(examples[0].labels["labels"], Label::Tokens(labels.to_vec()));
}

const LOGITS: [[[f32; 3]; 4]; 2] = [
    [[0.5, -1.0, 0.2], [2.0, 0.0, -0.3], [1.5, 0.25, 0.0], [9.0, 9.0, 0.0]],
    [[-0.75, 1.0, 0.4], [0.0, 3.0, 1.0], [0.1, 0.2, 0.3], [5.0, 1.0, 2.0]],
];

fn outputs() -> Outputs {
    Outputs::new().with("logits", Tensor::<3>::from_data(TensorData::from(LOGITS), &Device::default()))
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
}

#[test]
fn it_is_found_by_its_name() {
    let plugin = find::<TaskPlugin>("CAUSAL_LM").unwrap();
    assert_eq!(plugin.wrapper, "PeftModelForCausalLM");
    assert_eq!(plugin.heads, [""; 0]);
}

#[test]
fn every_token_of_a_text_is_learnt() {
    check(json!({ "text": "abcd" }), true, &[97, 99, 2], &[97, 99, 2]);
    // A text that was cut has not ended.
    check(json!({ "text": "abcdefghij" }), true, &[97, 99, 101, 103], &[97, 99, 101, 103]);
}

#[test]
fn a_prompt_is_read_but_not_learnt() {
    check(json!({ "prompt": "ab", "completion": "cd" }), true, &[97, 99, 2], &[IGNORE, 99, 2]);
    // The token "bc" reaches into the completion.
    check(json!({ "prompt": "xab", "completion": "c" }), true, &[120, 98, 2], &[IGNORE, 98, 2]);
    // Where there is nothing to say, the end is to be said.
    check(json!({ "prompt": "ab", "completion": "" }), true, &[97, 2], &[IGNORE, 2]);
}

#[test]
fn what_is_only_read_has_no_end_put_on_it() {
    check(json!({ "text": "abcd" }), false, &[97, 99], &[97, 99]);
    check(json!({ "prompt": "abcd" }), false, &[97, 99], &[97, 99]);
    check(json!({ "prompt": "ab", "completion": "cd" }), false, &[97, 99], &[IGNORE, 99]);
}

#[test]
fn nothing_counts_where_the_completion_was_cut() {
    let examples = encode(json!({ "prompt": "abcdefgh", "completion": "ij" }), true).unwrap();
    assert_eq!(CausalLm.loss(&collate_labels(&[&examples[0]]), &ModelInfo::custom()).unwrap().weight(), 0.0);
}

#[test]
fn rows_without_text_are_refused() {
    let error = |fields: Value| encode(fields, true).unwrap_err().to_string();
    assert!(error(json!({ "body": "a" })).ends_with("or `instruction` or `text` (columns: body)"));
    assert_eq!(error(json!({ "prompt": "a" })), "train.jsonl:1: no column `completion` (columns: prompt)");
}

#[test]
fn each_token_is_told_from_those_before_it() {
    // The number of PyTorch.
    let labels = TensorData::from([[0_i64, 2, 1, 0], [1, IGNORE, 1, IGNORE]]);
    let labels = Labels([("labels".to_owned(), labels)].into());
    let info = ModelInfo::custom();
    let loss = CausalLm.loss(&labels, &info).unwrap();
    assert_eq!(loss.weight(), 4.0);
    close(f64::from(loss.mean(&outputs()).unwrap().into_scalar::<f32>()), 0.942_055_686_651_751_3);
}

#[test]
fn virtual_tokens_before_the_text_have_no_label() {
    // One virtual token: the first label counts as well, and is told from it. The number of PyTorch.
    let labels = TensorData::from([[0_i64, 2, 1], [1, IGNORE, 1]]);
    let labels = Labels([("labels".to_owned(), labels)].into());
    let info = ModelInfo { virtual_outputs: 1, ..ModelInfo::custom() };
    let loss = CausalLm.loss(&labels, &info).unwrap();
    assert_eq!(loss.weight(), 5.0);
    close(f64::from(loss.mean(&outputs()).unwrap().into_scalar::<f32>()), 1.298_829_196_257_285);
    let long = Labels([("labels".to_owned(), TensorData::from([[0_i64; 5]; 2]))].into());
    let error = CausalLm.loss(&long, &info).unwrap().mean(&outputs()).unwrap_err().to_string();
    assert_eq!(error, "5 labels a row for 4 positions of logits");
}

#[test]
fn perplexity_is_a_mean_over_all_tokens() {
    let example = |labels: &[i64]| Example {
        input_ids: vec![1; labels.len()],
        labels: [("labels", Label::Tokens(labels.to_vec()))].into(),
        ..Example::default()
    };
    // The second is one token shorter than the batch.
    let examples = [example(&[0, 2, 1, 0]), example(&[1, IGNORE, 1])];
    let scores = CausalLm.scores(&outputs(), &examples.each_ref(), &ModelInfo::custom()).unwrap();
    close(f64::from(scores[0][0][0]), 3.598_376_727_050_72);
    close(f64::from(scores[1][0][0]), 0.169_846_019_556_285_48);
    assert_eq!((scores[0][0][1], scores[1][0][1]), (3.0, 1.0));
    let row = row(1, json!({ "text": "" }));
    let judged: Vec<_> = examples.iter().zip(&scores).map(|pair| Scored { row: &row, examples: vec![pair] }).collect();
    with_context(&ModelInfo::custom(), true, |context| {
        close(CausalLm.metrics(&judged, context).unwrap()["perplexity"], 0.942_055_686_651_751_3_f64.exp());
        let answer = CausalLm.answer(&judged[1], context).unwrap();
        assert_eq!(answer["tokens"], 1.0);
        close(answer["perplexity"].as_f64().unwrap(), 0.169_846_019_556_285_48_f64.exp());
    });
}

#[test]
fn a_prompt_asks_for_its_completion_and_a_whole_text_for_nothing() {
    let asks = |fields: Value, labelled| {
        with_context(&ModelInfo::custom(), labelled, |context| CausalLm.asks(&row(1, fields.clone()), context)).unwrap()
    };
    let both = json!({ "prompt": "abcd", "completion": " ef" });
    assert_eq!(
        asks(both.clone(), true),
        Some(GenerationPrompt { prompt: vec![97, 99], reference: Some(" ef".to_owned()) })
    );
    assert_eq!(asks(both, false), Some(GenerationPrompt { prompt: vec![97, 99], reference: None }));
    assert_eq!(asks(json!({ "prompt": "ab" }), false), Some(GenerationPrompt { prompt: vec![97], reference: None }));
    let question = json!({ "instruction": "i", "output": "o" });
    assert_eq!(asks(question, true).and_then(|asked| asked.reference).as_deref(), Some("o"));
    assert_eq!(asks(json!({ "text": "abcd" }), true), None);
    assert_eq!(asks(json!({ "text": "abcd" }), false), None);
}
