//! Fetching what is needed of a repository into the cache, file by file, each whole or not at all.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use peft_core::{Error, Result, files::create_folder};
use serde_json::Value;
use ureq::{
    Body,
    http::{Response, header},
};

use super::{
    Fetched, Hub, HubId,
    cache::{Cached, is_commit},
    client::{Client, Failure, LINKED_ETAG, Wanted},
    digest::{Check, ETag},
    lock::{BlobLock, sweep},
    needed::Needed,
};
use crate::checkpoint::shards::read_index;

/// The Hub's list of a repository's files; the largest have some ten thousand.
const MOST_LISTING_BYTES: u64 = 64 << 20;
/// Fewer than these in the time that a server may say nothing are nothing.
const LEAST_BYTES: u64 = 1024;

/// Fetches what the cache lacks.
pub(super) fn fetch(
    hub: &Hub,
    id: &HubId,
    needed: Needed,
    cached: &Cached,
    report: &mut dyn FnMut(String),
) -> Result<Fetched> {
    let download = Download { client: Client::new(hub, id), cached };
    match download.fetch(needed, report) {
        Ok(folder) => Ok(Fetched::Folder(folder)),
        Err(Failure::Unreachable(reason)) => Ok(Fetched::Unreachable(reason)),
        Err(Failure::Error(error)) => Err(error),
    }
}

/// A repository, and the folder that it is fetched into.
#[derive(Debug)]
struct Download<'a> {
    client: Client<'a>,
    cached: &'a Cached,
}

/// An answer that has a file.
#[derive(Debug)]
struct Coming {
    etag: ETag,
    /// How many bytes the file has, if a server says it.
    size: Option<u64>,
    body: Body,
    /// Whether the end of the body can be told from a broken connection.
    has_end: bool,
}

impl Download<'_> {
    fn fetch(&self, needed: Needed, report: &mut dyn FnMut(String)) -> Result<PathBuf, Failure> {
        let (commit, names) = self.listing()?;
        let lacks = |lack: String| self.client.missing(format!("has {lack}"));
        let selection = needed.select_in(&names, self.client.id.subfolder.as_deref()).map_err(lacks)?;
        let folder = self.cached.of_commit(&commit).join(&selection.folder);
        let within = |name: &str| match selection.folder.as_str() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        };
        for file in &selection.files {
            self.file(&commit, &within(file), report)?;
        }
        if let Some(index) = selection.index {
            let shards: BTreeSet<_> = read_index(&folder.join(index))?.into_values().collect();
            for shard in &shards {
                self.file(&commit, &within(shard), report)?;
            }
        }
        // Last, so that a revision never means a commit that was fetched only in part.
        if self.client.id.revision != commit {
            self.refer(&commit)?;
        }
        sweep(self.cached);
        Ok(folder)
    }

    /// The commit that the revision is, and the names of its files.
    fn listing(&self) -> Result<(String, BTreeSet<String>), Failure> {
        let id = self.client.id;
        let path = format!("/api/models/{}/revision/{}", id.repo, escaped(&id.revision, ""));
        let url = self.client.hub.endpoint.url(&path);
        let (_, answer) = self.client.get(&url, Wanted::Listing)?;
        let unusable = |problem: &str| Failure::Unreachable(format!("{url} {problem}"));
        let (mut document, mut left) = (Vec::new(), MOST_LISTING_BYTES);
        let mut body = answer.into_body();
        self.copy(&mut body, |bytes| {
            left = left.checked_sub(len(bytes)).ok_or_else(|| io::Error::other("answered with too long a list"))?;
            document.extend_from_slice(bytes);
            Ok(())
        })
        .map_err(|error| unusable(&format!("cannot be read: {error}")))?;
        let document: Value = serde_json::from_slice(&document).unwrap_or_default();
        let commit = document.get("sha").and_then(Value::as_str).filter(|commit| is_commit(commit));
        let (Some(commit), Some(Value::Array(files))) = (commit, document.get("siblings")) else {
            return Err(unusable("answered with something else than a list of files"));
        };
        let names = files.iter().filter_map(|file| file.get("rfilename")?.as_str()).filter(|name| is_inside(name));
        Ok((commit.to_owned(), names.map(str::to_owned).collect()))
    }

    /// Puts a file into the cache, if it is not there.
    fn file(&self, commit: &str, name: &str, report: &mut dyn FnMut(String)) -> Result<(), Failure> {
        if !is_inside(name) {
            return Err(self.broken(name, io::Error::other("the name leads out of the repository")));
        }
        let link = self.cached.of_commit(commit).join(name);
        if link.exists() {
            return Ok(());
        }
        let id = self.client.id;
        let mut coming = self.coming(commit, name)?;
        let waiting = || report(format!("waiting for another process that downloads {name} of {id}"));
        let lock = BlobLock::take(self.cached, &coming.etag, waiting)?;
        // Another process may have fetched it meanwhile.
        if link.exists() {
            return Ok(());
        }
        let blob = self.cached.blobs().join(coming.etag.as_str());
        if !is_whole(&blob, coming.size) {
            if lock.has_waited {
                // The answer may have timed out.
                let again = self.coming(commit, name)?;
                if again.etag != coming.etag {
                    return Err(self.broken(name, io::Error::other("it changed while it was waited for")));
                }
                coming = again;
            }
            report(format!("downloading {name} of {id}{}", coming.size.and_then(megabytes).unwrap_or_default()));
            self.download(name, &lock, coming, &blob)?;
        }
        self.link(&lock, &blob, &link)
    }

    /// Asks for a file.
    fn coming(&self, commit: &str, name: &str) -> Result<Coming, Failure> {
        let path = format!("/{}/resolve/{commit}/{}", self.client.id.repo, escaped(name, "/"));
        let url = self.client.hub.endpoint.url(&path);
        let (headers, answer) = self.client.get(&url, Wanted::File(name))?;
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
        let Some(etag) = text(LINKED_ETAG).or_else(|| text("etag")).and_then(ETag::parse) else {
            return Err(self.broken(name, io::Error::other(format!("{url} answered without a usable ETag"))));
        };
        let size = text("x-linked-size").and_then(|size| size.parse().ok());
        let has_end = has_end(&answer);
        let body = answer.into_body();
        Ok(Coming { etag, size: size.or_else(|| body.content_length()), has_end, body })
    }

    /// Writes an answer to a temporary file beside the blob, which becomes the blob when it is whole.
    fn download(&self, name: &str, lock: &BlobLock, mut coming: Coming, blob: &Path) -> Result<(), Failure> {
        let broken = |source| self.broken(name, source);
        let mut file = lock.partial(self.cached, &coming.etag)?;
        let (mut check, mut done) = (Check::new(&coming.etag), 0_u64);
        if coming.size.is_none() && !coming.has_end && !check.is_known() {
            let problem = "the server says neither how long the file is nor what hash it has";
            return Err(broken(io::Error::other(problem)));
        }
        let unwritable = |source| Failure::Error(Error::Io { path: blob.to_owned(), action: "write", source });
        let mut unwritten = None;
        let copied = self.copy(&mut coming.body, |bytes| {
            done += len(bytes);
            if coming.size.is_some_and(|size| done > size) {
                return Err(io::Error::other("more bytes came than the server says there are"));
            }
            check.update(bytes);
            file.write_all(bytes).inspect_err(|error| unwritten = Some(error.kind()))
        });
        copied.map_err(|error| if unwritten.is_some() { unwritable(error) } else { broken(error) })?;
        if let Some(size) = coming.size.filter(|size| *size != done) {
            let problem = format!("{done} of {size} bytes came");
            return Err(broken(io::Error::new(io::ErrorKind::UnexpectedEof, problem)));
        }
        if let Some(problem) = check.problem(file.path()).map_err(unwritable)? {
            return Err(broken(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        file.as_file().sync_all().map_err(unwritable)?;
        file.persist(blob).map(drop).map_err(|error| unwritable(error.error))
    }

    /// Passes a body on in pieces. A server that sends next to nothing for a while is given up.
    fn copy(&self, body: &mut Body, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let patience = self.client.hub.timeout;
        let (mut reader, mut buffer) = (body.as_reader(), vec![0; 1 << 16]);
        let (mut since, mut come) = (Instant::now(), 0);
        loop {
            let count = reader.read(&mut buffer).map_err(|error| timed_out(error, patience))?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            to(bytes)?;
            come += len(bytes);
            if since.elapsed() > patience.max(Duration::from_millis(1)) {
                if come < LEAST_BYTES {
                    let problem = format!("only {come} bytes came in {} seconds", since.elapsed().as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
                }
                (since, come) = (Instant::now(), 0);
            }
        }
    }

    /// Makes a snapshot's file from a blob: a relative link, so that the cache can be moved; a copy where there are no links.
    fn link(&self, lock: &BlobLock, blob: &Path, link: &Path) -> Result<(), Failure> {
        let unwritable = |source| Error::Io { path: link.to_owned(), action: "create", source };
        create_folder(link.parent().unwrap_or(link))?;
        // A link to a blob that was deleted.
        if link.is_symlink() {
            fs::remove_file(link).map_err(unwritable)?;
        }
        #[cfg(unix)]
        {
            let depth =
                link.strip_prefix(&self.cached.folder).map_or(0, |path| path.components().count().saturating_sub(1));
            let target: PathBuf = std::iter::repeat_n("..", depth).collect();
            let target = target.join("blobs").join(blob.file_name().unwrap_or_default());
            if std::os::unix::fs::symlink(target, link).is_ok() {
                return Ok(());
            }
        }
        let etag = blob.file_name().and_then(|name| name.to_str()).and_then(ETag::parse);
        let Some(etag) = etag else { return Err(unwritable(io::ErrorKind::InvalidFilename.into()).into()) };
        let copy = lock.partial(self.cached, &etag)?;
        fs::copy(blob, copy.path()).map_err(unwritable)?;
        copy.persist(link).map(drop).map_err(|error| unwritable(error.error).into())
    }

    /// Makes the revision mean a commit.
    fn refer(&self, commit: &str) -> Result<(), Failure> {
        let reference = self.cached.reference();
        if fs::read_to_string(&reference).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        let unwritable = |source| Error::Io { path: reference.clone(), action: "write", source };
        create_folder(reference.parent().unwrap_or(&self.cached.folder))?;
        let Some(key) = ETag::parse(commit) else {
            return Err(unwritable(io::ErrorKind::InvalidFilename.into()).into());
        };
        let lock = BlobLock::take(self.cached, &key, || ())?;
        let mut file = lock.partial(self.cached, &key)?;
        file.write_all(commit.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(unwritable)?;
        file.persist(&reference).map(drop).map_err(|error| unwritable(error.error).into())
    }

    fn broken(&self, name: &str, source: io::Error) -> Failure {
        let path = PathBuf::from(&self.client.id.repo).join(name);
        Failure::Error(Error::Io { path, action: "download", source })
    }
}

/// What broke a transfer, in plain words if it was the server's silence.
fn timed_out(error: io::Error, patience: Duration) -> io::Error {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(ureq::Error::Timeout(_)) => {
            io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {} seconds", patience.as_secs()))
        }
        _ => error,
    }
}

/// Whether a blob is there, with the length that it should have.
fn is_whole(blob: &Path, size: Option<u64>) -> bool {
    fs::metadata(blob).is_ok_and(|found| size.is_none_or(|size| size == found.len()))
}

/// Whether the end of a body is marked, or its length known.
fn has_end(answer: &Response<Body>) -> bool {
    let is_chunked =
        |value: &ureq::http::HeaderValue| value.to_str().is_ok_and(|v| v.to_lowercase().contains("chunked"));
    answer.body().content_length().is_some() || answer.headers().get(header::TRANSFER_ENCODING).is_some_and(is_chunked)
}

/// Whether a file's name leads to a place in the folder of its repository, and can be shown.
fn is_inside(name: &str) -> bool {
    !name.chars().any(|letter| letter.is_control() || matches!(letter, '\\' | ':'))
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Text as a part of an address; bytes of `kept` stay as they are.
fn escaped(text: &str, kept: &str) -> String {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || kept.as_bytes().contains(&byte);
    text.bytes().map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The size of a file that is worth waiting for.
fn megabytes(bytes: u64) -> Option<String> {
    (bytes >= 1_000_000).then(|| format!(" ({} MB)", bytes / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_repository_are_none() {
        for name in ["a.gguf", "1_Pooling/config.json", "..a/b..", "é.bin"] {
            assert!(is_inside(name), "{name}");
        }
        for name in ["", "../a", "a/../../b", "/etc/passwd", "a//b", "./a", "a\\..\\b", "C:a", "\u{1b}[31ma.gguf", "a/"]
        {
            assert!(!is_inside(name), "{name}");
        }
    }
}
