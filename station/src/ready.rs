//! Whether a started instance is ready.

mod output;

use std::path::Path;
use std::time::Duration;

use quilt_core::lines::Position;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::endpoint::{HttpUrl, TcpAddress};
use crate::spec::{Check, Ready, Spec};

/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the output of a run begins in the log of its instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    /// There, unless the log itself says where.
    pub(crate) otherwise: Position,
}

/// Waits until the check passes, at most for its `within`; `Err` then says what the last attempt answered. Calls `tell` at once
/// whenever the answer changes. The run's output begins at `begin` in `log`.
///
/// # Cancel safety
///
/// Cancel-safe: a program that is under way is killed.
pub(crate) async fn wait(
    ready: &Ready,
    spec: &Spec,
    log: &Path,
    begin: Begin,
    tell: impl Fn(&str),
) -> Result<(), String> {
    let mut last = String::new();
    let mut answered = |answer: String| {
        if answer != last {
            tell(&answer);
            last = answer;
        }
    };
    let trying = async {
        if let Check::Log(text) = &ready.check {
            answered(format!("its output does not contain {text:?}"));
            return match output::wait_for_text(log, begin, text).await {
                Ok(()) => (),
                Err(error) => {
                    answered(format!("its log cannot be read: {error}"));
                    std::future::pending::<()>().await;
                }
            };
        }
        answered("the first attempt got no answer".into());
        loop {
            let attempt = match &ready.check {
                Check::Tcp(address) => tokio::time::timeout(ATTEMPT_TIMEOUT, tcp(address)).await,
                Check::Http(url) => tokio::time::timeout(ATTEMPT_TIMEOUT, http(url)).await,
                Check::Command(command) => tokio::time::timeout(ATTEMPT_TIMEOUT, run(command, spec)).await,
                Check::Log(_) => unreachable!("handled above"),
            };
            match attempt.unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT_TIMEOUT:?}"))) {
                Ok(()) => return,
                Err(error) => answered(error),
            }
            tokio::time::sleep(ready.every).await;
        }
    };
    let passed = tokio::time::timeout(ready.within, trying).await.is_ok();
    if passed { Ok(()) } else { Err(format!("not ready within {:?}: {last}", ready.within)) }
}

async fn tcp(address: &TcpAddress) -> Result<(), String> {
    TcpStream::connect(address.target()).await.map(drop).map_err(|error| format!("tcp {address}: {error}"))
}

/// One GET. Only the status line matters, so a client library would be a dependency for nothing.
async fn http(url: &HttpUrl) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{url}: {error}");
    let mut stream = TcpStream::connect(url.target()).await.map_err(failed)?;
    let (path, host) = (url.path_and_query(), url.authority());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < 1024 {
        if stream.read_buf(&mut line).await.map_err(failed)? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&line);
    let status = line.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..400) => Ok(()),
        _ => Err(format!("{url}: {}", line.lines().next().unwrap_or("no answer"))),
    }
}

/// Runs the program of a check. For an instance of `process` it starts as the instance's program does.
async fn run(command: &[String], spec: &Spec) -> Result<(), String> {
    let config = (spec.key.role == *quilt_role_process::ROLE).then_some(spec.config.as_str());
    quilt_role_process::check::run(command, config).await
}
