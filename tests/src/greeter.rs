//! An ssh-like service: it greets whoever connects, and closes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::Host;

/// Listens on `address` of a host and greets the next 20 connections.
///
/// # Panics
/// If it cannot listen.
pub fn greeter(host: &Host, address: &'static str) {
    let (ready, wait) = std::sync::mpsc::channel();
    host.within(move || {
        let listener = TcpListener::bind(address).expect("to listen");
        ready.send(()).expect("the test waits");
        for stream in listener.incoming().take(20) {
            let _ = stream.and_then(|mut s| s.write_all(b"hello"));
        }
    });
    wait.recv_timeout(Duration::from_secs(5)).expect("the greeter listens");
}

/// How long a connection and a greeting may take: what a busy machine loses is sent again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a host that connects to `address` is greeted.
///
/// # Panics
/// If the address is none.
#[must_use]
pub fn greeted(from: &Host, address: &'static str) -> bool {
    from.within(move || {
        let target = address.parse().expect("an address");
        let Ok(mut stream) = TcpStream::connect_timeout(&target, PATIENCE) else { return false };
        let mut text = String::new();
        let is_read = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.read_to_string(&mut text));
        is_read.is_ok() && text == "hello"
    })
    .join()
    .expect("the connection")
}
