//! Addresses and URLs of ready checks. They are parsed in the plan, so that a typing error is refused at once.

use std::net::Ipv6Addr;
use std::str::FromStr;

use http::Uri;
use http::uri::Authority;
use serde::{Deserialize, Serialize};

/// A host and a port, as `127.0.0.1:8080`, `[::1]:8080` or `name:8080`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TcpAddress {
    text: String,
    host: String,
    port: u16,
}

/// An `http://` URL; the port is 80 unless it names one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HttpUrl {
    text: String,
    uri: Uri,
    host: String,
    port: u16,
}

impl TcpAddress {
    /// The host, without the brackets of an IPv6 address, and the port.
    pub(crate) fn target(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

impl HttpUrl {
    /// Host and port to connect to, as [`TcpAddress::target`].
    pub(crate) fn target(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The value of the `Host` header.
    pub(crate) fn authority(&self) -> &str {
        self.uri.authority().map_or("", Authority::as_str)
    }

    /// The request target; at least `/`.
    pub(crate) fn path_and_query(&self) -> String {
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        if path.starts_with('/') { path.into() } else { format!("/{path}") }
    }
}

/// The host without brackets, and the port if there is one.
///
/// # Errors
///
/// The authority has a user, or no valid host or port; says what was expected.
fn host_and_port(authority: &Authority) -> Result<(String, Option<u16>), &'static str> {
    const PORT: &str = "a port from 1 to 65535";
    if authority.as_str().contains('@') {
        return Err("a host without a user before it");
    }
    let host = authority.host();
    let bare = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bare) if bare.split('%').next().is_some_and(|address| Ipv6Addr::from_str(address).is_ok()) => bare,
        Some(_) => return Err("an IPv6 address between the brackets"),
        None if host.is_empty() => return Err("a host"),
        None => host,
    };
    let port = match authority.as_str().strip_prefix(host).unwrap_or_default().strip_prefix(':') {
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or(PORT)?),
        None => None,
    };
    Ok((bare.to_owned(), port))
}

impl TryFrom<String> for TcpAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const ADDRESS: &str = "HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080";
        let wrong = |expected: &str| format!("{text:?}, expected {expected}");
        let authority = Authority::from_str(&text).map_err(|_| wrong(ADDRESS))?;
        let (host, port) = host_and_port(&authority).map_err(wrong)?;
        let port = port.ok_or_else(|| wrong(ADDRESS))?;
        Ok(Self { host, port, text })
    }
}

impl TryFrom<String> for HttpUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const URL: &str = "http://HOST[:PORT]/PATH";
        let wrong = |expected: &str| format!("{text:?}, expected {expected}");
        let uri = Uri::from_str(&text).map_err(|_| wrong(URL))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(|| wrong(URL))?;
        let (host, port) = host_and_port(authority).map_err(wrong)?;
        Ok(Self { host, port: port.unwrap_or(80), uri, text })
    }
}

impl From<TcpAddress> for String {
    fn from(address: TcpAddress) -> Self {
        address.text
    }
}

impl From<HttpUrl> for String {
    fn from(url: HttpUrl) -> Self {
        url.text
    }
}

impl std::fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_host_and_a_port_that_there_can_be() {
        for (text, host, port) in
            [("localhost:80", "localhost", 80), ("127.0.0.1:65535", "127.0.0.1", 65535), ("[::1]:7", "::1", 7)]
        {
            let address = TcpAddress::try_from(text.to_owned()).unwrap();
            assert_eq!(address.target(), (host, port));
            assert_eq!(String::from(address), text);
        }
        for text in [
            "",
            "localhost",
            "localhost:",
            ":80",
            "h:0",
            "h:99999",
            "h:http",
            "::1:80",
            "[::1]",
            "[x]:80",
            "u@h:80",
            "h:80/",
        ] {
            let wrong = TcpAddress::try_from(text.to_owned()).unwrap_err();
            assert!(wrong.starts_with(&format!("{text:?}, expected ")), "{wrong}");
        }
    }

    #[test]
    fn urls_are_plain_http_with_a_host_and_a_port_that_there_can_be() {
        for (text, target, authority, path) in [
            ("http://[::1]/", ("::1", 80), "[::1]", "/"),
            ("http://h", ("h", 80), "h", "/"),
            ("http://h:8080/a/b?c=d#e", ("h", 8080), "h:8080", "/a/b?c=d"),
            ("http://[fe80::1]:81?x", ("fe80::1", 81), "[fe80::1]:81", "/?x"),
        ] {
            let url = HttpUrl::try_from(text.to_owned()).unwrap();
            assert_eq!((url.target(), url.authority(), &*url.path_and_query()), (target, authority, path), "{text}");
            assert_eq!(String::from(url), text);
        }
        for text in [
            "",
            "h",
            "h/health",
            "/health",
            "https://h/",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://h:99999/",
            "http://h:0/",
            "http://h:/",
            "http://user@h/",
            "http://user:pw@h:80/",
            "http://h h/",
            "http://[::1/",
        ] {
            let wrong = HttpUrl::try_from(text.to_owned()).unwrap_err();
            assert!(wrong.starts_with(&format!("{text:?}, expected ")), "{wrong}");
        }
    }
}
