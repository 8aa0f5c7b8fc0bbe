//! What the program writes: stop strings, streams, files of prompts, and answers that are measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").canonicalize().unwrap()
}

/// A folder with a golden model, its adapter, and a tokenizer of its 41 tokens: letters, and a few runs of them.
fn folder(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let golden = tests().join("golden").join(case);
    for part in ["model", "adapter"] {
        fs::create_dir(folder.path().join(part)).unwrap();
        for file in golden.join(part).read_dir().unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
        }
    }
    let model = folder.path().join("model");
    fs::copy(tests().join("generation/stops/tokenizer.json"), model.join("tokenizer.json")).unwrap();
    fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "<end>"}"#).unwrap();
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}x{% endif %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    folder
}

/// Exit code, stdout and stderr.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peft"));
    let output = command.current_dir(folder).args(arguments).args(["--device", "cpu"]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn stdout(folder: &Path, arguments: &[&str]) -> String {
    let (code, out, error) = run(folder, arguments);
    assert_eq!(code, 0, "{arguments:?}: {error}");
    out
}

fn parsed(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(folder, &[arguments, &["--json"]].concat())).unwrap()
}

/// `peft generate` with a prompt that the model goes on from with "eqkwj…".
fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--model", "model", "--prompt", "fjr"], more].concat()
}

#[test]
fn what_is_printed_ends_before_a_stop_string() {
    let folder = folder("llama.CAUSAL_LM.default");
    let whole = stdout(folder.path(), &with(&["max_new_tokens=10"]));
    assert!(whole.starts_with("eqkwj"), "{whole}");
    for stream in [&[][..], &["--stream"]] {
        let check = |more: &[&str], says: &str| {
            let found = stdout(folder.path(), &[&with(&["max_new_tokens=10"]), stream, more].concat());
            assert_eq!(found, format!("{says}\n"), "{more:?} {stream:?}");
        };
        check(&[], whole.trim_end_matches('\n'));
        check(&["--stop", "kw"], "eq");
        check(&["--stop", "zz", "--stop", "wj"], "eqk");
        // Begun, and not gone on with.
        check(&["--stop", "qkwx"], whole.trim_end_matches('\n'));
        check(&["--stop-token", "w"], "eqkw");
        check(&["stop_strings=[\"k\"]"], "eq");
    }
    let answers = parsed(folder.path(), &with(&["--stop", "kw"]));
    assert_eq!(
        answers[0],
        json!({ "prompt": "fjr", "text": "eq", "tokens": [4, 16, 10, 22], "score": null, "ended": true })
    );
    let (code, _, error) = run(folder.path(), &with(&["--stop-token", "w!"]));
    assert_eq!((code, error.contains("`w!`") || error.contains("w!")), (2, true), "{error}");
}

#[test]
fn prompts_and_conversations_come_from_a_file() {
    let folder = folder("llama.CAUSAL_LM.default");
    let prompts = |file: &str, text: &str, more: &[&str]| {
        fs::write(folder.path().join(file), text).unwrap();
        let answers = parsed(folder.path(), &[&["generate", "--model", "model", "--data", file][..], more].concat());
        let prompt = |answer: &Value| answer["prompt"].as_str().unwrap().to_owned();
        answers.as_array().unwrap().iter().map(prompt).collect::<Vec<_>>()
    };
    let rows = "{\"prompt\": \"fjr\"}\n{\"prompt\": \"no\", \"completion\": \"pe\"}\n{\"prompt\": \"go\"}\n";
    assert_eq!(prompts("rows.jsonl", rows, &["--batch-size", "2"]), ["fjr", "no", "go"]);
    assert_eq!(prompts("rows.tsv", "question\nfjr\n", &["--column", "prompt=question"]), ["fjr"]);
    assert_eq!(
        prompts("rows.txt", "one\n\ntwo\n", &["num_beams=2", "num_return_sequences=2"]),
        ["one", "one", "two", "two"]
    );
    let chat = json!({ "messages": [
        { "role": "user", "content": "fjr" }, { "role": "assistant", "content": "q" },
    ] });
    let open = json!({ "messages": [{ "role": "user", "content": "go" }] });
    assert_eq!(prompts("chat.jsonl", &format!("{chat}\n{open}\n"), &[]), ["fjr\nx", "go\nx"]);
    // Measured is the last answer of each conversation that has one.
    let eval = ["eval", "--model", "model", "--adapter", "adapter", "--data", "chat.jsonl", "--predict-with-generate"];
    let metrics = parsed(folder.path(), &eval);
    assert_eq!((&metrics["exact_match"], &metrics["rows"]), (&json!(0.0), &json!(2)), "{metrics}");
}

#[test]
fn answers_are_written_and_measured() {
    for (case, prompt, completion) in
        [("llama.CAUSAL_LM.default", "prompt", "completion"), ("t5.SEQ_2_SEQ_LM.gated-all-linear", "source", "target")]
    {
        let folder = folder(case);
        let path = folder.path();
        let written = |prompt: &str| {
            let generate = ["generate", "--model", "model", "--adapter", "adapter", "--prompt", prompt];
            parsed(path, &[&generate[..], &["max_new_tokens=6"]].concat())[0]["text"].as_str().unwrap().to_owned()
        };
        let (right, other) = (written("fjr"), written("no"));
        let rows = [json!({ prompt: "fjr", completion: right }), json!({ prompt: "no", completion: "zz zz" })];
        fs::write(path.join("rows.jsonl"), format!("{}\n{}\n", rows[0], rows[1])).unwrap();
        let on = ["--model", "model", "--adapter", "adapter", "--data", "rows.jsonl"];

        let metrics = parsed(path, &[&["eval", "--predict-with-generate", "max_new_tokens=6"], &on[..]].concat());
        assert_eq!(metrics["exact_match"], 50.0, "{case}: {metrics}");
        for (name, most) in [("rouge_l", 1.0), ("chrf", 100.0), ("bleu", 100.0)] {
            assert!((0.0..=most).contains(&metrics[name].as_f64().unwrap()), "{case} {name}: {metrics}");
        }
        let metrics = parsed(path, &[&["eval"], &on[..]].concat());
        assert!(metrics.get("rouge_l").is_none() && metrics.get("perplexity").is_some(), "{metrics}");

        let answers = parsed(path, &[&["predict", "max_new_tokens=6"], &on[..]].concat());
        assert_eq!(answers, json!([{ "text": right }, { "text": other }]), "{case}");
        let (_, _, notes) = run(path, &[&["predict", "max_new_tokens=1"], &on[..]].concat());
        assert!(notes.contains("2 of 2 answers did not end"), "{notes}");
        let (code, _, error) = run(path, &[&["eval", "num_beams=2"], &on[..]].concat());
        assert_eq!((code, error.contains("--predict-with-generate")), (2, true), "{error}");
    }
}

#[test]
fn whole_texts_are_judged_not_gone_on_from() {
    let folder = folder("llama.CAUSAL_LM.default");
    fs::write(folder.path().join("rows.txt"), "fjr\n\nno\n").unwrap();
    let on = ["--model", "model", "--adapter", "adapter", "--data", "rows.txt"];
    let answers = parsed(folder.path(), &[&["predict"], &on[..]].concat());
    assert!(answers[0].get("perplexity").is_some(), "{answers}");
    for verb in [&["predict", "num_beams=2"][..], &["eval", "--predict-with-generate"]] {
        let (code, _, error) = run(folder.path(), &[verb, &on[..]].concat());
        assert_eq!((code, error.contains("no row asks")), (2, true), "{error}");
    }
}

#[test]
fn options_of_generation_may_be_written_as_flags() {
    let folder = folder("llama.CAUSAL_LM.default");
    let path = folder.path();
    let wanted = parsed(path, &with(&["max_new_tokens=3"]));
    for flags in [&["--max-new-tokens", "3"][..], &["--max_new_tokens=3"], &["--max-length", "6"]] {
        assert_eq!(parsed(path, &with(flags)), wanted, "{flags:?}");
    }
    let wanted = parsed(path, &with(&["max_new_tokens=3", "do_sample=true", "temperature=3.5", "seed=4"]));
    for flags in [
        &["--do-sample", "--temperature", "3.5", "--seed", "4", "max_new_tokens=3"][..],
        &["--temperature", "3.5", "--seed", "4", "--max-new-tokens", "3", "--do-sample", "pad_token_id=-1"],
    ] {
        assert_eq!(parsed(path, &with(flags)), wanted, "{flags:?}");
    }
}

#[test]
fn options_that_change_nothing_and_answers_that_were_cut_are_told_of() {
    let folder = folder("llama.CAUSAL_LM.default");
    let notes = |more: &[&str]| {
        let (code, out, notes) = run(folder.path(), &with(more));
        assert_eq!(code, 0, "{notes}");
        (out, notes)
    };
    let (greedy, _) = notes(&["max_new_tokens=4"]);
    let (out, told) = notes(&["temperature=0", "max_new_tokens=4"]);
    assert!(out == greedy && told.contains("temperature has no effect without do_sample"), "{told}");
    let (_, told) = notes(&["temperature=2", "top_p=0.5", "max_new_tokens=4", "--do-sample"]);
    assert!(!told.contains("no effect"), "{told}");
    let (_, told) = notes(&["--stop", "zzzz"]);
    assert!(told.contains("1 of 1 answers did not end within 20 new tokens: see max_new_tokens"), "{told}");
    let (_, told) = notes(&["max_new_tokens=4"]);
    assert!(!told.contains("did not end"), "{told}");
    let several = ["--stream", "do_sample=true", "num_return_sequences=2"];
    let (code, _, error) = run(folder.path(), &with(&several));
    assert!(code == 2 && error.contains("num_return_sequences"), "{error}");
}
