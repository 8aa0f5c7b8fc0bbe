//! Rules about the tree that no lint checks.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn crate_sources(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&root().join("crates").join(name).join("src"), &mut found);
    found
}

#[test]
fn only_the_backends_have_unsafe_code() {
    let mut all = Vec::new();
    sources(&root().join("crates"), &mut all);
    let outside = all.iter().filter(|path| !path.components().any(|c| c.as_os_str() == "peft-backends"));
    for path in outside {
        let text = fs::read_to_string(path).unwrap();
        assert!(
            !text.lines().any(|line| line.trim_start().starts_with("unsafe") || line.contains(" unsafe {")),
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_core_depends_on_no_tuner_task_architecture_or_backend() {
    let manifest = fs::read_to_string(root().join("crates/peft-core/Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("peft-")), "peft-core depends on a crate of ours");
    for path in crate_sources("peft-core") {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("\"bert\"") && !text.contains("\"llama\""), "{} names an architecture", path.display());
    }
}

#[test]
fn tasks_depend_on_the_core_alone() {
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("peft-task-") {
            continue;
        }
        let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
        let (dependencies, _) = manifest.split_once("[dev-dependencies]").unwrap();
        let ours: Vec<_> = dependencies.lines().filter(|line| line.starts_with("peft-")).collect();
        assert_eq!(ours, ["peft-core.workspace = true"], "{}", path.display());
    }
}

#[test]
fn every_idea_has_a_name() {
    let mut all = Vec::new();
    sources(&root().join("crates"), &mut all);
    for path in all {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            !["mod.rs", "utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"].contains(&name.as_str()),
            "{}",
            path.display()
        );
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 700, "{} has {lines} lines: does it hold one idea?", path.display());
    }
}
