//! Real SCTP stacks: this kernel may have none, so both ends are processes of usrsctp over raw IP (`tests/sctp/peer.c`).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::{self, Host, Process};
use crate::wait::eventually;

/// The program of both ends, built into a folder.
#[derive(Clone)]
pub struct Peer(PathBuf);

/// What an association came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The name of who answered.
    pub by: String,
    /// How long the handshake took.
    pub took: Duration,
}

/// What is asked in one association.
#[derive(Clone, Copy)]
pub struct Question {
    /// The client's own address.
    pub from: IpAddr,
    /// Whom to ask.
    pub to: SocketAddr,
    /// Messages that must come back.
    pub messages: u32,
    /// Octets of each, 65,536 at most.
    pub octets: u32,
    /// After each.
    pub pause: Duration,
}

impl Peer {
    /// # Panics
    /// If it cannot be built: clang and libusrsctp-dev must be there.
    #[must_use]
    pub fn build(dir: &Path) -> Self {
        let program = dir.join("sctp-peer");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("sctp/peer.c");
        let words = ["-Wall", "-Wextra", "-Werror", "-O1", "-o"].map(PathBuf::from);
        let libraries = ["-lusrsctp", "-lpthread"].map(PathBuf::from);
        lab::run("clang", words.into_iter().chain([program.clone(), source]).chain(libraries));
        Self(program)
    }

    /// Has a host answer its name, and whatever comes by itself, on a port of these addresses. They must not be of the
    /// loopback interface.
    ///
    /// # Panics
    /// If it does not in time.
    #[must_use]
    pub fn serve(&self, host: &Host, dir: &Path, name: &str, port: u16, addresses: &[IpAddr]) -> Process {
        let log = dir.join(format!("sctp-{name}.log"));
        let mut command = host.command(&self.0);
        command.args(["serve", name, &port.to_string()]).args(addresses.iter().map(ToString::to_string));
        let process = host.spawn(&format!("the SCTP server {name}"), command, &log);
        eventually("an SCTP server is ready", Duration::from_secs(20), || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.contains("ready") { Ok(()) } else { Err(said) }
        });
        process
    }

    /// Asks from a host, to its end.
    ///
    /// # Errors
    /// What the stack says: `connect: Connection refused`, say.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn ask(&self, host: &Host, question: &Question) -> Result<Answered, String> {
        let output = self.command(host, question).output().expect("the SCTP client starts");
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let mut words = said.split_whitespace();
        match (output.status.success(), words.next(), words.next().and_then(|ms| ms.parse().ok())) {
            (true, Some(by), Some(ms)) => Ok(Answered { by: by.to_owned(), took: Duration::from_millis(ms) }),
            _ => Err(format!("{}{}", said, errors.trim())),
        }
    }

    /// The same, to be started; not for longer than half a minute.
    #[must_use]
    pub fn command(&self, host: &Host, question: &Question) -> Command {
        let Question { from, to, messages, octets, pause } = question;
        let words = [
            from.to_string(),
            to.ip().to_string(),
            to.port().to_string(),
            messages.to_string(),
            octets.to_string(),
            pause.as_millis().to_string(),
        ];
        let mut command = host.command("timeout");
        command.arg("30").arg(&self.0).arg("ask").args(words);
        command
    }
}
