//! Models and adapters by their names on the Hugging Face Hub, in the cache that Python's `huggingface_hub` keeps.
//!
//! A file or folder of that name wins, and then nothing is looked up. The cache is Python's, with its layout, its places and
//! its environment variables: what one of them has fetched the other finds. The Hub is contacted by [`Hub::locate`] alone,
//! and only with the feature `hub`; without it the cache is all there is.

mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod digest;
#[cfg(feature = "hub")]
mod download;
mod endpoint;
mod id;
#[cfg(feature = "hub")]
mod lock;
mod needed;

use std::{
    env, fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use peft_core::{Error, Result};

pub use endpoint::Endpoint;
pub use id::HubId;
pub use needed::Needed;

use cache::Cached;

/// How long a server may say nothing, unless `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const TIMEOUT_SECONDS: u64 = 20;

/// Where models that are not local folders are looked for.
#[derive(Clone)]
pub struct Hub {
    /// The cache: one folder for each repository.
    pub cache: PathBuf,
    /// The address of the Hub.
    pub endpoint: Endpoint,
    /// What proves who asks; gated and private repositories need it.
    pub token: Option<String>,
    /// How long a server may say nothing, or next to nothing.
    pub timeout: Duration,
    /// Whether the cache is all that may be used.
    pub offline: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, endpoint, token, timeout, offline } = self;
        let mut shown = f.debug_struct("Hub");
        shown.field("cache", cache).field("endpoint", endpoint).field("has_token", &token.is_some());
        shown.field("timeout", timeout).field("offline", offline).finish()
    }
}

impl Hub {
    /// The settings of `huggingface_hub`: `HF_HUB_CACHE`, else `HF_HOME`; `HF_ENDPOINT`; `HF_TOKEN`, else the token that
    /// `hf auth login` left; `HF_HUB_DOWNLOAD_TIMEOUT`; `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let folder = |name: &str| text(name).map(|path| expanded(&path));
        let home = folder("HF_HOME").unwrap_or_else(|| {
            let caches = folder("XDG_CACHE_HOME").unwrap_or_else(|| expanded("~/.cache"));
            caches.join("huggingface")
        });
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| std::fs::read_to_string(token_file).ok());
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.trim().parse().ok());
        let is_true = |name| text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&&*v.to_uppercase()));
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: Endpoint::new(text("HF_ENDPOINT").as_deref().unwrap_or("https://huggingface.co")),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            timeout: Duration::from_secs(seconds.filter(|seconds| *seconds > 0).unwrap_or(TIMEOUT_SECONDS)),
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
        }
    }

    /// The local folder or file of what `given` names, without contacting anything: itself if it exists, else the cache's
    /// folder of a Hub id, else `given` unchanged.
    pub fn cached(&self, given: &Path) -> PathBuf {
        let snapshot = || given.to_str().and_then(HubId::parse).and_then(|id| Cached::new(&self.cache, &id).place());
        if given.exists() { given.to_owned() } else { snapshot().unwrap_or_else(|| given.to_owned()) }
    }

    /// The local folder or file of what `given` names: itself if it exists, else a Hub id's folder in the cache, with the
    /// needed files fetched. `report` is told of each download.
    ///
    /// Where the Hub cannot be reached, and when [`offline`](Self::offline), what is in the cache is used.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is neither a path nor a repository that can be read, with what to do;
    /// [`Error::Io`] if a transfer breaks or the cache cannot be written: nothing half written is left.
    pub fn locate(&self, given: &Path, needed: Needed, report: &mut dyn FnMut(String)) -> Result<PathBuf> {
        if given.exists() {
            return Ok(given.to_owned());
        }
        let Some(id) = given.to_str().and_then(HubId::parse) else {
            let what = format!(
                "{}, and no Hub id, which is `org/name`, `org/name@revision` or `org/name:subfolder`",
                needed.what()
            );
            return Err(Error::NotFound { path: given.to_owned(), what });
        };
        let cached = Cached::new(&self.cache, &id);
        let reason = match self.fetch(&id, needed, &cached, report)? {
            Fetched::Folder(folder) => return Ok(folder),
            Fetched::Unreachable(reason) => reason,
        };
        match cached.complete(needed) {
            Ok(folder) => {
                if !self.offline {
                    report(format!("{reason}; the cache's {id} is used"));
                }
                Ok(folder)
            }
            Err(lack) => {
                let path = given.to_owned();
                let what =
                    format!("no folder of that name here; {lack} in the cache {}; {reason}", self.cache.display());
                Err(Error::NotFound { path, what })
            }
        }
    }

    /// The commit that the cache has for a revision.
    pub fn commit(&self, id: &HubId) -> Option<String> {
        Some(Cached::new(&self.cache, id).snapshot()?.file_name()?.to_string_lossy().into_owned())
    }

    #[cfg(feature = "hub")]
    fn fetch(&self, id: &HubId, needed: Needed, cached: &Cached, report: &mut dyn FnMut(String)) -> Result<Fetched> {
        if self.offline {
            return Ok(Fetched::Unreachable(format!(
                "HF_HUB_OFFLINE is set: unset it to download, or fetch {id} into this cache beforehand"
            )));
        }
        download::fetch(self, id, needed, cached, report)
    }

    #[cfg(not(feature = "hub"))]
    fn fetch(&self, _: &HubId, _: Needed, _: &Cached, _: &mut dyn FnMut(String)) -> Result<Fetched> {
        Ok(Fetched::Unreachable("this build has no downloads (feature `hub`)".to_owned()))
    }
}

/// What became of asking the Hub.
#[derive(Debug)]
enum Fetched {
    /// The folder in the cache, with everything that is needed.
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only a download has it"))]
    Folder(PathBuf),
    /// It was not or could not be asked, and why.
    Unreachable(String),
}

/// A path with the home folder for a leading `~`.
fn expanded(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), env::home_dir()) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}
