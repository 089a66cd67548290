//! From one instance to the next: asking the one that runs for its queues, and the way back.
//!
//! A successor asks on a connection that it keeps until it runs, and says so on it. The predecessor has let go of
//! everything by then, and waits: if the connection ends without that word (the successor failed, or was killed), it
//! takes up service again with the configuration that it had. What can fail without the queues is tried before asking.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::admin::{self, AskError, Hello, RUNNING, Request};
use crate::config::Config;

/// How long a predecessor may take to let go.
pub const HAND_OVER: Duration = Duration::from_secs(10);

/// What a predecessor handed over, until this instance runs. Dropped before, the predecessor takes it up again.
#[derive(Debug)]
pub struct Handed {
    stream: UnixStream,
    owned: BTreeSet<IpAddr>,
}

impl Handed {
    /// Asks the predecessor for its queues. `None`: it ended just now.
    ///
    /// # Errors
    /// A text for people: why it does not hand over.
    pub fn ask(hello: &Hello) -> Result<Option<Self>, String> {
        tracing::info!(pid = hello.pid, "asking the running instance for its queues");
        let refused = |error: AskError| format!("the running instance does not hand over: {error}");
        let mut reader = match admin::send(&hello.admin, &Request::HandOver { confirms: true }, HAND_OVER) {
            Ok(stream) => BufReader::new(stream),
            Err(AskError::Nobody(_)) => return Ok(None),
            Err(error) => return Err(refused(error)),
        };
        let mut line = String::new();
        reader.read_line(&mut line).map_err(|e| format!("the running instance does not hand over: {e}"))?;
        let answer = admin::understand(&line, &hello.admin).map_err(refused)?;
        // Of an older version nothing is said.
        let owned = answer.get("owned").cloned().map(serde_json::from_value).and_then(Result::ok).unwrap_or_default();
        Ok(Some(Self { stream: reader.into_inner(), owned }))
    }

    /// The VIPs that the predecessor announced of those that several nodes may.
    pub fn owned(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.owned)
    }

    /// Says that this instance runs: the predecessor may end.
    pub fn confirm(mut self) {
        // One that is gone needs no word.
        let _ = self.stream.write_all(format!("{RUNNING}\n").as_bytes());
    }
}

/// Binds the address of metrics. `None`: there is none, or the predecessor has it and will let go.
///
/// # Errors
/// If somebody else has it while a predecessor runs, which then goes on. Without one packets matter more: the address is
/// tried again later.
pub fn metrics_listener(config: &Config, predecessor: Option<&Hello>) -> Result<Option<TcpListener>, String> {
    let Some(address) = config.metrics else { return Ok(None) };
    let error = match TcpListener::bind(address) {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) => error,
    };
    match predecessor {
        Some(hello) if !hello.metrics.is_some_and(|theirs| overlap(theirs, address)) => Err(format!(
            "metrics: {address}: {error}: choose another address, or see who has it with `ss -ltnp`; the running \
             instance goes on"
        )),
        _ => Ok(None),
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_one_port_overlap_where_an_address_is_shared() {
        let overlaps = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(overlaps("127.0.0.1:9", "127.0.0.1:9") && overlaps("0.0.0.0:9", "127.0.0.1:9"));
        assert!(!overlaps("127.0.0.1:9", "127.0.0.2:9") && !overlaps("127.0.0.1:9", "127.0.0.1:8"));
    }
}
