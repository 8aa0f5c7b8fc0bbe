//! What we depend on: every dependency is used, its licence allows what we do with it, and every crate can be packaged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use toml::{Table, Value};

use crate::tidiness::sources;

/// Dependencies that no line of Rust names, with what they are for.
const UNNAMED: [(&str, &str); 1] = [("burn-cuda", "its features switch Burn's CUDA backend on")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn manifest(folder: &Path) -> Table {
    fs::read_to_string(folder.join("Cargo.toml")).unwrap().parse().unwrap()
}

/// The folders of all packages of the workspace.
fn packages() -> Vec<PathBuf> {
    let crates = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    crates.chain(["benches", "examples", "tests"].map(|name| root().join(name))).collect()
}

/// The dependencies that a package names, of every kind and platform.
fn dependencies(manifest: &Table) -> Vec<(String, &'static str, Value)> {
    let tables = |table: &Table| {
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"].into_iter();
        let found = kinds.filter_map(|kind| Some((kind, table.get(kind)?.as_table()?.clone())));
        found.flat_map(|(kind, table)| table.into_iter().map(move |(name, value)| (name, kind, value))).collect()
    };
    let mut all: Vec<_> = tables(manifest);
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    all.extend(targets.filter_map(|(_, target)| target.as_table()).flat_map(tables));
    all
}

#[test]
fn every_dependency_is_used() {
    for package in packages() {
        let mut files = Vec::new();
        sources(&package, &mut files);
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let unused: Vec<_> = dependencies(&manifest(&package))
            .into_iter()
            .map(|(name, ..)| name)
            .filter(|name| !UNNAMED.iter().any(|(unnamed, _)| unnamed == name))
            .filter(|name| !names(&text, &name.replace('-', "_")))
            .collect();
        assert_eq!(unused, [""; 0], "{} depends on crates that it does not use", package.display());
    }
}

/// Whether a text has a word, not as a part of another.
fn names(text: &str, word: &str) -> bool {
    let within = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !within(before.chars().next_back()) && !within(after.chars().next())
    })
}

/// The licences that `deny.toml` allows, of all that the programs and tests of this machine are built from. `cargo deny check`
/// does the same for other platforms and features, and looks for advisories, which needs the network.
#[test]
fn licences_allow_what_we_do_with_them() {
    let deny: Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let allowed: Vec<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|licence| licence.as_str().unwrap()).collect();
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}|{l}"])
        .args(["--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let mut refused: Vec<&str> = tree
        .lines()
        .filter_map(|line| Some((line, line.trim_end_matches(" (*)").split_once('|')?.1)))
        .filter(|(_, licence)| {
            let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX);
            !expression.is_ok_and(|expression| {
                expression.evaluate(|requirement| allowed.contains(&requirement.to_string().as_str()))
            })
        })
        .map(|(line, _)| line)
        .collect();
    refused.sort_unstable();
    refused.dedup();
    assert_eq!(refused, [""; 0]);
}

#[test]
fn everything_comes_from_the_registry() {
    let lock: Table = fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        match package.get("source").and_then(Value::as_str) {
            Some(source) => assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{name}"),
            None => assert!(name.starts_with("peft"), "{name} is a package of this folder"),
        }
    }
}

#[test]
fn every_crate_can_be_packaged() {
    let workspace = manifest(&root());
    let shared = workspace["workspace"]["dependencies"].as_table().unwrap();
    for package in packages().into_iter().filter(|path| path.starts_with(root().join("crates"))) {
        let manifest = manifest(&package);
        let name = manifest["package"]["name"].as_str().unwrap();
        assert!(manifest["package"].get("description").is_some(), "{name} has no description");
        assert!(package.join("README.md").exists(), "{name} has no README.md");
        for (dependency, kind, value) in dependencies(&manifest) {
            let is_shared = value.get("workspace").and_then(Value::as_bool) == Some(true);
            let value = if is_shared { shared[&dependency].clone() } else { value };
            // Packaging drops a dependency for tests that has no version, and needs one of all others.
            let has_version = value.is_str() || value.get("version").is_some();
            let is_dropped = kind == "dev-dependencies" && value.get("path").is_some();
            assert!(has_version || is_dropped, "{name} depends on {dependency} without a version");
        }
    }
}
