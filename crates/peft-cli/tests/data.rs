//! Data as the program meets it: what it shows, and what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peft")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder with the recipe of a task, and a model that is a configuration and a tokenizer with a chat template.
fn workplace(task: &str, template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let config = fs::read_to_string(root().join("tests/golden/llama.CAUSAL_LM.default/model/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = json!(300);
    config["max_position_embeddings"] = json!(128);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root().join("tests/chat/tokenizer").join(file), model.join(file)).unwrap();
    }
    fs::copy(root().join(format!("tests/chat/templates/{template}.jinja")), model.join("chat_template.jinja")).unwrap();
    let model = if task == "CAUSAL_LM" {
        "model".to_owned()
    } else {
        root().join("examples/models/tiny-encoder").display().to_string()
    };
    let recipe = format!(
        "[model]\nmodel_name_or_path = \"{model}\"\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"{task}\"\n\
         [data]\ntrain = \"train.jsonl\"\n[training]\noutput_dir = \"out\"\nmax_steps = 1\n"
    );
    fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    folder
}

fn write_rows(folder: &Path, name: &str, rows: &[Value]) {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(folder.join(name), lines).unwrap();
}

fn dialogue() -> Value {
    json!({ "messages": [{ "role": "user", "content": "Hi" }, { "role": "assistant", "content": "Ho" }] })
}

#[test]
fn examples_are_shown_token_by_token_with_their_labels() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(folder.path(), "train.jsonl", &[dialogue()]);
    let wish = "data.assistant_only_loss=true";
    let shown = run(folder.path(), &["data", "show", "recipe.toml", wish, "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let document: Value = serde_json::from_str(&text(&shown.stdout)).unwrap();
    let example = &document["examples"][0];
    assert_eq!((&example["line"], &document["summary"]["loss_tokens"]), (&json!(1), &json!(3)));
    let learnt = example["tokens"].as_array().unwrap().iter().filter(|token| token["label"] != -100);
    let learnt: Vec<&str> = learnt.map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(learnt, ["H", "o", "<|im_end|>"]);

    let shown = text(&run(folder.path(), &["data", "show", "recipe.toml", wish]).stdout);
    assert!(shown.contains("1 rows, 1 examples") && shown.contains("3 loss tokens"), "{shown}");
    let first = shown.lines().find(|line| line.ends_with('·')).unwrap();
    assert!(first.contains("<|im_start|>"), "{shown}");
    assert!(shown.lines().any(|line| line.trim_end().ends_with("<|im_end|>") && line.matches("im_end").count() == 2));
}

#[test]
fn classes_are_shown_by_their_names() {
    let folder = workplace("SEQ_CLS", "chatml");
    write_rows(
        folder.path(),
        "train.jsonl",
        &[json!({ "text": "fine", "label": "good" }), json!({ "text": "poor", "label": "bad" })],
    );
    let shown = text(&run(folder.path(), &["data", "show", "recipe.toml"]).stdout);
    assert!(shown.contains("labels: \"good\"") && shown.contains("labels: bad, good"), "{shown}");
}

#[test]
fn rows_of_one_of_several_adapters_are_shown_by_its_name() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(folder.path(), "train.jsonl", &[dialogue(), dialogue()]);
    write_rows(folder.path(), "own.jsonl", &[dialogue()]);
    let path = folder.path().join("recipe.toml");
    let several = "[[adapters]]\nname = \"red\"\ntrain = \"train.jsonl\"\n\
                   [[adapters]]\nname = \"blue\"\ntrain = \"own.jsonl\"\n";
    fs::write(&path, fs::read_to_string(&path).unwrap() + several).unwrap();
    let show = |more: &[&str]| run(folder.path(), &[&["data", "show", "recipe.toml"], more].concat());

    let first = text(&show(&[]).stdout);
    assert!(first.starts_with("adapter `red`; --adapter shows the rows of another: blue\n"), "{first}");
    assert!(first.contains("train: 2 rows"), "{first}");
    let second = text(&show(&["--adapter", "blue"]).stdout);
    assert!(second.starts_with("adapter `blue`") && second.contains("train: 1 rows"), "{second}");
    let document: Value = serde_json::from_str(&text(&show(&["--adapter", "blue", "--json"]).stdout)).unwrap();
    assert_eq!((&document["adapter"], &document["summary"]["rows"]), (&json!("blue"), &json!(1)));

    let unknown = show(&["--adapter", "green"]);
    let problem = text(&unknown.stderr);
    assert!(!unknown.status.success() && problem.contains("green") && problem.contains("red, blue"), "{problem}");
}

#[test]
fn packed_examples_are_shown_as_one() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(folder.path(), "train.jsonl", &[json!({ "text": "one" }), json!({ "text": "four" })]);
    let shown = run(folder.path(), &["data", "show", "recipe.toml", "data.packing=true", "--json"]);
    let document: Value = serde_json::from_str(&text(&shown.stdout)).unwrap();
    assert_eq!(document["examples"][0]["packed"], json!([5, 4]));
}

/// What the program says of rows that it refuses with exit code 3.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, &[&["train", "recipe.toml", "--dry-run"], arguments].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(!message.contains("panicked") && !folder.join("out").exists(), "{message}");
    message
}

/// A message that names the first ten of twelve rows, from line 2 on.
fn check_ten(message: &str, says: &str) {
    for line in 2..=11 {
        assert!(message.contains(&format!("train.jsonl:{line}: ")), "{message}");
    }
    assert!(message.contains(says) && message.contains("and 2 more") && !message.contains("jsonl:12"), "{message}");
}

fn one_and_twelve(first: &Value, others: &Value) -> Vec<Value> {
    [first].into_iter().chain(std::iter::repeat_n(others, 12)).cloned().collect()
}

#[test]
fn bad_rows_are_told_of_together_before_anything_is_trained() {
    let folder = workplace("SEQ_CLS", "chatml");
    let good = json!({ "text": "fine", "label": "good" });
    write_rows(folder.path(), "train.jsonl", &one_and_twelve(&good, &json!([])));
    check_ten(&refused(folder.path(), &[]), "should hold a JSON object");
    write_rows(folder.path(), "train.jsonl", &one_and_twelve(&good, &json!({ "text": "poor" })));
    check_ten(&refused(folder.path(), &[]), "no column `label` (columns: text)");
    write_rows(folder.path(), "train.jsonl", &one_and_twelve(&good, &json!({ "txt": "poor", "label": "bad" })));
    check_ten(&refused(folder.path(), &[]), "no column `text` (columns: txt, label)");
    let long = json!({ "text": "poor ".repeat(40), "label": "bad" });
    write_rows(folder.path(), "train.jsonl", &one_and_twelve(&good, &long));
    check_ten(
        &refused(folder.path(), &["data.max_length=16"]),
        "more than 16 tokens: raise max_length, or set overflow",
    );
    for rule in ["truncate", "drop"] {
        let overflow = format!("data.overflow={rule}");
        let shown = run(folder.path(), &["data", "show", "recipe.toml", "data.max_length=16", &overflow, "--json"]);
        let document: Value = serde_json::from_str(&text(&shown.stdout)).unwrap();
        assert_eq!(document["summary"]["examples"], if rule == "drop" { 1 } else { 13 });
    }
}

#[test]
fn labels_outside_the_models_are_named_with_the_nearest() {
    let folder = workplace("SEQ_CLS", "chatml");
    let rows = [json!({ "text": "fine", "label": "good" }), json!({ "text": "poor", "label": "bad" })];
    write_rows(folder.path(), "train.jsonl", &rows);
    write_rows(folder.path(), "eval.jsonl", &[rows[0].clone(), json!({ "text": "so", "label": "godo" })]);
    let message = refused(folder.path(), &["data.eval=eval.jsonl"]);
    assert!(message.contains("eval.jsonl:2: label `godo` is no class of the model; did you mean `good`?"), "{message}");
}

#[test]
fn empty_files_are_refused() {
    let folder = workplace("SEQ_CLS", "chatml");
    fs::write(folder.path().join("train.jsonl"), "\n").unwrap();
    assert!(refused(folder.path(), &[]).contains("no rows"));
}

#[test]
fn rows_of_mixed_shapes_are_refused() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(
        folder.path(),
        "train.jsonl",
        &one_and_twelve(&dialogue(), &json!({ "prompt": "a", "completion": "b" })),
    );
    let output = run(folder.path(), &["data", "show", "recipe.toml"]);
    assert_eq!(output.status.code(), Some(3));
    check_ten(&text(&output.stderr), "a row of shape `prompt` among rows of shape `messages`");
}

#[test]
fn a_run_without_anything_to_learn_is_refused() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(folder.path(), "train.jsonl", &[json!({ "prompt": "a long beginning", "completion": "b" })]);
    let output = run(folder.path(), &["data", "show", "recipe.toml", "data.max_length=8", "data.overflow=truncate"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("nothing to learn from"), "{}", text(&output.stderr));
}

#[test]
fn a_run_that_never_learns_to_stop_is_refused() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(folder.path(), "train.jsonl", &[dialogue()]);
    // The end of the turn outside of the block.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role }} {% if m.role == 'assistant' %}{% generation %}\
                    {{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}";
    fs::write(folder.path().join("model/chat_template.jinja"), template).unwrap();
    let output = run(folder.path(), &["data", "show", "recipe.toml", "data.assistant_only_loss=true"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("the end of a turn is never learnt"), "{}", text(&output.stderr));
}

/// A folder as [`workplace`] makes it, also for the task whose model is an encoder with a decoder.
fn place_of(task: &str) -> tempfile::TempDir {
    if task != "SEQ_2_SEQ_LM" {
        return workplace(task, "chatml");
    }
    let folder = workplace("CAUSAL_LM", "chatml");
    let config = fs::read_to_string(root().join("tests/golden/bart.SEQ_2_SEQ_LM.default/model/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = json!(300);
    config["max_position_embeddings"] = json!(128);
    fs::write(folder.path().join("model/config.json"), config.to_string()).unwrap();
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    fs::write(folder.path().join("recipe.toml"), recipe.replace("CAUSAL_LM", task)).unwrap();
    folder
}

/// What the program says of a file of that task, with exit code 3.
fn refused_file(task: &str, name: &str, content: &str, more: &[&str]) -> String {
    let folder = place_of(task);
    fs::write(folder.path().join(name), content).unwrap();
    let train = format!("data.train={name}");
    let output = run(folder.path(), &[&["data", "show", "recipe.toml", &train], more].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{task} {name}: {message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{task} {name}: {message}");
    message
}

/// Twelve bad rows behind a good one: ten are named by file and line, and the others counted.
#[track_caller]
fn check_ten_of_twelve(message: &str, name: &str, lines: impl Fn(usize) -> usize, says: &str) {
    for row in 0..10 {
        assert!(message.contains(&format!("{name}:{}: ", lines(row))), "row {row}: {message}");
    }
    assert!(!message.contains(&format!("{name}:{}: ", lines(10))), "{message}");
    assert!(message.contains(says) && message.ends_with("and 2 more\n"), "`{says}`: {message}");
}

#[test]
fn bad_rows_of_every_format_are_named() {
    let check = |task, name, good: &str, bad: &str, end: &str, lines: &dyn Fn(usize) -> usize, says: &str| {
        let message = refused_file(task, name, &format!("{good}{}{end}", bad.repeat(12)), &[]);
        check_ten_of_twelve(&message, name, lines, says);
    };
    let after = |first: usize, step: usize| move |row: usize| first + step * row;
    check("SEQ_CLS", "x.tsv", "text\tlabel\nfine\tgood\n", "poor\n", "", &after(3, 1), "1 cell, but the header has 2");
    check("SEQ_CLS", "x.csv", "text,label\n\"a\nb\",good\n", "a,b,c\n", "", &after(4, 1), "3 cells, but the header");
    check("SEQ_CLS", "x.jsonl", "{\"text\": \"a\", \"label\": \"b\"}\n", "{\n", "", &after(2, 1), "not valid JSON");
    check(
        "SEQ_CLS",
        "x.json",
        "[{\"text\": \"a\", \"label\": \"b\"}",
        ",\n1",
        "]",
        &after(2, 1),
        "should hold objects",
    );
    check("TOKEN_CLS", "x.conll", "a O\n", "b\n", "", &after(2, 1), "a word and its tag should stand here");
    check("TOKEN_CLS", "x.conllu", "1\ta\ta\tX\tX\t_\t_\t_\t_\t_\n", "1\tb\n", "", &after(2, 1), "2 of 10");
    let squad = "{\"data\": [{\"paragraphs\": [{\"context\": \"C\", \"qas\": [{\"question\": \"Q\", \"answers\": []}";
    check("QUESTION_ANS", "x.json", squad, ",\n{\"answers\": []}", "]}]}]}", &after(2, 1), "has no text `question`");
    let long = "\n\na paragraph of many more tokens than eight";
    let message = refused_file("CAUSAL_LM", "x.txt", &format!("short{}", long.repeat(12)), &["data.max_length=8"]);
    check_ten_of_twelve(&message, "x.txt", |row| 3 + 2 * row, "more than 8 tokens");
}

#[test]
fn wrong_rows_of_every_task_are_named() {
    let check = |task, good: Value, bad: Value, says: &str| {
        let rows: String = one_and_twelve(&good, &bad).iter().map(|row| format!("{row}\n")).collect();
        check_ten_of_twelve(&refused_file(task, "x.jsonl", &rows, &[]), "x.jsonl", |row| 2 + row, says);
    };
    // Columns that are not there.
    let tagged = json!({ "tokens": ["a", "b"], "tags": ["X", "Y"] });
    check("TOKEN_CLS", tagged.clone(), json!({ "tokens": ["a"] }), "no column `tags` (columns: tokens)");
    check("TOKEN_CLS", tagged.clone(), json!({ "tags": ["X"] }), "no column `tokens` (columns: tags)");
    let asked = json!({ "question": "q", "context": "abc", "answers": [{ "text": "b", "answer_start": 1 }] });
    check("QUESTION_ANS", asked.clone(), json!({ "question": "q", "context": "abc" }), "no column `answers`");
    check("QUESTION_ANS", asked.clone(), json!({ "question": "q", "answers": [] }), "no column `context`");
    check("CAUSAL_LM", json!({ "text": "a" }), json!({ "txt": "a" }), "(columns: txt)");
    check("CAUSAL_LM", json!({ "prompt": "a", "completion": "b" }), json!({ "prompt": "a" }), "no column `completion`");
    let pair = json!({ "source": "a", "target": "b" });
    check("SEQ_2_SEQ_LM", pair.clone(), json!({ "source": "a" }), "no column `target` (columns: source)");
    check("SEQ_2_SEQ_LM", pair, json!({ "target": "a" }), "no column `source` (columns: target)");
    let scored = json!({ "text": "a", "text_pair": "b", "score": 0.5 });
    check("FEATURE_EXTRACTION", scored.clone(), json!({ "text_pair": "a", "score": 1 }), "no column `text`");
    // Rows of another shape.
    check("FEATURE_EXTRACTION", scored.clone(), json!({ "text": "a" }), "no column `text_pair`, which other rows have");
    let listed = json!({ "text": "a", "label": ["x", "y"] });
    check("SEQ_CLS", listed, json!({ "text": "a", "label": "x" }), "a list in other rows, but not here");
    // Values that are not what they should be.
    let unlike = json!({ "text": "a", "text_pair": "b", "score": "much" });
    check("FEATURE_EXTRACTION", scored, unlike, "column `score` should be a number, found \"much\"");
    check("TOKEN_CLS", tagged.clone(), json!({ "tokens": ["a", "b"], "tags": ["X"] }), "1 tags for 2 words");
    check("TOKEN_CLS", tagged, json!({ "tokens": "a b", "tags": ["X"] }), "should be a list of words");
    let elsewhere = json!({ "question": "q", "context": "abc", "answers": [{ "text": "b", "answer_start": 2 }] });
    check("QUESTION_ANS", asked, elsewhere, "answer `b` should stand at character 2, but `c` does");
    check("CAUSAL_LM", dialogue(), json!({ "messages": [{ "role": "user" }, "x"] }), "messages[1]");
    let message = refused_file("SEQ_CLS", "x.tsv", "text\tlabel\na\tx\nb\tx\n", &[]);
    assert!(message.contains("x.tsv: every row has the label `x`"), "{message}");
    let message = refused_file("FEATURE_EXTRACTION", "x.txt", "a\n\nb\n", &[]);
    assert!(message.contains("x.txt: nothing to learn from"), "{message}");
}

#[test]
fn labels_outside_the_models_are_named_for_every_task_with_classes() {
    let check = |task, train: &[Value], bad: Value, says: &str| {
        let folder = place_of(task);
        write_rows(folder.path(), "train.jsonl", train);
        write_rows(folder.path(), "eval.jsonl", &one_and_twelve(&train[0], &bad));
        let output = run(folder.path(), &["data", "show", "recipe.toml", "data.eval=eval.jsonl"]);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        check_ten_of_twelve(&text(&output.stderr), "eval.jsonl", |row| 2 + row, says);
    };
    let tags = json!({ "tokens": ["a", "b"], "tags": ["B-PER", "O"] });
    let wrong = json!({ "tokens": ["a", "b"], "tags": ["O", "B-PRE"] });
    check("TOKEN_CLS", &[tags], wrong, "label `B-PRE` is no class of the model; did you mean `B-PER`?");
    let several = |labels: &[&str]| json!({ "text": "a", "label": labels });
    check("SEQ_CLS", &[several(&["red", "blue"])], several(&["red", "bleu"]), "did you mean `blue`?");
    let number = |label: &str| json!({ "text": "a", "label": label });
    check("SEQ_CLS", &[number("0.5"), number("1.0")], number("many"), "label `many` is no number");
}

#[test]
fn empty_files_of_every_format_are_refused() {
    let empty = [
        ("x.tsv", "text\tlabel\n", "no rows"),
        ("x.csv", "text,label\n", "no rows"),
        ("x.jsonl", "\n\n", "no rows"),
        ("x.json", "[]", "no rows"),
        ("x.json", "{\"data\": []}", "no rows"),
        ("x.conll", "\n", "no rows"),
        ("x.conllu", "# a comment\n", "no rows"),
        ("x.txt", " \n\n", "no rows"),
    ];
    let nothing = ["x.tsv", "x.csv", "x.jsonl", "x.json", "x.conll", "x.conllu", "x.txt"].map(|name| (name, "", name));
    for (name, content, says) in empty.into_iter().chain(nothing) {
        let message = refused_file("SEQ_CLS", name, content, &[]);
        assert!(message.contains(&format!("{name}: ")) && message.contains(says), "{message}");
    }
}
