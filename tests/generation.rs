//! What Transformers' `generate` writes (`generation/generate.py`), written here: one test a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use burn::tensor::{Device, TensorData};
use peft::generate::{Generated, GenerationConfig, Generator, Written, process};
use peft::{
    ArchitecturePlugin, AutoClass,
    files::{TensorFile, write_safetensors},
    models::{
        HfTokenizer,
        checkpoint::{self, LoadOptions},
    },
    plugins::registry::plugins,
};
use rstest::rstest;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fixture::case;

#[derive(Deserialize)]
struct Fixture {
    /// A golden case.
    model: String,
    /// What its configuration has otherwise.
    config: Map<String, Value>,
    /// What matrices are multiplied by, by a part of their names.
    factors: BTreeMap<String, f32>,
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

impl Fixture {
    /// The model as the fixture has it.
    fn folder(&self) -> tempfile::TempDir {
        let (golden, folder) = (case(&self.model).join("model"), tempfile::tempdir().unwrap());
        let mut config: Map<String, Value> = read(&golden.join("config.json"));
        config.extend(self.config.clone());
        std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
        let mut tensors = TensorFile::read(&golden.join("model.safetensors"), "weights").unwrap().tensors;
        for (name, data) in &mut tensors {
            let is_matrix = data.shape().len() > 1;
            for (_, factor) in self.factors.iter().filter(|(key, _)| is_matrix && name.contains(*key)) {
                let values = data.clone().try_to_vec::<f32>().unwrap().into_iter().map(|value| value * factor);
                *data = TensorData::new(values.collect::<Vec<_>>(), data.shape().clone());
            }
        }
        write_safetensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
        folder
    }
}

#[rstest]
fn answers_are_those_of_transformers(#[files("generation/*.json")] path: PathBuf) {
    let fixture: Fixture = read(&path);
    let class = if fixture.model.contains("SEQ_2_SEQ") { AutoClass::SEQ2SEQ_LM } else { AutoClass::CAUSAL_LM };
    let device = Device::flex();
    let folder = fixture.folder();
    let base = checkpoint::load(folder.path(), &class, &LoadOptions::default(), &device).unwrap().base;
    for Case { options, prompts, answers } in fixture.cases {
        let config = GenerationConfig::default().with(&options, "case").unwrap();
        let model = base.running();
        let generator = Generator { model: &model, device: &device, tokenizer: None };
        let written = generator.generate(&prompts, &config, &mut ()).unwrap();
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

#[test]
fn every_family_that_writes_is_compared() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generation");
    let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let fixtures = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let compared: BTreeSet<String> =
        fixtures.map(|path| read::<Fixture>(&path).model.split('.').next().unwrap().to_owned()).collect();
    let writes = |family: &&ArchitecturePlugin| {
        [AutoClass::CAUSAL_LM, AutoClass::SEQ2SEQ_LM].iter().any(|class| family.classes.contains(class))
    };
    let families = plugins::<ArchitecturePlugin>().into_iter().filter(writes).map(|family| family.name.to_owned());
    assert_eq!(families.collect::<BTreeSet<_>>(), compared);
}

#[test]
fn stop_strings_end_answers_where_transformers_ends_them() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generation/stops");
    let tokenizer = HfTokenizer::from_folder(&folder).unwrap();
    let device = Device::flex();
    let model = case("llama.CAUSAL_LM.default").join("model");
    let base = checkpoint::load(&model, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &device).unwrap().base;
    let model = base.running();
    let with = |tokenizer| Generator { model: &model, device: &device, tokenizer };
    let mut stopped = 0;
    for Case { options, prompts, answers } in read::<Vec<Case>>(&folder.join("cases.json")) {
        let config = GenerationConfig::default().with(&options, "case").unwrap();
        let written = with(Some(&tokenizer)).generate(&prompts, &config, &mut ()).unwrap();
        assert_eq!(written.len(), answers.len());
        for (written, wanted) in written.iter().zip(&answers) {
            let (found, rest) = wanted.split_at(written.tokens.len());
            let is_same = found == written.tokens && rest.iter().all(|fill| [0, 40].contains(fill));
            assert!(is_same, "{options:?}: {written:?} against {wanted:?}");
            stopped += usize::from(written.ended);
        }
        assert!(with(None).generate(&prompts, &config, &mut ()).unwrap_err().to_string().contains("tokenizer"));
    }
    assert!(stopped > 10, "{stopped}");
}

#[test]
fn beams_are_drawn_from_the_seed_and_stay_likely() {
    let device = Device::flex();
    let folder = case("llama.CAUSAL_LM.default").join("model");
    let base = checkpoint::load(&folder, &AutoClass::CAUSAL_LM, &LoadOptions::default(), &device).unwrap().base;
    let model = base.running();
    let generator = Generator { model: &model, device: &device, tokenizer: None };
    let beams = GenerationConfig { num_beams: 3, max_new_tokens: Some(6), ..GenerationConfig::default() };
    let write = |config: GenerationConfig| generator.generate(&[vec![5, 9], vec![7, 3, 4]], &config, &mut ()).unwrap();
    let draw = |seed| write(GenerationConfig { do_sample: true, seed, num_return_sequences: 2, ..beams.clone() });
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // Nothing that is drawn is as likely as the best of a search.
    let best = write(beams.clone());
    for seed in 0..20 {
        for (at, drawn) in draw(seed).iter().enumerate() {
            assert!(drawn.score <= best[at / 2].score, "{drawn:?} against {:?}", best[at / 2]);
        }
    }
    // Cold enough a draw takes what is most probable: the search without a draw.
    let cold = write(GenerationConfig { do_sample: true, top_k: 0, temperature: 1e-4, ..beams.clone() });
    let tokens = |answers: &[Generated]| answers.iter().map(|answer| answer.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&cold), tokens(&best));
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
        let model = base.running();
        let generator = Generator { model: &model, device: &device, tokenizer: None };
        generator.generate(&[vec![5, 9]], &config, &mut ()).unwrap()
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
        (r#"{"temperature": 0.0, "do_sample": true}"#, "do_sample"),
        (r#"{"top_k": "many"}"#, "top_k"),
    ] {
        let error = GenerationConfig::default().with(&serde_json::from_str(options).unwrap(), "file").unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
}
