//! Who has the interfaces: one instance at a time in a network namespace.
//!
//! An instance listens on an abstract UNIX socket named after each of its interfaces. The name goes with the process,
//! however that ends, and whoever connects is told who has it: so a successor finds its predecessor by the runtime
//! folder that they share, also where the admin socket is another one by now.

use std::io::{self, BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::admin::{self, AskError, Hello, Request};
use crate::config::Config;
use crate::run::RunError;
use crate::stop;

/// How long whoever has an interface may take to say so.
const ANSWER: Duration = Duration::from_secs(2);

/// How long one that says nothing may take to be gone, or to say something.
const PASSING: Duration = Duration::from_secs(3);

/// The instance that this one succeeds, if any runs: the one with the same runtime folder. Another one on the same
/// interfaces is an error.
///
/// # Errors
/// Which instance is in the way, and what to do about it.
pub fn predecessor(config: &Config) -> Result<Option<Hello>, RunError> {
    let mut found = at_admin(config)?;
    for interface in &config.interfaces {
        let name = &interface.name;
        if found.as_ref().is_some_and(|hello| hello.interfaces.contains(name)) {
            continue;
        }
        let Some(holder) = lasting_holder(name)? else { continue };
        if found.is_some() || !same_folder(&holder.runtime, &config.runtime) {
            return Err(RunError::Failed(in_the_way(name, &holder)));
        }
        found = Some(answering(holder)?);
    }
    Ok(found)
}

/// Who has an interface, if anybody. One that is starting, ending or cleaning up says nothing and gets a moment.
fn lasting_holder(name: &str) -> Result<Option<Hello>, RunError> {
    let deadline = Instant::now() + PASSING;
    loop {
        if lock(name)?.is_some() {
            return Ok(None);
        }
        if let Some(holder) = holder(name) {
            return Ok(Some(holder));
        }
        if Instant::now() >= deadline {
            let why = "is in use by another instance, which does not say whose it is: find it with";
            return Err(RunError::Failed(format!("{name} {why} `ss -xlp | grep millrace/{name}` and stop it")));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whoever answers at the admin socket of the configuration.
fn at_admin(config: &Config) -> Result<Option<Hello>, RunError> {
    let hello = match admin::ask(&config.admin, &Request::Hello, Duration::from_secs(5)) {
        Ok(value) => serde_json::from_value::<Hello>(value).map_err(|e| e.to_string())?,
        Err(AskError::Nobody(_)) => return Ok(None),
        Err(error @ AskError::NotASocket(_)) => return Err(RunError::Refused(format!("admin: {error}"))),
        Err(error) => return Err(RunError::Failed(format!("the running instance does not answer: {error}"))),
    };
    if !same_folder(&hello.runtime, &config.runtime) {
        return Err(RunError::Failed(format!(
            "{} is of an instance with the runtime folder {}: give this one its own `admin`, or the same `runtime`",
            config.admin.display(),
            hello.runtime.display()
        )));
    }
    Ok(Some(Hello { admin: config.admin.clone(), ..hello }))
}

/// Makes sure that it can be asked to hand over.
fn answering(holder: Hello) -> Result<Hello, RunError> {
    match admin::ask(&holder.admin, &Request::Hello, Duration::from_secs(5)) {
        Ok(_) => Ok(holder),
        Err(error) => Err(RunError::Failed(format!(
            "process {} runs with this runtime folder and cannot be asked to hand over ({error}): end it with \
             `kill {}`, then start this again; steering and flows are kept",
            holder.pid, holder.pid
        ))),
    }
}

fn in_the_way(interface: &str, holder: &Hello) -> String {
    let Hello { pid, runtime, admin, .. } = holder;
    format!(
        "{interface} is in use by process {pid}, an instance with another runtime folder, {}: stop that with `millrace \
         stop --admin {}`, or use its `runtime`",
        runtime.display(),
        admin.display()
    )
}

/// The same folder, however it is written.
fn same_folder(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    one == other || (real(one).is_some() && real(one) == real(other))
}

fn address(interface: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("millrace/{interface}"))
}

/// Claims an interface for as long as the lock lives; `None` if another process has it.
fn lock(interface: &str) -> Result<Option<UnixListener>, String> {
    match address(interface).and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(format!("cannot claim {interface}: {error}")),
    }
}

/// Who has an interface, if it says so.
fn holder(interface: &str) -> Option<Hello> {
    let stream = UnixStream::connect_addr(&address(interface).ok()?).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// Claims all interfaces; a predecessor that is ending may take a moment, up to `patience`, to let go.
///
/// # Errors
/// Which interface another process keeps.
pub fn lock_all(config: &Config, patience: Duration) -> Result<Vec<UnixListener>, String> {
    let deadline = Instant::now() + patience;
    let mut locks = Vec::new();
    for interface in &config.interfaces {
        locks.push(loop {
            match lock(&interface.name)? {
                Some(lock) => break lock,
                None if Instant::now() >= deadline => {
                    let holder = holder(&interface.name).map(|holder| in_the_way(&interface.name, &holder));
                    return Err(holder.unwrap_or_else(|| format!("{} is kept by another process", interface.name)));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        });
    }
    Ok(locks)
}

/// Claims the interfaces that are steered from this runtime folder, so that no instance begins to use what is there
/// while it is cleaned up. One that is ending may take a moment, up to `patience`; one with another folder is no
/// hindrance.
///
/// # Errors
/// Which interface an instance with this folder keeps.
pub fn keep_out(runtime: &Path, patience: Duration) -> Result<Vec<UnixListener>, String> {
    let deadline = Instant::now() + patience;
    let mut locks = Vec::new();
    // What is no pin of ours is told by who would remove it.
    for interface in xsk::pinned(&stop::pins(runtime)).unwrap_or_default() {
        loop {
            if let Some(lock) = lock(&interface)? {
                locks.push(lock);
                break;
            }
            if Instant::now() >= deadline {
                match holder(&interface) {
                    Some(holder) if !same_folder(&holder.runtime, runtime) => break,
                    _ => {
                        return Err(format!(
                            "{interface} is in use by an instance that is starting or ending: try again"
                        ));
                    }
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(locks)
}

/// Tells whoever asks who has these interfaces, until the tasks are aborted; the claims end with them.
///
/// # Errors
/// If a socket cannot be waited for.
pub fn answer(locks: Vec<UnixListener>, hello: &Hello) -> io::Result<Vec<JoinHandle<()>>> {
    let mut line = serde_json::to_vec(hello)?;
    line.push(b'\n');
    let serve = |lock: UnixListener| {
        lock.set_nonblocking(true)?;
        let lock = tokio::net::UnixListener::from_std(lock)?;
        let line = line.clone();
        Ok(tokio::spawn(async move {
            loop {
                match lock.accept().await {
                    // Whoever asks and does not read is its own affair: the line fits a socket's buffer.
                    Ok((mut stream, _)) => drop(stream.write_all(&line).await),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }))
    };
    locks.into_iter().map(serve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_has_an_interface_says_who_it_is_until_it_lets_go() {
        let name = format!("t{}", std::process::id());
        let lock_it = || lock(&name).unwrap();
        let held = lock_it().expect("free");
        assert!(lock_it().is_none());
        let hello = Hello {
            pid: 7,
            runtime: "/run/a".into(),
            interfaces: vec![name.clone()],
            metrics: None,
            admin: "/run/a/admin.sock".into(),
        };
        let tasks = answer(vec![held], &hello).unwrap();
        let (asked, expected) = (name.clone(), hello.clone());
        let told = tokio::task::spawn_blocking(move || holder(&asked)).await.unwrap();
        assert_eq!(told, Some(expected));
        let text = in_the_way(&name, &hello);
        assert!(text.contains("another runtime folder, /run/a") && text.contains("stop --admin /run/a/admin.sock"));
        for task in tasks {
            task.abort();
            assert!(task.await.is_err());
        }
        assert!(lock_it().is_some());
        assert_eq!(holder("nobody0"), None);
    }

    #[test]
    fn a_folder_is_the_same_however_it_is_written() {
        assert!(same_folder(Path::new("/run/a/"), Path::new("/run/a")));
        assert!(same_folder(Path::new("/tmp/../tmp"), Path::new("/tmp")));
        assert!(!same_folder(Path::new("/run/none-a"), Path::new("/run/none-b")));
    }
}
