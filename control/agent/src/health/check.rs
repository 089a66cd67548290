//! One probe: a TCP connect or an HTTP GET, and its result in a few words.

use std::io;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use translate::{CheckKind, Probe};

/// Probes once, within the probe's timeout.
///
/// # Errors
/// Why the endpoint is not healthy: what the kernel said, the HTTP status, or that it took too long.
pub(super) async fn run(probe: &Probe) -> Result<String, String> {
    let timeout: Duration = probe.check.timeout;
    let work = async {
        let stream = TcpStream::connect(probe.endpoint).await.map_err(|error| io_words(&error))?;
        match &probe.check.kind {
            CheckKind::Tcp => Ok("connected".to_owned()),
            CheckKind::Http(path) => get(stream, probe, path).await,
        }
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(format!("timed out after {timeout:?}")))
}

async fn get(stream: TcpStream, probe: &Probe, path: &str) -> Result<String, String> {
    let request = Request::get(path)
        .header(HOST, probe.endpoint.to_string())
        .header(USER_AGENT, concat!("millrace/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("not a path: {error}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| http_words(&error))?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection does the work; it is over with the answer's head, for the body does not matter.
    let response = tokio::select! {
        biased;
        response = &mut answer => response,
        _ = connection => answer.await,
    };
    let status = response.map_err(|error| http_words(&error))?.status();
    let healthy = (StatusCode::OK..StatusCode::BAD_REQUEST).contains(&status);
    let words = status.as_u16().to_string();
    if healthy { Ok(words) } else { Err(words) }
}

fn http_words(error: &hyper::Error) -> String {
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(error) => io_words(error),
        None => error.to_string(),
    }
}

/// The kind in plain words where there is one, else what the kernel said.
fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::Other => error.to_string(),
        kind => kind.to_string(),
    }
}
