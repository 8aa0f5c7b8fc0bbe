//! Models by their Hub ids: the cache's layout, and a Hub on this machine that answers, refuses and breaks off.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use burn::tensor::Device;
use peft::{
    AutoClass, Error,
    models::{
        checkpoint::{self, LoadOptions},
        hub::{Endpoint, Hub, Needed},
    },
};
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::case;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const BERT: &str = "bert.SEQ_CLS.default";
const ETAG: &str = "2ad5d26151ef5751b1e76cec49aa0ba0743927a5a1e4e1bfd7dae6e4034bfa94";

/// What a server says to one request.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The length that it claims, if it claims one.
    length: Option<usize>,
    /// What it waits before each byte of the body after the first.
    pause: Duration,
}

impl Answer {
    fn new(status: u16, headers: &[(&'static str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { status, headers, length: Some(body.len()), body, pause: Duration::ZERO }
    }

    fn breaking_off(self) -> Self {
        Self { length: self.length.map(|length| length + 1000), ..self }
    }
}

/// A server that answers by path, and what it was asked: `/path`, with ` token` or ` password` behind it where one came along.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = request(&mut stream);
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let header = request.lines().find(|line| line.to_lowercase().starts_with("authorization:"));
                let proof = match header.and_then(|line| line.split_once(": ")).map(|(_, proof)| proof) {
                    Some("Bearer secret") => " token",
                    // user:hush-hush
                    Some("Basic dXNlcjpodXNoLWh1c2g=") => " password",
                    _ => "",
                };
                log.lock().unwrap().push(format!("{path}{proof}"));
                let Answer { status, mut headers, body, length, pause } = answer(&path);
                headers.extend(length.map(|length| ("Content-Length", length.to_string())));
                let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}\r\n");
                let pieces = if pause.is_zero() { body.len().max(1) } else { 1 };
                // The other side may have hung up.
                _ = stream.write_all(head.as_bytes()).and_then(|()| {
                    body.chunks(pieces).try_for_each(|piece| {
                        stream.write_all(piece)?;
                        std::thread::sleep(pause);
                        Ok(())
                    })
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn request(stream: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    while !text.ends_with("\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => text.push_str(std::str::from_utf8(&buffer[..count]).unwrap()),
            _ => break,
        }
    }
    text
}

fn hub(cache: &TempDir, endpoint: &str) -> Hub {
    let timeout = Duration::from_secs(20);
    Hub { cache: cache.path().join("hub"), endpoint: Endpoint::new(endpoint), token: None, timeout, offline: false }
}

fn locate(hub: &Hub, given: &str, needed: Needed) -> Result<PathBuf, Error> {
    hub.locate(Path::new(given), needed, &mut |_| ())
}

fn listing(names: &[&str]) -> Answer {
    let siblings: Vec<_> = names.iter().map(|name| json!({ "rfilename": name })).collect();
    Answer::new(200, &[], json!({ "sha": COMMIT, "siblings": siblings }).to_string())
}

/// A repository `org/tiny` whose files have what the table says; each file's ETag is its name without what no hash has.
fn repository(files: BTreeMap<&'static str, Vec<u8>>) -> impl Fn(&str) -> Answer + Send + 'static {
    move |path: &str| {
        if path.starts_with("/api/models/org/tiny/revision/") {
            return listing(&files.keys().copied().collect::<Vec<_>>());
        }
        let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).unwrap();
        let etag = format!("W/\"{}\"", name.replace(['.', '/', '_'], ""));
        Answer::new(200, &[("ETag", &etag)], files[name].clone())
    }
}

fn bert(file: &str) -> Vec<u8> {
    fs::read(case(BERT).join("model").join(file)).unwrap()
}

fn load(folder: &Path) {
    let class = AutoClass::SEQUENCE_CLASSIFICATION;
    checkpoint::load(folder, &class, &LoadOptions::default(), &Device::flex()).unwrap();
}

/// Every file and link below a folder, by its path there, without locks.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_none_or(|extension| extension != "lock") {
                found.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_needed_is_fetched_once_into_the_layout_that_python_has() {
    let elsewhere = Server::new(|_| Answer::new(200, &[("ETag", "\"another\"")], bert("model.safetensors")));
    let blob = format!("{}/blob", elsewhere.address);
    let size = bert("model.safetensors").len().to_string();
    let server = Server::new(move |path| match path {
        "/api/models/org/tiny/revision/main" => {
            listing(&["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"])
        }
        _ if path.ends_with("/config.json") => Answer::new(200, &[("ETag", "\"abc\"")], bert("config.json")),
        _ => {
            let headers = [
                ("Location", &*blob),
                ("X-Linked-Etag", "\"2ad5d26151ef5751b1e76cec49aa0ba0743927a5a1e4e1bfd7dae6e4034bfa94\""),
                ("X-Linked-Size", &size),
            ];
            Answer::new(302, &headers, "")
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { token: Some("secret".to_owned()), ..hub(&cache, &server.address) };
    let mut reports = Vec::new();
    let folder = hub.locate(Path::new("org/tiny"), Needed::Model, &mut |line| reports.push(line)).unwrap();
    load(&folder);
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert!(reports[1].contains("downloading model.safetensors of org/tiny"), "{reports:?}");

    let listed = "/api/models/org/tiny/revision/main token";
    let file = |name| format!("/org/tiny/resolve/{COMMIT}/{name} token");
    assert_eq!(server.asked(), [listed.to_owned(), file("config.json"), file("model.safetensors")]);
    assert_eq!(elsewhere.asked(), ["/blob"], "the token is for the Hub alone");

    let snapshot = format!("models--org--tiny/snapshots/{COMMIT}");
    let files = [
        "models--org--tiny/blobs/2ad5d26151ef5751b1e76cec49aa0ba0743927a5a1e4e1bfd7dae6e4034bfa94".to_owned(),
        "models--org--tiny/blobs/abc".to_owned(),
        "models--org--tiny/refs/main".to_owned(),
        format!("{snapshot}/config.json"),
        format!("{snapshot}/model.safetensors"),
    ];
    assert_eq!(tree(&hub.cache), files);
    assert_eq!(folder, hub.cache.join(snapshot));
    assert_eq!(fs::read_to_string(hub.cache.join("models--org--tiny/refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    {
        let link = fs::read_link(folder.join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(ETAG));
    }

    assert_eq!(locate(&hub, "org/tiny", Needed::Model).unwrap(), folder);
    assert_eq!(server.asked(), [listed], "nothing is fetched twice");
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(locate(&offline, "org/tiny", Needed::Model).unwrap(), folder);
    assert_eq!(offline.cached(Path::new("org/tiny")), folder);
    let pinned = format!("org/tiny@{COMMIT}");
    assert_eq!(locate(&offline, &pinned, Needed::Model).unwrap(), folder);
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn shards_are_fetched_by_the_index_and_revisions_are_kept_apart() {
    let index =
        json!({ "weight_map": { "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" } });
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("model-00001-of-00002.safetensors", b"1".to_vec()),
        ("model-00002-of-00002.safetensors", b"2".to_vec()),
        ("model-00003-of-00003.safetensors", b"not this".to_vec()),
        ("1_Pooling/config.json", b"{}".to_vec()),
    ];
    let server = Server::new(repository(BTreeMap::from(files)));
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&cache, &server.address);
    let folder = locate(&hub, "org/tiny@refs/pr/1", Needed::Model).unwrap();
    let there = [
        "1_Pooling/config.json",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(tree(&folder), there);
    assert_eq!(fs::read(folder.join("1_Pooling/config.json")).unwrap(), b"{}");
    assert_eq!(server.asked()[0], "/api/models/org/tiny/revision/refs%2Fpr%2F1");
    assert_eq!(fs::read_to_string(hub.cache.join("models--org--tiny/refs/refs/pr/1")).unwrap(), COMMIT);

    let offline = Hub { offline: true, ..hub };
    assert_eq!(locate(&offline, "org/tiny@refs/pr/1", Needed::Model).unwrap(), folder);
    assert!(locate(&offline, "org/tiny", Needed::Model).is_err(), "main was never looked up");
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = locate(&offline, "org/tiny@refs/pr/1", Needed::Model).unwrap_err().to_string();
    assert!(error.contains("only in part (no model-00002-of-00002.safetensors)"), "{error}");
    locate(&offline, "org/tiny@refs/pr/1", Needed::Tokenizer).unwrap();
}

#[test]
fn an_adapter_is_fetched_without_what_its_training_left() {
    let files =
        ["adapter_config.json", "adapter_model.safetensors", "labels.json", "optimizer.pt", "training_args.bin"];
    let server = Server::new(repository(files.into_iter().map(|name| (name, b"x".to_vec())).collect()));
    let cache = tempfile::tempdir().unwrap();
    let folder = locate(&hub(&cache, &server.address), "org/tiny", Needed::Adapter).unwrap();
    assert_eq!(tree(&folder), ["adapter_config.json", "adapter_model.safetensors", "labels.json"]);
}

#[test]
fn an_adapter_in_a_folder_of_a_repository_is_fetched_alone() {
    let cache = TempDir::new().unwrap();
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let all = ["math/adapter_config.json", "math/adapter_model.safetensors", "code/adapter_config.json", "README.md"];
    let server = Server::new(repository(all.iter().map(|name| (*name, name.as_bytes().to_vec())).collect()));
    let hub = hub(&cache, &server.address);
    let folder = locate(&hub, "org/tiny:math", Needed::Adapter).unwrap();
    assert!(folder.ends_with("math") && files.iter().all(|file| folder.join(file).exists()), "{}", folder.display());
    assert!(!server.asked().iter().any(|path| path.contains("code")));
    let error = locate(&hub, "org/tiny", Needed::Adapter).unwrap_err().to_string();
    assert!(error.contains("2 folders with one: code, math"), "{error}");
    // Without the Hub it is found again, and the one that was not fetched is told of.
    let offline = Hub { offline: true, ..hub };
    assert_eq!(locate(&offline, "org/tiny:math", Needed::Adapter).unwrap(), folder);
    assert_eq!(locate(&offline, "org/tiny", Needed::Adapter).unwrap(), folder);
    assert_eq!(offline.cached(Path::new("org/tiny:math")), folder);
    assert!(locate(&offline, "org/tiny:code", Needed::Adapter).is_err());
    for outside in ["org/tiny:../c", "org/tiny:/etc", "org/tiny:.hidden", "org/tiny:"] {
        let error = locate(&offline, outside, Needed::Adapter).unwrap_err().to_string();
        assert!(error.contains("no Hub id"), "{error}");
    }
}

#[test]
fn a_local_folder_wins_and_nobody_is_asked() {
    let server = Server::new(|_| Answer::new(500, &[], ""));
    let cache = tempfile::tempdir().unwrap();
    // Tests run in this package's folder, where this is both a folder and the form of an id.
    let given = "golden/bert.SEQ_CLS.default";
    assert_eq!(locate(&hub(&cache, &server.address), given, Needed::Model).unwrap(), Path::new(given));
    let error = locate(&hub(&cache, &server.address), "no/such/folder", Needed::Model).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(
        error.to_string().contains("no/such/folder: not found") && error.to_string().contains("org/name"),
        "{error}"
    );
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn refusals_say_what_to_do() {
    let check = |status, code: &'static str, token: Option<&str>, words: &[&str]| {
        let server = Server::new(move |_| Answer::new(status, &[("X-Error-Code", code)], "{}"));
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub { token: token.map(str::to_owned), ..hub(&cache, &server.address) };
        let error = locate(&hub, "org/tiny@v2", Needed::Model).unwrap_err();
        assert_eq!(error.exit_code(), 6, "{error}");
        let error = error.to_string();
        assert!(error.contains("org/tiny@v2") && words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(tree(&hub.cache), Vec::<String>::new());
    };
    check(404, "RepoNotFound", None, &["no folder of that name here", "no such repository"]);
    check(404, "RevisionNotFound", None, &["no revision `v2`"]);
    check(401, "RepoNotFound", None, &["check the name", "set HF_TOKEN"]);
    check(401, "GatedRepo", None, &["gated", "accept its terms at http://127.0.0.1", "HF_TOKEN"]);
    check(403, "GatedRepo", Some("secret"), &["gated", "account of HF_TOKEN has no access"]);
    check(401, "", Some("wrong"), &["the token is not valid"]);
    // A server in trouble is as good as none.
    check(503, "", None, &["answered 503", "not in the cache"]);
}

#[test]
fn a_gated_file_is_refused_after_the_list_was_given() {
    let server = Server::new(|path| match path.starts_with("/api/") {
        true => listing(&["config.json", "model.safetensors"]),
        false => Answer::new(401, &[("X-Error-Code", "GatedRepo")], ""),
    });
    let cache = tempfile::tempdir().unwrap();
    let error = locate(&hub(&cache, &server.address), "org/tiny", Needed::Model).unwrap_err();
    assert!(error.exit_code() == 6 && error.to_string().contains("set HF_TOKEN"), "{error}");
}

#[test]
fn a_broken_transfer_leaves_nothing_half_written() {
    let is_broken = Arc::new(Mutex::new(true));
    let breaks = Arc::clone(&is_broken);
    let files = repository(BTreeMap::from([
        ("config.json", bert("config.json")),
        ("model.safetensors", bert("model.safetensors")),
    ]));
    let server = Server::new(move |path| match files(path) {
        answer if path.ends_with("model.safetensors") && *breaks.lock().unwrap() => answer.breaking_off(),
        answer => answer,
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&cache, &server.address);
    let error = locate(&hub, "org/tiny", Needed::Model).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(error.to_string(), "org/tiny/model.safetensors: cannot download");
    let whole =
        ["models--org--tiny/blobs/configjson".to_owned(), format!("models--org--tiny/snapshots/{COMMIT}/config.json")];
    assert_eq!(tree(&hub.cache), whole);
    let offline = Hub { offline: true, ..hub.clone() };
    assert!(locate(&offline, "org/tiny", Needed::Model).is_err());

    *is_broken.lock().unwrap() = false;
    load(&locate(&hub, "org/tiny", Needed::Model).unwrap());
    locate(&offline, "org/tiny", Needed::Model).unwrap();
}

#[test]
fn a_renamed_repository_is_followed_with_the_token() {
    let files = repository(BTreeMap::from([("config.json", b"{}".to_vec())]));
    let server = Server::new(move |path| match path.contains("/old/") || path.contains("/old/name") {
        true => Answer::new(307, &[("Location", &path.replace("old/name", "org/tiny"))], ""),
        false => files(path),
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { token: Some("secret".to_owned()), ..hub(&cache, &server.address) };
    let folder = locate(&hub, "old/name", Needed::Config).unwrap();
    assert_eq!(tree(&folder), ["config.json"]);
    assert!(server.asked().iter().all(|asked| asked.ends_with(" token")));
}

#[test]
fn without_an_answer_the_cache_is_used_or_the_error_says_all_that_helps() {
    let files = repository(BTreeMap::from([("config.json", b"{}".to_vec())]));
    let server = Server::new(files);
    let cache = tempfile::tempdir().unwrap();
    let online = hub(&cache, &server.address);
    let folder = locate(&online, "org/tiny", Needed::Config).unwrap();
    // A port that nobody listens on.
    let unreachable = Hub { endpoint: Endpoint::new("http://127.0.0.1:1"), ..online };
    let mut reports = Vec::new();
    let found = unreachable.locate(Path::new("org/tiny"), Needed::Config, &mut |line| reports.push(line)).unwrap();
    assert_eq!(found, folder);
    assert!(reports[0].contains("http://127.0.0.1:1 cannot be reached"), "{reports:?}");
    let offline = Hub { offline: true, ..unreachable.clone() };
    for (hub, reason) in
        [(&unreachable, "cannot be reached"), (&offline, "HF_HUB_OFFLINE is set: unset it to download")]
    {
        let error = locate(hub, "org/other", Needed::Model).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        let error = error.to_string();
        let cache = hub.cache.display().to_string();
        assert!(
            error.starts_with("org/other: not found") && error.contains(&cache) && error.contains(reason),
            "{error}"
        );
        let error = locate(hub, "org/tiny", Needed::Model).unwrap_err().to_string();
        assert!(error.contains("only in part (no model.safetensors"), "{error}");
    }
}

/// A repository of a configuration whose ETag is a hash, and one answer for it.
fn configuration(etag: &'static str, change: impl Fn(Answer) -> Answer + Send + 'static) -> Server {
    Server::new(move |path| match path.starts_with("/api/") {
        true => listing(&["config.json"]),
        false => change(Answer::new(200, &[("ETag", etag)], b"hello\n".to_vec())),
    })
}

/// What `git hash-object` says of `hello`.
const HELLO: &str = "\"ce013625030ba8dba906f756967f9e9ca394464a\"";

#[test]
fn other_bytes_than_the_hash_are_refused_and_not_kept() {
    let sha256 = "\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"";
    for etag in [HELLO, sha256] {
        let is_damaged = Arc::new(Mutex::new(true));
        let damages = Arc::clone(&is_damaged);
        let server = configuration(etag, move |answer| match *damages.lock().unwrap() {
            true => Answer { body: b"jello\n".to_vec(), ..answer },
            false => answer,
        });
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(&cache, &server.address);
        let error = locate(&hub, "org/tiny", Needed::Config).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("the SHA-") && cause.contains(etag.trim_matches('"')), "{cause}");
        assert_eq!(tree(&hub.cache), Vec::<String>::new());

        *is_damaged.lock().unwrap() = false;
        let folder = locate(&hub, "org/tiny", Needed::Config).unwrap();
        assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"hello\n");
    }
}

#[test]
fn half_a_body_of_unknown_length_is_refused() {
    for etag in [HELLO, "\"unverifiable\""] {
        let server = configuration(etag, |answer| Answer { body: b"hel".to_vec(), length: None, ..answer });
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(&cache, &server.address);
        let error = locate(&hub, "org/tiny", Needed::Config).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str()), (1, "org/tiny/config.json: cannot download"));
        assert_eq!(tree(&hub.cache), Vec::<String>::new());
    }
    let server = configuration("\"unverifiable\"", |answer| Answer {
        headers: vec![("ETag", "\"unverifiable\"".to_owned()), ("Transfer-Encoding", "chunked".to_owned())],
        body: b"3\r\nhel\r\n".to_vec(),
        length: None,
        ..answer
    });
    let cache = tempfile::tempdir().unwrap();
    locate(&hub(&cache, &server.address), "org/tiny", Needed::Config).unwrap_err();
    // Whole, and the hash says so.
    let server = configuration(HELLO, |answer| Answer { length: None, ..answer });
    locate(&hub(&cache, &server.address), "org/tiny", Needed::Config).unwrap();
}

#[test]
fn half_a_file_that_an_older_version_kept_is_fetched_again() {
    let server = configuration(HELLO, |answer| answer);
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&cache, &server.address);
    let blobs = hub.cache.join("models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(HELLO.trim_matches('"')), "hel").unwrap();
    let folder = locate(&hub, "org/tiny", Needed::Config).unwrap();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"hello\n");
}

#[test]
fn leftovers_of_killed_downloads_go_and_those_of_running_ones_stay() {
    let server = configuration(HELLO, |answer| answer);
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&cache, &server.address);
    let (blobs, locks) = (hub.cache.join("models--org--tiny/blobs"), hub.cache.join(".locks/models--org--tiny"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&locks).unwrap();
    for name in [".peft-aaaa.Xy12", ".peft-bbbb.Xy12", ".peft-Xy12", "cccc.incomplete"] {
        fs::write(blobs.join(name), "half").unwrap();
    }
    fs::File::create(locks.join("aaaa.lock")).unwrap();
    let running = fs::File::create(locks.join("bbbb.lock")).unwrap();
    running.lock().unwrap();
    locate(&hub, "org/tiny", Needed::Config).unwrap();
    // The last is of Python, which goes on with it.
    let left = [".peft-bbbb.Xy12", "cccc.incomplete", HELLO.trim_matches('"')];
    assert_eq!(tree(&blobs), left);
}

#[test]
fn many_that_fetch_at_once_all_get_it_and_it_comes_once() {
    let files = repository(BTreeMap::from([("config.json", b"{}".to_vec()), ("model.safetensors", b"1".to_vec())]));
    let server = Server::new(files);
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&cache, &server.address);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut report = |line| reports.lock().unwrap().push(line);
                let folder = hub.locate(Path::new("org/tiny"), Needed::Model, &mut report).unwrap();
                assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"1");
            });
        }
    });
    let downloads = reports.into_inner().unwrap().into_iter().filter(|line: &String| line.starts_with("downloading"));
    assert_eq!(downloads.count(), 2);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let server = Server::new(|path| match path {
        _ if path.starts_with("/api/") => listing(&["config.json", "model.safetensors"]),
        _ if path.ends_with("config.json") => Answer::new(200, &[("ETag", HELLO)], "hello\n"),
        _ => Answer::new(404, &[], ""),
    });
    let cache = tempfile::tempdir().unwrap();
    let error = locate(&hub(&cache, &server.address), "org/tiny", Needed::Model).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    let error = error.to_string();
    assert!(error.contains("model.safetensors") && !error.contains("no such repository"), "{error}");
}

#[test]
fn a_password_in_the_endpoint_is_sent_and_never_shown() {
    let server = Server::new(|path| match path {
        _ if path.starts_with("/api/") => listing(&["config.json"]),
        _ => Answer::new(503, &[], ""),
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&cache, &server.address.replace("http://", "http://user:hush-hush@"));
    let error = locate(&hub, "org/tiny", Needed::Config).unwrap_err().to_string();
    assert!(error.contains(&server.address) && !error.contains("hush"), "{error}");
    assert!(!format!("{hub:?} {}", hub.endpoint).contains("hush"));
    assert!(server.asked().iter().all(|asked| asked.ends_with(" password")));
    let unreachable = Hub { endpoint: Endpoint::new("http://user:hush-hush@127.0.0.1:1"), ..hub };
    let error = locate(&unreachable, "org/tiny", Needed::Config).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("hush"), "{error}");
}

#[test]
fn redirects_that_never_end_are_given_up() {
    let server = Server::new(|path| Answer::new(302, &[("Location", path)], ""));
    let cache = tempfile::tempdir().unwrap();
    let error = locate(&hub(&cache, &server.address), "org/tiny", Needed::Config).unwrap_err().to_string();
    assert!(error.contains("redirected again and again"), "{error}");
    assert!(server.asked().len() < 20);
}

#[test]
fn a_server_that_stalls_is_given_up() {
    let long = vec![b'x'; 100];
    let stops = configuration(HELLO, |answer| Answer {
        length: Some(1000),
        body: b"x".to_vec(),
        pause: Duration::from_secs(2),
        ..answer
    });
    let drips = configuration(HELLO, move |answer| Answer {
        length: Some(long.len()),
        body: long.clone(),
        pause: Duration::from_millis(40),
        ..answer
    });
    for server in [stops, drips] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub { timeout: Duration::from_millis(200), ..hub(&cache, &server.address) };
        let start = Instant::now();
        let error = locate(&hub, "org/tiny", Needed::Config).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(3), "{error}");
        assert_eq!(tree(&hub.cache), Vec::<String>::new());
    }
}

#[test]
fn names_that_lead_out_of_the_repository_are_not_fetched() {
    let server = Server::new(|_| listing(&["../../../x.gguf", "\u{1b}[31mx.gguf"]));
    let cache = tempfile::tempdir().unwrap();
    let error = locate(&hub(&cache, &server.address), "org/tiny", Needed::Model).unwrap_err().to_string();
    assert!(error.contains("has no config.json"), "{error}");
    assert_eq!(server.asked().len(), 1);
}
