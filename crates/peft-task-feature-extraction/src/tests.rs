use burn::tensor::{Device, TensorData};
use peft_core::{
    data::example::{EncodeOptions, Overflow},
    plugins::registry::find,
};
use peft_testing::FakeTokenizer;

use super::*;

const TOKENIZER: FakeTokenizer = FakeTokenizer::new(1);

fn row(line: usize, fields: Value) -> Row {
    peft_testing::row("dev.tsv", line, fields)
}

fn with_context<T>(info: &ModelInfo, labelled: bool, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options = EncodeOptions { max_length: 8, overflow: Overflow::Truncate, ..EncodeOptions::default() };
    run(&EncodeContext { tokenizer: &TOKENIZER, info, options: &options, labelled })
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
    assert_eq!((single.len(), score(&single[0])), (1, None));
    let pair = encode(json!({ "text": "ab", "text_pair": "c", "score": "0.5" })).unwrap();
    assert_eq!((&pair[0].input_ids[..], &pair[1].input_ids[..]), (&[97, 98][..], &[99][..]));
    assert!(pair.iter().all(|example| score(example) == Some(0.5)));
    let error = encode(json!({ "text": "ab", "text_pair": "c", "score": "good" })).unwrap_err().to_string();
    assert_eq!(error, "dev.tsv:4: column `score` should be a number, found \"good\"");
}

#[test]
fn rows_are_pairs_or_single_texts() {
    let rows = [row(2, json!({ "text": "a", "text_pair": "b" })), row(3, json!({ "text": "a" }))];
    with_context(&ModelInfo::custom(), true, |context| {
        let error = FeatureExtraction.check_rows(&rows, context).unwrap_err().to_string();
        assert!(error.contains("dev.tsv:3: no column `text_pair`"), "{error}");
        assert!(FeatureExtraction.check_rows(&rows[1..], context).is_ok());
    });
}

#[test]
fn training_needs_scores_that_a_cosine_can_have() {
    let check = |fields: Value| {
        with_context(&ModelInfo::custom(), true, |context| {
            let examples = FeatureExtraction.encode(&row(4, fields.clone()), context).unwrap();
            FeatureExtraction.check_examples(&examples, context).map_err(|error| error.to_string())
        })
    };
    assert_eq!(check(json!({ "text": "a", "text_pair": "b", "score": 1 })), Ok(()));
    assert!(check(json!({ "text": "a" })).unwrap_err().contains("no row has `text_pair` and `score`"));
    let error = check(json!({ "text": "a", "text_pair": "b", "score": 4.5 })).unwrap_err();
    assert!(error.contains("`score_scale`") && error.contains("use score_scale = 4.5"), "{error}");
}

// Three positions; the first text has two tokens, so that its last position is padding.
const HIDDEN: [[[f32; 2]; 3]; 2] = [[[1.0, 2.0], [3.0, 6.0], [90.0, 90.0]], [[0.0, 3.0], [3.0, 0.0], [3.0, 3.0]]];

fn outputs() -> Outputs {
    Outputs::new().with("last_hidden_state", Tensor::<3>::from_data(TensorData::from(HIDDEN), &Device::default()))
}

fn pooled(pooling: Pooling, tokens: usize) -> Example {
    let pooled = Pooled::of(pooling, tokens);
    let labels = [(pooled.name(), Label::Tokens(pooled.tokens))].into();
    Example { input_ids: vec![9; tokens], labels, ..Example::default() }
}

#[test]
fn a_vector_is_made_of_the_texts_own_tokens() {
    let vectors = |pooling, tokens: [usize; 2]| {
        let examples = tokens.map(|tokens| pooled(pooling, tokens));
        FeatureExtraction.scores(&outputs(), &[&examples[0], &examples[1]], &ModelInfo::custom()).unwrap()
    };
    assert_eq!(vectors(Pooling::Mean, [2, 3]), [[[2.0, 4.0]], [[2.0, 2.0]]]);
    assert_eq!(vectors(Pooling::Cls, [2, 3]), [[[1.0, 2.0]], [[0.0, 3.0]]]);
    assert_eq!(vectors(Pooling::Last, [2, 3]), [[[3.0, 6.0]], [[3.0, 3.0]]]);
    assert_eq!(vectors(Pooling::Max, [2, 3]), [[[3.0, 6.0]], [[3.0, 3.0]]]);
    // With one virtual token in front.
    assert_eq!(vectors(Pooling::Mean, [1, 2]), [[[3.0, 6.0]], [[3.0, 1.5]]]);
    let one = pooled(Pooling::Mean, 2);
    assert!(FeatureExtraction.scores(&outputs(), &[&one], &ModelInfo::custom()).is_err());
}

#[test]
fn the_loss_is_that_of_cosines() {
    let mut examples = [pooled(Pooling::Mean, 2), pooled(Pooling::Mean, 3)];
    for example in &mut examples {
        example.labels.insert("labels", Label::Float(0.25));
    }
    let labels = collate_labels(&[&examples[0], &examples[1]]);
    let info = ModelInfo::custom();
    let loss = FeatureExtraction.loss(&labels, &info).unwrap();
    assert_eq!(loss.weight(), 1.0);
    let loss = loss.mean(&outputs()).unwrap().into_scalar::<f32>();
    // (2, 4) and (2, 2).
    let expected = (12.0_f32 / (20.0_f32.sqrt() * 8.0_f32.sqrt()) - 0.25).powi(2);
    assert!((loss - expected).abs() < 1e-6, "{loss} {expected}");
    let without = collate_labels(&[&pooled(Pooling::Mean, 2)]);
    assert_eq!(FeatureExtraction.loss(&without, &info).unwrap().weight(), 0.0);
}

#[test]
fn pairs_without_a_score_teach_nothing_and_weigh_nothing() {
    let scored = || {
        let mut examples = [pooled(Pooling::Mean, 2), pooled(Pooling::Mean, 3)];
        examples.iter_mut().for_each(|example| drop(example.labels.insert("labels", Label::Float(0.25))));
        examples
    };
    let (scored, unscored) = (scored(), [pooled(Pooling::Mean, 3), pooled(Pooling::Mean, 2)]);
    let twice = outputs().get::<3>("last_hidden_state").unwrap();
    let twice = Outputs::new().with("last_hidden_state", Tensor::cat(vec![twice.clone(), twice], 0));
    let info = ModelInfo::custom();
    let alone = collate_labels(&scored.each_ref());
    let alone = FeatureExtraction.loss(&alone, &info).unwrap().mean(&outputs()).unwrap().into_scalar::<f32>();
    for pairs in [[&scored, &unscored], [&unscored, &scored]] {
        let labels = collate_labels(&pairs.into_iter().flatten().collect::<Vec<_>>());
        let loss = FeatureExtraction.loss(&labels, &info).unwrap();
        assert_eq!(loss.weight(), 1.0);
        let found = loss.mean(&twice).unwrap().into_scalar::<f32>();
        assert!((found - alone).abs() < 1e-6, "{found} {alone}");
    }
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
    let judged = examples.iter().zip(&scores).map(|(e, s)| Scored { row: &row, examples: e.iter().zip(s).collect() });
    let judged: Vec<_> = judged.collect();
    with_context(&ModelInfo::custom(), true, |context| {
        let metrics = FeatureExtraction.metrics(&judged, context).unwrap();
        assert_eq!(metrics.keys().collect::<Vec<_>>(), ["pearson", "spearman"]);
        assert!(metrics.values().all(|value| (value - 1.0).abs() < 1e-9), "{metrics:?}");
        assert!(FeatureExtraction.metrics(&[], context).unwrap().is_empty());
        let (example, vector) = (Example::default(), vec![vec![1.0, 0.0]]);
        let unscored = Scored { row: &row, examples: vec![(&example, &vector); 2] };
        let error = FeatureExtraction.metrics(&[unscored], context).unwrap_err().to_string();
        assert!(error.contains("`score`"), "{error}");
        let answer = FeatureExtraction.answer(&judged[1], context).unwrap();
        assert_eq!(answer, json!({ "vector": [1.0, 0.0], "vector_pair": [0.0, 1.0], "cosine": 0.0 }));
    });
}

#[test]
fn vectors_have_length_one_unless_told_otherwise() {
    let (row, example) = (row(1, json!({ "text": "" })), Example::default());
    let answer = |vector: Vec<f32>, normalize: bool| {
        let scores = vec![vector];
        let judged = Scored { row: &row, examples: vec![(&example, &scores)] };
        let options = EncodeOptions { normalize, ..EncodeOptions::default() };
        let info = ModelInfo::custom();
        let context = EncodeContext { tokenizer: &TOKENIZER, info: &info, options: &options, labelled: false };
        FeatureExtraction.answer(&judged, &context).unwrap()
    };
    assert_eq!(answer(vec![3.0, -4.0], true), json!({ "vector": [0.6, -0.8] }));
    assert_eq!(answer(vec![3.0, -4.0], false), json!({ "vector": [3.0, -4.0] }));
    assert_eq!(answer(vec![0.0, 0.0], true), json!({ "vector": [0.0, 0.0] }));
}
