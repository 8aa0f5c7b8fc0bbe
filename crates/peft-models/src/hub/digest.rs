//! What the Hub says of a file's bytes, compared with what came.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use peft_core::files::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// An ETag that may name a blob: the Hub's are the SHA-256 of a large file and the SHA-1 that git has for a small one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ETag(String);

impl ETag {
    /// More than any hash has, less than a name of a file may have.
    const MOST_LETTERS: usize = 128;

    /// Reads the header, weak or quoted; nothing for one that could not be the name of a file.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let header = header.trim();
        let text = header.strip_prefix("W/").unwrap_or(header).trim_matches('"');
        let is_name = !text.is_empty()
            && text.len() <= Self::MOST_LETTERS
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_name.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn is_hex(&self, digits: usize) -> bool {
        self.0.len() == digits && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// The hash of bytes while they come.
#[derive(Debug)]
pub(super) struct Check<'a> {
    etag: &'a ETag,
    sha256: Option<Sha256>,
}

impl<'a> Check<'a> {
    pub(super) fn new(etag: &'a ETag) -> Self {
        Self { etag, sha256: etag.is_hex(64).then(Sha256::new) }
    }

    /// Whether the ETag says anything of the bytes.
    pub(super) fn is_known(&self) -> bool {
        self.sha256.is_some() || self.etag.is_hex(40)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
    }

    /// What is wrong with the bytes, which now lie in a file.
    pub(super) fn problem(self, file: &Path) -> io::Result<Option<String>> {
        let (kind, found) = match self.sha256 {
            Some(sha256) => ("SHA-256", vec![hex(&sha256.finalize())]),
            None if self.etag.is_hex(40) => ("SHA-1", sha1s(file)?),
            None => return Ok(None),
        };
        let is_right = found.iter().any(|found| found.eq_ignore_ascii_case(self.etag.as_str()));
        let found = found.into_iter().next().unwrap_or_default();
        Ok((!is_right).then(|| format!("the {kind} of what came is {found}, the server says {}", self.etag.as_str())))
    }
}

/// The SHA-1 of a file as git has it, with the length before, and as some mirrors have it, of the bytes alone.
fn sha1s(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let mut git = Sha1::new_with_prefix(format!("blob {}\0", file.metadata()?.len()));
    let (mut plain, mut buffer) = (Sha1::new(), vec![0; 1 << 16]);
    loop {
        let count = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        git.update(bytes);
        plain.update(bytes);
    }
    Ok(vec![hex(&git.finalize()), hex(&plain.finalize())])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn bytes_are_held_against_the_hashes_of_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "hello\n").unwrap();
        let check = |header: &str| {
            let etag = ETag::parse(header).unwrap();
            let mut check = Check::new(&etag);
            let is_known = check.is_known();
            check.update(b"hello\n");
            (is_known, check.problem(&file).unwrap())
        };
        // What `sha256sum`, `git hash-object` and `sha1sum` say.
        for right in [
            "\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"",
            "W/\"CE013625030BA8DBA906F756967F9E9CA394464A\"",
            "f572d396fae9206628714fb2ce00f72e94f2258f",
        ] {
            assert_eq!(check(right), (true, None), "{right}");
        }
        let (is_known, problem) = check(&"0".repeat(64));
        assert!(is_known && problem.unwrap().contains("the SHA-256 of what came is 5891b5b5"));
        assert!(check(&"0".repeat(40)).1.unwrap().contains("the SHA-1 of what came is ce013625"));
        assert_eq!(check("\"d41d8cd98f00b204e9800998ecf8427e-5\""), (false, None));
        for none in ["", "\"\"", "../x", "a b", &"a".repeat(200)] {
            assert_eq!(ETag::parse(none), None, "{none}");
        }
    }
}
