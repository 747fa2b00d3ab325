//! Addresses as people write them.

use std::net::{IpAddr, Ipv6Addr};

/// The port of a manager's protocol side.
pub const PROTOCOL_PORT: u16 = 7440;
/// The port of a manager's HTTP side.
pub const HTTP_PORT: u16 = 7441;

/// Completes an address to `HOST:PORT`. A missing port becomes `port`; an IPv6 address without a port may lack its brackets.
///
/// # Errors
///
/// The text is not an address; the error says what is expected.
pub fn complete(text: &str, port: u16) -> Result<String, String> {
    let text = text.trim();
    let wrong = || {
        let host = "a host name or address, and perhaps a port from 0 to 65535, such as coordinator:7440 or [::1]:7440";
        format!("expected {host}, got {text:?}")
    };
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{text}]:{port}"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (text, port),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match inner {
        Some(inner) => inner.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()) || is_name(host),
    };
    if is_host { Ok(format!("{host}:{port}")) } else { Err(wrong()) }
}

/// Whether the text can be a host name.
fn is_name(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_lack_its_port_and_is_refused_if_it_can_be_none() {
        for (text, expected) in [
            ("coordinator", "coordinator:7440"),
            ("coordinator:1", "coordinator:1"),
            (" 10.0.0.1 ", "10.0.0.1:7440"),
            ("10.0.0.1:0", "10.0.0.1:0"),
            ("::1", "[::1]:7440"),
            ("[::1]", "[::1]:7440"),
            ("[::1]:80", "[::1]:80"),
            ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
        ] {
            assert_eq!(complete(text, PROTOCOL_PORT).as_deref(), Ok(expected), "{text:?}");
        }
        for text in
            ["", ":7440", "a:", "a:99999", "a:b", "http://a:1", "a b", "*:80", "[::1", "[a]:1", "::1:x", "u@h:1"]
        {
            let error = complete(text, PROTOCOL_PORT).unwrap_err();
            assert!(error.contains("coordinator:7440") && error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
