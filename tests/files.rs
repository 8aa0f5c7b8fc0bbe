//! Adapter folders: strict on reading, atomic on writing.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{Device, TensorData};
use peft::{
    Error, PeftModel, Result,
    adapter::AdapterFolder,
    files::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, TensorFile, write_safetensors},
};
use proptest::prelude::*;

use crate::fixture::{base, case, model};

const CASE: &str = "bert.SEQ_CLS.default";

fn copy(to: &Path) {
    for file in [ADAPTER_CONFIG, ADAPTER_WEIGHTS] {
        fs::copy(case(CASE).join("adapter").join(file), to.join(file)).unwrap();
    }
}

fn load(folder: &Path) -> Result<PeftModel> {
    let device = Device::flex();
    PeftModel::from_pretrained(base(&case(CASE), &device), folder, &device)
}

fn edit(folder: &Path, f: impl FnOnce(&mut BTreeMap<String, TensorData>)) {
    let path = folder.join(ADAPTER_WEIGHTS);
    let mut tensors = TensorFile::read(&path, "adapter").unwrap().tensors;
    f(&mut tensors);
    write_safetensors(&path, &tensors).unwrap();
}

#[test]
fn a_saved_adapter_is_the_loaded_one_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    model(&case(CASE)).save("default", folder.path()).unwrap();
    let written = TensorFile::read(&folder.path().join(ADAPTER_WEIGHTS), "adapter").unwrap().tensors;
    let original = TensorFile::read(&case(CASE).join("adapter").join(ADAPTER_WEIGHTS), "adapter").unwrap().tensors;
    assert_eq!(written, original);
    assert!(fs::read_to_string(folder.path().join("README.md")).unwrap().starts_with("---\nlibrary_name: peft\n"));
}

#[test]
fn an_adapter_of_another_name_gets_a_folder_of_that_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model(&case(CASE));
    model.load_adapter("other", AdapterFolder::read(&case(CASE).join("adapter")).unwrap()).unwrap();
    model.save("other", folder.path()).unwrap();
    assert!(folder.path().join("other").join(ADAPTER_WEIGHTS).exists());
    assert!(folder.path().join("README.md").exists());
    assert!(!folder.path().join(ADAPTER_CONFIG).exists());
}

#[test]
fn one_error_lists_every_tensor_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    copy(folder.path());
    let mut gone = String::new();
    edit(folder.path(), |tensors| {
        gone = tensors.keys().find(|key| key.ends_with("lora_A.weight")).unwrap().clone();
        tensors.remove(&gone);
        let bent = tensors.keys().find(|key| key.ends_with("lora_B.weight")).unwrap().clone();
        tensors.insert(bent, TensorData::zeros::<f32, _>([2, 2]));
        tensors.insert("base_model.model.foreign".to_owned(), TensorData::zeros::<f32, _>([1]));
    });
    let Err(Error::Tensors { problems, .. }) = load(folder.path()) else { panic!("loaded") };
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(problems.iter().any(|p| p.contains(&gone) && p.contains("missing")));
    assert!(problems.iter().any(|p| p.contains("[2, 2]") && p.contains("[16, 3]")));
    assert!(problems.iter().any(|p| p.contains("foreign")));
}

#[test]
fn broken_files_are_errors_with_the_file_name_and_the_documented_exit_code() {
    type Break = fn(&Path);
    let table: [(&str, Break, u8, &str); 6] = [
        ("truncated", |f| cut(f, 100), 3, ADAPTER_WEIGHTS),
        ("header longer than the file", |f| fs::write(f.join(ADAPTER_WEIGHTS), [255; 64]).unwrap(), 3, ADAPTER_WEIGHTS),
        (
            "foreign",
            |f| fs::write(f.join(ADAPTER_WEIGHTS), b"PK\x03\x04 not a safetensors file").unwrap(),
            3,
            ADAPTER_WEIGHTS,
        ),
        ("no weights", |f| fs::remove_file(f.join(ADAPTER_WEIGHTS)).unwrap(), 6, ADAPTER_WEIGHTS),
        ("no configuration", |f| fs::remove_file(f.join(ADAPTER_CONFIG)).unwrap(), 6, ADAPTER_CONFIG),
        ("configuration is no JSON", |f| fs::write(f.join(ADAPTER_CONFIG), "{").unwrap(), 3, ADAPTER_CONFIG),
    ];
    for (what, break_it, code, file) in table {
        let folder = tempfile::tempdir().unwrap();
        copy(folder.path());
        break_it(folder.path());
        let error = load(folder.path()).map(drop).unwrap_err();
        assert_eq!(error.exit_code(), code, "{what}: {error}");
        assert!(error.to_string().contains(file), "{what}: {error}");
    }
}

fn cut(folder: &Path, keep: usize) {
    let path = folder.join(ADAPTER_WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..keep]).unwrap();
}

#[test]
fn a_folder_that_is_a_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    let error = model(&case(CASE)).save("default", &file).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_head_of_another_size_is_named_with_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    copy(folder.path());
    edit(folder.path(), |tensors| {
        tensors.insert("base_model.model.classifier.weight".to_owned(), TensorData::zeros::<f32, _>([7, 16]));
    });
    let error = load(folder.path()).map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("[7, 16]") && error.to_string().contains("[3, 16]"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_tensor_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::write(&path, &bytes).unwrap();
        let _ = TensorFile::read(&path, "tensors");
    }

    #[test]
    fn a_file_damaged_anywhere_never_panics(at in 0..2000_usize, byte in any::<u8>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let mut bytes = fs::read(case(CASE).join("adapter").join(ADAPTER_WEIGHTS)).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        let _ = TensorFile::read(&path, "tensors");
    }
}
