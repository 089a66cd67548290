//! UDP: an echo, and sockets that ask it without end.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::Host;
use crate::wait::eventually;

/// How long a socket waits for an answer before it asks again.
const PACE: Duration = Duration::from_millis(5);

/// Sends every datagram back that comes to `address` of a host, until the test's process ends.
///
/// # Panics
/// If the address is taken.
pub fn echo(host: &Host, address: SocketAddr) {
    let (ready, wait) = std::sync::mpsc::channel();
    host.within(move || {
        let socket = UdpSocket::bind(address).expect("a socket");
        ready.send(()).expect("the test waits");
        let mut datagram = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
    wait.recv_timeout(Duration::from_secs(5)).expect("the echo is there");
}

/// Datagrams of each length there and back, from several ports; panics where one does not come back after some tries.
///
/// # Panics
/// If one does not come back whole within 20 s.
pub fn exchange(client: &Host, target: SocketAddr, lengths: &[usize]) {
    let lengths = lengths.to_vec();
    let exchanged = client.within(move || {
        let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        for round in 0..4u8 {
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            socket.connect(target).expect("a route");
            for length in &lengths {
                let sent: Vec<u8> = (0..*length).map(|n| (n % 251) as u8 ^ round).collect();
                let mut got = vec![0; 65_535];
                eventually(&format!("{length} octets come back from {target}"), Duration::from_secs(20), || {
                    socket.send(&sent).map_err(|error| error.to_string())?;
                    let length = socket.recv(&mut got).map_err(|error| error.to_string())?;
                    if got[..length] == sent { Ok(()) } else { Err(format!("{length} other octets")) }
                });
            }
        }
    });
    exchanged.join().expect("the exchange");
}

/// Sockets that ask the same target again and again until [`Asking::finish`].
pub struct Asking {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens `sockets` sockets that ask `target`, each for the next time after an answer or 5 ms without.
#[must_use]
pub fn ask(client: &Host, target: SocketAddr, sockets: usize) -> Asking {
    let stop = Arc::new(AtomicBool::new(false));
    let (answered, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let threads = (0..sockets).map(|_| {
        let (stop, answered, refused) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&refused));
        client.within(move || {
            let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.set_read_timeout(Some(PACE)).expect("a timeout");
            socket.connect(target).expect("a route");
            while !stop.load(Ordering::Relaxed) {
                // An ICMP error is told by whatever is called next.
                match socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 64])) {
                    Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                };
                std::thread::park_timeout(PACE);
            }
        })
    });
    let threads = threads.collect();
    Asking { stop, answered, refused, threads }
}

impl Asking {
    /// Waits until `more` further answers came.
    pub fn await_answers(&self, more: u64, deadline: Duration) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        eventually("datagrams are answered", deadline, || {
            let now = self.answered.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        });
    }

    /// Waits until the kernel told a socket of an error.
    pub fn await_refusal(&self, deadline: Duration) {
        eventually("a datagram is refused", deadline, || {
            let [answered, refused] = [&self.answered, &self.refused].map(|count| count.load(Ordering::Relaxed));
            if refused > 0 { Ok(()) } else { Err(format!("none, and {answered} are answered")) }
        });
    }

    /// Ends it; answers, and errors that the kernel told of.
    ///
    /// # Panics
    /// If a socket could not be opened.
    #[must_use]
    pub fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a socket");
        }
        (self.answered.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}
