//! Rules about the tree that no lint checks.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files of a folder and of those below it.
pub(crate) fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
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

/// The crates whose folders are laid out so that their imports point one way.
const LAYERED: [&str; 2] = ["peft-core", "peft-backends"];

/// The paths of a `use` tree: `a::{b, c::{self, d}}` is `a::b`, `a::c::self` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    let ends = inner.char_indices().chain([(inner.len(), ',')]);
    for (at, c) in ends {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner[start..at].trim();
                let nested = paths(part).into_iter().filter(|_| !part.is_empty());
                found.extend(nested.map(|path| format!("{}{path}", head.trim())));
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// What follows a prefix in a text, up to the end of the path or of its `{…}`.
fn paths_after(text: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let (mut depth, rest) = (0, &text[at + prefix.len()..]);
        let end = rest.find(|c: char| match c {
            '{' => {
                depth += 1;
                false
            }
            '}' if depth > 0 => {
                depth -= 1;
                depth == 0
            }
            c => depth == 0 && !(c.is_alphanumeric() || c == '_' || c == ':'),
        });
        // The brace that closes a tree belongs to it.
        let end = end.map_or(rest.len(), |end| if rest[..end].contains('{') { end + 1 } else { end });
        found.extend(paths(&rest[..end]));
    }
    found
}

/// A source without its comments and without its tests, which may use what they like.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Which top folder (or file) of a crate imports from which others, with a file that does.
fn imports(name: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let src = root().join("crates").join(name).join("src");
    let library = code(&src.join("lib.rs"));
    let exported = library.split(';').filter_map(|item| item.trim().strip_prefix("pub use "));
    let exported: BTreeMap<String, String> = exported
        .flat_map(paths)
        .filter_map(|path| Some((path.rsplit("::").next()?.to_owned(), path.split("::").next()?.to_owned())))
        .collect();
    let mut graph: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for file in crate_sources(name) {
        let inside = file.strip_prefix(&src).unwrap();
        let top = inside.components().next().unwrap().as_os_str().to_string_lossy();
        let top = top.trim_end_matches(".rs").to_owned();
        if top == "lib" || top == "main" {
            continue;
        }
        let own = graph.entry(top.clone()).or_default();
        for path in paths_after(&code(&file), "crate::") {
            let first = path.split("::").next().unwrap_or_default();
            let target = exported.get(first).map_or(first, String::as_str);
            if target != top && src.join(target).with_extension("rs").is_file() {
                own.entry(target.to_owned()).or_insert_with(|| inside.display().to_string());
            }
        }
    }
    graph
}

/// Takes away what imports nothing that is left, until nothing more can be: what stays imports in a circle.
fn circle(mut graph: BTreeMap<String, BTreeMap<String, String>>) -> BTreeMap<String, BTreeMap<String, String>> {
    while let Some(done) = graph.iter().find(|(_, imported)| imported.is_empty()).map(|(top, _)| top.clone()) {
        graph.remove(&done);
        for imported in graph.values_mut() {
            imported.remove(&done);
        }
    }
    graph
}

#[test]
fn the_folders_of_a_crate_import_one_way() {
    for name in LAYERED {
        let graph = imports(name);
        assert!(graph.len() > 1 && graph.values().any(|imported| !imported.is_empty()), "{name}: no import was found");
        let circle = circle(graph);
        assert!(circle.is_empty(), "{name}: folders import in a circle: {circle:#?}");
    }
}

#[test]
fn a_circle_of_folders_is_found() {
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (from, to) in arrows {
            graph.entry((*to).to_owned()).or_default();
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned(), String::new());
        }
        circle(graph).into_keys().collect::<Vec<_>>()
    };
    assert!(graph(&[("model", "adapter"), ("adapter", "error"), ("model", "error")]).is_empty());
    assert_eq!(graph(&[("model", "adapter"), ("adapter", "model"), ("adapter", "error")]), ["adapter", "model"]);
    let text = "use crate::{Error, plan::{self, Plan}};\nlet x = crate::names::find(y);";
    assert_eq!(paths_after(text, "crate::"), ["Error", "plan::self", "plan::Plan", "names::find"]);
}
