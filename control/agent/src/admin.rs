//! The admin socket: one line of JSON asks, one line answers. Only its owner may connect (mode 0600).
//!
//! A successor binds a socket of another name and renames it over this one, so there is always one to connect to. Only
//! sockets are ever renamed over or removed. Where an answer takes long, lines before it say how far it is.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::WriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use translate::Drained;

use crate::control::Event;
use crate::explain::Question;
use crate::instance::Instance;
use crate::report;
use crate::stop;
use crate::view::Filters;

/// Longest request, octets.
const LONGEST: u64 = 64 * 1024;
/// How long whoever connects may take to ask.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);
/// How long a successor that has queues and flows may take to run before that is said.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(10);

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
    /// It takes a while; this is how far it is, and more lines follow.
    Progress(Value),
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
    /// Its admin socket.
    #[serde(default)]
    pub admin: PathBuf,
}

/// How far draining is: a [`Response::Progress`] to [`Request::Stop`], and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Draining {
    /// Connections that are open.
    pub connections: u64,
    /// How long they may still take, milliseconds.
    pub remaining_ms: u64,
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

/// Whether there is a socket of that name.
///
/// # Errors
/// If something else has it, or that cannot be told.
pub fn is_there(path: &Path) -> io::Result<bool> {
    let said = |kind, why: &str| io::Error::new(kind, format!("{}: {why}", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(said(io::ErrorKind::AlreadyExists, "is not a socket: move it away, or name another one")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(said(error.kind(), &error.to_string())),
    }
}

/// The sockets beside this one that successors bound which ended before they took its name.
#[must_use]
pub fn abandoned(path: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let is_one = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(&prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
        // One that is being started listens.
        let refused =
            || BlockingStream::connect(entry.path()).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        pid && entry.file_type().is_ok_and(|kind| kind.is_socket()) && refused()
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(is_one).map(|entry| entry.path()).collect()
}

impl Admin {
    /// Binds beside whatever has that name; nobody finds it until [`Admin::take_over`].
    ///
    /// Removes what crashed successors left beside it.
    ///
    /// # Errors
    /// If something that is not a socket has the name, or the file system refuses.
    pub fn bind(path: &Path) -> io::Result<Self> {
        is_there(path)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let part = path.with_file_name(name);
        for left in abandoned(path) {
            std::fs::remove_file(left)?;
        }
        let listener = UnixListener::bind(&part)?;
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o600))?;
        let inode = std::fs::metadata(&part)?.ino();
        Ok(Self { listener, path: path.to_owned(), part, inode })
    }

    /// Takes the name, from whichever socket had it.
    ///
    /// # Errors
    /// If something that is not a socket has it by now, or the file system refuses.
    pub fn take_over(&self) -> io::Result<()> {
        is_there(&self.path)?;
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
        // A successor's socket has the names by now, perhaps: in containers both may be process 1.
        for path in [&self.part, &self.path] {
            if std::fs::metadata(path).is_ok_and(|m| m.ino() == self.inode) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

async fn converse(mut stream: UnixStream, instance: Arc<Instance>, ends: mpsc::Sender<End>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(LONGEST));
    tokio::time::timeout(REQUEST_PATIENCE, reader.read_line(&mut line)).await??;
    let response = match serde_json::from_str::<Request>(&line) {
        Ok(Request::HandOver { confirms }) => {
            let Some(runs) = hand_over(Arc::clone(&instance), ends).await else {
                return respond(&mut writer, &nothing_to_hand_over()).await;
            };
            respond(&mut writer, &Response::Ok(serde_json::json!({ "owned": instance.owned() }))).await?;
            if !confirms || confirmation(&mut reader).await? == RUNNING {
                let _ = runs.send(());
            }
            return Ok(());
        }
        Ok(request) => follow(request, instance, ends, &mut writer).await,
        Err(error) => Response::Error(format!("not understood: {error}; is `millrace` of the same version?")),
    };
    respond(&mut writer, &response).await
}

/// What a successor says once it runs; empty, if it ended.
async fn confirmation(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut word = String::new();
    let began = tokio::time::Instant::now();
    let mut line = std::pin::pin!(reader.read_line(&mut word));
    loop {
        if let Ok(read) = tokio::time::timeout(SUCCESSOR_PATIENCE, &mut line).await {
            read?;
            break;
        }
        tracing::error!(
            waited = ?began.elapsed(),
            "the successor has queues and flows and does not say that it runs: nothing is served. Once it is ended, this \
             instance takes up service again"
        );
    }
    Ok(word.trim_end().to_owned())
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

/// Waits for the answer and tells how far it is meanwhile.
async fn follow(
    request: Request,
    instance: Arc<Instance>,
    ends: mpsc::Sender<End>,
    to: &mut WriteHalf<'_>,
) -> Response {
    let (tell, mut told) = mpsc::channel(1);
    // Whoever asked may have gone, or not read any more: what was begun is done all the same.
    let telling = async {
        while let Some(progress) = told.recv().await {
            let _ = respond(to, &Response::Progress(progress)).await;
        }
    };
    tokio::join!(answer(request, instance, ends, tell), telling).0
}

async fn answer(
    request: Request,
    instance: Arc<Instance>,
    ends: mpsc::Sender<End>,
    tell: mpsc::Sender<Value>,
) -> Response {
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
            // What could not be removed is said while all still runs.
            if let Err(error) = stop::check(&instance.config().runtime) {
                return Response::Error(error);
            }
            let left = wind_down(&instance, Duration::from_millis(drain_ms), &tell).await;
            let (done, answer) = oneshot::channel();
            let _ = ends.send(End::Stop(done)).await;
            match answer.await {
                Ok(Ok(())) => Response::Ok(draining(left, Duration::ZERO)),
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

/// Connections to endpoints, those included whose endpoint or Service was removed. Flows that ended and linger do not
/// count.
fn connections(instance: &Instance) -> u64 {
    instance.plane().as_ref().map_or(0, |plane| plane.shared.connections())
}

fn draining(connections: u64, remaining: Duration) -> Value {
    let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
    serde_json::to_value(Draining { connections, remaining_ms }).unwrap_or_default()
}

/// Takes no new flows, and waits until the others ended or the time is over; tells every second how many there are.
/// How many were left.
async fn wind_down(instance: &Instance, drain: Duration, tell: &mpsc::Sender<Value>) -> u64 {
    if drain.is_zero() {
        return connections(instance);
    }
    let (reply, done) = oneshot::channel();
    let _ = instance.events.send(Event::Wind(reply));
    let _ = done.await;
    let ends = tokio::time::Instant::now() + drain;
    tracing::info!(?drain, connections = connections(instance), "draining");
    let mut next = tokio::time::Instant::now();
    loop {
        let (now, left) = (tokio::time::Instant::now(), connections(instance));
        if left == 0 || now >= ends {
            tracing::info!(connections = left, "drained");
            return left;
        }
        if now >= next {
            // Whoever asked may be slow to read: the next line says it again.
            let _ = tell.try_send(draining(left, ends - now));
            next = now + Duration::from_secs(1);
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
    /// There is something else.
    #[error("{} is not a socket: name that of the running instance", .0.display())]
    NotASocket(PathBuf),
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
    ask_following(path, request, patience, &mut |_| {})
}

/// The same, with what is told meanwhile; `patience` is from one line to the next.
///
/// # Errors
/// If there is none, or it cannot or does not answer.
pub fn ask_following(
    path: &Path,
    request: &Request,
    patience: Duration,
    told: &mut dyn FnMut(Value),
) -> Result<Value, AskError> {
    let io = |source| AskError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::new(send(path, request, patience)?);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).map_err(io)?;
        match serde_json::from_str(&line) {
            Ok(Response::Progress(value)) => told(value),
            _ => return understand(&line, path),
        }
    }
}

/// Asks and leaves the answer to be read, at most `patience` later.
///
/// # Errors
/// If there is none to ask.
pub fn send(path: &Path, request: &Request, patience: Duration) -> Result<BlockingStream, AskError> {
    let io = |source| AskError::Io { path: path.to_owned(), source };
    let mut stream = BlockingStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused
            if std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket()) =>
        {
            AskError::NotASocket(path.to_owned())
        }
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
        Response::Progress(_) => Err(AskError::Refused("the instance is not done yet; ask it again".to_owned())),
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
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ask(&path, &Request::Hello, Duration::from_secs(1)), Err(AskError::NotASocket(_))));
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn only_a_socket_is_bound_beside_and_taken_over() {
        let folder = std::env::temp_dir().join(format!("millrace-admin-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("admin.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(Admin::bind(&path).unwrap_err().to_string().contains("is not a socket"));
        std::fs::remove_file(&path).unwrap();
        // A successor that crashed.
        drop(std::os::unix::net::UnixListener::bind(folder.join("admin.sock.4711")).unwrap());
        let admin = Admin::bind(&path).unwrap();
        assert!(!folder.join("admin.sock.4711").exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(admin.take_over().is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        admin.take_over().unwrap();
        assert!(is_there(&path).unwrap());
        drop(admin);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        std::fs::remove_dir(folder).unwrap();
    }
}
