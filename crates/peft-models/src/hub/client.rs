//! Asking the Hub: redirects, refusals, and what proves who asks.

use std::{path::PathBuf, time::Duration};

use peft_core::Error;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode, header},
};

use super::{Hub, HubId};

const CONNECT: Duration = Duration::from_secs(10);
const REDIRECTS: usize = 10;
/// How the Hub describes a file that lies on another server.
pub(super) const LINKED_ETAG: &str = "x-linked-etag";
/// How much of an address stands in a message.
const MOST_SHOWN: usize = 200;

/// Why nothing came.
#[derive(Debug)]
pub(super) enum Failure {
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

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// What a revision holds.
    Listing,
    /// One of its files.
    File(&'a str),
}

#[derive(Debug)]
pub(super) struct Client<'a> {
    agent: Agent,
    pub(super) hub: &'a Hub,
    pub(super) id: &'a HubId,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, id: &'a HubId) -> Self {
        // Redirects are followed here: headers of the first answer are needed, and the token is for the Hub alone.
        // There is no limit for a whole transfer: large files take hours.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .timeout_per_write(Some(hub.timeout))
            .user_agent(concat!("peft-rs/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length than the file.
            .accept_encoding("identity");
        Self { agent: config.build().into(), hub, id }
    }

    /// Asks for an address: the headers that describe the file, and the answer that has it, which may be another server's.
    pub(super) fn get(&self, url: &str, wanted: Wanted<'_>) -> Result<(HeaderMap, Response<Body>), Failure> {
        let (mut url, mut of_hub) = (url.to_owned(), None);
        for _ in 0..REDIRECTS {
            let answer = self.request(&url).call().map_err(|error| self.unreachable(&error))?;
            let (status, headers) = (answer.status(), answer.headers());
            if headers.contains_key(LINKED_ETAG) {
                of_hub.get_or_insert_with(|| headers.clone());
            }
            if status.is_success() {
                return Ok((of_hub.unwrap_or_else(|| headers.clone()), answer));
            }
            let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Err(self.refused(&url, wanted, status, headers));
            };
            let Some(next) = redirected(&url, location) else {
                let (from, to) = (shown(&url), shown(location));
                return Err(Failure::Unreachable(format!("{from} redirects to {to}, which is no https address")));
            };
            url = next;
        }
        Err(Failure::Unreachable(format!("{} is redirected again and again", shown(&url))))
    }

    fn request(&self, url: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        // Neither token nor password may go anywhere else.
        if !self.hub.endpoint.owns(url) {
            return self.agent.get(url);
        }
        match (self.hub.endpoint.with_credentials(url), &self.hub.token) {
            (Some(url), _) => self.agent.get(url),
            (None, Some(token)) => self.agent.get(url).header(header::AUTHORIZATION, format!("Bearer {token}")),
            (None, None) => self.agent.get(url),
        }
    }

    /// What an answer that is no success means.
    fn refused(&self, url: &str, wanted: Wanted<'_>, status: StatusCode, headers: &HeaderMap) -> Failure {
        let code = headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let has_token = self.hub.token.is_some();
        let endpoint = &self.hub.endpoint;
        let page = endpoint.url(&format!("/{}", self.id.repo));
        match (status.as_u16(), code, wanted) {
            (401 | 403, "GatedRepo", _) if has_token => {
                self.missing(format!("is gated, and the account of HF_TOKEN has no access: ask for it at {page}"))
            }
            (401 | 403, "GatedRepo", _) => self
                .missing(format!("is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account")),
            (401, ..) if !has_token => self.missing(format!(
                "there is no such repository at {endpoint}, or it is private: check the name, or set HF_TOKEN"
            )),
            (401 | 403, ..) => {
                self.missing(format!("{page} is not for the account of HF_TOKEN, or the token is not valid"))
            }
            (404, "RevisionNotFound", _) => {
                self.missing(format!("the repository has no revision `{}`", self.id.revision))
            }
            (404, _, Wanted::File(name)) => {
                let url = shown(url);
                self.missing(format!("{name} cannot be downloaded: the Hub lists it, and {url} answered {status}"))
            }
            (404, _, Wanted::Listing) => {
                self.missing(format!("no folder of that name here, and no such repository at {endpoint}"))
            }
            _ => Failure::Unreachable(format!("{} answered {status}", shown(url))),
        }
    }

    pub(super) fn missing(&self, what: String) -> Failure {
        Failure::Error(Error::NotFound { path: PathBuf::from(self.id.to_string()), what })
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable(format!("{} cannot be reached ({error})", self.hub.endpoint))
    }
}

/// The address that a redirect leads to; nothing for one that leaves https, or is no address of the web.
fn redirected(from: &str, location: &str) -> Option<String> {
    let (scheme, rest) = from.split_once("://")?;
    let path_at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(path_at);
    let is_absolute =
        location.find(':').is_some_and(|colon| !location.get(..colon).unwrap_or_default().contains(['/', '?']));
    let to = if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rfind('/').and_then(|slash| path.get(..=slash)).unwrap_or("/");
        format!("{scheme}://{host}{folder}{location}")
    };
    let is = |url: &str, scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    (is(&to, "https://") || is(&to, "http://") && is(from, "http://")).then_some(to)
}

/// An address as it may be shown: without passwords, signatures and what talks to the terminal, and not too long.
fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.find("://").map_or(("", url), |at| url.split_at(at + "://".len()));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let plain = scheme.chars().chain(rest.chars()).filter(|letter| !letter.is_control());
    plain.take(MOST_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_https_and_may_be_relative() {
        let from = "https://hub.co/org/tiny/resolve/main/a.bin?x=/y";
        for (from, location, to) in [
            (from, "https://cdn.co/b?c", Some("https://cdn.co/b?c")),
            (from, "//cdn.co/b", Some("https://cdn.co/b")),
            (from, "/b/c", Some("https://hub.co/b/c")),
            (from, "b.bin", Some("https://hub.co/org/tiny/resolve/main/b.bin")),
            (from, "b?c=d:e", Some("https://hub.co/org/tiny/resolve/main/b?c=d:e")),
            (from, "HTTPS://cdn.co/b", Some("HTTPS://cdn.co/b")),
            (from, "http://cdn.co/b", None),
            (from, "file:///etc/passwd", None),
            (from, "ftp:b", None),
            ("http://127.0.0.1:9", "b", Some("http://127.0.0.1:9/b")),
            ("http://127.0.0.1:9/a", "http://127.0.0.1:8/b", Some("http://127.0.0.1:8/b")),
            ("http://127.0.0.1:9/a", "https://cdn.co", Some("https://cdn.co")),
        ] {
            assert_eq!(redirected(from, location).as_deref(), to, "{location}");
        }
    }

    #[test]
    fn addresses_are_shown_without_what_is_secret() {
        assert_eq!(shown("https://user:pass@host/a?signature=pass#pass"), "https://host/a");
        assert_eq!(shown("https://host/\u{1b}[31m"), "https://host/[31m");
        assert!(shown(&format!("https://host/{}", "a".repeat(9000))).len() <= MOST_SHOWN);
    }
}
