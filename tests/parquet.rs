//! Parquet files as pyarrow wrote them: the rows of the same data as JSON lines, and files that are broken.

use std::{
    fs,
    path::{Path, PathBuf},
};

use peft::train::data::{Part, read_part, read_rows};
use proptest::prelude::*;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("parquet").join(name)
}

fn fields(path: &Path) -> Vec<Value> {
    read_rows(path).unwrap().into_iter().map(|row| Value::Object(row.fields)).collect()
}

#[test]
fn rows_are_those_of_the_json_lines() {
    for name in ["snappy", "zstd"] {
        let rows = fields(&fixture(&format!("{name}.parquet")));
        assert_eq!(rows, fields(&fixture(&format!("{name}.jsonl"))), "{name}");
    }
    let lines: Vec<_> = read_rows(&fixture("zstd.parquet")).unwrap().iter().map(|row| row.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn numbered_files_of_a_folder_are_one_part() {
    let folder = tempfile::tempdir().unwrap();
    for (name, from) in [
        ("train-00000-of-00002.parquet", "snappy.parquet"),
        ("train-00001-of-00002.parquet", "zstd.parquet"),
        ("validation-00000-of-00001.parquet", "snappy.parquet"),
    ] {
        fs::copy(fixture(from), folder.path().join(name)).unwrap();
    }
    assert_eq!(read_part(folder.path(), Part::Train).unwrap().len(), 9);
    assert_eq!(read_part(folder.path(), Part::Validation).unwrap().len(), 3);
}

#[test]
fn what_cannot_be_read_is_named_with_file_and_row() {
    let check = |path: &Path, words: &[&str]| {
        let error = read_rows(path).unwrap_err();
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
        error.exit_code()
    };
    let (gzip, classes) = (fixture("gzip.parquet"), fixture("classes.parquet"));
    assert_eq!(check(&gzip, &["gzip.parquet", "row 1", "gzip"]), 3);
    assert_eq!(check(&classes, &["classes.parquet:2: column `label`: class 2 is none of the 2"]), 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.parquet");
    let bytes = fs::read(fixture("snappy.parquet")).unwrap();
    for broken in [&bytes[..bytes.len() - 9], &bytes[..0], b"text\tlabel\n"] {
        fs::write(&path, broken).unwrap();
        assert_eq!(check(&path, &["cut.parquet: not a whole Parquet file"]), 3);
    }
    assert_eq!(check(&folder.path().join("none.parquet"), &["none.parquet: not found"]), 6);
}

proptest! {
    #[test]
    fn a_file_damaged_anywhere_is_read_or_refused(at in 0..20_000_usize, byte in any::<u8>(), is_cut in any::<bool>(),
        name in prop::sample::select(vec!["snappy.parquet", "zstd.parquet"])) {
        let mut bytes = fs::read(fixture(name)).unwrap();
        let at = at % bytes.len();
        if is_cut { bytes.truncate(at) } else { bytes[at] = byte }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        fs::write(&path, bytes).unwrap();
        let _ = read_rows(&path);
    }
}
