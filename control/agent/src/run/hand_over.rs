//! From one instance to the next: who runs already, asking it for its queues, and the way back.
//!
//! A successor asks on a connection that it keeps until it runs, and says so on it. The predecessor has let go of
//! everything by then, and waits: if the connection ends without that word (the successor failed, or was killed), it
//! takes up service again with the configuration that it had. What can fail without the queues is tried before asking.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::admin::{self, AskError, Hello, RUNNING, Request};
use crate::config::Config;

/// How long a predecessor may take to let go.
pub const HAND_OVER: Duration = Duration::from_secs(10);

/// The instance that this one succeeds, if any runs. Another one on the same interfaces is an error.
///
/// # Errors
/// A text for people.
pub fn predecessor(config: &Config) -> Result<Option<Hello>, String> {
    let hello = match admin::ask(&config.admin, &Request::Hello, Duration::from_secs(5)) {
        Ok(value) => Some(serde_json::from_value::<Hello>(value).map_err(|e| e.to_string())?),
        Err(AskError::Nobody(_)) => None,
        Err(error) => return Err(format!("the running instance does not answer: {error}")),
    };
    if let Some(hello) = &hello
        && hello.runtime != config.runtime
    {
        return Err(format!(
            "{} is of an instance with the runtime folder {}: give this one its own `admin`, or the same `runtime`",
            config.admin.display(),
            hello.runtime.display()
        ));
    }
    for interface in &config.interfaces {
        let theirs = hello.as_ref().is_some_and(|hello| hello.interfaces.contains(&interface.name));
        if !theirs {
            lock(&interface.name)?;
        }
    }
    Ok(hello)
}

/// Claims an interface, in this network namespace, for as long as the lock lives.
fn lock(interface: &str) -> Result<UnixListener, String> {
    let name = format!("millrace/{interface}");
    let address = UnixAddr::from_abstract_name(name).map_err(|e| e.to_string())?;
    UnixListener::bind_addr(&address).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            format!("{interface} is in use by an instance with another runtime folder: stop that, or use its `runtime`")
        } else {
            error.to_string()
        }
    })
}

/// Claims all interfaces; a predecessor that is ending may take a moment to let go.
///
/// # Errors
/// A text for people: who has an interface.
pub fn lock_all(config: &Config) -> Result<Vec<UnixListener>, String> {
    let deadline = Instant::now() + HAND_OVER;
    let mut locks = Vec::new();
    for interface in &config.interfaces {
        locks.push(loop {
            match lock(&interface.name) {
                Ok(lock) => break lock,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        });
    }
    Ok(locks)
}

/// What a predecessor handed over, until this instance runs. Dropped before, the predecessor takes it up again.
#[derive(Debug)]
pub struct Handed(UnixStream);

impl Handed {
    /// Asks the predecessor for its queues. `None`: it ended just now.
    ///
    /// # Errors
    /// A text for people: why it does not hand over.
    pub fn ask(config: &Config, hello: &Hello) -> Result<Option<Self>, String> {
        tracing::info!(pid = hello.pid, "asking the running instance for its queues");
        let refused = |error: AskError| format!("the running instance does not hand over: {error}");
        let mut reader = match admin::send(&config.admin, &Request::HandOver { confirms: true }, HAND_OVER) {
            Ok(stream) => BufReader::new(stream),
            Err(AskError::Nobody(_)) => return Ok(None),
            Err(error) => return Err(refused(error)),
        };
        let mut line = String::new();
        reader.read_line(&mut line).map_err(|e| format!("the running instance does not hand over: {e}"))?;
        admin::understand(&line, &config.admin).map_err(refused)?;
        Ok(Some(Self(reader.into_inner())))
    }

    /// Says that this instance runs: the predecessor may end.
    pub fn confirm(mut self) {
        // One that is gone needs no word.
        let _ = self.0.write_all(format!("{RUNNING}\n").as_bytes());
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
