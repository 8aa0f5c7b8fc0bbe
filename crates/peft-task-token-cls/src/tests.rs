use burn::tensor::{Device, Tensor, TensorData};
use peft_core::{
    data::example::{EncodeOptions, Overflow, collate_labels},
    plugins::registry::find,
};
use peft_testing::FakeTokenizer;

use super::*;

const TOKENIZER: FakeTokenizer = FakeTokenizer::new(3).with_special_tokens(1, 2);

fn row(line: usize, fields: Value) -> Row {
    peft_testing::row("train.conll", line, fields)
}

fn info(labels: &[&str]) -> ModelInfo {
    peft_testing::classes(labels, "single_label_classification")
}

fn with_context<T>(info: &ModelInfo, labelled: bool, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options = EncodeOptions { max_length: 7, overflow: Overflow::Truncate, ..EncodeOptions::default() };
    run(&EncodeContext { tokenizer: &TOKENIZER, info, options: &options, labelled })
}

const BIO: [&str; 5] = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"];

fn sentence(words: &str, tags: &str) -> Row {
    let list = |text: &str| text.split(' ').map(Value::from).collect::<Vec<_>>();
    row(3, json!({ "tokens": list(words), "tags": list(tags) }))
}

/// Metrics of sentences with their predicted classes.
fn metrics(info: &ModelInfo, data: &[(Row, &[f32])]) -> Vec<(String, f64)> {
    let scores: Vec<Scores> = data.iter().map(|(_, classes)| vec![classes.to_vec()]).collect();
    with_context(info, true, |context| {
        let examples: Vec<_> =
            data.iter().map(|(row, _)| TokenClassification.encode(row, context).unwrap().remove(0)).collect();
        let pairs = examples.iter().zip(&scores).zip(data);
        let judged: Vec<_> = pairs.map(|(pair, (row, _))| Scored { row, examples: vec![pair] }).collect();
        TokenClassification.metrics(&judged, context).unwrap().into_iter().collect()
    })
}

#[test]
fn it_is_found_by_its_name() {
    let plugin = find::<TaskPlugin>("TOKEN_CLS").unwrap();
    assert_eq!(plugin.wrapper, "PeftModelForTokenClassification");
    assert_eq!(plugin.heads, ["classifier", "score"]);
}

#[test]
fn the_classes_are_the_tags_of_the_data() {
    let rows = [sentence("a b", "O B-PER"), sentence("c", "B-LOC")];
    let set = TokenClassification.labels(&rows, "tags").unwrap().unwrap();
    assert_eq!(set.labels, ["B-LOC", "B-PER", "O"]);
    assert!(TokenClassification.labels(&rows, "ner").unwrap_err().to_string().contains("no column `ner`"));
}

#[test]
fn the_first_piece_of_a_word_carries_its_tag() {
    let sentence = sentence("Anna in Neustadt", "B-PER O B-LOC");
    let examples = with_context(&info(&BIO), true, |context| TokenClassification.encode(&sentence, context).unwrap());
    // [CLS] Ann a in Neu sta [SEP]: one piece of the last word was cut.
    assert_eq!(examples[0].word_starts, [1, 3, 4]);
    let labels = vec![IGNORE, 1, IGNORE, 4, 0, IGNORE, IGNORE];
    assert_eq!(examples[0].labels["labels"], Label::Tokens(labels));
    let batch = collate_labels(&[&examples[0]]);
    assert_eq!(TokenClassification.loss(&batch, &ModelInfo::custom()).unwrap().weight(), 3.0);
}

#[test]
fn words_without_tokens_have_no_label() {
    let sentence = sentence("abcdef  ghijkl mno pqr", "O B-PER O B-LOC O");
    let examples = with_context(&info(&BIO), true, |context| TokenClassification.encode(&sentence, context).unwrap());
    // The second word is empty, the last was cut.
    assert_eq!(examples[0].word_starts, [1, 7, 3, 5, 7]);
    assert_eq!(examples[0].labels["labels"], Label::Tokens(vec![IGNORE, 4, IGNORE, 4, IGNORE, 0, IGNORE]));
}

#[test]
fn wrong_tags_are_refused() {
    let check = |row: Row, part: &str| {
        let result = with_context(&info(&BIO), true, |context| TokenClassification.encode(&row, context));
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("train.conll:3: ") && error.contains(part), "{error}");
    };
    check(sentence("a b", "O"), "1 tags for 2 words");
    check(sentence("a b", "O B-PRE"), "unknown label `B-PRE`; did you mean `B-PER`?");
    // Even where the word was cut.
    check(sentence("abcdefghijklmnopq b", "O X"), "unknown label `X`");
}

#[test]
fn the_loss_is_that_of_transformers() {
    // The number of PyTorch.
    let logits = [[[0.5_f32, -1.0], [2.0, 0.0], [1.5, 0.25]], [[-0.75, 1.0], [0.0, 3.0], [0.1, 0.2]]];
    let outputs = Outputs::new().with("logits", Tensor::<3>::from_data(TensorData::from(logits), &Device::default()));
    let labels = TensorData::from([[IGNORE, 0, 1], [1, IGNORE, IGNORE]]);
    let labels = Labels([("labels".to_owned(), labels)].into());
    let info = info(&["a", "b"]);
    let loss = TokenClassification.loss(&labels, &info).unwrap().mean(&outputs).unwrap().into_scalar::<f32>();
    assert!((loss - 0.596_360_4).abs() < 1e-6, "{loss}");
}

#[test]
fn scores_are_the_likeliest_class_of_each_word() {
    let logits = [[[0.0_f32, 1.0], [3.0, 0.0], [0.0, 0.5]], [[2.0, 1.0], [0.0, 1.0], [7.0, 0.0]]];
    let outputs = Outputs::new().with("logits", Tensor::<3>::from_data(TensorData::from(logits), &Device::default()));
    let first = Example { input_ids: vec![9; 3], word_starts: vec![1, 2], ..Example::default() };
    // The third position of the second row is padding.
    let second = Example { input_ids: vec![9; 2], word_starts: vec![0, 2, 1], ..Example::default() };
    let scores = TokenClassification.scores(&outputs, &[&first, &second], &info(&["a", "b"])).unwrap();
    assert_eq!(scores[0], [[0.0, 1.0]]);
    assert_eq!((scores[1][0][0], scores[1][0][1].is_nan(), scores[1][0][2]), (0.0, true, 1.0));
}

#[test]
fn entities_are_judged_whole() {
    // B-LOC 0, B-PER 1, I-LOC 2, I-PER 3, O 4. Found: the person, and half of the place.
    let data = [(sentence("a b c d e", "B-PER I-PER O B-LOC I-LOC"), &[1.0, 3.0, 4.0, 0.0, 4.0][..])];
    let expected = [("f1", 0.5), ("precision", 0.5), ("recall", 0.5), ("accuracy", 0.8)];
    assert_eq!(metrics(&info(&BIO), &data), expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn words_without_a_prediction_are_not_judged() {
    let cut = sentence("abc def ghi jkl mno pqr", "O O O O O B-PER");
    let data = [(cut, &[4.0, 4.0, 4.0, 4.0, 0.0, f32::NAN][..])];
    let found: std::collections::BTreeMap<_, _> = metrics(&info(&BIO), &data).into_iter().collect();
    assert_eq!((found["accuracy"], found["precision"], found["recall"]), (0.8, 0.0, 0.0));
}

#[test]
fn parts_of_speech_are_judged_word_by_word() {
    // NOUN: 1 of 2 found, never wrong: F1 2/3; VERB the other way round.
    let data = [(sentence("a b c", "NOUN NOUN VERB"), &[0.0, 1.0, 1.0][..])];
    let found = metrics(&info(&["NOUN", "VERB"]), &data);
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["accuracy", "f1"]);
    assert!(found.iter().all(|(_, value)| (value - 2.0 / 3.0).abs() < 1e-12), "{found:?}");
}

#[test]
fn answers_hold_tags_and_entities() {
    let answer = |labels: &[&str], classes: &[f32]| {
        let row = row(1, json!({ "tokens": ["New", "York", "x"] }));
        let (example, scores) = (Example::default(), vec![classes.to_vec()]);
        with_context(&info(labels), false, |context| {
            let judged = Scored { row: &row, examples: vec![(&example, &scores)] };
            TokenClassification.answer(&judged, context).unwrap()
        })
    };
    let entity = json!({ "type": "LOC", "start": 0, "end": 2, "text": "New York" });
    let expected = json!({ "tokens": ["New", "York", "x"], "tags": ["B-LOC", "I-LOC", null], "entities": [entity] });
    assert_eq!(answer(&BIO, &[0.0, 2.0, f32::NAN]), expected);
    assert_eq!(answer(&["NOUN", "VERB"], &[0.0, 0.0, 1.0])["entities"], json!([]));
}

#[test]
fn the_words_of_a_plain_sentence_are_tagged() {
    for fields in [json!({ "text": "Ada lives  in London" }), json!({ "tokens": "Ada lives in London" })] {
        let row = row(1, fields);
        let encode =
            |labelled| with_context(&info(&BIO), labelled, |context| TokenClassification.encode(&row, context));
        assert_eq!(encode(false).unwrap()[0].word_starts.len(), 4);
        assert!(encode(true).is_err());
    }
}
