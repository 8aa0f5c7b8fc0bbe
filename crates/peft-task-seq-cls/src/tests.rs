use burn::tensor::{Device, TensorData};
use peft_core::{
    data::example::{EncodeOptions, collate_labels},
    plugins::registry::find,
};
use peft_testing::{FakeTokenizer, classes as info};

use super::*;

const TOKENIZER: FakeTokenizer = FakeTokenizer::new(1).with_special_tokens(1, 2);

fn row(line: usize, fields: Value) -> Row {
    peft_testing::row("train.tsv", line, fields)
}

fn labelled(labels: &[Value]) -> Vec<Row> {
    (2..).zip(labels).map(|(line, label)| row(line, json!({ "text": "hi", "label": label }))).collect()
}

fn with_context<T>(info: &ModelInfo, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options = EncodeOptions { max_length: 8, ..EncodeOptions::default() };
    run(&EncodeContext { tokenizer: &TOKENIZER, info, options: &options, labelled: true })
}

fn logits<const R: usize, const C: usize>(values: [[f32; C]; R]) -> Outputs {
    Outputs::new().with("logits", Tensor::<2>::from_data(TensorData::from(values), &Device::default()))
}

fn labels(data: impl Into<TensorData>) -> Labels {
    Labels([("labels".to_owned(), data.into())].into())
}

const LOGITS: [[f32; 3]; 2] = [[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]];

fn check_loss(outputs: &Outputs, labels: &Labels, info: &ModelInfo, expected: f32) {
    let loss = SequenceClassification.loss(labels, info).unwrap().mean(outputs).unwrap().into_scalar::<f32>();
    assert!((loss - expected).abs() < 1e-6, "{loss} is not {expected}");
}

/// Metrics of labels and logits, through the way that an evaluation takes.
fn check_metrics(info: &ModelInfo, data: &[(Value, &[f32])], expected: &[(&str, f64)]) {
    let rows = labelled(&data.iter().map(|(label, _)| label.clone()).collect::<Vec<_>>());
    let scores: Vec<Scores> = data.iter().map(|(_, logits)| vec![logits.to_vec()]).collect();
    with_context(info, |context| {
        let examples: Vec<_> =
            rows.iter().flat_map(|row| SequenceClassification.encode(row, context).unwrap()).collect();
        let judged: Vec<_> = rows.iter().zip(examples.iter().zip(&scores)).collect();
        let judged: Vec<_> = judged.into_iter().map(|(row, pair)| Scored { row, examples: vec![pair] }).collect();
        let metrics = SequenceClassification.metrics(&judged, context).unwrap();
        assert_eq!(metrics.keys().collect::<Vec<_>>(), expected.iter().map(|(name, _)| name).collect::<Vec<_>>());
        for ((name, found), (_, expected)) in metrics.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{name}: {found} is not {expected}");
        }
    });
}

fn answer(info: &ModelInfo, logits: &[f32]) -> Value {
    let (row, example, scores) = (row(2, json!({ "text": "hi" })), Example::default(), vec![logits.to_vec()]);
    with_context(info, |context| {
        let judged = Scored { row: &row, examples: vec![(&example, &scores)] };
        SequenceClassification.answer(&judged, context).unwrap()
    })
}

#[test]
fn it_is_found_by_its_name() {
    let plugin = find::<TaskPlugin>("SEQ_CLS").unwrap();
    assert_eq!(plugin.wrapper, "PeftModelForSequenceClassification");
    assert_eq!(plugin.heads, ["classifier", "score"]);
}

#[test]
fn labels_decide_the_problem() {
    let check = |labels: &[Value], problem, names: &[&str]| {
        let set = SequenceClassification.labels(&labelled(labels), "label").unwrap().unwrap();
        assert_eq!((set.problem_type, set.labels), (problem, names.iter().map(|name| (*name).to_owned()).collect()));
    };
    check(&[json!("pos"), json!("neg"), json!("pos")], "single_label_classification", &["neg", "pos"]);
    check(&[json!("10"), json!("9"), json!("-1")], "single_label_classification", &["-1", "9", "10"]);
    check(&[json!(1), json!(0)], "single_label_classification", &["0", "1"]);
    check(&[json!("nan"), json!("inf")], "single_label_classification", &["inf", "nan"]);
    check(&[json!("1.5"), json!("v2.0")], "single_label_classification", &["1.5", "v2.0"]);
    check(&[json!("3.5"), json!("4"), json!("-1e-2")], "regression", &["LABEL_0"]);
    check(&[json!(0.5), json!(2.0)], "regression", &["LABEL_0"]);
    check(&[json!(["b", "a"]), json!([]), json!(["a"])], "multi_label_classification", &["a", "b"]);
}

#[test]
fn vectors_of_0_and_1_are_several_classes() {
    let check = |rows: &[Value], problem: &str, classes: &[&str]| {
        let found = SequenceClassification.labels(&labelled(rows), "label").unwrap().unwrap();
        assert_eq!((found.problem_type, found.labels), (problem, classes.iter().map(|c| (*c).to_owned()).collect()));
    };
    let three = ["LABEL_0", "LABEL_1", "LABEL_2"];
    let several = "multi_label_classification";
    check(&[json!([1, 0, 1]), json!([0, 1, 0])], several, &three);
    check(&[json!([1.0, 0.0, 1.0]), json!([0.0, 0.0, 0.0])], several, &three);
    check(&[json!([true, false, true]), json!([false, false, true])], several, &three);
    // As a cell of a table has it, or Python's `repr`.
    check(&[json!("[1, 0, 1]"), json!("[0, 1, 0]")], several, &three);
    check(&[json!("['news']"), json!("[\"news\", \"sports\"]")], several, &["news", "sports"]);
    check(&[json!([0.5, 2.0, 1.0]), json!([0.0, 1.0, 1.0])], "regression", &three);
    // Lists of another length each are classes by their names.
    check(&[json!([0, 1]), json!([2])], several, &["0", "1", "2"]);
    let message = SequenceClassification.labels(&labelled(&[json!([1, 1, 0]), json!([2])]), "label").unwrap_err();
    assert!(
        message.to_string().contains("class `1` stands twice") && message.to_string().contains("vector of 0 and 1")
    );
    let vector = label(&row(1, json!({})), &json!([1, 0, 1]), &info(&three, several));
    assert_eq!(vector, Label::Floats(vec![1.0, 0.0, 1.0]));
    let named = label(&row(1, json!({})), &json!([0, 1, 1]), &info(&["x", "y", "z"], several));
    assert_eq!(named, Label::Floats(vec![0.0, 1.0, 1.0]));
}

#[test]
fn whole_numbers_are_ids_of_classes_with_names() {
    let names = info(&["contradiction", "neutral", "entailment"], "single_label_classification");
    for (value, class) in [(json!(0), 0), (json!("2"), 2), (json!(1.0), 1), (json!("1.0"), 1), (json!("neutral"), 1)] {
        assert_eq!(label(&row(1, json!({})), &value, &names), Label::Class(class));
    }
    // Classes that are called by numbers are meant by their names.
    let numbered = info(&["1", "2", "3"], "single_label_classification");
    assert_eq!(label(&row(1, json!({})), &json!(1), &numbered), Label::Class(0));
    assert_eq!(label(&row(1, json!({})), &json!(3.0), &numbered), Label::Class(2));
}

/// What a label becomes for a model.
fn label(row: &Row, value: &Value, info: &ModelInfo) -> Label {
    with_context(info, |context| super::label(row, &as_list(value), context).unwrap())
}

#[test]
fn labels_that_teach_nothing_are_refused() {
    let check = |labels: &[Value], part: &str| {
        let error = SequenceClassification.labels(&labelled(labels), "label").unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(&[json!("a"), json!("a")], "every row has the label `a`");
    check(&[json!("a"), json!("")], "train.tsv:3: the label is empty");
    check(&[json!(["a"]), json!("a")], "train.tsv:3: column `label` is a list in other rows, but not here");
    check(&[json!("a"), json!({})], "train.tsv:3: label {} is not a class");
    let error = SequenceClassification.labels(&labelled(&[json!("a")]), "class").unwrap_err().to_string();
    assert!(error.contains("no column `class` (columns: text, label)"), "{error}");
}

#[test]
fn rows_become_examples() {
    let rows = [json!({ "text": "ab", "label": "pos" }), json!({ "text": "a", "text_pair": "bc", "label": "neg" })];
    let encoded = with_context(&info(&["neg", "pos"], "single_label_classification"), |context| {
        rows.clone().map(|fields| SequenceClassification.encode(&row(2, fields), context).unwrap().remove(0))
    });
    assert_eq!(encoded[0].input_ids, [1, 97, 98, 2]);
    assert_eq!(encoded[0].labels["labels"], Label::Class(1));
    assert_eq!(encoded[1].type_ids, [0, 0, 0, 1, 1, 1]);
    let batch = collate_labels(&encoded.iter().collect::<Vec<_>>());
    assert_eq!(batch.integers("labels").unwrap(), [1, 0]);
    let info = info(&["neg", "pos"], "single_label_classification");
    assert_eq!(SequenceClassification.loss(&batch, &info).unwrap().weight(), 2.0);
}

#[test]
fn labels_become_what_the_problem_needs() {
    let check = |info: &ModelInfo, label: Value, expected: Label| {
        let rows = labelled(&[label]);
        let examples = with_context(info, |context| SequenceClassification.encode(&rows[0], context).unwrap());
        assert_eq!(examples[0].labels["labels"], expected);
    };
    check(&info(&["LABEL_0"], "regression"), json!("4.25"), Label::Float(4.25));
    check(&info(&["a", "b"], "regression"), json!([1, 2.5]), Label::Floats(vec![1.0, 2.5]));
    check(&info(&["a", "b", "c"], "multi_label_classification"), json!(["c", "a"]), Label::Floats(vec![1.0, 0.0, 1.0]));
    // Without a configuration there are two classes without names.
    check(&ModelInfo::custom(), json!(1), Label::Class(1));
    check(&ModelInfo::custom(), json!(["LABEL_1"]), Label::Floats(vec![0.0, 1.0]));
}

#[test]
fn labels_that_the_model_has_not_are_refused() {
    let check = |info: &ModelInfo, label: Value, part: &str| {
        let rows = labelled(&[label]);
        let error =
            with_context(info, |context| SequenceClassification.encode(&rows[0], context).unwrap_err().to_string());
        assert!(error.starts_with("train.tsv:2: ") && error.contains(part), "{error}");
    };
    let classes = info(&["negative", "positive"], "single_label_classification");
    check(&classes, json!("postive"), "unknown label `postive`; did you mean `positive`?");
    check(&classes, json!("2"), "classes: negative, positive");
    check(&classes, json!(["positive"]), "is a list");
    check(&ModelInfo::custom(), json!(2), "unknown label `2`");
    check(&info(&["LABEL_0"], "regression"), json!("good"), "label `good` is no number");
    check(&info(&["a", "b"], "regression"), json!([1]), "1 numbers for 2 outputs");
    let long = row(7, json!({ "text": "too long", "label": "positive" }));
    let error =
        with_context(&classes, |context| SequenceClassification.encode(&long, context).unwrap_err().to_string());
    assert!(error.starts_with("train.tsv:7: more than 8 tokens"), "{error}");
}

#[test]
fn losses_are_those_of_transformers() {
    // Numbers of PyTorch.
    let flags = [[1.0_f32, 0.0, 1.0], [0.0, 0.0, 1.0]];
    let classes = ["a", "b", "c"];
    check_loss(&logits(LOGITS), &labels([2_i64, 1]), &info(&classes, "single_label_classification"), 0.910_991_95);
    check_loss(&logits(LOGITS), &labels(flags), &info(&classes, "multi_label_classification"), 0.763_081_7);
    check_loss(&logits(LOGITS), &labels(flags), &info(&classes, "regression"), 1.270_833_3);
    check_loss(&logits([[0.5], [-1.0], [2.0]]), &labels([1.0_f32, 0.0, 2.5]), &info(&["x"], "regression"), 0.5);
}

#[test]
fn without_a_problem_type_the_labels_decide_the_loss() {
    let with = |outputs: usize| {
        let mut info = ModelInfo::custom();
        info.config.insert("num_labels".to_owned(), outputs.into());
        info
    };
    check_loss(&logits(LOGITS), &labels([2_i64, 1]), &with(3), 0.910_991_95);
    check_loss(&logits(LOGITS), &labels([[1.0_f32, 0.0, 1.0], [0.0, 0.0, 1.0]]), &with(3), 0.763_081_7);
    check_loss(&logits([[0.5], [-1.0], [2.0]]), &labels([1.0_f32, 0.0, 2.5]), &with(1), 0.5);
    let (ranked, info) = (labels([2_i64, 1]), info(&["a", "b", "c"], "ranking"));
    let unknown = SequenceClassification.loss(&ranked, &info);
    assert!(unknown.unwrap_err().to_string().contains("`ranking` is none of regression"));
}

#[test]
fn each_problem_has_its_metrics() {
    let classes = info(&["a", "b"], "single_label_classification");
    // Class a: precision 1, recall 1/2; class b: precision 1/2, recall 1.
    let data: [(Value, &[f32]); 3] = [(json!("a"), &[1.0, 0.0]), (json!("a"), &[0.0, 1.0]), (json!("b"), &[0.0, 1.0])];
    check_metrics(
        &classes,
        &data,
        &[("accuracy", 2.0 / 3.0), ("f1", 2.0 / 3.0), ("f1_weighted", 2.0 / 3.0), ("matthews", 0.5)],
    );
    let number = info(&["LABEL_0"], "regression");
    let data: [(Value, &[f32]); 3] = [(json!(1.0), &[2.0]), (json!(2.0), &[4.0]), (json!(3.0), &[6.0])];
    check_metrics(&number, &data, &[("pearson", 1.0), ("spearman", 1.0), ("mse", 14.0 / 3.0)]);
    let several = info(&["a", "b"], "multi_label_classification");
    let data: [(Value, &[f32]); 2] = [(json!(["a", "b"]), &[1.0, -1.0]), (json!([]), &[-1.0, -1.0])];
    check_metrics(&several, &data, &[("f1_micro", 2.0 / 3.0), ("f1_macro", 0.5), ("accuracy", 0.5)]);
}

#[test]
fn answers_name_the_classes() {
    let close = |value: &Value, expected: f64| assert!((value.as_f64().unwrap() - expected).abs() < 1e-9, "{value}");
    let found = answer(&info(&["a", "b", "c"], "single_label_classification"), &LOGITS[0]);
    assert_eq!(found["label"], "c");
    close(&found["score"], 0.785_597_034_589_275_9);
    close(&found["scores"]["b"], 0.039_112_573_270_687_456);
    let found = answer(&info(&["a", "b", "c"], "multi_label_classification"), &LOGITS[1]);
    assert_eq!(found["labels"], json!(["a", "b"]));
    close(&found["scores"]["c"], 0.320_821_300_824_607);
    assert_eq!(answer(&info(&["x"], "regression"), &[2.5]), json!({ "score": 2.5 }));
    assert_eq!(answer(&info(&["x", "y"], "regression"), &[2.5, 1.0]), json!({ "scores": { "x": 2.5, "y": 1.0 } }));
}

#[test]
fn a_hole_in_a_column_of_numbers_is_refused_and_no_class() {
    for hole in [json!("nan"), json!("inf"), json!("NaN")] {
        let rows = labelled(&[json!(0.5), hole.clone(), json!("1.5")]);
        let error = SequenceClassification.labels(&rows, "label").unwrap_err().to_string();
        assert!(error.starts_with("train.tsv:3: ") && error.contains("no number among numbers"), "{error}");
    }
    let words = SequenceClassification.labels(&labelled(&[json!("nan"), json!("dal")]), "label").unwrap().unwrap();
    assert_eq!(words.labels, ["dal", "nan"], "a word where labels are words");
}
