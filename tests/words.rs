//! Words that the tree has retired, because Transformers, PEFT, TRL, PyTorch or Burn have another.
//!
//! `docs/src/contributing.md` has the rule. When you replace a word everywhere in a part of the tree, add it to that part's
//! list; when a part is clean of a list, add the part.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A retired word or phrase in lower case, and what to write instead.
type Retired = (&'static str, &'static str);

/// Retired wherever a list applies.
const EVERYWHERE: &[Retired] = &[
    ("pass back", "backward pass"),
    ("passes back", "backward passes"),
    ("table of words", "token embeddings"),
    ("tables of words", "token embeddings"),
    ("head for words", "LM head, or a language model"),
    ("head over words", "LM head"),
    ("truth value", "true or false"),
    ("goes on from", "continues, or resumes from"),
    ("go on from", "continue, or resume from"),
    ("and its kin", "and similar models"),
    ("learnt", "trained, or in the loss"),
    ("likeliest", "most likely"),
    ("passed over", "ignored"),
    ("read past", "ignored"),
    ("keeps its input alone", "is checkpointed"),
    ("keep their input alone", "are checkpointed"),
    ("imitated in software", "software-emulated"),
    ("packed weight", "quantized weight"),
    ("weights are packed", "weights are quantized"),
    ("stay packed", "stay quantized"),
    ("unpacks", "dequantizes"),
    ("made one long", "L2-normalized"),
    ("of length one", "L2-normalized"),
    ("written answers", "generated text"),
    ("memory may not do", "may run out of memory"),
    ("was at hand", "was available"),
    ("counts for nothing", "is ignored"),
    ("is not its business", "is handled elsewhere"),
    ("are not its business", "are handled elsewhere"),
    ("as there.", "what it is: shapes, units, errors or source"),
];

/// What a part of the tree is called, the files that it has (a file, or a folder with everything below it), and words that
/// are retired there besides those of `EVERYWHERE`.
struct Part {
    paths: &'static [&'static str],
    retired: &'static [Retired],
}

const PARTS: &[Part] = &[
    Part {
        paths: &["docs/src", "README.md", "CHANGELOG.md", "examples/README.md"],
        retired: &[("optimiser", "optimizer"), ("tokenised", "tokenized"), ("dequantised", "dequantized")],
    },
    // Crates follow as they are cleaned: `Part { paths: &["crates/peft-core/src"], retired: &[…] }`.
];

/// What quotes the words in order to retire them.
const EXEMPT: &[&str] = &["tests/words.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn texts(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            texts(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|e| ["rs", "md", "toml"].iter().any(|known| e == *known)) {
        found.push(path.to_owned());
    }
}

/// The lines, from 1, on which the phrase begins. It stands between other characters than letters and may go over a line break,
/// also one of a comment.
fn lines_with(text: &str, phrase: &str) -> Vec<usize> {
    let mut words: Vec<(usize, String)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start().trim_start_matches(['/', '!', '#', '>', '|', '-', '*']).to_lowercase();
        words.extend(line.split_whitespace().map(|word| (number, word.to_owned())));
    }
    let joined: String = words.iter().map(|(_, word)| format!("{word} ")).collect();
    let mut starts = Vec::new();
    for (at, _) in joined.match_indices(phrase) {
        let before = joined[..at].chars().next_back();
        let after = joined[at + phrase.len()..].chars().next();
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        // A plural is the same word.
        let plural = after == Some('s') && !is_letter(joined[at + phrase.len() + 1..].chars().next());
        if !is_letter(before) && (plural || !is_letter(after)) {
            let word = joined[..at].matches(' ').count();
            starts.push(words[word].0);
        }
    }
    starts
}

#[test]
fn retired_words_stay_retired() {
    let mut found = Vec::new();
    for part in PARTS {
        let mut files = Vec::new();
        for path in part.paths {
            let path = root().join(path);
            assert!(path.exists(), "{} is not there any more", path.display());
            texts(&path, &mut files);
        }
        assert!(!files.is_empty());
        files.retain(|file| !EXEMPT.iter().any(|exempt| file.ends_with(exempt)));
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (phrase, instead) in EVERYWHERE.iter().chain(part.retired) {
                for line in lines_with(&text, phrase) {
                    found.push(format!("{}:{line}: `{phrase}`: write {instead}", file.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_retired_word_is_found_across_lines_and_not_inside_others() {
    assert_eq!(lines_with("one\n/// in the pass\n/// back of it", "pass back"), [2]);
    assert_eq!(lines_with("Packed weights\n", "packed weight"), [1]);
    assert_eq!(lines_with("sequence packing, packed sequences", "packed weight"), [0; 0]);
    assert_eq!(lines_with("the compass back there, learnts-not", "pass back"), [0; 0]);
}

#[test]
fn the_rust_example_of_the_readme_is_the_one_that_runs() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let example = fs::read_to_string(root().join("examples/any_module.rs")).unwrap();
    let quotes: Vec<&str> =
        readme.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).map(str::trim).collect();
    assert_eq!(quotes.len(), 1);
    assert!(example.contains(quotes[0]), "README.md quotes what examples/any_module.rs does not have");
}
