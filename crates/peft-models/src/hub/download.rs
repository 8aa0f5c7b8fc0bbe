//! Fetching what is needed of a repository into the cache, file by file, each whole or not at all.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use peft_core::{
    Error, Result,
    files::{create_folder, write_atomically},
};
use serde_json::Value;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode, header},
};

use super::{
    Fetched, Hub, HubId,
    cache::{Cached, is_commit},
    needed::Needed,
};
use crate::checkpoint::shards::read_index;

const CONNECT_SECONDS: u64 = 10;
const READ_SECONDS: u64 = 60;
const REDIRECTS: usize = 10;
/// How the Hub describes a file that lies on another server.
const LINKED_ETAG: &str = "x-linked-etag";
/// The Hub's list of a repository's files; the largest have some ten thousand.
const MOST_LISTING_BYTES: u64 = 64 << 20;

/// Fetches what the cache lacks.
pub(super) fn fetch(
    hub: &Hub,
    id: &HubId,
    needed: Needed,
    cached: &Cached,
    report: &mut dyn FnMut(String),
) -> Result<Fetched> {
    let client = Client::new(hub, id);
    match client.fetch(needed, cached, report) {
        Ok(folder) => Ok(Fetched::Folder(folder)),
        Err(Failure::Unreachable(reason)) => Ok(Fetched::Unreachable(reason)),
        Err(Failure::Error(error)) => Err(error),
    }
}

/// Why nothing came.
#[derive(Debug)]
enum Failure {
    /// No answer, or one of a server in trouble: the cache may help.
    Unreachable(String),
    /// An answer that nothing helps against.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

#[derive(Debug)]
struct Client<'a> {
    agent: Agent,
    hub: &'a Hub,
    id: &'a HubId,
    endpoint: &'a str,
}

impl<'a> Client<'a> {
    fn new(hub: &'a Hub, id: &'a HubId) -> Self {
        let seconds = |count| Some(Duration::from_secs(count));
        // Redirects are followed here: headers of the first answer are needed, and the token is for the Hub alone.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(seconds(CONNECT_SECONDS))
            .timeout_per_read(seconds(READ_SECONDS))
            .user_agent(concat!("peft-rs/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length than the file.
            .accept_encoding("identity");
        Self { agent: config.build().into(), hub, id, endpoint: hub.endpoint.trim_end_matches('/') }
    }

    fn fetch(&self, needed: Needed, cached: &Cached, report: &mut dyn FnMut(String)) -> Result<PathBuf, Failure> {
        let (commit, names) = self.listing()?;
        let lacks = |lack: String| self.missing(format!("has {lack}"));
        let selection = needed.select(&names).map_err(lacks)?;
        let folder = cached.of_commit(&commit);
        for file in &selection.files {
            self.file(cached, &commit, file, report)?;
        }
        if let Some(index) = selection.index {
            let shards: std::collections::BTreeSet<_> = read_index(&folder.join(index))?.into_values().collect();
            for shard in &shards {
                self.file(cached, &commit, shard, report)?;
            }
        }
        // Last, so that a revision never means a commit that was fetched only in part.
        if self.id.revision != commit {
            let reference = cached.reference();
            create_folder(reference.parent().unwrap_or(&cached.folder))?;
            write_atomically(&reference, commit.as_bytes())?;
        }
        Ok(folder)
    }

    /// The commit that the revision is, and the names of its files.
    fn listing(&self) -> Result<(String, std::collections::BTreeSet<String>), Failure> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, self.id.repo, escaped(&self.id.revision, ""));
        let (_, answer) = self.get(&url)?;
        let document = answer.into_body().into_with_config().limit(MOST_LISTING_BYTES).read_to_vec();
        let document = document.map_err(|error| self.unreachable(&error))?;
        let document: Value = serde_json::from_slice(&document).unwrap_or_default();
        let commit = document.get("sha").and_then(Value::as_str).filter(|commit| is_commit(commit));
        let (Some(commit), Some(Value::Array(files))) = (commit, document.get("siblings")) else {
            return Err(Failure::Unreachable(format!("{url} answered with something else than a list of files")));
        };
        let names = files.iter().filter_map(|file| file.get("rfilename")?.as_str()).map(str::to_owned);
        Ok((commit.to_owned(), names.collect()))
    }

    /// Puts a file into the cache, if it is not there.
    fn file(&self, cached: &Cached, commit: &str, name: &str, report: &mut dyn FnMut(String)) -> Result<(), Failure> {
        let link = cached.of_commit(commit).join(name);
        if link.exists() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.id.repo, escaped(name, "/"));
        let (headers, mut answer) = self.get(&url)?;
        let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
        let etag =
            text(LINKED_ETAG).or_else(|| text("etag")).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let Some(etag) = etag.filter(|etag| is_blob(etag)) else {
            return Err(self.broken(name, io::Error::other(format!("{url} answered without a usable ETag"))));
        };
        let blob = cached.folder.join("blobs").join(etag);
        if !blob.exists() {
            let size = text("x-linked-size").and_then(|size| size.parse().ok());
            let size = size.or_else(|| answer.body().content_length());
            report(format!("downloading {name} of {}{}", self.id, size.and_then(megabytes).unwrap_or_default()));
            self.download(name, &mut answer, size, &blob)?;
        }
        self.link(&blob, &link)
    }

    /// Writes an answer to a temporary file beside the blob, which becomes the blob when it is whole.
    fn download(&self, name: &str, answer: &mut Response<Body>, size: Option<u64>, blob: &Path) -> Result<(), Failure> {
        let folder = blob.parent().unwrap_or(blob);
        create_folder(folder)?;
        let unwritable = |source| Error::Io { path: blob.to_owned(), action: "write", source };
        let mut file = tempfile::Builder::new().prefix(".peft-").tempfile_in(folder).map_err(unwritable)?;
        let (mut body, mut buffer, mut done) = (answer.body_mut().as_reader(), vec![0; 1 << 16], 0_u64);
        loop {
            let count = body.read(&mut buffer).map_err(|source| self.broken(name, source))?;
            if count == 0 {
                break;
            }
            file.write_all(buffer.get(..count).unwrap_or_default()).map_err(unwritable)?;
            done += u64::try_from(count).unwrap_or_default();
        }
        if let Some(size) = size.filter(|size| *size != done) {
            let problem = format!("{done} of {size} bytes came");
            return Err(self.broken(name, io::Error::new(io::ErrorKind::UnexpectedEof, problem)));
        }
        file.as_file().sync_all().map_err(unwritable)?;
        // Temporary files are private; those of the cache have the usual mode.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(unwritable)?;
        }
        file.persist(blob).map(drop).map_err(|error| unwritable(error.error).into())
    }

    /// Makes a snapshot's file from a blob: a relative link, so that the cache can be moved; a copy where there are no links.
    fn link(&self, blob: &Path, link: &Path) -> Result<(), Failure> {
        let unwritable = |source| Error::Io { path: link.to_owned(), action: "create", source };
        create_folder(link.parent().unwrap_or(link))?;
        // A link to a blob that was deleted.
        if link.is_symlink() {
            fs::remove_file(link).map_err(unwritable)?;
        }
        #[cfg(unix)]
        {
            let root = blob.parent().and_then(Path::parent).unwrap_or(blob);
            let depth = link.strip_prefix(root).map_or(0, |path| path.components().count().saturating_sub(1));
            let target: PathBuf = std::iter::repeat_n("..", depth).collect();
            let target = target.join("blobs").join(blob.file_name().unwrap_or_default());
            match std::os::unix::fs::symlink(target, link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(unwritable(error).into()),
                _ => Ok(()),
            }
        }
        #[cfg(not(unix))]
        fs::copy(blob, link).map(drop).map_err(|source| unwritable(source).into())
    }

    /// Asks for an address: the headers that describe the file, and the answer that has it, which may be another server's.
    fn get(&self, url: &str) -> Result<(HeaderMap, Response<Body>), Failure> {
        let (mut url, mut of_hub) = (url.to_owned(), None);
        for _ in 0..REDIRECTS {
            let mut request = self.agent.get(&url);
            // The token must not go anywhere else.
            let is_hub = url.strip_prefix(self.endpoint).is_some_and(|rest| rest.starts_with('/'));
            if let Some(token) = self.hub.token.as_ref().filter(|_| is_hub) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| self.unreachable(&error))?;
            let (status, headers) = (answer.status(), answer.headers());
            if headers.contains_key(LINKED_ETAG) {
                of_hub.get_or_insert_with(|| headers.clone());
            }
            if status.is_success() {
                return Ok((of_hub.unwrap_or_else(|| headers.clone()), answer));
            }
            let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| status.is_redirection()) {
                Some(path) if path.starts_with('/') => {
                    let host = url.split_inclusive('/').take(3).collect::<String>();
                    url = format!("{}{path}", host.trim_end_matches('/'));
                }
                Some(other) => url = other.to_owned(),
                None => return Err(self.refused(&url, status, headers)),
            }
        }
        Err(Failure::Unreachable(format!("{url} is redirected again and again")))
    }

    /// What an answer that is no success means.
    fn refused(&self, url: &str, status: StatusCode, headers: &HeaderMap) -> Failure {
        let code = headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let has_token = self.hub.token.is_some();
        let page = format!("{}/{}", self.endpoint, self.id.repo);
        match (status.as_u16(), code) {
            (401 | 403, "GatedRepo") if has_token => {
                self.missing(format!("is gated, and the account of HF_TOKEN has no access: ask for it at {page}"))
            }
            (401 | 403, "GatedRepo") => self
                .missing(format!("is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account")),
            (401, _) if !has_token => self.missing(format!(
                "there is no such repository at {}, or it is private: check the name, or set HF_TOKEN",
                self.endpoint
            )),
            (401 | 403, _) => {
                self.missing(format!("{page} is not for the account of HF_TOKEN, or the token is not valid"))
            }
            (404, "RevisionNotFound") => self.missing(format!("the repository has no revision `{}`", self.id.revision)),
            (404, "EntryNotFound") => self.missing(format!("the repository has no such file: {url}")),
            (404, _) => {
                self.missing(format!("no folder of that name here, and no such repository at {}", self.endpoint))
            }
            _ => Failure::Unreachable(format!("{url} answered {status}")),
        }
    }

    fn missing(&self, what: String) -> Failure {
        Failure::Error(Error::NotFound { path: PathBuf::from(self.id.to_string()), what })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable(format!("{} cannot be reached ({error})", self.endpoint))
    }

    fn broken(&self, name: &str, source: io::Error) -> Failure {
        let path = PathBuf::from(&self.id.repo).join(name);
        Failure::Error(Error::Io { path, action: "download", source })
    }
}

/// Whether a blob may be called that: hashes are.
fn is_blob(etag: &str) -> bool {
    !etag.is_empty() && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
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
