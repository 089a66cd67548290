//! Servers that say who they are and whom they saw, and clients that ask them: what a Service does to a request.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::lab::Host;

/// How long an answer may take, or nothing is heard.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Datagrams are lost on a busy machine: how often one is sent, within [`PATIENCE`].
const SENDINGS: u32 = 3;

/// What a question goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection of its own for each question.
    Tcp,
    /// A socket of its own for each question.
    Udp,
}

/// Answers `name` and the address that it was asked from, by TCP and UDP, on these ports of every address of a host; until
/// the test's process ends.
///
/// # Panics
/// If a port is taken.
pub fn stand(host: &Host, name: &str, ports: &[u16]) {
    for &port in ports {
        let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
        let started = host.within(move || {
            // Of both families: IPv4 comes as mapped addresses.
            let any = SocketAddr::new("::".parse().expect("an address"), port);
            let (listener, socket) = (TcpListener::bind(any).expect("a port"), UdpSocket::bind(any).expect("a port"));
            thread::spawn(move || answer_connections(&listener, &tcp_name));
            thread::spawn(move || answer_datagrams(&socket, &udp_name));
        });
        started.join().expect("the servers");
    }
}

fn answer_connections(listener: &TcpListener, name: &str) {
    while let Ok((mut stream, peer)) = listener.accept() {
        // Who asks may have gone.
        let _ = stream.write_all(saying(name, peer).as_bytes());
    }
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    let mut question = [0; 64];
    while let Ok((_, peer)) = socket.recv_from(&mut question) {
        let _ = socket.send_to(saying(name, peer).as_bytes(), peer);
    }
}

fn saying(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}", peer.ip().to_canonical())
}

/// What came of one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Who answered, and which address it saw.
    From(String, IpAddr),
    /// A reset, or an ICMP error that says so.
    Refused,
    /// Nothing.
    Silence,
    /// What else there may be: an ICMP error of another kind.
    Error(ErrorKind),
}

/// Asks once, from the host that the thread is in.
#[must_use]
pub fn ask(transport: Transport, target: SocketAddr) -> Answer {
    let heard = match transport {
        Transport::Tcp => by_connection(target),
        Transport::Udp => by_datagram(target),
    };
    match heard {
        Ok(text) => said(&text).unwrap_or(Answer::Error(ErrorKind::InvalidData)),
        Err(error) => match error.kind() {
            // What is rejected on its way out of a host is not permitted there.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::PermissionDenied => Answer::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Answer::Silence,
            other => Answer::Error(other),
        },
    }
}

fn said(text: &str) -> Option<Answer> {
    let (name, address) = text.split_once(' ')?;
    Some(Answer::From(name.to_owned(), address.parse().ok()?))
}

fn by_connection(target: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn by_datagram(target: SocketAddr) -> std::io::Result<String> {
    let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(PATIENCE / SENDINGS))?;
    let mut text = [0; 256];
    let mut heard = Err(ErrorKind::TimedOut.into());
    for _ in 0..SENDINGS {
        // An error that an earlier datagram met is told by whatever is called next.
        heard = socket.send(b"who?").and_then(|_| socket.recv(&mut text));
        if !matches!(&heard, Err(error) if error.kind() == ErrorKind::WouldBlock) {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&text[..heard?]).into_owned())
}

/// What came of many questions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Who answered.
    pub by: BTreeSet<String>,
    /// Which addresses they saw.
    pub saw: BTreeSet<IpAddr>,
    /// Whether one was refused.
    pub refused: bool,
    /// Whether one was left without an answer.
    pub silence: bool,
    /// What else there was.
    pub errors: BTreeSet<String>,
}

impl Heard {
    /// Takes the answer to one more question.
    pub fn add(&mut self, answer: Answer) {
        match answer {
            Answer::From(name, address) => {
                self.by.insert(name);
                self.saw.insert(address);
            }
            Answer::Refused => self.refused = true,
            Answer::Silence => self.silence = true,
            Answer::Error(kind) => {
                self.errors.insert(kind.to_string());
            }
        }
    }

    /// Whether there was no answer but this kind of none.
    #[must_use]
    pub fn is_only(&self, answer: &Answer) -> bool {
        let mut only = Self::default();
        only.add(answer.clone());
        *self == only
    }

    /// Whether every question was answered.
    #[must_use]
    pub fn all_answered(&self) -> bool {
        !self.by.is_empty() && !self.refused && !self.silence && self.errors.is_empty()
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.by.is_empty() {
            let by: Vec<&str> = self.by.iter().map(String::as_str).collect();
            let saw: Vec<String> = self.saw.iter().map(ToString::to_string).collect();
            parts.push(format!("{} saw {}", by.join(" "), saw.join(" ")));
        }
        parts.extend(self.refused.then(|| "refused".to_owned()));
        parts.extend(self.silence.then(|| "silence".to_owned()));
        parts.extend(self.errors.iter().cloned());
        f.write_str(&parts.join(", "))
    }
}
