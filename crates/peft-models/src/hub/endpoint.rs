//! The address of the Hub, whose password is sent and never shown.

use std::fmt;

/// An address with `http://` or `https://`, and the user and password that it may name.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Without a slash at its end.
    address: String,
    /// `user:password`.
    credentials: Option<String>,
}

impl Endpoint {
    /// Reads an address such as `https://user:password@example.org/mirror`.
    pub fn new(text: &str) -> Self {
        let text = text.trim();
        let (scheme, rest) = text.find("://").map_or(("", text), |at| text.split_at(at + "://".len()));
        // The last one: a password in which somebody left an `@` or a slash as it is must not be shown either.
        let (credentials, rest) = rest.rsplit_once('@').map_or((None, rest), |(before, rest)| (Some(before), rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let credentials = credentials.filter(|text| !text.is_empty()).map(str::to_owned);
        Self { address: format!("{scheme}{rest}"), credentials }
    }

    /// The address of a path of the Hub.
    #[cfg(feature = "hub")]
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    /// Whether an address lies on the Hub, so that tokens and passwords may go there.
    #[cfg(feature = "hub")]
    pub(super) fn owns(&self, url: &str) -> bool {
        url.strip_prefix(&self.address).is_some_and(|rest| rest.starts_with('/'))
    }

    /// An address of the Hub with user and password, if there are any.
    #[cfg(feature = "hub")]
    pub(super) fn with_credentials(&self, url: &str) -> Option<String> {
        let (scheme, rest) = url.split_once("://")?;
        Some(format!("{scheme}://{}@{rest}", self.credentials.as_ref()?))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.address, f)
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_sent_to_the_hub_alone_and_never_shown() {
        for (text, shown) in [
            ("https://huggingface.co/", "https://huggingface.co"),
            ("http://user:pass@127.0.0.1:9/mirror/", "http://127.0.0.1:9/mirror"),
            ("https://user:p@ss/word@host", "https://host"),
            ("user:pass@host", "host"),
            ("https://host/a?token=pass#x", "https://host/a"),
        ] {
            let endpoint = Endpoint::new(text);
            assert_eq!(
                (endpoint.to_string().as_str(), format!("{endpoint:?}")),
                (shown, format!("{shown:?}")),
                "{text}"
            );
        }
        let endpoint = Endpoint::new("https://user:pass@host");
        assert_eq!(endpoint.with_credentials("https://host/a").as_deref(), Some("https://user:pass@host/a"));
        assert_eq!(Endpoint::new("https://host").with_credentials("https://host/a"), None);
        assert!(endpoint.owns("https://host/a"));
        for other in
            ["https://host.evil/a", "http://host/a", "https://host:8/a", "https://hos/t", "https://host@evil/a"]
        {
            assert!(!endpoint.owns(other), "{other}");
        }
    }
}
