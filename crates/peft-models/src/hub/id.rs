//! The name of a repository on the Hub.

use std::fmt;

/// What is used where no revision is named.
const MAIN: &str = "main";

/// `org/name[@revision][:subfolder]`; a revision is a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// The revision; `main` unless another was named.
    pub revision: String,
    /// The folder inside the repository, if one was named: Python's `subfolder`.
    pub subfolder: Option<String>,
}

impl HubId {
    /// Reads such a text; nothing for one that cannot be the name of a repository.
    pub fn parse(text: &str) -> Option<Self> {
        let (text, subfolder) = match text.split_once(':') {
            Some((text, subfolder)) => (text, Some(subfolder.trim_end_matches('/'))),
            None => (text, None),
        };
        let (repo, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = repo.split_once('/')?;
        let is_id =
            is_part(org) && is_part(name) && !is_file(name) && is_path(revision) && subfolder.is_none_or(is_path);
        let subfolder = subfolder.map(str::to_owned);
        is_id.then(|| Self { repo: repo.to_owned(), revision: revision.to_owned(), subfolder })
    }

    /// The revision, if it is not the usual one.
    pub fn named_revision(&self) -> Option<&str> {
        (self.revision != MAIN).then_some(self.revision.as_str())
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.named_revision().map_or(Ok(()), |revision| write!(f, "@{revision}"))?;
        self.subfolder.as_ref().map_or(Ok(()), |subfolder| write!(f, ":{subfolder}"))
    }
}

fn is_part(text: &str) -> bool {
    let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_edge = |edge: Option<char>| matches!(edge, None | Some('-' | '.'));
    let (first, last) = (text.chars().next(), text.chars().next_back());
    text.chars().all(is_known) && !is_edge(first) && !is_edge(last) && !text.contains("..") && !text.contains("--")
}

/// The Hub's rules allow such names, but whoever writes one means a file.
fn is_file(name: &str) -> bool {
    let files = [".gguf", ".safetensors", ".bin", ".json", ".toml"];
    files.iter().any(|extension| name.to_lowercase().ends_with(extension))
}

/// `main`, `v1.0`, `refs/pr/3`, a commit, a folder: no way out of the cache's folder.
fn is_path(text: &str) -> bool {
    text.split('/').all(|part| {
        let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(is_known)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for (text, repo, revision) in [
            ("google/flan-t5-small", "google/flan-t5-small", "main"),
            ("Qwen/Qwen2.5-0.5B@v1.0", "Qwen/Qwen2.5-0.5B", "v1.0"),
            ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
            ("a_b/c.d@0123abc", "a_b/c.d", "0123abc"),
        ] {
            let id = HubId::parse(text).unwrap();
            assert_eq!((id.repo.as_str(), id.revision.as_str(), id.to_string().as_str()), (repo, revision, text));
        }
        for text in [
            "",
            "bert",
            "/abs/olute",
            "./a",
            "../a",
            "a/b/c",
            "a/",
            "/a",
            "~/a",
            "a\\b",
            "a/b c",
            "a/..",
            "a/b..c",
            "-a/b",
            "a/b.",
            "a/b--c",
            "a/b.gguf",
            "a/model.safetensors",
            "a/b@",
            "a/b@../c",
            "a/b@x//y",
            "a/b@/x",
            "a@b/c",
        ] {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }
}
