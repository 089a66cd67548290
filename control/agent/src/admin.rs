//! The admin socket: one line of JSON asks, one line answers. Only its owner may connect (mode 0600).
//!
//! A successor binds a socket of another name and renames it over this one, so there is always one to connect to.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use translate::Drained;

use crate::control::Event;
use crate::explain::Question;
use crate::instance::Instance;
use crate::report;
use crate::view::Filters;

/// Longest request, octets.
const LONGEST: u64 = 64 * 1024;

/// The line by which a successor says that it runs.
pub const RUNNING: &str = "running";

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Who is there.
    Hello,
    /// `millrace status`.
    Status,
    /// `millrace services`.
    Services(Filters),
    /// `millrace backends`.
    Backends(Filters),
    /// `millrace flows`.
    Flows {
        /// Which.
        filters: Filters,
        /// Most rows.
        limit: usize,
    },
    /// `millrace explain`.
    Explain(Question),
    /// `millrace drain` and `undrain`.
    Drain {
        /// The address.
        address: IpAddr,
        /// The port; without one all of them.
        port: Option<u16>,
        /// To drain, or to end that.
        on: bool,
    },
    /// A successor asks for the queues.
    HandOver {
        /// Whether it says [`RUNNING`] on the same connection once it runs. If the connection ends before, this
        /// instance goes on.
        #[serde(default)]
        confirms: bool,
    },
    /// `millrace stop`.
    Stop {
        /// How long flows may end by themselves, milliseconds.
        drain_ms: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// It went well.
    Ok(Value),
    /// It did not.
    Error(String),
}

/// Answer to [`Request::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Its process.
    pub pid: u32,
    /// Its runtime folder.
    pub runtime: PathBuf,
    /// Its interfaces.
    pub interfaces: Vec<String>,
    /// Where it serves metrics.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
}

/// How the instance is to end.
#[derive(Debug)]
pub enum End {
    /// Queues and flow file were released; a successor goes on if it says so here, else it failed.
    HandedOver(oneshot::Receiver<()>),
    /// Everything is to be removed; the answer goes out when that is done.
    Stop(oneshot::Sender<Result<(), String>>),
}

/// A bound socket.
#[derive(Debug)]
pub struct Admin {
    listener: UnixListener,
    path: PathBuf,
    /// The name it was bound by; renamed to `path` when it takes over.
    part: PathBuf,
    inode: u64,
}

impl Admin {
    /// Binds beside whatever has that name; nobody finds it until [`Admin::take_over`].
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let part = path.with_file_name(name);
        let _ = std::fs::remove_file(&part);
        let listener = UnixListener::bind(&part)?;
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o600))?;
        let inode = std::fs::metadata(&part)?.ino();
        Ok(Self { listener, path: path.to_owned(), part, inode })
    }

    /// Takes the name, from whatever had it.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn take_over(&self) -> io::Result<()> {
        std::fs::rename(&self.part, &self.path)
    }

    /// Answers until it is dropped.
    pub async fn serve(self, instance: Arc<Instance>, ends: mpsc::Sender<End>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (instance, ends) = (Arc::clone(&instance), ends.clone());
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, instance, ends).await {
                            tracing::debug!(%error, "an admin connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.part);
        // A successor's socket has the name by now, perhaps.
        if std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn converse(mut stream: UnixStream, instance: Arc<Instance>, ends: mpsc::Sender<End>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(LONGEST));
    reader.read_line(&mut line).await?;
    let response = match serde_json::from_str::<Request>(&line) {
        Ok(Request::HandOver { confirms }) => {
            let Some(runs) = hand_over(instance, ends).await else {
                return respond(&mut writer, &nothing_to_hand_over()).await;
            };
            respond(&mut writer, &Response::Ok(Value::Null)).await?;
            let mut word = String::new();
            if !confirms || (reader.read_line(&mut word).await.is_ok() && word.trim_end() == RUNNING) {
                let _ = runs.send(());
            }
            return Ok(());
        }
        Ok(request) => answer(request, instance, ends).await,
        Err(error) => Response::Error(format!("not understood: {error}; is `millrace` of the same version?")),
    };
    respond(&mut writer, &response).await
}

async fn respond(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut text = serde_json::to_vec(response)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

/// Lets go of queues and flow file. Who gets what is returned is told that the successor runs, or drops it.
async fn hand_over(instance: Arc<Instance>, ends: mpsc::Sender<End>) -> Option<oneshot::Sender<()>> {
    // The successor's steering goes on from the same maps.
    let released = tokio::task::spawn_blocking(move || instance.release()).await;
    if !released.is_ok_and(|released| released) {
        return None;
    }
    let (runs, confirmed) = oneshot::channel();
    let _ = ends.send(End::HandedOver(confirmed)).await;
    Some(runs)
}

fn nothing_to_hand_over() -> Response {
    Response::Error("nothing to hand over: it is being started, stopped or was handed over".to_owned())
}

async fn answer(request: Request, instance: Arc<Instance>, ends: mpsc::Sender<End>) -> Response {
    match request {
        Request::Drain { address, port, on } => {
            let (reply, answer) = oneshot::channel();
            let event = Event::Drain { backend: Drained { address, port }, on, reply };
            if instance.events.send(event).is_err() {
                return Response::Error("the control thread has ended".to_owned());
            }
            match answer.await {
                Ok(Ok(count)) => Response::Ok(serde_json::json!({ "endpoints": count })),
                Ok(Err(error)) => Response::Error(error),
                Err(_) => Response::Error("the control thread failed on this; see the log".to_owned()),
            }
        }
        Request::Stop { drain_ms } => {
            wind_down(&instance, Duration::from_millis(drain_ms)).await;
            let (done, answer) = oneshot::channel();
            let _ = ends.send(End::Stop(done)).await;
            match answer.await {
                Ok(Ok(())) => Response::Ok(Value::Null),
                Ok(Err(error)) => Response::Error(error),
                Err(_) => Response::Error("it ended before it was clean".to_owned()),
            }
        }
        other => {
            let done = tokio::task::spawn_blocking(move || report::answer(&other, &instance)).await;
            done.unwrap_or_else(|_| Response::Error("that failed; see the log".to_owned()))
        }
    }
}

/// Takes no new flows, and waits until the others ended or the time is over.
async fn wind_down(instance: &Instance, drain: Duration) {
    if drain.is_zero() {
        return;
    }
    let (reply, done) = oneshot::channel();
    let _ = instance.events.send(Event::Wind(reply));
    let _ = done.await;
    let ends = tokio::time::Instant::now() + drain;
    tracing::info!(?drain, "draining");
    loop {
        let view = instance.view();
        // Flows that ended and linger do not count as connections.
        let connections: u64 = instance.plane().as_ref().map_or(0, |plane| {
            let backends = view.ids.values().flat_map(|ids| ids.backends.values());
            backends.map(|id| u64::from(plane.shared.backend_connections(*id))).sum()
        });
        if connections == 0 || tokio::time::Instant::now() >= ends {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Why an instance could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// None listens.
    #[error("no running instance at {}: start it with `millrace run`, or name its socket with --admin", .0.display())]
    Nobody(PathBuf),
    /// The socket cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It answered that it cannot.
    #[error("{0}")]
    Refused(String),
}

/// Asks a running instance and waits for its answer, at most `patience`.
///
/// # Errors
/// If there is none, or it cannot or does not answer.
pub fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Value, AskError> {
    let stream = send(path, request, patience)?;
    let mut line = String::new();
    let io = |source| AskError::Io { path: path.to_owned(), source };
    BufReader::new(stream).read_line(&mut line).map_err(io)?;
    understand(&line, path)
}

/// Asks and leaves the answer to be read, at most `patience` later.
///
/// # Errors
/// If there is none to ask.
pub fn send(path: &Path, request: &Request, patience: Duration) -> Result<BlockingStream, AskError> {
    let io = |source| AskError::Io { path: path.to_owned(), source };
    let mut stream = BlockingStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody(path.to_owned()),
        _ => io(source),
    })?;
    stream.set_read_timeout(Some(patience)).map_err(io)?;
    let mut text = serde_json::to_vec(request).map_err(|e| io(e.into()))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(io)?;
    Ok(stream)
}

/// What an answer says.
///
/// # Errors
/// If it says that it could not, or makes no sense.
pub fn understand(line: &str, path: &Path) -> Result<Value, AskError> {
    let io = |source| AskError::Io { path: path.to_owned(), source };
    if line.is_empty() {
        return Err(AskError::Refused("the instance ended without an answer; see its log".to_owned()));
    }
    match serde_json::from_str(line).map_err(|e| io(e.into()))? {
        Response::Ok(value) => Ok(value),
        Response::Error(error) => Err(AskError::Refused(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for request in [
            Request::Hello,
            Request::HandOver { confirms: true },
            Request::Flows {
                filters: Filters { backend: Some("10.0.0.1:5".parse().unwrap()), ..Filters::default() },
                limit: 10,
            },
            Request::Stop { drain_ms: 5 },
            Request::Explain(Question::parse("1.2.3.4:1", "1.2.3.5:80").unwrap()),
        ] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
    }

    #[test]
    fn a_successor_of_a_version_that_gave_no_word_is_understood() {
        let request: Request = serde_json::from_str("{\"do\":\"hand-over\"}").unwrap();
        assert_eq!(request, Request::HandOver { confirms: false });
        assert!(serde_json::from_str::<Hello>("{\"pid\":1,\"runtime\":\"/r\",\"interfaces\":[]}").is_ok());
    }

    #[test]
    fn nobody_at_the_socket_is_told_from_a_refusal() {
        let path = std::env::temp_dir().join(format!("millrace-nobody-{}", std::process::id()));
        assert!(matches!(ask(&path, &Request::Hello, Duration::from_secs(1)), Err(AskError::Nobody(_))));
    }
}
