//! Damaged files of every kind that is read: an error that names the file, or a sound result; never a panic, never a wait.
//!
//! The quick part here has fixed seeds. `PEFT_DAMAGE_CASES=20000 cargo test --workspace --test all damage` tries so many of each kind, and
//! `PROPTEST_RNG_SEED=7` beside it others: `docs/src/contributing.md`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use peft::train::{Recipe, data::read_rows};
use peft::{
    AutoClass, Explanation, PeftConfig,
    adapter::AdapterFolder,
    files::TensorFile,
    models::{
        HfTokenizer,
        checkpoint::{self, LoadOptions},
    },
    plugins::config::UnknownKeys,
};
use proptest::{prelude::*, test_runner::RngSeed};

/// Characters that a message has at most: an error of the library has not gone through the program's own limit yet.
const LONGEST_MESSAGE: usize = 20_000;

fn config(quick: u32) -> ProptestConfig {
    let cases = std::env::var("PEFT_DAMAGE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(quick);
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(21);
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::default() }
}

fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One change of a file's bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(u8),
    Byte(u8),
    Cut,
    Word(u64),
    Remove(usize),
    Insert(Vec<u8>),
}

fn damage() -> impl Strategy<Value = (prop::sample::Index, Damage)> {
    let words = [0, 1, u64::MAX, 1 << 63, 1 << 62, 1 << 40, 1 << 32, 1 << 31, (1 << 31) - 1, 100_000_000];
    let kinds = prop_oneof![
        (0_u8..8).prop_map(Damage::Flip),
        any::<u8>().prop_map(Damage::Byte),
        Just(Damage::Cut),
        prop::sample::select(words.to_vec()).prop_map(Damage::Word),
        (1_usize..100).prop_map(Damage::Remove),
        prop::collection::vec(any::<u8>(), 1..100).prop_map(Damage::Insert),
    ];
    (any::<prop::sample::Index>(), kinds)
}

/// Most of what can go wrong stands at the front: headers, counts, names.
fn damaged(mut bytes: Vec<u8>, at: &prop::sample::Index, damage: &Damage, front: usize) -> Vec<u8> {
    let at = at.index(bytes.len().min(front));
    match damage {
        Damage::Flip(bit) => bytes[at] ^= 1 << bit,
        Damage::Byte(byte) => bytes[at] = *byte,
        Damage::Cut => bytes.truncate(at),
        Damage::Word(word) => bytes[at..].iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from),
        Damage::Remove(count) => drop(bytes.drain(at..bytes.len().min(at + count))),
        Damage::Insert(more) => drop(bytes.splice(at..at, more.iter().copied())),
    }
    bytes
}

/// One number of a text becomes another that nobody expects.
fn renumbered(text: &str, at: &prop::sample::Index, number: &str) -> String {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let starts: Vec<usize> = text
        .char_indices()
        .filter(|(at, c)| {
            c.is_ascii_digit() && !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '.' || c == '_')
        })
        .map(|(at, _)| at)
        .collect();
    let start = starts[at.index(starts.len())];
    let end = text[start..].find(|c| !is_number(c)).map_or(text.len(), |length| start + length);
    format!("{}{number}{}", &text[..start], &text[end..])
}

const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "7",
    "65536",
    "99999999",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "0.5",
    "null",
];

#[track_caller]
fn check<T>(result: Result<T, String>, names: &[&str]) {
    let Err(message) = result else { return };
    assert!(names.iter().any(|name| message.contains(name)), "{message}");
    assert!(message.chars().count() < LONGEST_MESSAGE, "{} characters", message.len());
}

fn copied(from: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tests().join(from)).unwrap() {
        let path = entry.unwrap().path();
        fs::write(folder.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    folder
}

fn load(folder: &Path, class: &AutoClass) -> Result<(), String> {
    checkpoint::load(folder, class, &LoadOptions::default(), &Device::flex()).map(drop).map_err(|e| e.to_string())
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn a_damaged_file_of_tensors_is_named((at, change) in damage()) {
        let whole = fs::read(tests().join("golden/bert.SEQ_CLS.default/adapter/adapter_model.safetensors")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::write(&path, damaged(whole, &at, &change, 1500)).unwrap();
        check(TensorFile::read(&path, "tensors").map_err(|e| e.to_string()), &["x.safetensors"]);
    }

    #[test]
    fn a_damaged_pytorch_file_is_named(file in prop::sample::select(vec!["zip.bin", "legacy.bin"]), (at, change) in damage()) {
        let whole = fs::read(tests().join("pytorch").join(file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        fs::write(&path, damaged(whole, &at, &change, 4000)).unwrap();
        check(TensorFile::read_pytorch(&path, "tensors").map_err(|e| e.to_string()), &["x.bin"]);
    }

    #[test]
    fn damaged_rows_are_named_with_their_file(
        (name, text) in prop::sample::select(vec![
            ("x.tsv", "text\tlabel\ngood\tpositive\nbad\tnegative\n"),
            ("x.csv", "text,label\n\"good, \"\"very\"\"\",positive\nbad,negative\n"),
            ("x.jsonl", "{\"text\": \"good\", \"label\": 1.5}\n{\"text\": [\"a\", {\"b\": null}], \"label\": 2}\n"),
            ("x.json", "[{\"text\": \"good\", \"label\": 1}, {\"text\": \"bad\", \"label\": 0}]"),
            ("x.conll", "the O\ncat B-X\n\na O\n"),
            ("x.conllu", "# id = 1\n1\tThe\tthe\tDET\tDT\t_\t2\tdet\t_\t_\n2\tcat\tcat\tNOUN\tNN\t_\t0\troot\t_\t_\n\n"),
        ]),
        (at, change) in damage(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, damaged(text.as_bytes().to_vec(), &at, &change, text.len())).unwrap();
        check(read_rows(&path).map_err(|e| e.to_string()), &[name]);
    }

    #[test]
    fn a_damaged_parquet_file_is_named((at, change) in damage()) {
        let whole = fs::read(tests().join("parquet/zstd.parquet")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        fs::write(&path, damaged(whole, &at, &change, usize::MAX)).unwrap();
        check(read_rows(&path).map_err(|e| e.to_string()), &["x.parquet"]);
    }

    #[test]
    fn a_damaged_recipe_is_named((at, change) in damage()) {
        let text = "[model]\nmodel_name_or_path = \"bert\"\n[adapter]\npeft_type = \"LORA\"\ntask_type = \"SEQ_CLS\"\nr = 4\n\
            rank_pattern = { query = 2 }\n[data]\ntrain = \"t.tsv\"\n[training]\noutput_dir = \"o\"\nlearning_rate = 2e-4\n";
        let damaged = damaged(text.as_bytes().to_vec(), &at, &change, text.len());
        let recipe = Recipe::parse(&String::from_utf8_lossy(&damaged), Path::new("r.toml"), &[]);
        check(recipe.map_err(|e| e.to_string()), &["r.toml"]);
    }

    #[test]
    fn an_adapter_with_an_impossible_number_is_refused_or_fits(
        at in any::<prop::sample::Index>(), number in prop::sample::select(NUMBERS.to_vec()),
    ) {
        let folder = copied("golden/bert.SEQ_CLS.default/adapter");
        let path = folder.path().join("adapter_config.json");
        let text = renumbered(&fs::read_to_string(&path).unwrap(), &at, number);
        fs::write(&path, &text).unwrap();
        check(AdapterFolder::read(folder.path()).map_err(|e| e.to_string()), &["adapter_config.json"]);
        let Ok(adapter) = PeftConfig::from_json(&text, UnknownKeys::Keep) else { return Ok(()) };
        let model = tests().join("golden/bert.SEQ_CLS.default/model");
        let options = LoadOptions::default();
        let base = checkpoint::skeleton(&model, &AutoClass::SEQUENCE_CLASSIFICATION, &options, &Device::flex()).unwrap();
        check(Explanation::new(&base, &adapter).map_err(|e| e.to_string()), &["`"]);
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn a_model_with_an_impossible_number_is_refused_or_loads(
        at in any::<prop::sample::Index>(), number in prop::sample::select(NUMBERS.to_vec()),
    ) {
        let folder = copied("golden/bert.SEQ_CLS.default/model");
        let path = folder.path().join("config.json");
        fs::write(&path, renumbered(&fs::read_to_string(&path).unwrap(), &at, number)).unwrap();
        let place = folder.path().display().to_string();
        check(load(folder.path(), &AutoClass::SEQUENCE_CLASSIFICATION), &["config.json", &place]);
    }

    #[test]
    fn a_damaged_gguf_file_is_refused_or_loads(
        file in prop::sample::select(vec!["llama-k-quants.gguf", "qwen2.gguf"]), (at, change) in damage(),
    ) {
        let whole = fs::read(tests().join("gguf").join(file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        fs::write(&path, damaged(whole, &at, &change, 12_000)).unwrap();
        check(load(&path, &AutoClass::CAUSAL_LM), &["x.gguf"]);
        check(HfTokenizer::from_folder(&path).map(drop).map_err(|e| e.to_string()), &["x.gguf"]);
    }
}

/// `config.json` of a small model with other values of some keys, and no weights.
fn model_of(changes: &[(&str, serde_json::Value)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(tests().join("golden/bert.SEQ_CLS.default/model/config.json")).unwrap();
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    config.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let path = folder.path().join("config.json");
    fs::write(&path, serde_json::Value::Object(config).to_string()).unwrap();
    (folder, path)
}

#[test]
fn sizes_that_no_model_has_are_refused_by_their_key() {
    for (key, size) in [
        ("num_hidden_layers", 1_000_000_000_u64),
        ("hidden_size", 1 << 60),
        ("num_labels", 1 << 40),
        ("vocab_size", 1 << 62),
    ] {
        let (folder, _) = model_of(&[(key, size.into())]);
        let class = AutoClass::SEQUENCE_CLASSIFICATION;
        let error = checkpoint::skeleton(folder.path(), &class, &LoadOptions::default(), &Device::flex()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&format!("`{key}`")) && message.contains("config.json"), "{message}");
    }
}

#[test]
fn a_configuration_is_compared_with_the_tensors_before_anything_is_built() {
    for (key, size, says) in
        [("num_hidden_layers", 3000, "tensors"), ("intermediate_size", 100_000_000, "largest tensor")]
    {
        let folder = copied("golden/bert.SEQ_CLS.default/model");
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = size.into();
        fs::write(&path, config.to_string()).unwrap();
        let message = load(folder.path(), &AutoClass::SEQUENCE_CLASSIFICATION).unwrap_err();
        assert!(message.contains(&format!("`{key}`")) && message.contains(says), "{message}");
    }
}

#[test]
fn missing_tensors_are_counted_and_not_all_listed() {
    let folder = copied("golden/bert.SEQ_CLS.default/model");
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["num_hidden_layers"] = 30.into();
    fs::write(&path, config.to_string()).unwrap();
    let message = load(folder.path(), &AutoClass::SEQUENCE_CLASSIFICATION).unwrap_err();
    assert!(message.contains("in all") && message.len() < 3000, "{message}");
}

#[test]
fn a_rank_is_compared_with_the_tensors_of_the_adapter() {
    let folder = copied("golden/bert.SEQ_CLS.default/adapter");
    let path = folder.path().join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["r"] = 10_000_000.into();
    fs::write(&path, config.to_string()).unwrap();
    let model = tests().join("golden/bert.SEQ_CLS.default/model");
    let (class, device) = (AutoClass::SEQUENCE_CLASSIFICATION, Device::flex());
    let base = checkpoint::load(&model, &class, &LoadOptions::default(), &device).unwrap().base;
    let error = peft::PeftModel::from_pretrained(base, folder.path(), &device).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("[10000000, "), "{error}");
}

#[test]
fn a_deep_model_is_explained_without_comparing_every_module_with_every_other() {
    let (folder, _) = model_of(&[("num_hidden_layers", 1000.into())]);
    let class = AutoClass::SEQUENCE_CLASSIFICATION;
    let base = checkpoint::skeleton(folder.path(), &class, &LoadOptions::default(), &Device::flex()).unwrap();
    let config = r#"{"peft_type": "LORA", "task_type": "SEQ_CLS", "target_modules": "all-linear"}"#;
    let config = PeftConfig::from_json(config, UnknownKeys::Refuse).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(Explanation::new(&base, &config).unwrap().adapted.len(), 6 * 1000 + 1);
    // Ten times what it takes without optimisation; comparing pairs takes minutes.
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}
