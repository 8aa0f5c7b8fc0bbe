use burn::tensor::{Device, TensorData};
use peft_core::{
    DecoderStart, Inputs, ShiftRight,
    data::example::{EncodeOptions, collate_labels},
    plugins::registry::find,
};
use peft_testing::FakeTokenizer;

use super::*;

const TOKENIZER: FakeTokenizer = FakeTokenizer::new(1).with_eos_token(2);

fn row(line: usize, fields: Value) -> Row {
    peft_testing::row("train.tsv", line, fields)
}

fn with_context<T>(info: &ModelInfo, labelled: bool, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options = EncodeOptions { max_length: 4, overflow: Overflow::Truncate, ..EncodeOptions::default() };
    run(&EncodeContext { tokenizer: &TOKENIZER, info, options: &options, labelled })
}

fn encode(fields: Value, labelled: bool) -> Result<Vec<Example>> {
    with_context(&ModelInfo::custom(), labelled, |context| Seq2SeqLm.encode(&row(1, fields.clone()), context))
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
    let plugin = find::<TaskPlugin>("SEQ_2_SEQ_LM").unwrap();
    assert_eq!(plugin.wrapper, "PeftModelForSeq2SeqLM");
    assert_eq!(plugin.num_transformer_submodules, 2);
    assert_eq!(plugin.heads, [""; 0]);
}

#[test]
fn the_target_is_closed_and_has_its_own_length() {
    let examples = encode(json!({ "source": "ab", "target": "cde" }), true).unwrap();
    assert_eq!(examples[0].input_ids, [97, 98]);
    assert_eq!(examples[0].labels["labels"], Label::Tokens(vec![99, 100, 101, 2]));
    // A target that ends already, and one that was cut.
    let ended = encode(json!({ "source": "ab", "target": "c\u{2}" }), true).unwrap();
    assert_eq!(ended[0].labels["labels"], Label::Tokens(vec![99, 2]));
    let cut = encode(json!({ "source": "ab", "target": "cdefg" }), true).unwrap();
    assert_eq!(cut[0].labels["labels"], Label::Tokens(vec![99, 100, 101, 102]));
    let batch = collate_labels(&[&examples[0], &ended[0]]);
    assert_eq!(batch.integers("labels").unwrap(), [99, 100, 101, 2, 99, 2, IGNORE, IGNORE]);
    assert_eq!(Seq2SeqLm.loss(&batch, &ModelInfo::custom()).unwrap().weight(), 6.0);
}

#[test]
fn a_target_is_needed_only_to_learn() {
    assert!(encode(json!({ "source": "ab" }), false).unwrap()[0].labels.is_empty());
    let error = encode(json!({ "source": "ab" }), true).unwrap_err().to_string();
    assert_eq!(error, "train.tsv:1: no column `target` (columns: source)");
}

#[test]
fn a_text_stands_for_the_source_and_a_prefix_before_it() {
    assert_eq!(encode(json!({ "text": "ab", "target": "c" }), true).unwrap()[0].input_ids, [97, 98]);
    let error = encode(json!({ "target": "c" }), true).unwrap_err().to_string();
    assert_eq!(error, "train.tsv:1: no column `source` (columns: target)");
    let options = EncodeOptions { source_prefix: "> ".to_owned(), ..EncodeOptions::default() };
    let info = ModelInfo::custom();
    let context = EncodeContext { tokenizer: &TOKENIZER, info: &info, options: &options, labelled: false };
    let examples = Seq2SeqLm.encode(&row(1, json!({ "source": "a" })), &context).unwrap();
    assert_eq!(examples[0].input_ids, [62, 32, 97]);
}

#[test]
fn a_target_that_the_decoder_cannot_take_is_named_with_its_row() {
    let mut info = ModelInfo { max_positions: Some(4), ..ModelInfo::custom() };
    info.config.insert("vocab_size".to_owned(), json!(120));
    let check = |target: &str, overflow: Overflow, words: &str| {
        let options = EncodeOptions { max_target_length: Some(5), overflow, ..EncodeOptions::default() };
        let context = EncodeContext { tokenizer: &TOKENIZER, info: &info, options: &options, labelled: true };
        match Seq2SeqLm.encode(&row(7, json!({ "source": "a", "target": target })), &context) {
            Err(error) => assert!(error.to_string().starts_with(&format!("train.tsv:7: {words}")), "{error}"),
            Ok(examples) => assert_eq!(words, format!("{} examples", examples.len())),
        }
    };
    check("abc", Overflow::Raise, "1 examples");
    check("abcde", Overflow::Raise, "the target has 5 tokens: the model has 4 positions");
    check("abcd", Overflow::Raise, "the target has 5 tokens: the model has 4 positions");
    check("x", Overflow::Raise, "token id 120 of the target");
    check("abcdef", Overflow::Raise, "the target has more than 5 tokens: raise max_target_length");
    check("abcdef", Overflow::Drop, "0 examples");
}

#[test]
fn the_decoder_reads_the_labels_one_place_later() {
    let shift = ShiftRight { start: DecoderStart::Token(9), pad_token_id: 0 };
    let info = ModelInfo { shift_right: Some(shift), ..ModelInfo::custom() };
    let complete = |labels: TensorData| {
        let ids = Tensor::from_data([[1, 1]], &Device::default());
        let inputs = Inputs { input_ids: Some(ids), ..Inputs::default() };
        Seq2SeqLm.complete(Batch { inputs, labels: Labels([("labels".to_owned(), labels)].into()) }, &info)
    };
    let batch = complete(TensorData::from([[5_i64, 6, IGNORE]])).unwrap();
    let found = batch.inputs.decoder_input_ids.clone().unwrap().into_data().convert::<i64>();
    assert_eq!(found.try_to_vec::<i64>().unwrap(), [9, 5, 6]);
    // What is there already stays.
    let again = Seq2SeqLm.complete(batch, &ModelInfo { shift_right: None, ..ModelInfo::custom() }).unwrap();
    assert!(again.inputs.decoder_input_ids.is_some());
    assert!(complete(TensorData::from([1_i64])).unwrap_err().to_string().contains("[batch, target]"));
}

#[test]
fn each_decoder_position_has_its_own_label() {
    // The number of PyTorch.
    let labels = TensorData::from([[0_i64, 2, 1, 0], [1, IGNORE, 1, IGNORE]]);
    let labels = Labels([("labels".to_owned(), labels)].into());
    let info = ModelInfo::custom();
    let loss = Seq2SeqLm.loss(&labels, &info).unwrap().mean(&outputs()).unwrap().into_scalar::<f32>();
    close(f64::from(loss), 1.197_892_477_474_124_4);
}

#[test]
fn perplexity_is_a_mean_over_all_tokens() {
    let example =
        |labels: &[i64]| Example { labels: [("labels", Label::Tokens(labels.to_vec()))].into(), ..Example::default() };
    let examples = [example(&[0, 2, 1, 0]), example(&[1, IGNORE, 1])];
    let scores = Seq2SeqLm.scores(&outputs(), &examples.each_ref(), &ModelInfo::custom()).unwrap();
    close(f64::from(scores[0][0][0]), 5.541_585_610_609_039);
    close(f64::from(scores[1][0][0]), 1.645_769_254_235_706_3);
    let row = row(1, json!({ "source": "" }));
    let judged: Vec<_> = examples.iter().zip(&scores).map(|pair| Scored { row: &row, examples: vec![pair] }).collect();
    with_context(&ModelInfo::custom(), true, |context| {
        close(Seq2SeqLm.metrics(&judged, context).unwrap()["perplexity"], 1.197_892_477_474_124_4_f64.exp());
        assert_eq!(Seq2SeqLm.answer(&judged[1], context).unwrap()["tokens"], 2.0);
    });
}

#[test]
fn the_source_asks_for_the_target() {
    let asks = |labelled| {
        let row = row(1, json!({ "source": "abcdef", "target": "xyz" }));
        with_context(&ModelInfo::custom(), labelled, |context| Seq2SeqLm.asks(&row, context)).unwrap().unwrap()
    };
    assert_eq!(asks(true), GenerationPrompt { prompt: vec![97, 98, 99, 100], reference: Some("xyz".to_owned()) });
    assert_eq!(asks(false).reference, None);
}

#[test]
fn a_target_of_exactly_max_target_length_stays_within_it() {
    let options = EncodeOptions { max_target_length: Some(3), ..EncodeOptions::default() };
    let info = ModelInfo::custom();
    let context = EncodeContext { tokenizer: &TOKENIZER, info: &info, options: &options, labelled: true };
    let labels = |target: &str| {
        let examples = Seq2SeqLm.encode(&row(1, json!({ "source": "a", "target": target })), &context).unwrap();
        let Label::Tokens(labels) = examples[0].labels["labels"].clone() else { panic!("labels of tokens") };
        labels.len()
    };
    assert_eq!((labels("ab"), labels("abc")), (3, 3));
}
