use burn::tensor::{Device, TensorData};
use peft_core::{
    data::example::{EncodeOptions, Overflow},
    plugins::registry::find,
};
use peft_testing::FakeTokenizer;

use super::*;

const TOKENIZER: FakeTokenizer = FakeTokenizer::new(1).with_special_tokens(1, 2);

fn row(line: usize, fields: Value) -> Row {
    peft_testing::row("dev.json", line, fields)
}

fn with_context<T>(info: &ModelInfo, labelled: bool, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options =
        EncodeOptions { max_length: 11, overflow: Overflow::Truncate, doc_stride: 2, ..EncodeOptions::default() };
    run(&EncodeContext { tokenizer: &TOKENIZER, info, options: &options, labelled })
}

fn question(context: &str, answers: Value) -> Row {
    row(5, json!({ "question": "Q?", "context": context, "answers": answers }))
}

fn encode(row: &Row) -> Result<Vec<Example>> {
    with_context(&ModelInfo::custom(), true, |context| QuestionAnswering.encode(row, context))
}

fn positions(example: &Example) -> (Label, Label) {
    (example.labels["start_positions"].clone(), example.labels["end_positions"].clone())
}

/// The row's examples with logits that are 0 but at the given tokens: window, token of the start, of the end, logit.
fn judge<T>(
    row: &Row,
    labelled: bool,
    peaks: &[(usize, usize, usize, f32)],
    run: impl Fn(&Scored<'_>, &EncodeContext<'_>) -> T,
) -> T {
    let examples = encode(row).unwrap();
    let mut scores: Vec<Scores> = examples.iter().map(|e| vec![vec![0.0; e.input_ids.len()]; 2]).collect();
    for (window, start, end, logit) in peaks {
        scores[*window][0][*start] = *logit;
        scores[*window][1][*end] = *logit;
    }
    let judged = Scored { row, examples: examples.iter().zip(&scores).collect() };
    with_context(&ModelInfo::custom(), labelled, |context| run(&judged, context))
}

#[test]
fn it_is_found_by_its_name() {
    let plugin = find::<TaskPlugin>("QUESTION_ANS").unwrap();
    assert_eq!(plugin.wrapper, "PeftModelForQuestionAnswering");
    assert_eq!(plugin.heads, ["qa_outputs"]);
}

#[test]
fn an_answer_is_marked_in_the_windows_that_hold_it() {
    // Six letters a window, two shared: "abcdéf", "éfghij".
    let examples = encode(&question("abcdéfghij", json!([{ "text": "éf", "answer_start": 4 }]))).unwrap();
    // Four tokens are before the window.
    assert_eq!(positions(&examples[0]), (Label::Class(8), Label::Class(9)));
    assert_eq!(positions(&examples[1]), (Label::Class(4), Label::Class(5)));
    let examples = encode(&question("abcdéfghij", json!({ "text": ["fg"], "answer_start": [5] }))).unwrap();
    assert_eq!(positions(&examples[0]), (Label::Class(0), Label::Class(0)));
    assert_eq!(positions(&examples[1]), (Label::Class(5), Label::Class(6)));
    assert_eq!(examples.len(), 2);
    assert_eq!(examples[0].spans[..5], [None, None, None, None, Some((0, 1))]);
}

#[test]
fn a_question_without_answer_points_at_the_first_token() {
    for none in [json!([]), json!({ "text": [], "answer_start": [] })] {
        let examples = encode(&question("abc", none)).unwrap();
        assert_eq!(positions(&examples[0]), (Label::Class(0), Label::Class(0)));
    }
}

#[test]
fn the_whole_answer_must_be_in_a_window() {
    let spans = [None, Some((3, 5)), Some((6, 9)), Some((9, 10)), None];
    let check = |span, expected| assert_eq!(tokens_of(span, &spans), expected, "{span:?}");
    check((3, 5), Some((1, 1)));
    check((6, 10), Some((2, 3)));
    // An answer inside a token takes the token.
    check((7, 8), Some((2, 2)));
    check((2, 5), None);
    check((9, 11), None);
}

#[test]
fn wrong_answers_are_refused() {
    let check = |answers: Value, part: &str| {
        let error = encode(&question("abcdef", answers)).unwrap_err().to_string();
        assert!(error.starts_with("dev.json:5: ") && error.contains(part), "{error}");
    };
    check(json!([{ "text": "cd", "answer_start": 3 }]), "answer `cd` should stand at character 3, but `de` does");
    check(json!([{ "text": "zz", "answer_start": 90 }]), "answer `zz` should stand at character 90, but `` does");
    check(json!("cd"), "should hold SQuAD's answers (text and answer_start), found \"cd\"");
    check(json!([{ "text": "cd", "answer_start": -1 }]), "should hold SQuAD's answers");
    let long = row(5, json!({ "question": "a very long question", "context": "abc", "answers": [] }));
    assert_eq!(encode(&long).unwrap_err().to_string(), "dev.json:5: no room for the context");
}

#[test]
fn the_loss_is_that_of_transformers() {
    // The number of PyTorch: the 7 is behind the last token and not counted, the -4 is the first.
    let tensor = |values: [[f32; 3]; 2]| Tensor::<2>::from_data(TensorData::from(values), &Device::default());
    let starts = tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]]);
    let ends = tensor([[0.1, 0.2, 0.3], [-1.0, 1.0, 0.5]]);
    let outputs = Outputs::new().with("start_logits", starts).with("end_logits", ends);
    let labels = [("start_positions", [2_i64, 7]), ("end_positions", [1, -4])];
    let labels = Labels(labels.map(|(name, values)| (name.to_owned(), TensorData::from(values))).into());
    let info = ModelInfo::custom();
    let loss = QuestionAnswering.loss(&labels, &info).unwrap();
    assert_eq!(loss.weight(), 2.0);
    let loss = loss.mean(&outputs).unwrap().into_scalar::<f32>();
    assert!((loss - 1.034_880_6).abs() < 1e-6, "{loss}");
}

#[test]
fn scores_leave_out_padding() {
    let tensor =
        || Tensor::<2>::from_data(TensorData::from([[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]]), &Device::default());
    let outputs = Outputs::new().with("start_logits", tensor()).with("end_logits", tensor().neg());
    let example = |tokens| Example { input_ids: vec![9; tokens], ..Example::default() };
    let scores = QuestionAnswering.scores(&outputs, &[&example(2), &example(3)], &ModelInfo::custom()).unwrap();
    assert_eq!(scores[0], [[1.0, 2.0], [-1.0, -2.0]]);
    assert_eq!(scores[1], [[4.0, 5.0, 6.0], [-4.0, -5.0, -6.0]]);
}

#[test]
fn the_best_span_of_all_windows_is_the_answer() {
    let asked = row(5, json!({ "question": "Q?", "context": "abcdéfghij", "answers": [] }));
    // Window 1, tokens 6 and 7: letters 6 and 7 of the context, "gh".
    let found = judge(&asked, false, &[(0, 4, 5, 3.0), (1, 6, 7, 5.0)], |row, context| {
        QuestionAnswering.answer(row, context).unwrap()
    });
    assert_eq!((&found["answer"], &found["start"], &found["end"]), (&json!("gh"), &json!(6), &json!(8)));
    assert!(found["score"].as_f64().unwrap() > 0.9, "{found}");
}

#[test]
fn an_answer_ends_after_it_starts_and_lies_in_the_context() {
    let asked = row(5, json!({ "question": "Q?", "context": "abcdef", "answers": [] }));
    // The question's token 1 and the pair (9, 4), which runs backwards, have the highest logits.
    let found = judge(&asked, false, &[(0, 1, 1, 90.0), (0, 9, 4, 9.0), (0, 8, 9, 2.0)], |row, context| {
        QuestionAnswering.answer(row, context).unwrap()
    });
    // Token 9 alone: 9 for its start, 2 for its end.
    assert_eq!(found["answer"], "f");
}

#[test]
fn silence_is_an_answer_only_where_the_data_knows_it() {
    let peaks = [(0, 0, 0, 5.0), (0, 4, 5, 1.0)];
    let answer = |fields: Value| {
        judge(&row(5, fields), false, &peaks, |row, context| QuestionAnswering.answer(row, context).unwrap())
    };
    let first = answer(json!({ "question": "Q?", "context": "abc", "answers": [] }));
    assert_eq!(first["answer"], "ab");
    let second = answer(json!({ "question": "Q?", "context": "abc", "answers": [], "is_impossible": false }));
    assert_eq!((&second["answer"], &second["start"]), (&json!(""), &Value::Null));
    assert!(second["no_answer"].as_f64().unwrap() > 0.9, "{second}");
}

#[test]
fn metrics_are_percentages_over_questions() {
    let metrics = |rows: &[Row], peaks: &[(usize, usize, usize, f32)]| {
        let examples: Vec<Vec<Example>> = rows.iter().map(|row| encode(row).unwrap()).collect();
        let mut scores: Vec<Scores> = examples.iter().map(|e| vec![vec![0.0; e[0].input_ids.len()]; 2]).collect();
        for (row, start, end, logit) in peaks {
            scores[*row][0][*start] = *logit;
            scores[*row][1][*end] = *logit;
        }
        let pairs = rows.iter().zip(examples.iter().zip(&scores));
        let judged: Vec<_> = pairs.map(|(row, (e, s))| Scored { row, examples: vec![(&e[0], s)] }).collect();
        let found =
            with_context(&ModelInfo::custom(), true, |context| QuestionAnswering.metrics(&judged, context).unwrap());
        (found["f1"], found["exact_match"], found.keys().next().cloned())
    };
    // "b c" against "c": one word of two, F1 2/3.
    let two = question("b c d", json!([{ "text": "c", "answer_start": 2 }]));
    let one = question("b c d", json!([{ "text": "d", "answer_start": 4 }]));
    let (f1, exact, first) = metrics(&[two.clone(), one], &[(0, 4, 6, 5.0), (1, 8, 8, 5.0)]);
    assert!((f1 - 100.0 * (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-9, "{f1}");
    assert_eq!((exact, first.as_deref()), (50.0, Some("f1")));
    // Silence is right for the second, and possible for both.
    let none = question("b c d", json!([]));
    let (f1, exact, _) = metrics(&[two, none], &[(0, 6, 6, 5.0), (1, 0, 0, 5.0)]);
    assert_eq!((f1, exact), (100.0, 100.0));
}

/// Windows of one row with the given spans of the context's tokens.
fn marked(text: &str, windows: &[&[(usize, usize)]], (start, length): (usize, usize)) -> Vec<Option<(usize, usize)>> {
    let window = |spans: &&[(usize, usize)]| Encoding {
        offsets: spans.to_vec(),
        sequences: vec![Some(1); spans.len()],
        ..Encoding::default()
    };
    let windows: Vec<Encoding> = windows.iter().map(window).collect();
    let characters = Characters::new(text, &windows);
    let span = characters.trimmed((start, start + length));
    let spans = windows.iter().map(|window| {
        let spans = context_spans(window).map(|span| span.map(|span| characters.with_stripped(span)));
        tokens_of(span, &spans.collect::<Vec<_>>())
    });
    spans.collect()
}

#[test]
fn an_answer_ends_with_its_own_last_token_though_a_mark_behind_it_is_stripped() {
    // "zoe" with a mark that no token stands for.
    assert_eq!(marked("a zoe\u{308} in", &[&[(0, 1), (2, 4), (4, 5), (7, 9)]], (2, 4)), [Some((1, 2))]);
    assert_eq!(marked("a zoe\u{308}", &[&[(0, 1), (2, 4), (4, 5)]], (2, 4)), [Some((1, 2))]);
    // White space at its ends, and a character of several tokens.
    assert_eq!(marked("a b c", &[&[(0, 1), (2, 3), (4, 5)]], (1, 3)), [Some((1, 1))]);
    assert_eq!(marked("a \u{1f600} c", &[&[(0, 1), (2, 3), (2, 3), (4, 5)]], (2, 1)), [Some((1, 2))]);
    // A window that ends inside of it does not hold it.
    assert_eq!(marked("ab cd", &[&[(0, 1), (1, 2)], &[(1, 2), (3, 5)]], (1, 4)), [None, Some((0, 1))]);
    assert_eq!(Characters::new("zoe\u{308} in", &[]).with_stripped((0, 0)), (0, 0));
}
