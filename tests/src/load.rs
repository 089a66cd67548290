//! Load from a client host: many short HTTP requests, or connections that stay.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lab::Host;
use crate::wait::eventually;

/// What came of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests answered with 200.
    pub answered: u64,
    /// Requests that failed, by message.
    pub failures: BTreeMap<String, u64>,
    /// First word of the answers: who answered, how often.
    pub by_server: BTreeMap<String, u64>,
    /// How long connects of [`requests`] took that succeeded, in the order in which they began.
    pub connects: Vec<Duration>,
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.answered += other.answered;
        for (message, count) in other.failures {
            *self.failures.entry(message).or_default() += count;
        }
        for (server, count) in other.by_server {
            *self.by_server.entry(server).or_default() += count;
        }
    }

    fn count(&mut self, result: std::io::Result<String>) -> bool {
        match result {
            Ok(server) => {
                self.answered += 1;
                *self.by_server.entry(server).or_default() += 1;
                true
            }
            Err(error) => {
                *self.failures.entry(error.to_string()).or_default() += 1;
                false
            }
        }
    }
}

const TIMEOUT: Duration = Duration::from_secs(10);
/// The same of connections that stay and of requests without end, which meet restarts: a kernel waits twice as long
/// each time before it sends again what nobody answers.
const LASTING: Duration = Duration::from_secs(30);

/// `requests` HTTP requests, each on a connection of its own, `at_once` at a time.
///
/// # Panics
/// If a thread of the load panics.
#[must_use]
pub fn requests(client: &Host, target: SocketAddr, requests: usize, at_once: usize) -> Outcome {
    requests_within(client, target, requests, at_once, TIMEOUT)
}

/// The same by clients who wait no longer than so long for a connection.
///
/// # Panics
/// If a thread of the load panics.
#[must_use]
pub fn requests_within(
    client: &Host,
    target: SocketAddr,
    requests: usize,
    at_once: usize,
    patience: Duration,
) -> Outcome {
    let left = Arc::new(AtomicUsize::new(requests));
    let work = move || {
        let threads: Vec<JoinHandle<(Outcome, Connects)>> = (0..at_once)
            .map(|_| {
                let left = Arc::clone(&left);
                thread::spawn(move || {
                    let (mut outcome, mut connects) = (Outcome::default(), Connects::new());
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                        let begun = Instant::now();
                        outcome.count(connect_within(target, patience).and_then(|mut stream| {
                            connects.push((begun, begun.elapsed()));
                            request(&mut stream, false)
                        }));
                    }
                    (outcome, connects)
                })
            })
            .collect();
        let (mut total, mut connects) = (Outcome::default(), Connects::new());
        for thread in threads {
            let (outcome, its_connects) = thread.join().expect("a thread of the load");
            total.add(outcome);
            connects.extend(its_connects);
        }
        connects.sort_unstable();
        total.connects = connects.into_iter().map(|(_, took)| took).collect();
        total
    };
    client.within(work).join().expect("the load")
}

/// When connects began, and how long they took.
type Connects = Vec<(Instant, Duration)>;

/// Requests that go on until [`Steady::finish`], each on a connection of its own.
pub struct Steady {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Outcome>,
}

/// Makes requests, `at_once` at a time and as fast as they are answered, until told to stop.
#[must_use]
pub fn steady(client: &Host, target: SocketAddr, at_once: usize) -> Steady {
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stop_in, answered_in) = (Arc::clone(&stop), Arc::clone(&answered));
    let thread = client.within(move || {
        let threads = (0..at_once).map(|_| {
            let (stop, answered) = (Arc::clone(&stop_in), Arc::clone(&answered_in));
            thread::spawn(move || {
                let mut outcome = Outcome::default();
                while !stop.load(Ordering::Relaxed) {
                    let result = connect_within(target, LASTING).and_then(|mut stream| request(&mut stream, false));
                    answered.fetch_add(u64::from(outcome.count(result)), Ordering::Relaxed);
                }
                outcome
            })
        });
        collect(threads.collect())
    });
    Steady { stop, answered, thread }
}

impl Steady {
    /// Answers so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `more` further answers came.
    pub fn await_answers(&self, more: u64, deadline: Duration) {
        let goal = self.answered() + more;
        eventually("requests are answered", deadline, || {
            let now = self.answered();
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        });
    }

    /// Ends the load and says what came of it.
    ///
    /// # Panics
    /// If a thread of the load panics.
    #[must_use]
    pub fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load")
    }
}

/// Connections that stay open and ask again and again until [`Held::finish`].
pub struct Held {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    /// Connections that were answered at least once.
    opened: Arc<AtomicUsize>,
    connections: usize,
    thread: JoinHandle<Outcome>,
}

/// Opens `connections` connections and has each ask every `pause`.
#[must_use]
pub fn hold(client: &Host, target: SocketAddr, connections: usize, pause: Duration) -> Held {
    let stop = Arc::new(AtomicBool::new(false));
    let (answered, opened) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let (stop_in, answered_in, opened_in) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&opened));
    let thread = client.within(move || {
        let threads = (0..connections)
            .map(|_| {
                let (stop, answered, opened) = (Arc::clone(&stop_in), Arc::clone(&answered_in), Arc::clone(&opened_in));
                thread::spawn(move || ask_until(target, pause, &stop, &answered, &opened))
            })
            .collect();
        collect(threads)
    });
    Held { stop, answered, opened, connections, thread }
}

impl Held {
    /// Answers so far, all connections together.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until each connection was answered and `more` further answers came.
    pub fn await_answers(&self, more: u64, deadline: Duration) {
        self.await_each(deadline);
        let goal = self.answered() + more;
        eventually("held connections are answered", deadline, || {
            let now = self.answered();
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        });
    }

    /// Waits until each connection was answered: a slow one may be still to come when others have many answers.
    pub fn await_each(&self, deadline: Duration) {
        eventually("every held connection is answered", deadline, || {
            let now = self.opened.load(Ordering::Relaxed);
            if now == self.connections { Ok(()) } else { Err(format!("{now} of {}", self.connections)) }
        });
    }

    /// Ends the load and says what came of it.
    ///
    /// # Panics
    /// If a thread of the load panics.
    #[must_use]
    pub fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load")
    }
}

fn ask_until(
    target: SocketAddr,
    pause: Duration,
    stop: &AtomicBool,
    answered: &AtomicU64,
    opened: &AtomicUsize,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut stream = match connect_within(target, LASTING) {
        Ok(stream) => stream,
        Err(error) => {
            outcome.count(Err(error));
            return outcome;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        if !outcome.count(request(&mut stream, true)) {
            break;
        }
        if outcome.answered == 1 {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        answered.fetch_add(1, Ordering::Relaxed);
        let next = Instant::now() + pause;
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
    }
    outcome
}

/// Requests at fixed times: each of `clients` makes one `every` so often while `during` lasts, on its one connection where
/// it is to `keep` it, else each on a connection of its own. Who is late goes on at once, so that what was answered is what
/// the path let through.
#[must_use]
pub fn paced(
    client: &Host,
    target: SocketAddr,
    clients: usize,
    every: Duration,
    during: Duration,
    keep: bool,
) -> JoinHandle<Outcome> {
    client.within(move || {
        let begun = Instant::now();
        let one = move || {
            let (mut outcome, mut kept) = (Outcome::default(), None);
            for due in (0..).map(|n| begun + every * n).take_while(|due| *due < begun + during) {
                while Instant::now() < due {
                    thread::park_timeout(due.saturating_duration_since(Instant::now()));
                }
                // Late beyond the end, it was not let through.
                if Instant::now() >= begun + during {
                    break;
                }
                let stream = kept.take().map_or_else(|| connect(target), Ok);
                let answer = stream.and_then(|mut stream| request(&mut stream, keep).map(|server| (server, stream)));
                let whole = answer.map(|(server, stream)| {
                    kept = Some(stream).filter(|_| keep);
                    server
                });
                outcome.count(whole);
            }
            outcome
        };
        collect((0..clients).map(|_| thread::spawn(one)).collect())
    })
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    connect_within(target, TIMEOUT)
}

fn connect_within(target: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, patience)
        .map_err(|e| std::io::Error::new(e.kind(), format!("connect: {e}")))?;
    stream.set_read_timeout(Some(patience.max(TIMEOUT)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request; the first word of the answer's body.
fn request(stream: &mut TcpStream, keep: bool) -> std::io::Result<String> {
    let connection = if keep { "keep-alive" } else { "close" };
    write!(stream, "GET / HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n")?;
    let mut text = Vec::new();
    let mut chunk = [0; 2048];
    loop {
        let count = stream.read(&mut chunk).map_err(|e| std::io::Error::new(e.kind(), format!("read: {e}")))?;
        text.extend_from_slice(&chunk[..count]);
        if let Some(body) = whole_body(&text) {
            return Ok(body.split_whitespace().next().unwrap_or("").to_owned());
        }
        if count == 0 {
            return Err(std::io::Error::other(format!("closed after {} octets", text.len())));
        }
    }
}

fn whole_body(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200") {
        return None;
    }
    let length: usize =
        head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
    (body.len() >= length).then_some(&body[..length])
}

fn collect(threads: Vec<JoinHandle<Outcome>>) -> Outcome {
    let mut total = Outcome::default();
    for thread in threads {
        total.add(thread.join().expect("a thread of the load"));
    }
    total
}
