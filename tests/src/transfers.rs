//! TCP transfers of some octets, in either direction.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::Host;

/// Octets of a transfer: many times what is in flight.
pub const LENGTH: usize = 4 << 20;
const END: Duration = Duration::from_secs(20);

/// Uploads or downloads; gives how many octets arrived.
///
/// # Errors
/// If the connection fails or stalls for 20 s.
pub fn transfer(target: SocketAddr, upload: bool) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect_timeout(&target, END)?;
    stream.set_read_timeout(Some(END))?;
    stream.set_write_timeout(Some(END))?;
    stream.write_all(&[u8::from(upload)])?;
    if upload {
        stream.write_all(&vec![7; LENGTH])?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        return Ok(u64::from_be_bytes(count) as usize);
    }
    let mut got = Vec::new();
    stream.read_to_end(&mut got)?;
    Ok(got.len())
}

/// Serves so many transfers on a port of all addresses of a host, both families; gives how they went.
///
/// # Panics
/// If the port is taken.
#[must_use]
pub fn serve(host: &Host, port: u16, transfers: usize) -> JoinHandle<std::io::Result<()>> {
    let listening = host.within(move || {
        let listener = TcpListener::bind(("::", port)).expect("a listener");
        std::thread::spawn(move || answer(&listener, transfers))
    });
    listening.join().expect("the server")
}

/// One at a time: the first octet says which way.
fn answer(listener: &TcpListener, transfers: usize) -> std::io::Result<()> {
    for stream in listener.incoming().take(transfers) {
        let mut stream = stream?;
        stream.set_read_timeout(Some(END))?;
        stream.set_write_timeout(Some(END))?;
        let mut upload = [0];
        stream.read_exact(&mut upload)?;
        if upload == [0] {
            stream.write_all(&vec![7; LENGTH])?;
            continue;
        }
        let mut rest = vec![0; LENGTH];
        stream.read_exact(&mut rest)?;
        stream.write_all(&(rest.len() as u64).to_be_bytes())?;
    }
    Ok(())
}
