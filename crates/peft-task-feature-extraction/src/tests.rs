use std::{collections::BTreeMap, path::Path, sync::Arc};

use burn::tensor::{Device, TensorData};
use peft_core::{
    example::Overflow,
    registry::find,
    tokenizer::{Encoding, Tokenizer},
};

use super::*;

/// One token a letter.
#[derive(Debug)]
struct Letters;

impl Tokenizer for Letters {
    fn encode(&self, text: &str, _: Option<&str>, max_length: usize) -> Result<Encoding> {
        let ids: Vec<u32> = text.chars().take(max_length).map(u32::from).collect();
        Ok(Encoding { truncated: ids.len() < text.chars().count(), ids, ..Encoding::default() })
    }
    fn encode_words(&self, _: &[String], _: usize) -> Result<Encoding> {
        Ok(Encoding::default())
    }
    fn encode_windows(&self, _: &str, _: &str, _: usize, _: usize) -> Result<Vec<Encoding>> {
        Ok(Vec::new())
    }
    fn encode_plain(&self, _: &str) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }
    fn decode(&self, _: &[u32]) -> Result<String> {
        Ok(String::new())
    }
    fn pad_id(&self) -> u32 {
        0
    }
    fn eos_id(&self) -> Option<u32> {
        None
    }
    fn token_to_id(&self, _: &str) -> Option<u32> {
        None
    }
}

fn row(line: usize, fields: Value) -> Row {
    let Value::Object(fields) = fields else { panic!("a row is an object") };
    Row { file: Arc::from(Path::new("dev.tsv")), line, fields }
}

fn with_context<T>(info: &ModelInfo, labelled: bool, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    run(&EncodeContext {
        tokenizer: &Letters,
        info,
        columns: &BTreeMap::new(),
        max_length: 8,
        overflow: Overflow::Truncate,
        doc_stride: 2,
        completion_only_loss: true,
        assistant_only_loss: false,
        labelled,
    })
}

fn encode(fields: Value) -> Result<Vec<Example>> {
    with_context(&ModelInfo::custom(), true, |context| FeatureExtraction.encode(&row(4, fields.clone()), context))
}

#[test]
fn it_is_found_by_its_name() {
    let plugin = find::<TaskPlugin>("FEATURE_EXTRACTION").unwrap();
    assert_eq!(plugin.wrapper, "PeftModelForFeatureExtraction");
    assert_eq!(plugin.heads, [""; 0]);
}

#[test]
fn a_pair_becomes_two_examples() {
    let single = encode(json!({ "text": "ab" })).unwrap();
    assert_eq!((single.len(), single[0].labels.is_empty()), (1, true));
    let pair = encode(json!({ "text": "ab", "text_pair": "c", "score": "4.5" })).unwrap();
    assert_eq!((&pair[0].input_ids[..], &pair[1].input_ids[..]), (&[97, 98][..], &[99][..]));
    assert!(pair.iter().all(|example| example.labels["labels"] == Label::Float(4.5)));
    let error = encode(json!({ "text": "ab", "text_pair": "c", "score": "good" })).unwrap_err().to_string();
    assert_eq!(error, "dev.tsv:4: column `score` should be a number, found \"good\"");
}

#[test]
fn a_text_is_the_mean_of_its_own_tokens() {
    // Three positions; the first text has two tokens, so that its last position is padding.
    let hidden = [[[1.0_f32, 2.0], [3.0, 6.0], [90.0, 90.0]], [[0.0, 3.0], [3.0, 0.0], [3.0, 3.0]]];
    let outputs =
        Outputs::new().with("last_hidden_state", Tensor::<3>::from_data(TensorData::from(hidden), &Device::default()));
    let example = |tokens| Example { input_ids: vec![9; tokens], ..Example::default() };
    let info = ModelInfo::custom();
    let scores = FeatureExtraction.scores(&outputs, &[&example(2), &example(3)], &info).unwrap();
    assert_eq!(scores, [[[2.0, 4.0]], [[2.0, 2.0]]]);
    // With one virtual token in front.
    let scores = FeatureExtraction.scores(&outputs, &[&example(1), &example(2)], &info).unwrap();
    assert_eq!(scores, [[[3.0, 6.0]], [[3.0, 1.5]]]);
    assert!(FeatureExtraction.scores(&outputs, &[&example(2)], &info).is_err());
}

#[test]
fn there_is_no_loss_and_the_error_says_what_to_do() {
    let error = FeatureExtraction.loss(&Outputs::new(), &Labels::default(), &ModelInfo::custom()).unwrap_err();
    assert!(error.to_string().contains("use SEQ_CLS with `text_pair`"), "{error}");
    assert_eq!(FeatureExtraction.loss_weight(&Labels::default()).unwrap(), 0.0);
}

#[test]
fn pairs_are_judged_by_their_cosine() {
    let row = row(1, json!({ "text": "" }));
    let pair = |score: f32| {
        [(); 2].map(|()| Example { labels: [("labels", Label::Float(score))].into(), ..Example::default() })
    };
    let examples = [pair(5.0), pair(2.5), pair(0.0)];
    // Cosines 1, 0 and -1.
    let vectors = [[[1.0, 1.0], [2.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [-2.0, 0.0]]];
    let scores = vectors.map(|pair| pair.map(|vector| vec![vector.to_vec()]));
    let judged = examples.iter().zip(&scores).map(|(e, s)| Judged { row: &row, examples: e.iter().zip(s).collect() });
    let judged: Vec<_> = judged.collect();
    with_context(&ModelInfo::custom(), true, |context| {
        let metrics = FeatureExtraction.metrics(&judged, context).unwrap();
        assert_eq!(metrics.keys().collect::<Vec<_>>(), ["pearson", "spearman"]);
        assert!(metrics.values().all(|value| (value - 1.0).abs() < 1e-9), "{metrics:?}");
        assert!(FeatureExtraction.metrics(&[], context).unwrap().is_empty());
        let answer = FeatureExtraction.answer(&judged[1], context).unwrap();
        assert_eq!(answer, json!({ "vector": [1.0, 0.0], "vector_pair": [0.0, 1.0], "cosine": 0.0 }));
    });
}

#[test]
fn vectors_have_length_one() {
    let (row, example) = (row(1, json!({ "text": "" })), Example::default());
    let answer = |vector: Vec<f32>| {
        let scores = vec![vector];
        let judged = Judged { row: &row, examples: vec![(&example, &scores)] };
        with_context(&ModelInfo::custom(), false, |context| FeatureExtraction.answer(&judged, context).unwrap())
    };
    assert_eq!(answer(vec![3.0, -4.0]), json!({ "vector": [0.6, -0.8] }));
    assert_eq!(answer(vec![0.0, 0.0]), json!({ "vector": [0.0, 0.0] }));
}
