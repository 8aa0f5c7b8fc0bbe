//! Models by their Hub ids: the cache's layout, and a Hub on this machine that answers, refuses and breaks off.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::tensor::Device;
use peft::{
    AutoClass, Error,
    models::{
        checkpoint::{self, LoadOptions},
        hub::{Hub, Needed},
    },
};
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::case;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const BERT: &str = "bert.SEQ_CLS.default";
const ETAG: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// What a server says to one request.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The length that it claims.
    length: usize,
}

impl Answer {
    fn new(status: u16, headers: &[(&'static str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { status, headers, length: body.len(), body }
    }

    fn breaking_off(mut self) -> Self {
        self.length += 1000;
        self
    }
}

/// A server that answers by path, and what it was asked: `/path`, with ` token` behind it where one came along.
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
                let token =
                    if request.to_lowercase().contains("\r\nauthorization: bearer secret\r\n") { " token" } else { "" };
                log.lock().unwrap().push(format!("{path}{token}"));
                let Answer { status, headers, body, length } = answer(&path);
                let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let head =
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
                // The other side may have hung up.
                _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
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
    Hub { cache: cache.path().join("hub"), endpoint: endpoint.to_owned(), token: None, offline: false }
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

/// Every file and link below a folder, by its path there.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
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
                ("X-Linked-Etag", "\"53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db\""),
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
        "models--org--tiny/blobs/53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db".to_owned(),
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
    let unreachable = Hub { endpoint: "http://127.0.0.1:1".to_owned(), ..online };
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
