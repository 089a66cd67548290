//! The load: each connection asks for one page, reads it to the end of the connection, and is gone.
//!
//! A connection's time is from its start (at a rate: from when it was due, also if the load is late) until the last octet
//! of its answer. One thread, the same for every contender.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::LocalSet;

use crate::cores::{self, Reading};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: millrace\r\nConnection: close\r\n\r\n";
/// After which time a connection failed.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most connections at once at a rate: what is due beyond fails.
const MOST_AT_ONCE: usize = 4096;
/// What longer times are taken for.
const LONGEST_NS: u64 = 10_000_000_000;

/// How connections follow each other.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many at once: when one ends the next starts.
    AtOnce(usize),
    /// So many a second, evenly, however long they take.
    Rate(u32),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connected to in turn.
    pub targets: Vec<SocketAddr>,
    /// How connections follow each other.
    pub pace: Pace,
    /// Before what counts.
    pub warm_up: Duration,
    /// What counts.
    pub counted: Duration,
    /// Where it runs.
    pub core: usize,
    /// Whose work is looked at.
    pub watched: usize,
}

/// What came of it in the time that counts.
pub struct Outcome {
    /// Connections that were answered.
    pub answered: u64,
    /// Connections that failed, and how the first did.
    pub failed: u64,
    /// How the first of them failed.
    pub failure: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// How long the watched core was busy.
    pub busy: Duration,
    /// Nanoseconds a connection.
    pub latency: Histogram<u64>,
}

struct Count {
    counting: Cell<bool>,
    open: Cell<usize>,
    started: Cell<usize>,
    failed: Cell<u64>,
    failure: RefCell<Option<String>>,
    latency: RefCell<Histogram<u64>>,
}

impl Load {
    /// Does it, on the calling thread.
    ///
    /// # Panics
    /// If the thread cannot be bound to its core or has no means to wait.
    pub fn run(self) -> Outcome {
        cores::bind_this_thread(self.core);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let count = Rc::new(Count {
            counting: Cell::new(false),
            open: Cell::new(0),
            started: Cell::new(0),
            failed: Cell::new(0),
            failure: RefCell::new(None),
            latency: RefCell::new(Histogram::new_with_max(LONGEST_NS, 3).expect("three digits are possible")),
        });
        let set = LocalSet::new();
        let (first, last) = set.block_on(&runtime, self.drive(&count));
        let latency = count.latency.borrow().clone();
        Outcome {
            answered: latency.len(),
            failed: count.failed.get(),
            failure: count.failure.borrow_mut().take(),
            elapsed: last.elapsed_since(&first),
            busy: last.busy_since(&first),
            latency,
        }
    }

    async fn drive(&self, count: &Rc<Count>) -> (Reading, Reading) {
        match self.pace {
            Pace::AtOnce(connections) => {
                for _ in 0..connections {
                    let (load, count) = (self.clone(), Rc::clone(count));
                    tokio::task::spawn_local(async move {
                        loop {
                            load.one(&count, Instant::now()).await;
                        }
                    });
                }
            }
            Pace::Rate(rate) => {
                let (load, count) = (self.clone(), Rc::clone(count));
                tokio::task::spawn_local(async move { load.keep_rate(rate, &count).await.expect("a timer") });
            }
        }
        tokio::time::sleep(self.warm_up).await;
        count.counting.set(true);
        let first = cores::read(self.watched);
        tokio::time::sleep(self.counted).await;
        count.counting.set(false);
        (first, cores::read(self.watched))
    }

    /// Starts connections when they are due.
    async fn keep_rate(&self, rate: u32, count: &Rc<Count>) -> io::Result<()> {
        let period = Duration::from_secs(1) / rate;
        let (mut ticks, pacer) = UnixStream::pair()?;
        let pacer = pacer.into_std()?;
        pacer.set_nonblocking(false)?;
        let start = Instant::now();
        let core = self.core;
        std::thread::spawn(move || pace(pacer, start, period, core));
        let mut due = 0;
        let mut expired = [0; 256];
        loop {
            for _ in 0..ticks.read(&mut expired).await? {
                due += 1;
                let at = start + period * due;
                if count.open.get() >= MOST_AT_ONCE {
                    count.fail("too many are open: the rate is more than what forwards can do".to_owned());
                    continue;
                }
                let (load, count) = (self.clone(), Rc::clone(count));
                tokio::task::spawn_local(async move { load.one(&count, at).await });
            }
        }
    }

    /// One connection, which was due at `start`.
    async fn one(&self, count: &Count, start: Instant) {
        let number = count.started.replace(count.started.get() + 1);
        count.open.set(count.open.get() + 1);
        let asked = tokio::time::timeout(TIMEOUT, ask(self.targets[number % self.targets.len()])).await;
        count.open.set(count.open.get() - 1);
        match asked.unwrap_or_else(|_| Err(io::Error::other(format!("no answer within {TIMEOUT:?}")))) {
            Ok(end) if count.counting.get() => {
                count.latency.borrow_mut().saturating_record((end - start).as_nanos() as u64);
            }
            Ok(_) => {}
            Err(error) => count.fail(error.to_string()),
        }
    }
}

impl Count {
    fn fail(&self, message: String) {
        self.failed.set(self.failed.get() + 1);
        self.failure.borrow_mut().get_or_insert(message);
    }
}

/// Connects, asks, reads to the end; when the last octet came.
async fn ask(target: SocketAddr) -> io::Result<Instant> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = [0; 1024];
    let mut len = 0;
    let mut last = Instant::now();
    loop {
        let count = stream.read(&mut answer[len..]).await?;
        if count == 0 {
            break;
        }
        last = Instant::now();
        len += count;
    }
    if !answer[..len].starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("{len} octets that are no answer")));
    }
    Ok(last)
}

/// Sends an octet whenever a connection is due, until nobody reads them: finer than the runtime's timers, which know
/// milliseconds.
fn pace(mut ticks: std::os::unix::net::UnixStream, start: Instant, period: Duration, core: usize) {
    cores::bind_this_thread(core);
    let _ = nix::sys::prctl::set_timerslack(1);
    for due in 1.. {
        std::thread::sleep((start + period * due).saturating_duration_since(Instant::now()));
        if ticks.write_all(&[0]).is_err() {
            return;
        }
    }
}
