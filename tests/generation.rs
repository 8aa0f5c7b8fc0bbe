//! What Transformers' `generate` writes (`generation/generate.py`), written here: one test a file.

use std::path::PathBuf;

use burn::tensor::Device;
use peft::{
    AutoClass,
    models::checkpoint::{self, LoadOptions},
};
use peft_generate::{GenerationConfig, Written, generate, process};
use rstest::rstest;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fixture::case;

#[derive(Deserialize)]
struct Fixture {
    model: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    options: Map<String, Value>,
    prompts: Vec<Vec<u32>>,
    /// Filled up to one length.
    answers: Vec<Vec<u32>>,
}

fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[rstest]
fn answers_are_those_of_transformers(#[files("generation/*.json")] path: PathBuf) {
    let fixture: Fixture = read(&path);
    let class = if fixture.model.contains("SEQ_2_SEQ") { AutoClass::SEQ2SEQ_LM } else { AutoClass::CAUSAL_LM };
    let device = Device::flex();
    let folder = case(&fixture.model).join("model");
    let base = checkpoint::load(&folder, &class, &LoadOptions::default(), &device).unwrap().base;
    for Case { options, prompts, answers } in fixture.cases {
        let config = GenerationConfig::default().with(&options, "case").unwrap();
        let module = base.module.valid();
        let written = generate(&*module, &base.info, &device, &prompts, &config, &mut ()).unwrap();
        // What Transformers fills finished answers with depends on the search and on whether the padding token is 0.
        let ends: Vec<u32> = serde_json::from_value(options["eos_token_id"].clone()).unwrap();
        let cut = |answer: &[u32]| {
            let end = answer.iter().position(|token| ends.contains(token));
            end.map_or(answer, |end| &answer[..=end]).to_vec()
        };
        let written: Vec<Vec<u32>> = written.iter().map(|answer| cut(&answer.tokens)).collect();
        let answers: Vec<Vec<u32>> = answers.iter().map(|answer| cut(answer)).collect();
        assert_eq!(written, answers, "{} {options:?} {prompts:?}", fixture.model);
    }
}

#[derive(Deserialize)]
struct Draw {
    options: Map<String, Value>,
    logits: Vec<f32>,
    probabilities: Vec<f32>,
}

#[test]
fn tokens_are_drawn_with_the_probabilities_of_transformers() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generation/sampling/probabilities.json");
    for Draw { mut options, mut logits, probabilities } in read::<Vec<Draw>>(&path) {
        options.insert("do_sample".to_owned(), true.into());
        let config = GenerationConfig::default().with(&options, "case").unwrap();
        process(&config, Written { tokens: &[0], padding: 0, prompt: 1, max_length: 9 }, &mut logits);
        let sum: f32 = logits.iter().map(|score| score.exp()).sum();
        for (score, wanted) in logits.iter().zip(probabilities) {
            let found = score.exp() / sum;
            assert!((found - wanted).abs() < 1e-6, "{options:?}: {found} against {wanted}");
        }
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let device = Device::flex();
    let folder = case("llama.CAUSAL_LM.default").join("model");
    let base = checkpoint::load(&folder, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &device).unwrap().base;
    let draw = |seed: u64| {
        let config = GenerationConfig { do_sample: true, seed, num_return_sequences: 2, ..GenerationConfig::default() };
        generate(&*base.module.valid(), &base.info, &device, &[vec![5, 9]], &config, &mut ()).unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let [first, second] = <[_; 2]>::try_from(draw(1)).unwrap();
    assert_ne!(first, second);
}

#[test]
fn values_that_exclude_each_other_are_refused_with_the_fix() {
    for (options, hint) in [
        (r#"{"num_return_sequences": 2}"#, "num_beams"),
        (r#"{"temperature": 0.0}"#, "do_sample"),
        (r#"{"top_k": "many"}"#, "top_k"),
    ] {
        let error = GenerationConfig::default().with(&serde_json::from_str(options).unwrap(), "file").unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
}
