//! Conversations as text and as labels, against what Transformers makes of them (`chat/generate.py`).

use std::{fs, path::PathBuf, sync::Arc};

use peft::{
    ModelInfo, Result, Task,
    batch::IGNORE,
    causal_lm::CausalLm,
    data::{
        chat::Conversation,
        example::{EncodeContext, EncodeOptions, Example, Label, Overflow, Row},
        tokenizer::Tokenizer,
    },
    models::HfTokenizer,
};
use serde::Deserialize;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("chat")
}

fn tokenizer(template: &str) -> HfTokenizer {
    let source = fs::read_to_string(folder().join(format!("templates/{template}.jinja"))).unwrap();
    HfTokenizer::from_folder(&folder().join("tokenizer")).unwrap().with_chat_template(&source)
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Value>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    text: Option<String>,
    input_ids: Option<Vec<u32>>,
    assistant_masks: Option<Vec<u8>>,
    error: Option<String>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&fs::read_to_string(folder().join("expected.json")).unwrap()).unwrap()
}

#[test]
fn conversations_read_as_transformers_writes_them() {
    for case in cases() {
        let tokenizer = tokenizer(&case.template);
        let tools = case.tools.as_ref();
        let conversation =
            Conversation { messages: &case.messages, tools, add_generation_prompt: case.add_generation_prompt };
        let rendered = tokenizer.render_chat(&conversation);
        let Some(expected) = case.text else {
            let message = rendered.unwrap_err().to_string();
            assert!(message.contains(&case.error.unwrap()), "{}: {message}", case.template);
            continue;
        };
        let rendered = rendered.unwrap();
        assert_eq!(rendered.text, expected, "{}", case.template);
        let encoding = tokenizer.encode_rendered(&rendered.text, usize::MAX).unwrap();
        assert_eq!(encoding.ids, case.input_ids.unwrap(), "{}", case.template);
        let masks = rendered.generated.map(|ranges| {
            let inside = |(start, end): &(usize, usize)| ranges.iter().any(|r| *start < r.end && *end > r.start);
            encoding.offsets.iter().map(|offset| u8::from(inside(offset))).collect::<Vec<_>>()
        });
        assert_eq!(masks, case.assistant_masks, "{}", case.template);
    }
}

#[test]
fn templates_do_what_jinja_and_python_do() {
    let expressions = fs::read_to_string(folder().join("expressions.json")).unwrap();
    let expressions: Vec<(String, Option<String>)> = serde_json::from_str(&expressions).unwrap();
    let (short, bare) = (&cases()[0].messages, HfTokenizer::from_folder(&folder().join("tokenizer")).unwrap());
    let conversation = Conversation { messages: short, tools: None, add_generation_prompt: false };
    let mut tokenizer = bare;
    for (template, expected) in expressions {
        tokenizer = tokenizer.with_chat_template(&template);
        let rendered = tokenizer.render_chat(&conversation).ok().map(|rendered| rendered.text);
        assert_eq!(rendered, expected, "{template}");
    }
}

#[test]
fn a_template_that_does_not_end_or_is_too_deep_is_refused_by_its_name() {
    let doubling = |start: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(40) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ {end} }}}}"
        )
    };
    let messages = [json!({ "role": "user", "content": "hi" })];
    for template in [
        format!("{{{{ {}1 }}}}", "-".repeat(30_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(30_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(3000), ")".repeat(3000)),
        format!("{{%{} endif %}}", " if 1 %}{%".repeat(2000)),
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}".to_owned(),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".to_owned(),
        doubling("'a'", "ns.x ~ ns.x", "ns.x"),
        doubling("'a'", "ns.x + ns.x", "ns.x"),
        doubling("'a'", "ns.x * 2", "ns.x"),
        doubling("'a'", "[ns.x, ns.x]", "ns.x"),
        doubling("'a'", "[ns.x, ns.x]", "ns.x | tojson"),
        doubling("'a'", "[ns.x, ns.x]", "ns.x | string | length"),
        doubling("'aa'", "ns.x.replace('a', 'aa')", "ns.x"),
        "{{ messages | tojson(indent=2000000000) }}".to_owned(),
        "{{ 'a' | center(10 ** 10) }}{{ 'a'.rjust(10 ** 10) }}".to_owned(),
        "{{ 'x' | indent(1000000000) }}{{ 'x' * 1000000000 }}".to_owned(),
        "{{ '{:>1000000000}'.format(1) }}".to_owned(),
        "{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ range(100000) | map('string') | join('b' * 10000) }}".to_owned(),
    ] {
        let tokenizer = tokenizer("chatml").with_chat_template(&template);
        let conversation = Conversation { messages: &messages, tools: None, add_generation_prompt: false };
        let begins = template.chars().take(100).collect::<String>();
        let error = tokenizer.render_chat(&conversation).expect_err(&begins);
        assert_eq!(error.exit_code(), 3, "{begins}");
        let error = error.to_string();
        assert!(error.starts_with("the chat template ") && error.len() < 1000, "{begins}: {error}");
    }
}

#[test]
fn a_folders_templates_are_chosen_by_their_names() {
    let model = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder().join("tokenizer")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.path().join(file.file_name())).unwrap();
    }
    let tools = json!([]);
    let rendered = |tools: Option<&Value>| {
        let tokenizer = HfTokenizer::from_folder(model.path()).unwrap();
        let conversation = Conversation { messages: &[], tools, add_generation_prompt: false };
        tokenizer.render_chat(&conversation).map(|rendered| rendered.text).map_err(|error| error.to_string())
    };
    let config = model.path().join("tokenizer_config.json");
    let mut settings: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    settings["chat_template"] =
        json!([{ "name": "default", "template": "a" }, { "name": "tool_use", "template": "b" }]);
    fs::write(&config, settings.to_string()).unwrap();
    assert_eq!((rendered(None).unwrap().as_str(), rendered(Some(&tools)).unwrap().as_str()), ("a", "b"));

    let additional = model.path().join("additional_chat_templates");
    fs::create_dir(&additional).unwrap();
    fs::write(additional.join("rag.jinja"), "r").unwrap();
    let error = rendered(None).unwrap_err();
    assert!(error.contains("no chat template of the model is called `default` (there are: rag)"), "{error}");
    fs::write(model.path().join("chat_template.jinja"), "c{{ 1 + 'a' }}").unwrap();
    fs::write(additional.join("tool_use.jinja"), "d").unwrap();
    assert_eq!(rendered(Some(&tools)).unwrap(), "d");
    let error = rendered(None).unwrap_err();
    let file = model.path().join("chat_template.jinja");
    assert!(error.starts_with(&format!("the chat template {} refuses", file.display())), "{error}");
}

/// How a row is encoded.
#[derive(Clone, Copy)]
struct Wish {
    assistant_only_loss: bool,
    completion_only_loss: bool,
    max_length: usize,
}

const ASSISTANT: Wish = Wish { assistant_only_loss: true, completion_only_loss: true, max_length: 512 };
const ANSWER: Wish = Wish { assistant_only_loss: false, ..ASSISTANT };

fn row(line: usize, fields: Value) -> Row {
    let Value::Object(fields) = fields else { panic!("a row is an object") };
    Row { file: Arc::from(PathBuf::from("chat.jsonl")), line, fields }
}

fn with_context<T>(tokenizer: &HfTokenizer, wish: Wish, run: impl Fn(&EncodeContext<'_>) -> T) -> T {
    let options = EncodeOptions {
        max_length: wish.max_length,
        overflow: Overflow::Truncate,
        completion_only_loss: wish.completion_only_loss,
        assistant_only_loss: wish.assistant_only_loss,
        ..EncodeOptions::default()
    };
    run(&EncodeContext { tokenizer, info: &ModelInfo::custom(), options: &options, labelled: true })
}

fn encode(template: &str, wish: Wish, fields: Value) -> Result<Example> {
    let encoded = with_context(&tokenizer(template), wish, |context| CausalLm.encode(&row(1, fields.clone()), context));
    encoded.map(|mut examples| examples.remove(0))
}

/// The text of the tokens that are learnt, a line for each run of them.
fn learnt(template: &str, wish: Wish, fields: Value) -> String {
    let tokenizer = tokenizer(template);
    let example = encode(template, wish, fields).unwrap();
    let Label::Tokens(labels) = &example.labels["labels"] else { panic!("one label a token") };
    let runs = labels.chunk_by(|a, b| (*a == IGNORE) == (*b == IGNORE)).filter(|run| run[0] != IGNORE);
    let text = |run: &[i64]| -> String {
        run.iter()
            .map(|id| u32::try_from(*id).unwrap())
            .map(|id| {
                if tokenizer.is_special(id) {
                    tokenizer.id_to_token(id).unwrap()
                } else {
                    tokenizer.decode(&[id]).unwrap()
                }
            })
            .collect()
    };
    runs.map(text).collect::<Vec<_>>().join("|")
}

fn dialogue() -> Value {
    json!({ "messages": [
        { "role": "user", "content": "Hi" }, { "role": "assistant", "content": "Ho" },
        { "role": "user", "content": "He" }, { "role": "assistant", "content": "Ha" },
    ]})
}

#[test]
fn the_assistants_turns_are_learnt_with_their_ends() {
    // What generation blocks mark, and what each turn adds to the text where there are none.
    assert_eq!(learnt("chatml", ASSISTANT, dialogue()), "Ho<|im_end|>|Ha<|im_end|>");
    assert_eq!(learnt("llama3", ASSISTANT, dialogue()), "Ho<|eot_id|>|Ha<|eot_id|>");
    assert_eq!(learnt("chatml-plain", ASSISTANT, dialogue()), "Ho<|im_end|>\n|Ha<|im_end|>\n");
    assert_eq!(learnt("gemma", ASSISTANT, dialogue()), "Ho<end_of_turn>\n|Ha<end_of_turn>\n");
    assert_eq!(learnt("mistral", ASSISTANT, dialogue()), " Ho</s>| Ha</s>");
    assert!(learnt("gemma", ANSWER, dialogue()).starts_with("<s><start_of_turn>user\nHi"));
}

#[test]
fn a_template_that_rewrites_what_stands_before_is_refused() {
    let mut fields = dialogue();
    fields["messages"].as_array_mut().unwrap().insert(0, json!({ "role": "system", "content": "Sing" }));
    let message = encode("mistral", ASSISTANT, fields).unwrap_err().to_string();
    assert!(message.starts_with("chat.jsonl:1: ") && message.contains("{% generation %}"), "{message}");
}

#[test]
fn rows_of_every_shape_become_the_same_conversation() {
    let expected = "Ho<|im_end|>\n";
    let shapes = [
        json!({ "prompt": [{ "role": "user", "content": "Hi" }], "completion": [{ "role": "assistant", "content": "Ho" }] }),
        json!({ "instruction": "Hi", "input": "", "output": "Ho" }),
    ];
    for shape in shapes {
        assert_eq!(learnt("chatml-plain", ANSWER, shape), expected);
    }
    let share_gpt = json!({ "conversations": [{ "from": "human", "value": "Hi" }, { "from": "gpt", "value": "Ho" }] });
    assert_eq!(learnt("chatml-plain", ASSISTANT, share_gpt), expected);
    let all = learnt(
        "chatml-plain",
        Wish { completion_only_loss: false, ..ANSWER },
        json!({ "instruction": "Hi", "input": "you", "output": "Ho" }),
    );
    assert_eq!(all, "<|im_start|>user\nHi\n\nyou<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n");
}

#[test]
fn messages_that_are_none_are_named() {
    for (fields, says) in [
        (json!({ "messages": "Hi" }), "column `messages` should be a list of messages, found \"Hi\""),
        (json!({ "messages": [] }), "column `messages` has no message"),
        (json!({ "messages": [{ "content": "Hi" }] }), "`messages[0]` should have `role` and `content`"),
        (json!({ "conversations": [{ "from": "cat", "value": "Hi" }] }), "`conversations[0]` is from `cat`"),
        (json!({ "body": "Hi" }), "no column `messages` or `conversations` or `prompt` or `instruction` or `text`"),
    ] {
        let message = encode("chatml", ANSWER, fields).unwrap_err().to_string();
        assert!(message.starts_with("chat.jsonl:1: ") && message.contains(says), "{message}");
    }
}

#[test]
fn rows_of_several_shapes_are_refused_together() {
    let rows: Vec<Row> =
        (1..=13).map(|line| row(line, if line == 1 { dialogue() } else { json!({ "text": "a" }) })).collect();
    let message = with_context(&tokenizer("chatml"), ANSWER, |context| CausalLm.check_rows(&rows, context))
        .unwrap_err()
        .to_string();
    assert_eq!(message.lines().count(), 11);
    assert!(
        message.starts_with("chat.jsonl:2: a row of shape `text` among rows of shape `messages` (as chat.jsonl:1)")
    );
    assert!(message.ends_with("and 2 more"));
}

#[test]
fn an_end_that_is_never_learnt_is_refused() {
    let check = |template: &str, wish: Wish| {
        let example = encode(template, wish, dialogue()).unwrap();
        with_context(&tokenizer(template), wish, |context| {
            CausalLm.check_examples(std::slice::from_ref(&example), context)
        })
    };
    check("chatml", ASSISTANT).unwrap();
    check("mistral", ASSISTANT).unwrap();
    // Cut inside the first answer.
    let message = check("gemma", Wish { max_length: 19, ..ASSISTANT }).unwrap_err().to_string();
    assert!(message.starts_with("the end of a turn is never learnt"), "{message}");
}
