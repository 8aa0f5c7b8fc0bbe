//! PyTorch's own files: the same model and adapter as from safetensors, and files that are broken.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use peft::{
    AutoClass, PeftModel,
    adapter::AdapterFolder,
    files::{ADAPTER_CONFIG, ADAPTER_PYTORCH_WEIGHTS, PytorchFile, TensorFile},
    models::checkpoint::{self, LoadOptions, Loaded, PYTORCH_WEIGHTS},
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::fixture::{assert_close, batch, case, expected};

const BERT: &str = "bert.SEQ_CLS.default";
const LLAMA: &str = "llama.CAUSAL_LM.tied-all-linear";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pytorch").join(name)
}

/// A folder with the configuration of a golden case and files of this one's fixtures.
fn folder(golden: &str, files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case(golden).join("model/config.json"), folder.path().join("config.json")).unwrap();
    for (from, to) in files {
        fs::copy(fixture(from), folder.path().join(to)).unwrap();
    }
    folder
}

fn load(folder: &Path, class: &AutoClass) -> peft::Result<Loaded> {
    checkpoint::load(folder, class, &LoadOptions::default(), &Device::flex())
}

fn bert(file: &str) -> TempDir {
    folder(BERT, &[(file, PYTORCH_WEIGHTS)])
}

/// Writes an adapter folder with pickled tensors.
fn pickled_adapter() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case(BERT).join("adapter").join(ADAPTER_CONFIG), folder.path().join(ADAPTER_CONFIG)).unwrap();
    fs::copy(fixture("adapter_model.bin"), folder.path().join(ADAPTER_PYTORCH_WEIGHTS)).unwrap();
    folder
}

#[test]
fn every_format_is_the_model_of_the_safetensors_to_the_bit() {
    let shards =
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"];
    let shards = shards.map(|file| (format!("sharded/{file}"), file));
    let shards: Vec<(&str, &str)> = shards.iter().map(|(from, to)| (from.as_str(), *to)).collect();
    for (name, golden, folder, class) in [
        ("zip", BERT, bert("zip.bin"), AutoClass::SEQUENCE_CLASSIFICATION),
        ("legacy", BERT, bert("legacy.bin"), AutoClass::SEQUENCE_CLASSIFICATION),
        ("sharded", LLAMA, folder(LLAMA, &shards), AutoClass::CAUSAL_LM),
    ] {
        let Loaded { base, initialised, ignored, .. } = load(folder.path(), &class).unwrap();
        assert_eq!((initialised, ignored), (Vec::new(), Vec::new()), "{name}");
        let again = tempfile::tempdir().unwrap();
        checkpoint::save(&base, None, again.path()).unwrap();
        let tensors = |folder: &Path| TensorFile::read(&folder.join("model.safetensors"), "weights").unwrap().tensors;
        assert_eq!(tensors(again.path()), tensors(&case(golden).join("model")), "{name}");
        let model = base.running();
        let outputs = model.forward(&model.check(batch(&case(golden)).inputs).unwrap()).unwrap();
        for (output, tensor) in outputs.iter() {
            let name = format!("base.{output}");
            assert_close(&name, &tensor.clone().to_data(), &expected(&case(golden))[&name]);
        }
    }
}

#[test]
fn a_pickled_adapter_is_the_adapter_of_the_safetensors_to_the_bit() {
    let pickled = pickled_adapter();
    let read = |folder: &Path| AdapterFolder::read(folder).unwrap().tensors;
    assert_eq!(read(pickled.path()), read(&case(BERT).join("adapter")));
    let base = load(bert("zip.bin").path(), &AutoClass::SEQUENCE_CLASSIFICATION).unwrap().base;
    let model = PeftModel::from_pretrained(base, pickled.path(), &Device::flex()).unwrap();
    let batch = model.check(batch(&case(BERT))).unwrap();
    let logits = model.forward(&batch.inputs).unwrap().get::<2>("logits").unwrap().without_autodiff();
    assert_close("logits", &logits.to_data(), &expected(&case(BERT))["logits"]);
}

#[test]
fn safetensors_win_where_both_exist() {
    let model = folder(BERT, &[]);
    fs::write(model.path().join(PYTORCH_WEIGHTS), "broken").unwrap();
    fs::copy(case(BERT).join("model/model.safetensors"), model.path().join("model.safetensors")).unwrap();
    load(model.path(), &AutoClass::SEQUENCE_CLASSIFICATION).unwrap();
    let adapter = pickled_adapter();
    fs::write(adapter.path().join(ADAPTER_PYTORCH_WEIGHTS), "broken").unwrap();
    assert!(AdapterFolder::read(adapter.path()).is_err());
    let weights = "adapter_model.safetensors";
    fs::copy(case(BERT).join("adapter").join(weights), adapter.path().join(weights)).unwrap();
    AdapterFolder::read(adapter.path()).unwrap();
}

#[test]
fn what_a_pickle_would_run_is_not_run() {
    let tensors = PytorchFile::open(&fixture("hostile.bin"), "weights").unwrap().tensors;
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["weight"]);
    assert_eq!(tensors["weight"].read().unwrap(), [1.0_f32; 2].map(f32::to_le_bytes).concat());
    assert!(!Path::new("hostile.ran").exists());
}

#[test]
fn broken_files_are_errors_that_name_the_file_and_the_tensor() {
    let check = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, code: u8, words: &str| {
        let folder = bert(name);
        let path = folder.path().join(PYTORCH_WEIGHTS);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        let error = load(folder.path(), &AutoClass::SEQUENCE_CLASSIFICATION).unwrap_err();
        assert_eq!(error.exit_code(), code, "{name}: {error}");
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert!(error.to_string().contains(PYTORCH_WEIGHTS) || code == 4, "{name}: {error}");
    };
    let values = TensorFile::read(&case(BERT).join("model/model.safetensors"), "weights").unwrap().tensors;
    let bias = values["classifier.bias"].bytes().to_vec();
    let damaged = move |mut bytes: Vec<u8>| {
        let at = bytes.windows(bias.len()).position(|part| part == bias).unwrap();
        bytes[at] ^= 1;
        bytes
    };
    check("zip.bin", &damaged, 3, "tensor 'classifier.bias'");
    for name in ["zip.bin", "legacy.bin"] {
        check(name, &|bytes| bytes[..bytes.len() / 2].to_vec(), 3, "not a whole PyTorch file");
        check(name, &|_| Vec::new(), 3, "not a whole PyTorch file");
        check(name, &|_| b"{\"a\": 1}".to_vec(), 3, "not a PyTorch file of tensors but JSON text");
    }
    check("hostile.bin", &|bytes| bytes, 4, "missing");
    let index = "sharded/pytorch_model.bin.index.json";
    let folder = folder(LLAMA, &[(index, "pytorch_model.bin.index.json")]);
    let error = load(folder.path(), &AutoClass::CAUSAL_LM).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains("pytorch_model-00001-of-00002.bin: not found"), "{error}");
}

proptest! {
    #[test]
    fn a_pickle_damaged_anywhere_never_panics(at in 0..40_000_usize, byte in any::<u8>(), is_cut in any::<bool>(),
        name in prop::sample::select(vec!["zip.bin", "legacy.bin"])) {
        let mut bytes = fs::read(fixture(name)).unwrap();
        let at = at % bytes.len();
        if is_cut { bytes.truncate(at) } else { bytes[at] = byte }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        fs::write(&path, bytes).unwrap();
        let _ = TensorFile::read_pytorch(&path, "tensors");
    }
}
