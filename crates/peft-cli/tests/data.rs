//! Data as the program meets it: what it shows, and what it refuses.

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
    assert!(message.contains("eval.jsonl:2: unknown label `godo`; did you mean `good`?"), "{message}");
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
    assert!(message.contains("x.txt: no row has `text_pair` and `score`"), "{message}");
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
    check("TOKEN_CLS", &[tags], wrong, "unknown label `B-PRE`; did you mean `B-PER`?");
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

#[test]
fn a_file_without_the_columns_is_refused_once_with_what_to_write() {
    let columns = json!({ "body": "fine", "category": "good" });
    let folder = workplace("SEQ_CLS", "chatml");
    write_rows(folder.path(), "train.jsonl", &vec![columns; 12]);
    let message = refused(folder.path(), &[]);
    assert_eq!(message.matches("no column").count(), 2, "{message}");
    assert!(
        message.contains("train.jsonl: no column `text`, no column `label` (columns: body, category)"),
        "{message}"
    );
    assert!(message.contains("text = \"body\" and label = \"category\" in [data]"), "{message}");
    let message = refused(folder.path(), &["data.text=body", "data.label=kategorie"]);
    assert!(message.contains("no column `kategorie`") && message.contains("label = \"category\""), "{message}");
    assert_eq!(message.matches("kategorie").count(), 1, "{message}");

    let tagged = workplace("TOKEN_CLS", "chatml");
    write_rows(tagged.path(), "train.jsonl", &[json!({ "tokens": ["Ada"], "ner_tags": ["B-PER"] })]);
    assert!(refused(tagged.path(), &[]).contains("write tags = \"ner_tags\" in [data]"));
    let rows = "{\"prompt\": \"a\", \"answer\": \"b\"}\n".repeat(12);
    let message = refused_file("CAUSAL_LM", "x.jsonl", &rows, &[]);
    assert_eq!(message.matches("no column `completion`").count(), 1, "{message}");
}

#[test]
fn a_table_in_place_of_a_recipe_is_refused_as_such() {
    let folder = workplace("SEQ_CLS", "chatml");
    fs::write(folder.path().join("t.csv"), "text,label\na,b\n").unwrap();
    for arguments in [&["train", "t.csv"][..], &["data", "show", "t.csv"]] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("t.csv: a file of data, no recipe"), "{}", text(&output.stderr));
    }
    let output = run(folder.path(), &["inspect", "t.csv"]);
    assert!(text(&output.stderr).contains("t.csv: not a safetensors file but text"), "{}", text(&output.stderr));
}

#[test]
fn a_key_that_is_given_as_an_option_is_answered_with_how_it_is_written() {
    let folder = workplace("SEQ_CLS", "chatml");
    for (option, says) in [
        (&["--lr", "1e-3"][..], "write training.learning_rate=1e-3"),
        (&["--learning-rate=1e-3"], "write training.learning_rate=1e-3"),
        (&["--lora_r", "8"], "write adapter.r=8"),
        (&["--max-seq-length", "64"], "write data.max_length=64"),
    ] {
        let output = run(folder.path(), &[&["train", "recipe.toml"], option].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
}

/// A trained classifier of the tiny encoder, its rows (five of nine too long) and what training said.
fn classifier_with_long_rows(overflow: &str) -> (tempfile::TempDir, Output) {
    let folder = workplace("SEQ_CLS", "chatml");
    let row = |at: usize| {
        let length = if at < 4 { 2 } else { 30 };
        json!({ "text": "fine ".repeat(length), "label": if at.is_multiple_of(2) { "good" } else { "bad" } })
    };
    write_rows(folder.path(), "train.jsonl", &(0..9).map(row).collect::<Vec<_>>());
    let overflow = format!("data.overflow={overflow}");
    let trained = run(folder.path(), &["train", "recipe.toml", "data.max_length=12", &overflow]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    (folder, trained)
}

#[test]
fn rows_that_are_left_out_are_counted_with_the_reason() {
    let (folder, trained) = classifier_with_long_rows("drop");
    let says = "5 left out, longer than max_length = 12 tokens";
    assert!(text(&trained.stderr).contains(says), "{}", text(&trained.stderr));
    let model = root().join("examples/models/tiny-encoder").display().to_string();
    let on = ["--model", &model, "--adapter", "out", "--data", "train.jsonl"];
    let output = run(folder.path(), &[&["eval", "--json"], &on[..]].concat());
    assert!(text(&output.stderr).contains(&format!("4 of 9 rows are used, {says}")), "{}", text(&output.stderr));
    let document: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!((&document["rows"], &document["examples"], &document["too_long"]), (&json!(9), &json!(4), &json!(5)));
    // Every row is answered, and those that are cut are told of.
    let output = run(folder.path(), &[&["predict"], &on[..]].concat());
    assert_eq!(text(&output.stdout).lines().count(), 9);
    assert!(text(&output.stderr).contains("5 cut to max_length = 12 tokens"), "{}", text(&output.stderr));
    let output = run(folder.path(), &[&["predict", "--overflow", "drop"], &on[..]].concat());
    assert_eq!(output.status.code(), Some(2));
    let output = run(folder.path(), &["train", "recipe.toml", "data.max_length=3", "data.overflow=drop"]);
    assert!(
        text(&output.stderr).contains("all 9 rows are longer than max_length = 3 tokens"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn rows_from_standard_input_are_answered_as_those_of_a_file() {
    let (folder, _) = classifier_with_long_rows("truncate");
    let model = root().join("examples/models/tiny-encoder").display().to_string();
    let on = ["predict", "-q", "--model", &model, "--adapter", "out", "--data"];
    let of_file = run(folder.path(), &[&on[..], &["train.jsonl"]].concat());
    let piped = Command::new(env!("CARGO_BIN_EXE_peft"))
        .current_dir(folder.path())
        .args(on)
        .arg("-")
        .stdin(fs::File::open(folder.path().join("train.jsonl")).unwrap())
        .output()
        .unwrap();
    assert!(!piped.stdout.is_empty());
    assert_eq!(text(&piped.stdout), text(&of_file.stdout));
    let array = run(folder.path(), &[&on[..], &["train.jsonl", "--json"]].concat());
    let array: Vec<Value> = serde_json::from_str(&text(&array.stdout)).unwrap();
    let lines: Vec<Value> = text(&of_file.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(array, lines);
}

#[test]
fn a_rare_class_that_is_evaluated_alone_is_a_class_all_the_same() {
    let folder = workplace("SEQ_CLS", "chatml");
    let mut rows: Vec<Value> =
        (0..8).map(|at| json!({ "text": "fine", "label": if at % 2 == 0 { "good" } else { "bad" } })).collect();
    rows.push(json!({ "text": "so so", "label": "neutral" }));
    write_rows(folder.path(), "train.jsonl", &rows);
    for seed in 0..8 {
        let seed = format!("training.seed={seed}");
        let output = run(folder.path(), &["train", "recipe.toml", "--dry-run", "--json", "data.eval_split=0.3", &seed]);
        let document: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        assert_eq!(document["labels"], json!(["bad", "good", "neutral"]));
    }
}

#[test]
fn a_regression_is_said_to_be_one() {
    let folder = workplace("SEQ_CLS", "chatml");
    write_rows(
        folder.path(),
        "train.jsonl",
        &[json!({ "text": "a", "label": 0.0 }), json!({ "text": "b", "label": 1.0 })],
    );
    let output = run(folder.path(), &["train", "recipe.toml", "--dry-run"]);
    let shown = text(&output.stdout);
    assert!(shown.contains("regression: the labels are numbers") && shown.contains("write 0 and 1"), "{shown}");
}

#[test]
fn an_evaluation_in_which_nothing_counts_is_refused() {
    let folder = workplace("CAUSAL_LM", "chatml");
    write_rows(folder.path(), "train.jsonl", &[json!({ "prompt": "a", "completion": "b" })]);
    write_rows(folder.path(), "ev.jsonl", &[json!({ "prompt": "a beginning that is long", "completion": "b" })]);
    let cut = ["data.max_length=8", "data.overflow=truncate", "data.eval=ev.jsonl"];
    let output = run(folder.path(), &[&["data", "show", "recipe.toml"], &cut[..]].concat());
    assert_eq!(output.status.code(), Some(3));
    let message = text(&output.stderr);
    assert!(message.contains("ev.jsonl: nothing to evaluate on") && message.contains("max_length = 8"), "{message}");
}

#[test]
fn tables_with_another_separator_and_names_with_spaces_are_told_of() {
    let says = |name: &str, text: &str, part: &str| {
        let message = refused_file("SEQ_CLS", name, text, &[]);
        assert!(message.contains(part), "{message}");
    };
    says("x.csv", "text;label\na;x\nb, or c;y\n", "separated by semicolons: a .csv file has commas, a .tsv file tabs");
    says("x.csv", "text\tlabel\na\tx\nb\ty\n", "separated by tabs");
    says("x.tsv", "text,label\na,x\nb,y\n", "separated by commas");
    says("x.tsv", "text\t label\na\tx\nb\ty\n", "(columns: \" label\", text)");
    says("x.tsv", "text\t label\na\tx\nb\ty\n", "--column \"label= label\"");
    says("x.tsv", "text\tlabel\na\t-100\nb\t1\n", "x.tsv:2: label -100 marks a token that the loss ignores");
    // A polarity is a class like others.
    let folder = workplace("SEQ_CLS", "chatml");
    fs::write(folder.path().join("x.tsv"), "text\tlabel\na\t-1\nb\t0\nc\t1\n").unwrap();
    let output = run(folder.path(), &["train", "recipe.toml", "--dry-run", "data.train=x.tsv"]);
    assert!(text(&output.stdout).contains("labels: -1, 0, 1"), "{}", text(&output.stderr));
    let output = run(folder.path(), &["train", "recipe.toml", "data.train=-"]);
    assert!(text(&output.stderr).contains("write them to a file"), "{}", text(&output.stderr));
}
